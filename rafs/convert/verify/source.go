package verify

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// digests are the SHA-256 of the files of a layer, in a file: a file of the tree
// has one chunk, whose number is the place of its digest.
type digests struct {
	layer uint32
	file  *os.File
	out   *bufio.Writer
	n     uint32
}

func newDigests(layer uint32, dir string) (*digests, error) {
	f, err := os.CreateTemp(dir, "digests-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	return &digests{layer: layer, file: f, out: bufio.NewWriter(f)}, nil
}

// File hashes a file instead of cutting it into chunks.
func (d *digests) File(r io.Reader, _ int64, add func(chunk.Ref) error) error {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if _, err := d.out.Write(h.Sum(nil)); err != nil {
		return err
	}
	d.n++
	return add(chunk.Ref{Blob: d.layer, Index: d.n - 1})
}

func (d *digests) read(index uint32) (sum [sha256.Size]byte, err error) {
	_, err = d.file.ReadAt(sum[:], int64(index)*sha256.Size)
	return sum, err
}

// sourceTree is the tree of the source, and what its files hash to.
type sourceTree struct {
	*tree.Tree
	layers []*digests
}

func (s *sourceTree) Close() error {
	var errs []error
	if s.Tree != nil {
		errs = append(errs, s.Tree.Close())
	}
	for _, d := range s.layers {
		errs = append(errs, d.file.Close())
	}
	return errors.Join(errs...)
}

// sum is what the content of a file hashes to.
func (s *sourceTree) sum(n *tree.Node) ([sha256.Size]byte, error) {
	for ref, err := range s.Refs(n) {
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		return s.layers[ref.Blob].read(ref.Index)
	}
	return sha256.Sum256(nil), nil // an empty file
}

// readSource applies the layers of the source.
func (v *verification) readSource(ctx context.Context) (s *sourceTree, err error) {
	s = &sourceTree{}
	var layers []*tree.Layer
	defer func() {
		if err != nil {
			for _, l := range layers {
				_ = l.Close() // Merge has taken them over, or nobody will
			}
			_ = s.Close()
			s = nil
		}
	}()
	ids := v.source.file.RootFS.DiffIDs
	if len(ids) != len(v.source.manifest.Layers) {
		return s, fmt.Errorf("config: %d layers, the manifest has %d", len(ids), len(v.source.manifest.Layers))
	}
	for i, d := range v.source.manifest.Layers {
		sums, err := newDigests(uint32(i), v.dir)
		if err != nil {
			return s, err
		}
		s.layers = append(s.layers, sums)
		l, err := v.readLayer(ctx, d, ids[i], sums)
		if err != nil {
			return s, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(ids), d.Digest, err)
		}
		layers = append(layers, l)
	}
	s.Tree, err = tree.Merge(ctx, v.dir, layers...)
	return s, err
}

func (v *verification) readLayer(ctx context.Context, d v1.Descriptor, diffID v1.Hash, sums *digests) (*tree.Layer, error) {
	raw, err := store.Verified(ctx, v.o.Source, d)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	shown := &shown{r: raw, tell: v.tell, event: Event{What: "layer", Digest: d.Digest.String(), Total: d.Size}}
	plain, err := tree.Decompress(bufio.NewReaderSize(shown, 128<<10))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	h := sha256.New()
	hashed := io.TeeReader(plain, h)
	l, err := tree.ReadTar(ctx, hashed, sums, tree.ReadOptions{Limits: v.o.Limits, TempDir: v.dir})
	if err == nil {
		_, err = io.Copy(io.Discard, hashed)
	}
	// A layer that is not what the manifest says is that, whatever its tar seemed to be.
	if verifyErr := raw.Verify(); verifyErr != nil {
		err = verifyErr
	}
	if got := hex.EncodeToString(h.Sum(nil)); err == nil && got != diffID.Hex {
		err = fmt.Errorf("unpacked digest sha256:%s, the image's configuration says %s", got, diffID)
	}
	if err == nil {
		err = sums.out.Flush()
	}
	if err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	shown.end()
	return l, nil
}
