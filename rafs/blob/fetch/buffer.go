package fetch

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/rafs/blob"
)

// buffers keeps buffers that were used, by powers of two, up to a number of bytes
// in all. What is above that goes to the garbage collector.
type buffers struct {
	limit int

	mu   sync.Mutex
	kept int
	free [maxShift + 1][][]byte
}

const (
	minShift = 12 // a page
	maxShift = 25 // above one chunk and its neighbours
)

func shift(n int) int {
	return max(minShift, bits.Len(uint(max(n, 1)-1)))
}

// get returns a buffer of n bytes with anything in it.
func (b *buffers) get(n int) []byte {
	s := shift(n)
	if s > maxShift {
		return make([]byte, n)
	}
	b.mu.Lock()
	if last := len(b.free[s]) - 1; last >= 0 {
		p := b.free[s][last]
		b.free[s][last] = nil
		b.free[s] = b.free[s][:last]
		b.kept -= 1 << s
		b.mu.Unlock()
		return p[:n]
	}
	b.mu.Unlock()
	if n > blob.DefaultChunkSize {
		return make([]byte, n) // rare; a power of two could cost twice as much
	}
	return make([]byte, n, 1<<s)
}

// put takes a buffer back. The caller must not use it afterwards.
func (b *buffers) put(p []byte) {
	s := shift(cap(p))
	if cap(p) != 1<<s || s > maxShift {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept+1<<s <= b.limit {
		b.kept += 1 << s
		b.free[s] = append(b.free[s], p)
	}
}

// page holds the verified bytes of one chunk while somebody needs them. It is
// written before it is shared and never after.
type page struct {
	data []byte
	refs atomic.Int32
	free func(*page)
}

func newPage(data []byte, free func(*page)) *page {
	p := &page{data: data, free: free}
	p.refs.Store(1)
	return p
}

func (p *page) hold() { p.refs.Add(1) }

func (p *page) drop() {
	if p.refs.Add(-1) == 0 && p.free != nil {
		p.free(p)
	}
}
