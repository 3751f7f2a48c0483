// Package tarfs reads tar files that stay what they are: the blob of the image is
// the tar, and files point at where their bytes lie in it, so that Linux mounts
// the bootstrap with the tar as its device.
//
// A tar is read once, from its start to its end, and may come out of a pipe. It is
// not trusted: rafs/build/tree refuses bad entries, and memory is bounded. Chunks
// have no digests and are never shared; what tells one tar from another is its
// SHA-256, which is the id of the blob. The package writes to unnamed files and
// nowhere else.
package tarfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// blockSize is what chunk addresses count: a block of a tar, and of the image.
const blockSize = 1 << v6.TarfsBits

// maxSize bounds a tar: a chunk address has 32 bits, and readers take no larger
// blob.
const maxSize = min(blockSize<<32, blob.MaxCompressedSize)

// Features are those of the blob.
const Features = layout.FeatureCapTarTOC | layout.FeatureTarfs

// Options say how to read a tar. Zero fields take the default.
type Options struct {
	Blob      uint32 // the number that refs get
	ChunkSize uint32 // bytes; blob.DefaultChunkSize by default
	Limits    tree.Limits
	Whiteouts tree.Whiteouts
	// Skip, if not nil, tells of paths whose entries are passed over
	// (tree.ReadOptions).
	Skip func(path string) bool
	// TempDir takes what is spilled; os.TempDir by default.
	TempDir string
}

// Layer is a tar that was read.
type Layer struct {
	Tree  *tree.Layer
	Table *chunk.Table // of chunks without digests
	ID    string       // hex SHA-256 of the tar
	Size  int64        // of it in bytes

	chunkSize uint32
}

// Entry is what the blob table says of the tar.
func (l *Layer) Entry() v6.BlobEntry {
	return v6.BlobEntry{
		ChunkSize: l.chunkSize, ChunkCount: l.Table.Len(),
		Compressor: uint32(blob.CompressorNone), Digester: uint32(blob.DigesterSHA256), Features: uint32(Features),
		CompressedSize: uint64(l.Size), UncompressedSize: uint64(l.Size),
	}
}

// Close drops the layer, Tree included unless it was taken away.
func (l *Layer) Close() error {
	err := l.Table.Close()
	if l.Tree != nil {
		err = errors.Join(err, l.Tree.Close())
	}
	return err
}

// Read reads a tar to its end.
func Read(ctx context.Context, r io.Reader, o Options) (*Layer, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = blob.DefaultChunkSize
	}
	l := &Layer{Table: chunk.NewTable(o.TempDir), chunkSize: o.ChunkSize}
	in := &input{ctx: ctx, r: r, sum: sha256.New()}
	c := &cutter{in: in, opts: &o, table: l.Table}
	var err error
	if l.Tree, err = tree.ReadTar(ctx, in, c, tree.ReadOptions{
		Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir, Skip: o.Skip,
	}); err == nil {
		// What follows the archive belongs to the blob.
		_, err = io.Copy(io.Discard, in)
	}
	if err == nil && in.n > maxSize {
		err = fmt.Errorf("tar of %d bytes, want at most %d", in.n, uint64(maxSize))
	}
	if err != nil {
		return nil, errors.Join(in.explain(err), l.Close())
	}
	l.ID, l.Size = hex.EncodeToString(in.sum.Sum(nil)), int64(in.n)
	return l, nil
}

// input digests and counts what is read of a tar.
type input struct {
	ctx   context.Context
	r     io.Reader
	sum   hash.Hash
	n     uint64
	magic [4]byte
}

func (i *input) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	n, err := i.r.Read(p)
	if i.n < uint64(len(i.magic)) {
		copy(i.magic[i.n:], p[:n])
	}
	i.sum.Write(p[:n])
	i.n += uint64(n)
	return n, err
}

// explain adds to the error of a tar what the matter with it may be.
func (i *input) explain(err error) error {
	switch {
	case bytes.HasPrefix(i.magic[:], []byte{0x1f, 0x8b}):
		return fmt.Errorf("tar is compressed by gzip, want it plain: %w", err)
	case i.magic == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		return fmt.Errorf("tar is compressed by zstd, want it plain: %w", err)
	}
	return err
}

// cutter notes where files lie. It is the tree.Cutter of ReadTar.
type cutter struct {
	in    *input
	opts  *Options
	table *chunk.Table
}

var errSparse = errors.New("sparse file: its bytes are not all in the tar; convert the tar instead")

// File notes the chunks of the next size bytes of the tar, which r returns.
func (c *cutter) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	start := c.in.n
	if start%blockSize != 0 || start+uint64(size) > maxSize {
		return fmt.Errorf("file of %d bytes at %d of the tar, want a multiple of %d and an end of at most %d", size, start, blockSize, uint64(maxSize))
	}
	for off := int64(0); off < size; {
		n := min(size-off, int64(c.opts.ChunkSize))
		if _, err := io.CopyN(io.Discard, r, n); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		at := start + uint64(off)
		off += n
		if c.in.n != start+uint64(off) {
			return errSparse
		}
		ref := chunk.Ref{Blob: c.opts.Blob, Index: c.table.Len()}
		if ref.Index == blob.MaxChunks-2 { // what nydus-image puts into a blob
			return fmt.Errorf("a blob holds at most %d chunks", ref.Index)
		}
		err := c.table.Append(&chunk.Record{
			CompressedOffset: at, UncompressedOffset: at, CompressedSize: uint32(n), UncompressedSize: uint32(n),
		})
		if err == nil {
			err = add(ref)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
