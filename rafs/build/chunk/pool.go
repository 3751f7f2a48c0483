package chunk

import (
	"context"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
)

// poolBudget is what the buffers of a pool take, in bytes, where the chunk size
// allows it, but for those of small chunks.
const poolBudget = 20 << 20

// Pool holds the workers and the buffers of several cutters.
type Pool struct {
	workers   chan struct{}
	slots     chan *slot   // for all but what goes into small
	small     chan *slot   // for at most groupSize bytes, no batches
	large     chan buffers // for chunks larger than largeChunk
	chunkSize int
}

// largeChunk is above what slots have buffers of their own for, in bytes.
const largeChunk = 1 << 20

// buffers are what a large chunk is read and compressed into. There are as many as
// the budget allows, but one, however many slots and cutters there are.
type buffers struct{ raw, buf []byte }

// Small chunks go through the pool in groups, which says nothing of how they are
// stored.
const (
	groupChunk = 32 << 10  // what is larger goes alone, in bytes
	groupSize  = 128 << 10 // of a group at most, in bytes
	groupCount = 256       // chunks of a group at most
)

// Slots are written in order. While a worker has a large chunk the others have
// nothing to do unless enough can wait behind it: 1 MiB takes as long as eight
// groups.
const (
	smallPerWorker = 6
	smallMax       = 16
)

// slot is some chunks on their way to the blob, and buffers. It is one chunk, or
// several small ones, or a batch.
type slot struct {
	raw, buf []byte // buffers: uncompressed, compressed
	out      []byte // what to write, in one of the two
	batch    bool
	first    uint32 // index of the first chunk
	pieces   []stored
	err      error
	done     chan struct{} // receives once the worker is through
	large    bool          // its buffers are of the pool's large ones
	own      buffers       // its own, meanwhile
	home     chan *slot    // where it comes from
}

// stored is a chunk in a slot: its sizes, but in a batch only the first.
type stored struct {
	raw, out   uint32
	compressed bool
}

// NewPool makes a pool for chunks of up to chunkSize bytes and for so many
// cutters at a time. It compresses workers chunks at a time. Of large chunks it
// holds at most one a worker, one a cutter, and one more, in memory, each of them
// twice: as it was, and compressed. Of very large ones it holds fewer, at the
// largest size only one. What is small comes on top, 6 MiB at most.
func NewPool(workers, cutters, chunkSize int) *Pool {
	// Each cutter may keep one for its batch and needs another for the next chunk,
	// and the same for groups.
	small := max(min(workers*smallPerWorker, smallMax), 1+cutters)
	n := max(min(workers+max(cutters, 2), poolBudget/(2*max(chunkSize, 1))), 1+cutters)
	p := &Pool{
		workers:   make(chan struct{}, max(workers, 1)),
		slots:     make(chan *slot, n),
		small:     make(chan *slot, small),
		large:     make(chan buffers, max(poolBudget/(2*max(chunkSize, 1)), 1)),
		chunkSize: chunkSize,
	}
	for range cap(p.large) {
		p.large <- buffers{}
	}
	for _, home := range []chan *slot{p.slots, p.small} {
		for range cap(home) {
			home <- &slot{done: make(chan struct{}, 1), home: home}
		}
	}
	return p
}

// size is the number of slots of both kinds.
func (p *Pool) size() int { return cap(p.slots) + cap(p.small) }

// fitting is where there are slots for n bytes that go alone or into a group, or
// for a batch.
func (p *Pool) fitting(n int, batch bool) chan *slot {
	if batch || n > groupSize {
		return p.slots
	}
	return p.small
}

// room makes the raw buffer of a slot at least n bytes long, keeping what it has.
func (s *slot) room(n, limit int) {
	if cap(s.raw) >= n {
		return
	}
	size := 16 << 10
	for size < n {
		size *= 2
	}
	s.raw = append(make([]byte, 0, max(min(size, limit), n)), s.raw...)
}

// enlarge gives a slot the buffers for a large chunk.
func (p *Pool) enlarge(ctx context.Context, s *slot) error {
	select {
	case b := <-p.large:
		s.own, s.large = buffers{s.raw, s.buf}, true
		s.raw, s.buf = b.raw[:0], b.buf
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *Pool) put(s *slot) {
	if s.large {
		p.large <- buffers{s.raw, s.buf}
		s.raw, s.buf, s.own, s.large = s.own.raw, s.own.buf, buffers{}, false
	}
	s.raw, s.out, s.pieces, s.err = s.raw[:0], nil, s.pieces[:0], nil
	s.home <- s
}

// encode fills in out, and what came of each piece.
func (s *slot) encode(o *Options) {
	if o.Compressor == blob.CompressorNone && o.Cipher == nil {
		s.out = s.raw
		for i := range s.pieces {
			s.pieces[i].out = s.pieces[i].raw
		}
		return
	}
	// No encoder makes more of it (lz4 up to 1/255), and padding is 18 bytes at most.
	if need := len(s.raw) + len(s.raw)/128 + 64*len(s.pieces) + 512; cap(s.buf) < need {
		if need < groupSize {
			need = 2 * groupSize // so that it does not grow by and by
		}
		s.buf = make([]byte, 0, need)
	}
	if s.batch || len(s.pieces) == 1 {
		s.out, s.pieces[0].compressed, s.err = encode(o, s.buf[:0], s.raw, s.batch)
		s.pieces[0].out = uint32(len(s.out))
		return
	}
	out, raw := s.buf[:0], s.raw
	for i := range s.pieces {
		p := &s.pieces[i]
		data, compressed, err := encode(o, out[len(out):], raw[:p.raw], false)
		if err != nil {
			s.err = err
			return
		}
		p.out, p.compressed, raw = uint32(len(data)), compressed, raw[p.raw:]
		out = append(out, data...) // onto itself, where data lies there already
	}
	s.out = out
}

// encode compresses and encrypts src, which stays as it is, into dst's memory. The
// output may be src itself. A chunk, unlike a batch, is not compressed where padding
// takes what was won: its size tells readers that it is.
func encode(o *Options, dst, src []byte, batch bool) (out []byte, compressed bool, err error) {
	if out, compressed, err = codec.Encode(o.Compressor, dst, src); err == nil && o.Cipher != nil {
		switch {
		case compressed && !batch && xts.Size(len(out)) >= xts.Size(len(src)):
			out, compressed = src, false
		case compressed:
			dst = out[:0]
		}
		out = o.Cipher.Encrypt(dst, out)
	}
	return out, compressed, err
}
