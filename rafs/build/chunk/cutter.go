package chunk

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Cutter makes the chunks of one blob. It is used by one goroutine.
type Cutter struct {
	ctx  context.Context
	pool *Pool
	out  io.Writer
	opts Options

	seen   *slots // of the table
	table  *Table
	offset uint64 // uncompressed, of the next chunk
	open   *slot  // small chunks that wait for more, or nil
	units  uint32 // batches so far

	work   chan *slot // to encode
	queue  chan *slot // to write, in order
	failed atomic.Pointer[error]
	close  sync.Once
	wrote  sync.WaitGroup

	// Owned by the writing goroutine until it has ended.
	batches []Batch
	written uint64
}

// NewCutter starts a cutter that writes chunks to out. Close ends it.
func NewCutter(ctx context.Context, pool *Pool, out io.Writer, opts Options) (*Cutter, error) {
	if err := opts.check(pool); err != nil {
		return nil, err
	}
	c := &Cutter{
		ctx: ctx, pool: pool, out: out, opts: opts,
		table: NewTable(opts.TempDir),
		work:  make(chan *slot, pool.size()),
		queue: make(chan *slot, pool.size()),
	}
	c.seen = newSlots(opts.TempDir, func(i uint32) (blob.Digest, error) {
		r, err := c.table.Record(i)
		return r.Digest, err
	})
	c.wrote.Go(c.write)
	for range cap(pool.workers) {
		c.wrote.Go(c.compress)
	}
	return c, nil
}

// File cuts size bytes of r and tells add the chunks in order. Where an error is
// returned, the blob is of no use.
func (c *Cutter) File(r io.Reader, size int64, add func(Ref) error) error {
	step := int64(c.opts.ChunkSize)
	small := size <= step && size < int64(c.opts.BatchSize/2)
	for size > 0 {
		n := min(size, step)
		ref, err := c.chunk(r, int(n), small)
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

// piece is a chunk that nothing has yet.
type piece struct {
	data   []byte // behind what its slot has
	digest blob.Digest
	at     uint64 // in seen
}

// chunk is the step of File for one chunk: it reads n bytes, into an open slot if
// they are few, and returns the chunk that they are.
func (c *Cutter) chunk(r io.Reader, n int, batch bool) (Ref, error) {
	if err := c.failed.Load(); err != nil {
		return Ref{}, *err
	}
	alone := !batch && n > groupChunk
	if c.open != nil && !c.open.batch && (len(c.open.raw)+n > groupSize || len(c.open.pieces) == groupCount) {
		if err := c.flush(); err != nil {
			return Ref{}, err
		}
	}
	s := c.open
	if s == nil || alone || s.batch != batch {
		var err error
		if s, err = c.take(n, batch); err != nil {
			return Ref{}, err
		}
		s.batch = batch
		if alone && n > largeChunk {
			if err := c.pool.enlarge(c.ctx, s); err != nil {
				c.pool.put(s)
				return Ref{}, err
			}
		}
	}
	ref, p, err := c.read(s, r, n)
	if err == nil && p != nil {
		return ref, c.add(s, p, alone)
	}
	if s != c.open {
		c.pool.put(s)
	}
	return ref, err
}

func (c *Cutter) take(n int, batch bool) (*slot, error) {
	select {
	case s := <-c.pool.fitting(n, batch):
		return s, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}

// read reads a chunk behind what a slot has. If nothing has it yet it is a piece,
// and the ref is the one that it will have.
func (c *Cutter) read(s *slot, r io.Reader, n int) (Ref, *piece, error) {
	have := len(s.raw)
	s.room(have+n, max(c.pool.chunkSize, have+n))
	p := &piece{data: s.raw[have : have+n]}
	if _, err := io.ReadFull(r, p.data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Ref{}, nil, err
	}
	p.digest = c.opts.Digester.Sum(p.data)
	if c.opts.Dict != nil {
		if ref, ok, err := c.opts.Dict.Lookup(p.digest, uint32(n)); ok || err != nil {
			return ref, nil, err
		}
	}
	number, at, ok, err := c.seen.find(&p.digest)
	if err != nil || ok {
		return Ref{c.opts.Blob, number}, nil, err
	}
	number, p.at = c.seen.n, at
	if number == maxPerBlob || c.offset+uint64(n) > blob.MaxUncompressedSize {
		return Ref{}, nil, fmt.Errorf("a blob holds at most %d chunks and %d bytes", maxPerBlob, uint64(blob.MaxUncompressedSize))
	}
	return Ref{c.opts.Blob, number}, p, nil
}

// add stores a piece that was read into s. What does not go into the open slot
// ends it, so that chunks are written in the order of their numbers. Batches are
// part of the format: one stays below its size, and ends where another chunk
// comes (nydus builder/src/core/node.rs, dump_file_chunk).
func (c *Cutter) add(s *slot, p *piece, alone bool) error {
	if s.batch && len(s.raw) > 0 && len(s.raw)+len(p.data) >= int(c.opts.BatchSize) {
		next, err := c.take(0, true)
		if err != nil {
			return err
		}
		next.batch = true
		next.room(len(p.data), c.pool.chunkSize)
		copy(next.raw[:len(p.data)], p.data)
		p.data = next.raw[:len(p.data)]
		s = next
	}
	if s != c.open {
		err := c.flush()
		c.open = s
		if err != nil {
			return err
		}
	}
	rec := Record{}
	if s.batch {
		rec.Flags, rec.Unit, rec.UnitOffset = layout.ChunkBatch|layout.ChunkCompressed, c.units, uint32(len(s.raw))
	} else if c.opts.CRC {
		rec.Flags, rec.CRC32 = layout.ChunkHasCRC32, crc32.Checksum(p.data, castagnoli)
	}
	if len(s.pieces) == 0 {
		s.first = c.seen.n
	}
	s.pieces = append(s.pieces, stored{raw: uint32(len(p.data))})
	s.raw = s.raw[:len(s.raw)+len(p.data)]
	if err := c.note(p, rec); err != nil || !alone {
		return err
	}
	return c.flush()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// note gives a chunk its place in the tables, but for what the blob decides.
func (c *Cutter) note(p *piece, rec Record) error {
	rec.Digest, rec.UncompressedOffset, rec.UncompressedSize = p.digest, c.offset, uint32(len(p.data))
	if c.opts.Cipher != nil {
		rec.Flags |= layout.ChunkEncrypted
	}
	c.offset += uint64(len(p.data))
	if !c.opts.Packed {
		c.offset = (c.offset + Align - 1) &^ (Align - 1)
	}
	if err := c.table.Append(&rec); err != nil {
		return err
	}
	if c.opts.CacheOut != nil {
		if _, err := c.opts.CacheOut.WriteAt(p.data, int64(rec.UncompressedOffset)); err != nil {
			return fmt.Errorf("blob cache: %w", err)
		}
	}
	return c.seen.add(p.at, &p.digest)
}

// flush hands the open slot to the workers and queues it for writing.
func (c *Cutter) flush() error {
	s := c.open
	if s == nil {
		return nil
	}
	c.open = nil
	if len(s.pieces) == 0 {
		c.pool.put(s)
		return nil
	}
	if s.batch {
		c.units++
	}
	// Both have room for every slot there is.
	c.queue <- s
	c.work <- s
	return nil
}

// compress is a worker: it encodes slots until there are no more.
func (c *Cutter) compress() {
	for s := range c.work {
		c.pool.workers <- struct{}{}
		s.encode(&c.opts)
		<-c.pool.workers
		s.done <- struct{}{}
		// Who writes it and who reads more come first: as long as there is work they
		// would otherwise wait until this worker has none, and then it waits for them.
		runtime.Gosched()
	}
}

// write writes slots in order until the queue is closed and empty.
func (c *Cutter) write() {
	var failed error
	for s := range c.queue {
		<-s.done
		if failed == nil {
			if failed = c.writeOne(s); failed != nil {
				c.failed.Store(&failed)
			}
		}
		c.pool.put(s)
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
	at := c.written
	for i, p := range s.pieces {
		r, err := c.table.Record(s.first + uint32(i))
		if err != nil {
			return err
		}
		r.CompressedOffset = at
		if !s.batch {
			r.CompressedSize = p.out
			at += uint64(p.out)
			if p.compressed {
				r.Flags |= layout.ChunkCompressed
			}
		}
		if err := c.table.Set(s.first+uint32(i), &r); err != nil {
			return err
		}
	}
	if s.batch {
		c.batches = append(c.batches, Batch{uint32(len(s.out)), uint32(len(s.raw))})
	}
	c.written += uint64(len(s.out))
	return nil
}

// Close waits until all chunks are written and returns their table, by index,
// which the caller closes, and the batches by number. It must be called, also
// after an error; further calls return the same.
func (c *Cutter) Close() (*Table, []Batch, error) {
	c.close.Do(c.end)
	if err := c.failed.Load(); err != nil {
		return nil, nil, *err
	}
	return c.table, c.batches, nil
}

func (c *Cutter) end() {
	flushed := c.flush()
	close(c.work)
	close(c.queue)
	c.wrote.Wait()
	err := errors.Join(flushed, c.seen.close())
	if err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
	if c.failed.Load() != nil {
		c.table.Close()
	}
}
