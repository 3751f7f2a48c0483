package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
)

// blobs reads every blob of the image and returns where they can be read from now
// on; nil where that was not asked for.
func (v *verification) blobs(ctx context.Context) (backend.Backend, error) {
	wanted, err := v.wanted(ctx)
	if err != nil {
		return nil, err
	}
	if v.o.SkipData {
		return nil, v.sizes(ctx, wanted)
	}
	dir := filepath.Join(v.dir, "blobs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if len(v.target.manifest.Layers) == 1 && v.o.Backend != nil {
		return keepOpen{v.o.Backend}, v.elsewhere(ctx)
	}
	for _, d := range wanted {
		err := v.fetchBlob(ctx, d, filepath.Join(dir, d.Digest.Hex))
		var wrong *wrongBlob
		switch {
		case errors.As(err, &wrong):
			v.find(Blob, d.Digest.String(), "%v", wrong.err)
		case err != nil:
			return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
		}
	}
	return localfs.New(dir)
}

// elsewhere reads the blobs of a backend, unless that is done by comparing, which
// verifies every chunk that it reads.
func (v *verification) elsewhere(ctx context.Context) error {
	if v.im == nil || v.source != nil {
		return nil
	}
	for _, b := range v.im.Blobs() {
		err := v.hash(ctx, b.ID)
		var wrong *wrongBlob
		switch {
		case errors.As(err, &wrong):
			v.find(Blob, b.ID, "%v", wrong.err)
		case err != nil:
			return fmt.Errorf("blob %s: %w", b.ID, err)
		}
	}
	return nil
}

// hash reads a blob of the backend, whose id is the digest of its bytes.
func (v *verification) hash(ctx context.Context, id string) error {
	r, err := v.o.Backend.Open(id)
	if err != nil {
		return err
	}
	size, err := r.Size(ctx)
	if errors.Is(err, backend.ErrNotFound) {
		return &wrongBlob{errors.New("is not there")}
	}
	if err != nil {
		return err
	}
	shown := &shown{r: backend.Stream(ctx, r, 0, size), tell: v.tell, event: Event{What: "blob", Digest: "sha256:" + id, Total: size}}
	sum := sha256.New()
	if _, err := io.Copy(sum, shown); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != id {
		return &wrongBlob{fmt.Errorf("%w: its %d bytes have the SHA-256 %s", blob.ErrDigest, size, got)}
	}
	shown.end()
	v.report.Blobs++
	v.report.BlobBytes += size
	return nil
}

// keepOpen is a backend that somebody else closes.
type keepOpen struct{ backend.Backend }

func (keepOpen) Close() error { return nil }

// wanted are the blobs of the manifest, and the OCI layers that some refer to.
func (v *verification) wanted(ctx context.Context) ([]v1.Descriptor, error) {
	var list []v1.Descriptor
	seen := map[v1.Hash]bool{}
	layers := v.target.manifest.Layers
	for _, d := range layers[:len(layers)-1] {
		if !seen[d.Digest] {
			list = append(list, d)
		}
		seen[d.Digest] = true
		h, err := v1.NewHash(d.Annotations[artifact.AnnotationRef])
		if err != nil || seen[h] {
			continue // a wrong one has been found already
		}
		seen[h] = true
		size, err := v.o.Target.Stat(ctx, h)
		if errors.Is(err, store.ErrNotFound) {
			v.find(Blob, h.String(), "the layer that blob %s refers to is not there", d.Digest)
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, v1.Descriptor{Digest: h, Size: size})
	}
	return list, nil
}

// sizes asks for blobs without reading them.
func (v *verification) sizes(ctx context.Context, wanted []v1.Descriptor) error {
	for _, d := range wanted {
		size, err := v.o.Target.Stat(ctx, d.Digest)
		switch {
		case errors.Is(err, store.ErrNotFound):
			v.find(Blob, d.Digest.String(), "is not there")
		case err != nil:
			return err
		case size != d.Size:
			v.find(Blob, d.Digest.String(), "%d bytes, its descriptor says %d", size, d.Size)
		}
	}
	return nil
}

// wrongBlob is a blob that is not what the manifest says, which is a finding.
type wrongBlob struct{ err error }

func (e *wrongBlob) Error() string { return e.err.Error() }
func (e *wrongBlob) Unwrap() error { return e.err }

func (v *verification) fetchBlob(ctx context.Context, d v1.Descriptor, path string) error {
	r, err := store.Verified(ctx, v.o.Target, d)
	if err != nil {
		if _, statErr := v.o.Target.Stat(ctx, d.Digest); errors.Is(statErr, store.ErrNotFound) {
			return &wrongBlob{errors.New("is not there")}
		}
		return err
	}
	defer r.Close()
	shown := &shown{r: r, tell: v.tell, event: Event{What: "blob", Digest: d.Digest.String(), Total: d.Size}}
	if err := writeFile(path, shown); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err := r.Verify(); errors.Is(err, blob.ErrDigest) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &wrongBlob{err}
	} else if err != nil {
		return err
	}
	shown.end()
	v.report.Blobs++
	v.report.BlobBytes += d.Size
	return nil
}

// shown tells what passes.
type shown struct {
	r     io.Reader
	tell  func(Event)
	event Event
	told  int64
}

// step is how many bytes pass between two events.
const step = 256 << 10

func (s *shown) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.event.Done += int64(n)
	if s.event.Done-s.told >= step {
		s.told = s.event.Done
		s.tell(s.event)
	}
	return n, err
}

func (s *shown) end() {
	s.event.Over = true
	s.tell(s.event)
}
