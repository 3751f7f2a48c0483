// Package chunk cuts files into chunks and turns them into the data of a blob.
//
// A Cutter takes the files of one layer in order: it cuts them at the chunk
// size, digests each piece, and stores a piece it has not seen before. Pieces
// are compressed by the workers of a Pool, which all layers share, and written
// in the order of the files, so that the same files give the same blob however
// many workers there are.
//
// Chunks are the same if their digests are, and only digests that were computed
// here from the bytes themselves count. Memory is bounded by the buffers of the
// pool; what remains of a file is eight bytes a chunk.
package chunk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
)

// Align is what the uncompressed offset of a chunk is a multiple of, in bytes:
// the block of EROFS (layout.FeatureAligned).
const Align = 4096

// maxPerBlob is the most chunks that nydus-image puts into a blob; readers
// refuse more.
const maxPerBlob = blob.MaxChunks - 2

// Ref names a chunk: the blob by the number that its Cutter was given, and the
// chunk's index in the blob.
type Ref struct{ Blob, Index uint32 }

// Record is what a blob's tables say of one chunk. The chunk is compressed
// unless its two sizes are equal.
type Record struct {
	Digest             blob.Digest
	CompressedOffset   uint64 // in the blob
	UncompressedOffset uint64 // in the blob's uncompressed space, a multiple of Align
	CompressedSize     uint32
	UncompressedSize   uint32
}

// Pool holds the workers and the buffers of several cutters.
type Pool struct {
	workers   chan struct{}
	slots     chan *slot
	chunkSize int
}

// slot is a chunk on its way to the blob, and its buffers.
type slot struct {
	raw, buf []byte // buffers: uncompressed, compressed
	out      []byte // what to write: one of the two
	digest   blob.Digest
	offset   uint64 // uncompressed
	err      error
	done     chan struct{} // receives once the worker is through
}

// NewPool makes a pool for chunks of chunkSize bytes. It compresses workers
// chunks at a time and holds at most 2*workers+cutters chunks in memory, each
// of them twice: as it was, and compressed.
func NewPool(workers, cutters, chunkSize int) *Pool {
	p := &Pool{
		workers:   make(chan struct{}, workers),
		slots:     make(chan *slot, 2*workers+cutters),
		chunkSize: chunkSize,
	}
	for range cap(p.slots) {
		p.slots <- &slot{done: make(chan struct{}, 1)}
	}
	return p
}

// Options say how a Cutter makes chunks.
type Options struct {
	Blob       uint32 // the number that refs get
	Compressor blob.Compressor
	Digester   blob.Digester
}

// Cutter makes the chunks of one blob. It is used by one goroutine.
type Cutter struct {
	ctx  context.Context
	pool *Pool
	out  io.Writer
	opts Options

	seen   map[blob.Digest]uint32 // digest to index in this blob
	offset uint64                 // uncompressed, of the next chunk

	queue  chan *slot // to write, in order
	failed atomic.Pointer[error]
	close  sync.Once
	wrote  sync.WaitGroup

	// Owned by the writing goroutine until it has ended.
	records []Record
	written uint64
}

// NewCutter starts a cutter that writes chunks to out. Close ends it.
func NewCutter(ctx context.Context, pool *Pool, out io.Writer, opts Options) *Cutter {
	c := &Cutter{
		ctx: ctx, pool: pool, out: out, opts: opts,
		seen:  map[blob.Digest]uint32{},
		queue: make(chan *slot, cap(pool.slots)),
	}
	c.wrote.Go(c.write)
	return c
}

// File cuts size bytes of r. Where an error is returned, the blob is of no use.
func (c *Cutter) File(r io.Reader, size int64) ([]Ref, error) {
	step := int64(c.pool.chunkSize)
	refs := make([]Ref, 0, min((size+step-1)/step, 1<<16))
	for size > 0 {
		n := min(size, step)
		index, err := c.chunk(r, int(n))
		if err != nil {
			return nil, err
		}
		refs = append(refs, Ref{c.opts.Blob, index})
		size -= n
	}
	return refs, nil
}

// chunk reads one chunk and returns its index.
func (c *Cutter) chunk(r io.Reader, n int) (uint32, error) {
	if err := c.failed.Load(); err != nil {
		return 0, *err
	}
	var s *slot
	select {
	case s = <-c.pool.slots:
	case <-c.ctx.Done():
		return 0, context.Cause(c.ctx)
	}
	if cap(s.raw) < n {
		s.raw = make([]byte, n)
	}
	s.raw = s.raw[:n]
	if _, err := io.ReadFull(r, s.raw); err != nil {
		c.pool.slots <- s
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	s.digest = c.opts.Digester.Sum(s.raw)
	if index, ok := c.seen[s.digest]; ok {
		c.pool.slots <- s
		return index, nil
	}
	if len(c.seen) == maxPerBlob || c.offset+uint64(n) > blob.MaxUncompressedSize {
		c.pool.slots <- s
		return 0, fmt.Errorf("a blob holds at most %d chunks and %d bytes", maxPerBlob, uint64(blob.MaxUncompressedSize))
	}
	index := uint32(len(c.seen))
	c.seen[s.digest] = index
	s.offset = c.offset
	c.offset += (uint64(n) + Align - 1) &^ (Align - 1)
	return index, c.compress(s)
}

// compress hands a chunk to a worker and queues it for writing.
func (c *Cutter) compress(s *slot) error {
	select {
	case c.pool.workers <- struct{}{}:
	case <-c.ctx.Done():
		c.pool.slots <- s
		return context.Cause(c.ctx)
	}
	c.queue <- s // has room for every slot there is
	go func() {
		var compressed bool
		s.out, compressed, s.err = codec.Encode(c.opts.Compressor, s.buf[:0], s.raw)
		if compressed {
			s.buf = s.out
		}
		<-c.pool.workers
		s.done <- struct{}{}
	}()
	return nil
}

// write writes chunks in order until the queue is closed and empty.
func (c *Cutter) write() {
	var failed error
	for s := range c.queue {
		<-s.done
		if failed == nil {
			if failed = c.writeOne(s); failed != nil {
				c.failed.Store(&failed)
			}
		}
		c.pool.slots <- s
	}
}

func (c *Cutter) writeOne(s *slot) error {
	if s.err != nil {
		return s.err
	}
	if c.written+uint64(len(s.out)) > blob.MaxCompressedSize {
		return fmt.Errorf("a blob holds at most %d bytes", uint64(blob.MaxCompressedSize))
	}
	if _, err := c.out.Write(s.out); err != nil {
		return err
	}
	c.records = append(c.records, Record{
		Digest:             s.digest,
		CompressedOffset:   c.written,
		UncompressedOffset: s.offset,
		CompressedSize:     uint32(len(s.out)),
		UncompressedSize:   uint32(len(s.raw)),
	})
	c.written += uint64(len(s.out))
	return nil
}

// Close waits until all chunks are written and returns their records, by index.
// It must be called, also after an error; further calls return the same.
func (c *Cutter) Close() ([]Record, error) {
	c.close.Do(func() {
		close(c.queue)
		c.wrote.Wait()
	})
	if err := c.failed.Load(); err != nil {
		return nil, *err
	}
	return c.records, nil
}
