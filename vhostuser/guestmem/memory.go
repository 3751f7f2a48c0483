package guestmem

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// MaxRegions bounds a table of regions: KVM has 512 slots, of which QEMU keeps a
// few. It is also what libvhost-user promises (VHOST_USER_MAX_RAM_SLOTS, x86).
const MaxRegions = 509

// Memory is the current table of regions. The zero value has none. Changes make a
// new snapshot; whoever holds a pin on the old one goes on with it.
type Memory struct {
	cur atomic.Pointer[Snapshot] // nil: no memory

	mu sync.Mutex // serialises changes of cur
}

// Pin returns the current snapshot with a pin for the caller, or nil.
func (m *Memory) Pin() *Snapshot {
	for {
		s := m.cur.Load()
		if s == nil || s.tryPin() {
			return s
		}
	}
}

// Replace maps a whole new table, regions[i] from fds[i], which stay the caller's.
// It returns the former snapshot, nil if there was none, so that the caller can
// wait until it is Gone. On an error nothing has changed.
func (m *Memory) Replace(regions []Region, fds []int) (*Snapshot, error) {
	if len(regions) != len(fds) || len(regions) == 0 || len(regions) > MaxRegions {
		return nil, fmt.Errorf("%w: %d regions with %d descriptors: want 1 to %d", ErrRegion, len(regions), len(fds), MaxRegions)
	}
	for i, r := range regions {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("region %d: %w", i, err)
		}
		for j, s := range regions[:i] {
			if err := checkOverlap(r, s); err != nil {
				return nil, fmt.Errorf("regions %d and %d: %w", j, i, err)
			}
		}
	}
	maps := make([]*mapping, 0, len(regions))
	for i, r := range regions {
		mp, err := mapRegion(r, fds[i])
		if err != nil {
			for _, mp := range maps {
				mp.release()
			}
			return nil, fmt.Errorf("region %d: %w", i, err)
		}
		maps = append(maps, mp)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.swapLocked(newSnapshot(maps)), nil
}

// Add maps one more region from fd, which stays the caller's. On an error nothing
// has changed.
func (m *Memory) Add(r Region, fd int) error {
	if err := r.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.mapsLocked()
	if len(old) >= MaxRegions {
		return fmt.Errorf("%w: one more than %d", ErrRegion, MaxRegions)
	}
	for _, mp := range old {
		if err := checkOverlap(r, mp.Region); err != nil {
			return err
		}
	}
	added, err := mapRegion(r, fd)
	if err != nil {
		return err
	}
	for _, mp := range old {
		mp.refs.Add(1)
	}
	m.swapLocked(newSnapshot(append(slices.Clone(old), added)))
	return nil
}

// Remove takes away the region with the guest address, user address and size of
// r. It returns the former snapshot as Replace does.
func (m *Memory) Remove(r Region) (*Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.mapsLocked()
	i := slices.IndexFunc(old, func(mp *mapping) bool {
		return mp.GuestPhys == r.GuestPhys && mp.UserAddr == r.UserAddr && mp.Size == r.Size
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: no region at guest %#x, user %#x of %#x bytes", ErrRegion, r.GuestPhys, r.UserAddr, r.Size)
	}
	left := slices.Delete(slices.Clone(old), i, i+1)
	for _, mp := range left {
		mp.refs.Add(1)
	}
	return m.swapLocked(newSnapshot(left)), nil
}

// Close takes all memory away. It returns the former snapshot as Replace does.
func (m *Memory) Close() *Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.swapLocked(nil)
}

func (m *Memory) mapsLocked() []*mapping {
	if s := m.cur.Load(); s != nil {
		return s.maps
	}
	return nil
}

func (m *Memory) swapLocked(s *Snapshot) *Snapshot {
	old := m.cur.Swap(s)
	if old != nil {
		if s != nil {
			s.Pin()
			old.next = s
		}
		old.Unpin()
	}
	return old
}
