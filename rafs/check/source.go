package check

import (
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/image"
)

// The size of a page of a source in bytes, and how many are kept: enough for a
// walk that goes back and forth between inodes and folders, and small beside
// everything else.
const (
	pageSize = 32 << 10
	maxPages = 48
)

// source reads a bootstrap by parts. It keeps pages that were read lately, and
// the first error, after which it reads zeros.
type source struct {
	r     io.ReaderAt
	size  uint64
	err   error
	pages map[uint64]*page
	clock uint64
	last  *page
}

type page struct {
	number uint64
	used   uint64
	data   []byte
}

func newSource(r io.ReaderAt, size int64) *source {
	return &source{r: r, size: uint64(max(size, 0)), pages: make(map[uint64]*page, maxPages)}
}

// read fills p from off, false if the bootstrap ends before.
func (s *source) read(p []byte, off uint64) bool {
	if off > s.size || uint64(len(p)) > s.size-off {
		return false
	}
	for len(p) > 0 {
		pg := s.page(off / pageSize)
		at := off % pageSize
		if at >= uint64(len(pg.data)) {
			clear(p) // the source failed
			return true
		}
		n := copy(p, pg.data[at:])
		p, off = p[n:], off+uint64(n)
	}
	return true
}

func (s *source) page(number uint64) *page {
	s.clock++
	if s.last != nil && s.last.number == number {
		s.last.used = s.clock
		return s.last
	}
	pg := s.pages[number]
	if pg == nil {
		pg = s.load(number)
	}
	pg.used, s.last = s.clock, pg
	return pg
}

func (s *source) load(number uint64) *page {
	pg := s.room()
	pg.number = number
	pg.data = pg.data[:min(pageSize, s.size-number*pageSize)]
	if s.err == nil {
		if _, err := s.r.ReadAt(pg.data, int64(number*pageSize)); err != nil && err != io.EOF {
			s.err = fmt.Errorf("bootstrap: %w", err)
		}
	}
	if s.err != nil {
		clear(pg.data)
	}
	s.pages[number] = pg
	return pg
}

// room returns a page to read into: the one that was used longest ago if there
// are as many as are kept.
func (s *source) room() *page {
	if len(s.pages) < maxPages {
		return &page{data: make([]byte, 0, pageSize)}
	}
	var oldest *page
	for _, p := range s.pages {
		if oldest == nil || p.used < oldest.used {
			oldest = p
		}
	}
	delete(s.pages, oldest.number)
	return oldest
}

// zero tells whether n bytes at off are all zero, and where the first is that is
// not. What lies beyond the end counts as zero.
func (s *source) zero(off, n uint64) (at uint64, ok bool) {
	var buf [512]byte
	for n > 0 {
		part := buf[:min(n, uint64(len(buf)))]
		if !s.read(part, off) {
			return 0, true
		}
		for i, c := range part {
			if c != 0 {
				return off + uint64(i), false
			}
		}
		off, n = off+uint64(len(part)), n-uint64(len(part))
	}
	return 0, true
}

// bitset is a set of small numbers.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, (n+63)/64) }

func (s bitset) has(i uint64) bool {
	w := i / 64
	return w < uint64(len(s)) && s[w]>>(i%64)&1 != 0
}

func (s bitset) add(i uint64) { s[i/64] |= 1 << (i % 64) }

// claims notes which parts of a bootstrap belong to something. Whatever converters
// write is disjoint, so that a claim twice is a violation; since nothing is walked
// twice, it also bounds the time that a bootstrap of overlapping parts takes.
type claims struct {
	unit uint64
	size uint64
	set  bitset
}

func newClaims(size, unit uint64) *claims {
	return &claims{unit: unit, size: size, set: newBitset((min(size, image.MaxBootstrap) + unit - 1) / unit)}
}

// take claims n bytes at off, which lie inside the bootstrap, and tells the first
// offset that was claimed before.
func (c *claims) take(off, n uint64) (at uint64, ok bool) {
	if n == 0 {
		return 0, true
	}
	ok = true
	for u := off / c.unit; u <= (off+n-1)/c.unit; u++ {
		if c.set.has(u) {
			if ok {
				at, ok = u*c.unit, false
			}
			continue
		}
		if u/64 < uint64(len(c.set)) {
			c.set.add(u)
		}
	}
	return at, ok
}
