package chunk

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
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
	batch  *slot  // small chunks that wait for more, or nil
	units  uint32 // batches so far

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
		queue: make(chan *slot, cap(pool.slots)),
	}
	c.seen = newSlots(opts.TempDir, func(i uint32) (blob.Digest, error) {
		r, err := c.table.Record(i)
		return r.Digest, err
	})
	c.wrote.Go(c.write)
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

// chunk is the step of File for one chunk. A small one is read right behind the others of its
// batch.
func (c *Cutter) chunk(r io.Reader, n int, small bool) (Ref, error) {
	if err := c.failed.Load(); err != nil {
		return Ref{}, *err
	}
	if small && c.batch != nil {
		return c.read(c.batch, r, n, c.addToBatch)
	}
	s, err := c.take()
	if err != nil {
		return Ref{}, err
	}
	if small {
		c.batch = s
		return c.read(s, r, n, c.addToBatch)
	}
	taken := false
	ref, err := c.read(s, r, n, func(s *slot, p piece) error {
		taken = true
		return c.addAlone(s, p)
	})
	if !taken {
		c.pool.put(s)
	}
	return ref, err
}

func (c *Cutter) take() (*slot, error) {
	select {
	case s := <-c.pool.slots:
		return s, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}

// piece is a chunk that nothing has yet.
type piece struct {
	data   []byte // behind what its slot has
	digest blob.Digest
	at     uint64 // in seen
}

// read reads n bytes behind what a slot has and returns the chunk that they are.
// If there is none, it calls add.
func (c *Cutter) read(s *slot, r io.Reader, n int, add func(*slot, piece) error) (Ref, error) {
	have := len(s.raw)
	s.room(have+n, max(c.pool.chunkSize, have+n))
	p := piece{data: s.raw[have : have+n]}
	if _, err := io.ReadFull(r, p.data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Ref{}, err
	}
	p.digest = c.opts.Digester.Sum(p.data)
	if c.opts.Dict != nil {
		if ref, ok, err := c.opts.Dict.Lookup(p.digest, uint32(n)); ok || err != nil {
			return ref, err
		}
	}
	number, at, ok, err := c.seen.find(&p.digest)
	if err != nil || ok {
		return Ref{c.opts.Blob, number}, err
	}
	number, p.at = c.seen.n, at
	if number == maxPerBlob || c.offset+uint64(n) > blob.MaxUncompressedSize {
		return Ref{}, fmt.Errorf("a blob holds at most %d chunks and %d bytes", maxPerBlob, uint64(blob.MaxUncompressedSize))
	}
	return Ref{c.opts.Blob, number}, add(s, p)
}

// addAlone stores a chunk that is no part of a batch.
func (c *Cutter) addAlone(s *slot, p piece) error {
	s.raw = s.raw[:len(p.data)]
	s.first, s.count, s.batch = c.seen.n, 1, false
	rec := Record{}
	if c.opts.CRC {
		rec.Flags, rec.CRC32 = layout.ChunkHasCRC32, crc32.Checksum(p.data, castagnoli)
	}
	err := c.flush()
	if err == nil {
		err = c.note(p, rec)
	}
	if err != nil {
		c.pool.put(s)
		return err
	}
	return c.compress(s)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// addToBatch stores a small chunk. A batch stays below its size, as nydus has it
// (builder/src/core/node.rs, dump_file_chunk).
func (c *Cutter) addToBatch(s *slot, p piece) error {
	if len(s.raw)+len(p.data) >= int(c.opts.BatchSize) && len(s.raw) > 0 {
		next, err := c.take()
		if err != nil {
			return err
		}
		next.room(len(p.data), c.pool.chunkSize)
		copy(next.raw[:len(p.data)], p.data)
		p.data = next.raw[:len(p.data)]
		err = c.flush()
		s, c.batch = next, next
		if err != nil {
			return err
		}
	}
	if len(s.raw) == 0 {
		s.first, s.count, s.batch = c.seen.n, 0, true
	}
	rec := Record{Flags: layout.ChunkBatch | layout.ChunkCompressed, Unit: c.units, UnitOffset: uint32(len(s.raw))}
	s.raw = s.raw[:len(s.raw)+len(p.data)]
	s.count++
	return c.note(p, rec)
}

// note gives a chunk its place in the tables, but for what the blob decides.
func (c *Cutter) note(p piece, rec Record) error {
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

// flush ends the batch.
func (c *Cutter) flush() error {
	s := c.batch
	if s == nil {
		return nil
	}
	c.batch = nil
	if len(s.raw) == 0 {
		c.pool.put(s)
		return nil
	}
	c.units++
	return c.compress(s)
}

// compress hands a slot to a worker and queues it for writing.
func (c *Cutter) compress(s *slot) error {
	select {
	case c.pool.workers <- struct{}{}:
	case <-c.ctx.Done():
		c.pool.put(s)
		return context.Cause(c.ctx)
	}
	c.queue <- s // has room for every slot there is
	go func() {
		s.out, s.packed, s.err = codec.Encode(c.opts.Compressor, s.buf[:0], s.raw)
		if s.err == nil && c.opts.Cipher != nil {
			s.out = c.opts.Cipher.Encrypt(s.out[:0], s.out)
		}
		if s.packed {
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
	for i := range s.count {
		r, err := c.table.Record(s.first + i)
		if err != nil {
			return err
		}
		r.CompressedOffset = c.written
		if !s.batch {
			r.CompressedSize = uint32(len(s.out))
			if s.packed {
				r.Flags |= layout.ChunkCompressed
			}
		}
		if err := c.table.Set(s.first+i, &r); err != nil {
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
