package guestmem

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
)

// ErrAddress is wrapped by every error about an address that is not mapped.
var ErrAddress = errors.New("address outside guest memory")

// dead is added to the pins of a snapshot whose mappings have been released, so
// that a late Pin sees a negative number.
const dead = math.MinInt64 / 2

// Snapshot is an immutable table of mapped regions. The slices and parts that it
// gives out are valid while the caller holds a pin.
type Snapshot struct {
	maps []*mapping    // sorted by guest address; immutable
	gone chan struct{} // closed once the last pin has gone
	next *Snapshot     // the one after, pinned until this one is gone; nil: none yet

	pins atomic.Int64
}

// newSnapshot takes over one reference to each mapping. The result has one pin.
func newSnapshot(maps []*mapping) *Snapshot {
	slices.SortFunc(maps, func(a, b *mapping) int { return cmp.Compare(a.GuestPhys, b.GuestPhys) })
	s := &Snapshot{maps: maps, gone: make(chan struct{})}
	s.pins.Store(1)
	return s
}

// Pin adds a pin. Precondition: the caller holds one already, or got s from a
// holder that keeps its own until Pin returns.
func (s *Snapshot) Pin() { s.pins.Add(1) }

// tryPin adds a pin unless the mappings have been released.
func (s *Snapshot) tryPin() bool {
	if s.pins.Add(1) > 0 {
		return true
	}
	s.pins.Add(-1)
	return false
}

// Unpin gives a pin back. The last one releases the mappings.
func (s *Snapshot) Unpin() {
	if s.pins.Add(-1) != 0 || !s.pins.CompareAndSwap(0, dead) {
		return
	}
	for _, m := range s.maps {
		m.release()
	}
	close(s.gone)
	if s.next != nil {
		s.next.Unpin()
	}
}

// Gone is closed once nobody holds a pin any more, on s or on one before it, whose
// regions s may have had, too.
func (s *Snapshot) Gone() <-chan struct{} { return s.gone }

// Regions is the number of regions.
func (s *Snapshot) Regions() int { return len(s.maps) }

// Sealed reports whether no region can vanish by truncation.
func (s *Snapshot) Sealed() bool {
	for _, m := range s.maps {
		if !m.sealed {
			return false
		}
	}
	return true
}

// find returns the region that holds guest address gpa, or nil.
func (s *Snapshot) find(gpa uint64) *mapping {
	lo, hi := 0, len(s.maps)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if m := s.maps[mid]; gpa < m.GuestPhys {
			hi = mid
		} else if gpa-m.GuestPhys < m.Size {
			return m
		} else {
			lo = mid + 1
		}
	}
	return nil
}

// Slices appends to dst the n bytes at guest address gpa: one slice, or several
// where they straddle regions. A piece that follows the last slice of dst in the
// same mapping extends that slice instead. The capacity of the slices reaches to
// the end of the mapping for that purpose: callers clip it when they are done.
//
// If a byte is not mapped, the error wraps ErrAddress and dst comes back as it was.
func (s *Snapshot) Slices(dst [][]byte, gpa uint64, n uint32) ([][]byte, error) {
	was, lastLen := len(dst), 0
	if was > 0 {
		lastLen = len(dst[was-1])
	}
	addr, left := gpa, uint64(n)
	for left > 0 {
		m := s.find(addr)
		if m == nil {
			if was > 0 {
				dst[was-1] = dst[was-1][:lastLen]
			}
			return dst[:was], fmt.Errorf("%w: guest %#x + %#x", ErrAddress, gpa, n)
		}
		off := addr - m.GuestPhys
		piece := m.data[off:min(off+left, m.Size)]
		dst = appendMerged(dst, piece)
		// No overflow: the piece lies inside a region, which was checked.
		addr += uint64(len(piece))
		left -= uint64(len(piece))
	}
	return dst, nil
}

// appendMerged appends piece, or extends the last slice if piece follows it. Both
// have the rest of their mapping as capacity, so two mappings that happen to be
// neighbours in our address space do not merge.
func appendMerged(dst [][]byte, piece []byte) [][]byte {
	if len(dst) > 0 {
		last := dst[len(dst)-1]
		if n := len(last); n < cap(last) && &last[:n+1][n] == &piece[0] {
			dst[len(dst)-1] = last[:n+len(piece)]
			return dst
		}
	}
	return append(dst, piece)
}

// Part translates n bytes at the front-end's virtual address user. They must lie
// in one region, at an address of ours that is a multiple of align, a power of two.
func (s *Snapshot) Part(user uint64, n, align int) (Part, error) {
	for _, m := range s.maps {
		if user < m.UserAddr || user-m.UserAddr >= m.Size {
			continue
		}
		off := user - m.UserAddr
		if n <= 0 || m.Size-off < uint64(n) {
			return Part{}, fmt.Errorf("%w: user %#x + %#x leaves its region", ErrAddress, user, n)
		}
		p := Part{m.data[off : off+uint64(n) : off+uint64(n)]}
		if p.addr()%uintptr(align) != 0 {
			return Part{}, fmt.Errorf("%w: user %#x: want a multiple of %d", ErrAddress, user, align)
		}
		return p, nil
	}
	return Part{}, fmt.Errorf("%w: user %#x + %#x", ErrAddress, user, n)
}
