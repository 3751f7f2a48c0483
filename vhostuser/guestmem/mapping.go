package guestmem

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrRegion is wrapped by every error about a table of regions.
var ErrRegion = errors.New("invalid memory region")

// Region places a piece of guest memory. Its fields are those of the vhost-user
// message (vhost-user.rst, "Memory region description").
type Region struct {
	GuestPhys  uint64 // guest-physical address
	Size       uint64 // in bytes
	UserAddr   uint64 // virtual address in the front-end
	MmapOffset uint64 // of the region in its descriptor, in bytes
}

// maxSize bounds a region in bytes: user space has 47 bits on the machines we
// run on, so no larger mapping can succeed.
const maxSize = 1 << 47

func (r Region) check() error {
	switch {
	case r.Size == 0 || r.Size > maxSize:
		return fmt.Errorf("%w: size %#x", ErrRegion, r.Size)
	case r.GuestPhys > math.MaxUint64-r.Size:
		return fmt.Errorf("%w: guest address %#x + %#x overflows", ErrRegion, r.GuestPhys, r.Size)
	case r.UserAddr > math.MaxUint64-r.Size:
		return fmt.Errorf("%w: user address %#x + %#x overflows", ErrRegion, r.UserAddr, r.Size)
	case r.MmapOffset > math.MaxInt64-r.Size:
		return fmt.Errorf("%w: offset %#x + %#x overflows", ErrRegion, r.MmapOffset, r.Size)
	}
	return nil
}

// overlaps reports whether [a, a+n) and [b, b+m) share a byte. Neither overflows.
func overlaps(a, n, b, m uint64) bool { return a < b+m && b < a+n }

func checkOverlap(r, s Region) error {
	if overlaps(r.GuestPhys, r.Size, s.GuestPhys, s.Size) {
		return fmt.Errorf("%w: guest addresses %#x+%#x and %#x+%#x overlap", ErrRegion, r.GuestPhys, r.Size, s.GuestPhys, s.Size)
	}
	if overlaps(r.UserAddr, r.Size, s.UserAddr, s.Size) {
		return fmt.Errorf("%w: user addresses %#x+%#x and %#x+%#x overlap", ErrRegion, r.UserAddr, r.Size, s.UserAddr, s.Size)
	}
	return nil
}

// mapping is a mapped region. Snapshots share it; the last one unmaps it.
type mapping struct {
	Region        // immutable
	data   []byte // the region's bytes; immutable
	whole  []byte // what mmap gave: data, and what alignment added; immutable
	sealed bool   // the descriptor cannot shrink; immutable

	refs atomic.Int32 // snapshots that hold the mapping
}

// mapRegion maps r from fd, which stays the caller's and may be closed.
func mapRegion(r Region, fd int) (*mapping, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	page, err := pageSize(r, fd)
	if err != nil {
		return nil, err
	}
	// A descriptor may hold several regions at odd offsets, and hugetlbfs wants
	// whole huge pages: map more and keep the difference.
	delta := r.MmapOffset % page
	length := (delta + r.Size + page - 1) / page * page
	whole, err := unix.Mmap(fd, int64(r.MmapOffset-delta), int(length),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("%w: mapping %#x bytes at offset %#x: %w", ErrRegion, r.Size, r.MmapOffset, err)
	}
	// Advice only: a core dump with a guest's memory in it is large, not wrong.
	_ = unix.Madvise(whole, unix.MADV_DONTDUMP)
	m := &mapping{Region: r, whole: whole, data: whole[delta : delta+r.Size : delta+r.Size]}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	m.sealed = err == nil && seals&unix.F_SEAL_SHRINK != 0
	m.refs.Store(1)
	return m, nil
}

// pageSize checks that fd holds all of r and returns what its mapping must be
// aligned to, in bytes.
func pageSize(r Region, fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("%w: stat of descriptor %d: %w", ErrRegion, fd, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if uint64(st.Size) < r.MmapOffset+r.Size {
			return 0, fmt.Errorf("%w: offset %#x + %#x is beyond the file's %#x bytes", ErrRegion, r.MmapOffset, r.Size, st.Size)
		}
	case unix.S_IFCHR: // DAX devices have no size to compare
	default:
		return 0, fmt.Errorf("%w: descriptor of file type %#o", ErrRegion, st.Mode&unix.S_IFMT)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.HUGETLBFS_MAGIC && fs.Bsize > 0 {
		return uint64(fs.Bsize), nil
	}
	return uint64(os.Getpagesize()), nil
}

func (m *mapping) release() {
	if m.refs.Add(-1) != 0 {
		return
	}
	if err := unix.Munmap(m.whole); err != nil {
		// We unmap what we mapped, once; anything else is a bug of this package.
		panic(fmt.Sprintf("guestmem: unmapping %#x bytes: %v", len(m.whole), err))
	}
}
