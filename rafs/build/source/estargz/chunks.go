package estargz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/layout"
)

// maxChunks is the most chunks that nydus-image puts into a blob.
const maxChunks = blob.MaxChunks - 2

// chunks makes the chunks of a layer. A file's follow one another, and so do the
// files, in the layer as in the table.
//
// Chunks of one digest are one chunk: whoever reads it wants bytes of that digest,
// and both were promised by the same table.
type chunks struct {
	opts  *Options
	table *chunk.Table
	known *chunk.Index // of table
	refs  *spill.Array // indexes of the chunks of files, 4 bytes each

	file   tocEntry // the first entry of the file
	done   uint64   // bytes of the file that have a chunk
	first  int64    // of the file in refs
	next   uint32   // index of the next chunk that is new
	offset uint64   // uncompressed, of that

	last  chunk.Record // whose end in the layer is not known yet
	state lastState
	name  string // of the file that last is of
}

// lastState says what chunks.last is.
type lastState uint8

const (
	lastNone lastState = iota
	lastNew            // to be stored
	lastKnown
)

func newChunks(o *Options, table *chunk.Table) chunks {
	return chunks{opts: o, table: table, known: chunk.NewIndex(o.TempDir), refs: spill.NewArray(o.TempDir, 4, 32<<10)}
}

func (c *chunks) Close() error { return errors.Join(c.known.Close(), c.refs.Close()) }

// begin starts a regular file with its first chunk, if it has any byte.
func (c *chunks) begin(e *tocEntry) error {
	c.file, c.done, c.first = *e, 0, c.refs.Len()
	c.file.Xattrs = nil
	if e.Size == 0 {
		return nil
	}
	return c.add(e)
}

// add takes a chunk of the file that was begun.
func (c *chunks) add(e *tocEntry) error {
	left := c.file.Size - c.done
	size := e.ChunkSize
	if size == 0 {
		size = left // the last one
	}
	switch {
	case e.ChunkOffset != c.done || left == 0:
		return e.refuse("chunk at %d of a file of %d bytes, want %d", e.ChunkOffset, c.file.Size, c.done)
	case size > left || size > uint64(c.opts.ChunkSize) || size < left && size != uint64(c.opts.ChunkSize):
		return e.refuse("chunk of %d bytes at %d of %d, want %d or the rest of the file", size, c.done, c.file.Size, c.opts.ChunkSize)
	case e.InnerOffset != 0:
		return e.refuse("chunk at %d within a gzip member, want the start of one; convert the layer instead", e.InnerOffset)
	case c.next == maxChunks || c.offset+size > blob.MaxUncompressedSize:
		return e.refuse("a blob holds at most %d chunks and %d bytes", maxChunks, uint64(blob.MaxUncompressedSize))
	}
	digest, err := e.digest()
	if err != nil {
		return err
	}
	if err := c.close(e.Offset, e.Name); err != nil {
		return err
	}
	c.last, c.name = chunk.Record{
		Digest: digest, Flags: layout.ChunkCompressed, CompressedOffset: e.Offset,
		UncompressedOffset: c.offset, UncompressedSize: uint32(size),
	}, e.Name
	c.done += size
	return c.number()
}

// number makes the last chunk one of the file.
func (c *chunks) number() error {
	ref, ok, err := c.known.Lookup(c.last.Digest, c.last.UncompressedSize)
	if err != nil {
		return err
	}
	if c.state = lastKnown; !ok {
		c.state, ref.Index = lastNew, c.next
		c.next++
		c.offset = (c.offset + uint64(c.last.UncompressedSize) + chunk.Align - 1) &^ (chunk.Align - 1)
		if err := c.known.Add(c.last.Digest, c.last.UncompressedSize, ref); err != nil {
			return err
		}
	}
	return c.refs.Append(binary.LittleEndian.AppendUint32(nil, ref.Index))
}

// gzipBound is more than what a chunk takes as a gzip member at most: header,
// trailer, and what deflate adds to data that it cannot compress (nydus
// utils/src/compress/mod.rs, compute_compressed_gzip_size).
func gzipBound(size uint64) uint64 { return size + 151 + size>>14*5 }

// close ends the chunk before one that begins at next in the layer.
func (c *chunks) close(next uint64, name string) error {
	if c.state == lastNone {
		return nil
	}
	r := &c.last
	if next <= r.CompressedOffset || next > c.opts.Size {
		return fmt.Errorf("entries %q and %q: chunk at %d of the layer, the next at %d, want them in order within %d bytes",
			c.name, name, r.CompressedOffset, next, c.opts.Size)
	}
	// Tar headers may follow the data in its member.
	r.CompressedSize = uint32(min(next-r.CompressedOffset, gzipBound(uint64(r.UncompressedSize))))
	if r.CompressedSize == r.UncompressedSize && next < c.opts.Size {
		r.CompressedSize++ // equal sizes mean raw bytes to V1 chunk information
	}
	if c.state == lastKnown {
		return nil
	}
	return c.table.Append(r)
}

// finishFile returns the chunks of the file that was begun last. What went wrong
// with them shows in err afterwards.
func (c *chunks) finishFile() (refs iter.Seq[chunk.Ref], err func() error) {
	var failed error
	if c.done != c.file.Size {
		failed = c.file.refuse("chunks for %d of %d bytes", c.done, c.file.Size)
	}
	return func(yield func(chunk.Ref) bool) {
		var b [4]byte
		for i := c.first; i < c.refs.Len() && failed == nil; i++ {
			if failed = c.refs.Get(i, b[:]); failed != nil || !yield(chunk.Ref{Blob: c.opts.Blob, Index: binary.LittleEndian.Uint32(b[:])}) {
				return
			}
		}
	}, func() error { return failed }
}

// finish ends the last chunk of all.
func (c *chunks) finish() error { return c.close(c.opts.Size, "the end") }
