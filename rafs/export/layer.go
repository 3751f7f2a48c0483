package export

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/image"
)

// Compression is how a layer is compressed.
type Compression uint8

// The compressions of the OCI image specification.
const (
	Gzip Compression = iota
	Zstd
	Uncompressed
)

// ParseCompression finds a compression by the name that nydusify gives it.
func ParseCompression(name string) (Compression, error) {
	switch name {
	case "gzip":
		return Gzip, nil
	case "zstd":
		return Zstd, nil
	case "uncompressed", "none":
		return Uncompressed, nil
	}
	return 0, fmt.Errorf("compression %q, want gzip, zstd or uncompressed", name)
}

// MediaType is that of a layer which is compressed so.
func (c Compression) MediaType() types.MediaType {
	switch c {
	case Zstd:
		return types.OCILayerZStd
	case Uncompressed:
		return types.OCIUncompressedLayer
	}
	return types.OCILayer
}

// LayerOptions configure Layer.
type LayerOptions struct {
	UnpackOptions
	Compression Compression
}

// LayerInfo is what a manifest and a configuration say of a layer.
type LayerInfo struct {
	MediaType types.MediaType
	Digest    v1.Hash // of what was written
	Size      int64   // of what was written, in bytes
	DiffID    v1.Hash // of the tar
	TarSize   int64   // in bytes
	Stats     Stats
}

// Layer writes an image as a layer of an OCI image: the tar of [Unpack],
// compressed, the same bytes for the same image. A merged image becomes one
// layer without whiteouts. The image of one layer ([OpenLayer]) becomes that
// layer again, whiteouts and all, if it was built to keep them.
func Layer(ctx context.Context, im *image.Image, data *Data, w io.Writer, o LayerOptions) (LayerInfo, error) {
	out := newDigester(w)
	packed, err := compressor(out, o.Compression)
	if err != nil {
		return LayerInfo{}, err
	}
	plain := newDigester(packed)
	// Headers and contents come in small pieces.
	buf := bufio.NewWriterSize(plain, 64<<10)
	stats, err := Unpack(ctx, im, data, buf, o.UnpackOptions)
	if err == nil {
		err = buf.Flush()
	}
	// A compressor is closed in any case: it may hold goroutines.
	if cerr := packed.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return LayerInfo{Stats: stats}, fmt.Errorf("layer: %w", err)
	}
	return LayerInfo{
		MediaType: o.Compression.MediaType(),
		Digest:    out.digest(), Size: out.size,
		DiffID: plain.digest(), TarSize: plain.size,
		Stats: stats,
	}, nil
}

func compressor(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriter(w), nil
	case Zstd:
		// One encoder at a time: the bytes must not depend on the machine.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
	case Uncompressed:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("compression %d", c)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// digester hashes and counts what passes.
type digester struct {
	w    io.Writer
	hash hash.Hash
	size int64
}

func newDigester(w io.Writer) *digester { return &digester{w: w, hash: sha256.New()} }

func (d *digester) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	d.hash.Write(p[:n])
	d.size += int64(n)
	return n, err
}

func (d *digester) digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(d.hash.Sum(nil))}
}

// OpenLayer opens the image of one layer by the bootstrap that lies inside its
// blob. Its data may be in that blob and in others, which its Blobs name. The
// error wraps image.ErrNoBootstrap if there is none inside: then only the merged
// image, by a bootstrap of its own, can be exported. The bootstrap lies in a file
// without a name in tempDir.
func OpenLayer(ctx context.Context, b backend.Backend, id, tempDir string) (*image.Image, error) {
	r, err := b.Open(id)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	size, err := r.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	im, err := image.OpenAt(readerAt{ctx, r}, size, image.Options{InlineBlobID: id, InFile: true, TempDir: tempDir})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	return im, nil
}

type readerAt struct {
	ctx context.Context
	r   backend.Reader
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.r.ReadRange(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
