package chunk

import "github.com/rafsd/rafsd/rafs/blob"

// poolBudget is what the buffers of a pool take, in bytes, where the chunk size
// allows it.
const poolBudget = 24 << 20

// Pool holds the workers and the buffers of several cutters.
type Pool struct {
	workers   chan struct{}
	slots     chan *slot
	chunkSize int
}

// slot is a piece of data on its way to the blob, and its buffers.
type slot struct {
	raw, buf []byte // buffers: uncompressed, compressed
	out      []byte // what to write: one of the two
	first    uint32 // index of the first chunk in it
	count    uint32 // of chunks: more than one only in a batch
	batch    bool
	digest   blob.Digest
	packed   bool // out is compressed
	err      error
	done     chan struct{} // receives once the worker is through
}

// NewPool makes a pool for chunks of up to chunkSize bytes and for so many
// cutters at a time. It compresses workers chunks at a time, and holds at most
// 1+workers+cutters of them in memory, each of them twice: as it was, and
// compressed. Of very large chunks it holds fewer.
func NewPool(workers, cutters, chunkSize int) *Pool {
	// Each cutter may keep one for its batch and needs another for the next chunk.
	n := max(min(1+workers+cutters, poolBudget/(2*max(chunkSize, 1))), 1+cutters)
	p := &Pool{
		workers:   make(chan struct{}, max(workers, 1)),
		slots:     make(chan *slot, n),
		chunkSize: chunkSize,
	}
	for range n {
		p.slots <- &slot{done: make(chan struct{}, 1)}
	}
	return p
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

func (p *Pool) put(s *slot) {
	s.raw, s.out = s.raw[:0], nil
	p.slots <- s
}
