// Package targz reads layers whose data stays where it is: a gzip of a tar is the
// blob, and what is made of it is only the index that lets a reader inflate it
// from the middle (zran). A tar that is not compressed will do too; then chunks
// are simply stretches of it.
//
// A layer is read once, from its start to its end, and may come out of a pipe.
// Nothing of it is trusted: rafs/build/tree refuses bad entries, the checksums of
// the gzip members are verified, and memory is bounded whatever the layer is;
// contexts and their dictionaries, 32 KiB for about each MiB of the layer, are
// spilled. The package writes to unnamed files and nowhere else.
package targz

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// Options say how to read a layer. Zero fields take the default.
type Options struct {
	Blob      uint32 // the number that refs get
	ChunkSize uint32 // bytes; blob.DefaultChunkSize by default
	// Dict is asked for chunks before the layer itself, if not nil. Its digests are
	// SHA-256.
	Dict chunk.Dict
	// Skip, if not nil, tells of paths whose entries are passed over
	// (tree.ReadOptions).
	Skip      func(path string) bool
	Limits    tree.Limits
	Whiteouts tree.Whiteouts
	// TempDir takes what is spilled; os.TempDir by default.
	TempDir string
}

// Layer is a layer that was read.
type Layer struct {
	Tree *tree.Layer
	// Table are the chunks, with SHA-256 digests. Unit and UnitOffset name context
	// and place, if there are contexts.
	Table *chunk.Table
	// Contexts are nil for a layer that is not compressed.
	Contexts *Contexts
	ID       string // hex SHA-256 of the layer as it came
	Size     int64  // of it in bytes
}

// Close drops the layer, Tree included unless it was taken away.
func (l *Layer) Close() error {
	errs := []error{l.Table.Close()}
	if l.Tree != nil {
		errs = append(errs, l.Tree.Close())
	}
	if l.Contexts != nil {
		errs = append(errs, l.Contexts.Close())
	}
	return errors.Join(errs...)
}

// Read reads a layer to its end.
func Read(ctx context.Context, r io.Reader, o Options) (*Layer, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = blob.DefaultChunkSize
	}
	in := &input{r: r, sum: sha256.New()}
	l := &Layer{Table: chunk.NewTable(o.TempDir)}
	if err := l.read(ctx, in, o); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.ID, l.Size = hex.EncodeToString(in.sum.Sum(nil)), in.size
	return l, nil
}

func (l *Layer) read(ctx context.Context, in *input, o Options) error {
	head := bufio.NewReaderSize(in, 64<<10)
	magic, err := head.Peek(4)
	if err != nil && err != io.EOF {
		return err
	}
	var s stream
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		l.Contexts = newContexts(o.TempDir)
		x, err := zran.NewIndexer(head, l.Contexts.add)
		if err != nil {
			return err
		}
		s = &gzipStream{x, min(o.ChunkSize, blob.DefaultChunkSize), l.Contexts}
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return errors.New("layer compressed by zstd: only gzip can be read from its middle; convert the layer instead")
	default:
		s = &plainStream{r: head}
	}
	index := chunk.NewIndex(o.TempDir)
	defer index.Close()
	c := &cutter{ctx: ctx, opts: &o, stream: s, table: l.Table, index: index, buf: make([]byte, o.ChunkSize)}
	ro := tree.ReadOptions{Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir, Skip: o.Skip}
	if l.Tree, err = tree.ReadTar(ctx, s, c, ro); err != nil {
		return err
	}
	// What follows the archive belongs to the layer, and so do checksums.
	if _, err := io.Copy(io.Discard, contextReader{ctx, s}); err != nil {
		return fmt.Errorf("after the end of the archive: %w", err)
	}
	return s.finish()
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// input digests and counts what is read of a layer.
type input struct {
	r    io.Reader
	sum  hash.Hash
	size int64
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	i.sum.Write(p[:n])
	i.size += int64(n)
	return n, err
}
