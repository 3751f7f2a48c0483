package targz

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/layout"
)

const (
	// maxChunks is the most chunks that nydus-image puts into a blob.
	maxChunks = blob.MaxChunks - 2
	// maxCompressed is what a V2 chunk information has room for. A longer stretch
	// cannot be a chunk's alone: readers go by the context.
	maxCompressed = 1<<24 - 1
)

// stream is the tar stream of a layer, which knows where it is.
type stream interface {
	io.Reader
	// pos is the offset of the next byte that Read returns.
	pos() uint64
	// begin announces a chunk, and end places it once it has been read.
	begin() error
	end(*chunk.Record) error
	// keep is told of each chunk that becomes one of the blob.
	keep(*chunk.Record)
	// finish ends the index after the last byte.
	finish() error
}

// gzipStream is a layer that is inflated.
type gzipStream struct {
	*zran.Indexer
	// step is what nydus-image takes for the size of any chunk. It is not more than
	// its default size: larger chunks would make each small file a context.
	step     uint32
	contexts *Contexts
}

func (s *gzipStream) pos() uint64   { return s.Offset() }
func (s *gzipStream) begin() error  { return s.Begin(s.step) }
func (s *gzipStream) finish() error { return s.Finish() }

func (s *gzipStream) keep(r *chunk.Record) { r.Unit = s.contexts.number(r.Unit) }

func (s *gzipStream) end(r *chunk.Record) error {
	p, err := s.End()
	if err != nil {
		return err
	}
	r.Flags = layout.ChunkCompressed
	r.CompressedOffset, r.CompressedSize = p.InOffset, min(p.InLen, maxCompressed)
	r.Unit, r.UnitOffset = p.Context, p.Offset
	return nil
}

// plainStream is a layer that is a tar.
type plainStream struct {
	r     io.Reader
	n     uint64
	start uint64
}

func (s *plainStream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += uint64(n)
	return n, err
}

func (s *plainStream) pos() uint64   { return s.n }
func (s *plainStream) begin() error  { s.start = s.n; return nil }
func (s *plainStream) finish() error { return nil }

func (s *plainStream) keep(*chunk.Record) {}

func (s *plainStream) end(r *chunk.Record) error {
	r.CompressedOffset, r.CompressedSize = s.start, uint32(s.n-s.start)
	return nil
}

// cutter makes chunks of the files of a layer without moving their bytes. It is
// the tree.Cutter of ReadTar.
type cutter struct {
	ctx    context.Context
	opts   *Options
	stream stream
	table  *chunk.Table
	index  *chunk.Index // of table
	offset uint64       // uncompressed, of the next chunk
	buf    []byte
}

var errSparse = errors.New("sparse file: its bytes are not all in the layer; convert the layer instead")

// File notes the chunks of the next size bytes of the stream, which r returns.
func (c *cutter) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	for size > 0 {
		n := min(size, int64(len(c.buf)))
		ref, err := c.chunk(r, c.buf[:n])
		if err != nil {
			return err
		}
		if err := add(ref); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func (c *cutter) chunk(r io.Reader, buf []byte) (chunk.Ref, error) {
	if c.ctx.Err() != nil {
		return chunk.Ref{}, context.Cause(c.ctx)
	}
	if err := c.stream.begin(); err != nil {
		return chunk.Ref{}, err
	}
	start := c.stream.pos()
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return chunk.Ref{}, err
	}
	if c.stream.pos()-start != uint64(len(buf)) {
		return chunk.Ref{}, errSparse
	}
	var rec chunk.Record
	if err := c.stream.end(&rec); err != nil {
		return chunk.Ref{}, err
	}
	rec.Digest, rec.UncompressedSize = blob.DigesterSHA256.Sum(buf), uint32(len(buf))
	return c.store(&rec)
}

// store adds a chunk, unless there is one with the same bytes.
func (c *cutter) store(rec *chunk.Record) (chunk.Ref, error) {
	if c.opts.Dict != nil {
		if ref, ok, err := c.opts.Dict.Lookup(rec.Digest, rec.UncompressedSize); ok || err != nil {
			return ref, err
		}
	}
	if ref, ok, err := c.index.Lookup(rec.Digest, rec.UncompressedSize); ok || err != nil {
		return ref, err
	}
	n := c.table.Len()
	rec.UncompressedOffset = c.offset
	c.offset = (c.offset + uint64(rec.UncompressedSize) + chunk.Align - 1) &^ (chunk.Align - 1)
	switch {
	case n == maxChunks || c.offset > blob.MaxUncompressedSize:
		return chunk.Ref{}, fmt.Errorf("a blob holds at most %d chunks and %d bytes", maxChunks, uint64(blob.MaxUncompressedSize))
	case rec.CompressedOffset+uint64(rec.CompressedSize) > blob.MaxCompressedSize:
		return chunk.Ref{}, fmt.Errorf("a blob is at most %d bytes", uint64(blob.MaxCompressedSize))
	}
	c.stream.keep(rec)
	ref := chunk.Ref{Blob: c.opts.Blob, Index: n}
	if err := c.table.Append(rec); err != nil {
		return chunk.Ref{}, err
	}
	return ref, c.index.Add(rec.Digest, rec.UncompressedSize, ref)
}
