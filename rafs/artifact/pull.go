package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
)

// ErrNotRAFS means that an image exists but is no RAFS image.
var ErrNotRAFS = errors.New("not a RAFS image")

// Artifact is a RAFS image whose bootstrap is on disk.
type Artifact struct {
	// Digest is that of the manifest.
	Digest v1.Hash
	// Repo is where the blobs are.
	Repo name.Repository
	// BootstrapPath is the bootstrap, in the folder that Pull was given.
	BootstrapPath string
	// BootstrapSHA256 is the digest of that file, from verified bytes.
	BootstrapSHA256 [sha256.Size]byte
	// FSVersion is "5", "6" or, if the image does not say, empty.
	FSVersion string
	// BlobIDs are the data blobs in the manifest's order, as hex SHA-256.
	BlobIDs []string
	// Config is the image's configuration.
	Config *v1.ConfigFile
}

// Pull fetches the bootstrap of the RAFS image that ref names, and its configuration,
// unless dir has them already: then a reference by digest needs no registry, and one
// by tag only what the tag means now. The error wraps ErrNotRAFS if it is another
// kind of image.
func Pull(ctx context.Context, ref string, o Options, dir string) (*Artifact, error) {
	o.documents = &documents{dir: dir}
	parsed, err := o.Parse(ref)
	if err != nil {
		return nil, err
	}
	m, err := FetchManifest(ctx, parsed, o, Marked)
	if err != nil {
		return nil, err
	}
	layer, ok := Bootstrap(m.Manifest)
	if !ok {
		return nil, fmt.Errorf("%s (%s): %w: its last layer has no annotation %s", ref, m.Digest, ErrNotRAFS, AnnotationBootstrap)
	}
	a := &Artifact{Digest: m.Digest, Repo: m.Repo, FSVersion: layer.Annotations[AnnotationFSVersion]}
	for _, d := range m.Layers[:len(m.Layers)-1] {
		a.BlobIDs = append(a.BlobIDs, d.Digest.Hex)
	}
	raw, ok := o.documents.load(m.Config.Digest, configDocument, MaxConfig)
	if !ok {
		if raw, err = FetchBlob(ctx, m.Repo, m.Config, MaxConfig, o); err != nil {
			return nil, fmt.Errorf("config of %s: %w", ref, err)
		}
		o.documents.add(m.Config.Digest, configDocument, raw)
	}
	if a.Config, err = v1.ParseConfigFile(bytes.NewReader(raw)); err != nil {
		return nil, fmt.Errorf("config of %s: %w", ref, err)
	}
	if err := a.bootstrap(ctx, layer, o, dir); err != nil {
		return nil, fmt.Errorf("bootstrap of %s: %w", ref, err)
	}
	o.documents.keep()
	return a, nil
}

const bootSuffix = ".boot"

// bootstrap finds the bootstrap of a layer in dir or fetches it. The file is
// named by the digest of the layer and by its own, LAYER-FILE.boot, so that it
// can be looked up by the one and verified by the other.
func (a *Artifact) bootstrap(ctx context.Context, layer v1.Descriptor, o Options, dir string) error {
	if layer.Digest.Algorithm != "sha256" {
		return fmt.Errorf("digest %s: want sha256", layer.Digest)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		sum, ours := strings.CutPrefix(e.Name(), layer.Digest.Hex+"-")
		if !ours || !strings.HasSuffix(sum, bootSuffix) {
			continue
		}
		file := filepath.Join(dir, e.Name())
		if got, err := hashFile(file); err == nil && hex.EncodeToString(got[:])+bootSuffix == sum {
			a.BootstrapPath, a.BootstrapSHA256 = file, got
			return nil
		}
		if err := os.Remove(file); err != nil { // damaged: fetch it again
			return err
		}
	}
	return a.fetchBootstrap(ctx, layer, o, dir)
}

func hashFile(file string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// fetchBootstrap unpacks the layer's bootstrap while it arrives. The file gets
// its name when the whole layer has been verified.
func (a *Artifact) fetchBootstrap(ctx context.Context, layer v1.Descriptor, o Options, dir string) error {
	if layer.Size > MaxBootstrap {
		return fmt.Errorf("layer %s of %d bytes, limit %d", layer.Digest, layer.Size, MaxBootstrap)
	}
	blob, err := OpenBlob(ctx, a.Repo, layer, o)
	if err != nil {
		return err
	}
	defer blob.Close()
	tmp, err := os.CreateTemp(dir, "bootstrap-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	defer tmp.Close()
	h := sha256.New()
	meta := metaFiles{dir: dir, ids: a.BlobIDs}
	defer meta.discard()
	extractErr := extract(io.MultiWriter(tmp, h), blob, meta.add)
	// A layer that is not what the manifest says is that, whatever came out of it.
	if err := blob.Verify(); err != nil {
		return err
	}
	if extractErr != nil {
		return fmt.Errorf("layer %s: %w", layer.Digest, extractErr)
	}
	meta.keep()
	if err := tmp.Close(); err != nil {
		return err
	}
	a.BootstrapSHA256 = [sha256.Size]byte(h.Sum(nil))
	a.BootstrapPath = filepath.Join(dir, layer.Digest.Hex+"-"+hex.EncodeToString(a.BootstrapSHA256[:])+bootSuffix)
	return os.Rename(tmp.Name(), a.BootstrapPath)
}

// maxLayer bounds what a bootstrap layer may unpack to: the bootstrap, and the
// chunk information of its blobs.
const maxLayer = 2 * MaxBootstrap

// allowance is how many bytes the files of a layer may still have. What they take of
// the layer does not bound them: those that are sparse may say any size.
type allowance int64

func (a *allowance) take(size int64) bool {
	if size < 0 || size > int64(*a) {
		return false
	}
	*a -= allowance(size)
	return true
}

// ExtractBootstrap writes the bootstrap in a bootstrap layer, a tar that may be
// compressed by gzip, to w.
func ExtractBootstrap(w io.Writer, layer io.Reader) error {
	return extract(w, layer, func(string, io.Reader) {})
}

// extract is ExtractBootstrap that shows the regular files beside the bootstrap to
// other.
func extract(w io.Writer, layer io.Reader, other func(name string, r io.Reader)) error {
	plain, err := gunzip(layer)
	if err != nil {
		return err
	}
	limited := &io.LimitedReader{R: plain, N: maxLayer}
	files, found, left := tar.NewReader(limited), false, allowance(maxLayer)
	for {
		hdr, err := files.Next()
		switch {
		case limited.N == 0:
			return fmt.Errorf("unpacks to more than %d bytes", int64(maxLayer))
		case errors.Is(err, io.EOF) && found:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("no %s in it", BootstrapFile)
		case err != nil:
			return err
		case hdr.Typeflag != tar.TypeReg:
			continue
		case !left.take(hdr.Size):
			return fmt.Errorf("unpacks to more than %d bytes", int64(maxLayer))
		case path.Clean(hdr.Name) != BootstrapFile:
			other(path.Clean(hdr.Name), files)
			continue
		case found:
			return fmt.Errorf("two files %s in it", BootstrapFile)
		case hdr.Size > MaxBootstrap:
			return fmt.Errorf("%s of %d bytes, limit %d", BootstrapFile, hdr.Size, MaxBootstrap)
		}
		found = true
		if _, err := io.Copy(w, files); err != nil {
			return fmt.Errorf("%s: %w", BootstrapFile, err)
		}
	}
}

func gunzip(r io.Reader) (io.Reader, error) {
	var magic [2]byte
	n, err := io.ReadFull(r, magic[:])
	if err != nil && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(magic[:n]), r)
	if magic != [2]byte{0x1f, 0x8b} {
		return r, nil
	}
	return gzip.NewReader(r)
}
