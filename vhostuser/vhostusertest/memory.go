package vhostusertest

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// MemfdName is the name of the memfd of guest memory: a daemon that maps it
// shows it in /proc/PID/smaps as "/memfd:" + MemfdName + " (deleted)".
const MemfdName = "vhostusertest-guest"

// firstUserAddr is where the first region lies in the address space that the
// monitor claims to have. It is the one of a trace of QEMU 7.2: aligned to
// nothing larger than a page.
const firstUserAddr = 0x7f51_73ff_f000

// Region is one piece of guest-physical memory. Addresses and sizes are in bytes
// and multiples of PageSize.
type Region struct {
	GPA  uint64
	Size uint64
}

// region is a Region that is mapped.
type region struct {
	Region
	userAddr uint64
	offset   uint64 // in the memfd
	mem      []byte
	next     uint64 // offset in mem of what has not been allocated yet
}

// Memory is guest memory: regions of one memfd, mapped by us as a monitor maps
// it. Its methods are for one goroutine at a time.
type Memory struct {
	file      *os.File
	size      uint64 // of the file
	regions   []*region
	unplugged []*region // still mapped here, for those who touch them
	prefer    *region   // where Alloc looks first
}

// Buffer is a piece of guest memory that lies in one region.
type Buffer struct {
	GPA   uint64
	Bytes []byte
}

// NewMemory makes a memfd and maps the regions in it. Close unmaps them.
func NewMemory(regions []Region) (*Memory, error) {
	fd, err := unix.MemfdCreate(MemfdName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	m := &Memory{file: os.NewFile(uintptr(fd), MemfdName)}
	for _, r := range regions {
		if _, err := m.add(r); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

func (m *Memory) add(r Region) (*region, error) {
	if r.Size == 0 || (r.GPA|r.Size)%PageSize != 0 || r.GPA+r.Size < r.GPA {
		return nil, fmt.Errorf("guest memory: region %#x+%#x is empty or not made of pages", r.GPA, r.Size)
	}
	offset := m.size
	if err := m.file.Truncate(int64(offset + r.Size)); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	mem, err := unix.Mmap(int(m.file.Fd()), int64(offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("guest memory: map %d bytes: %w", r.Size, err)
	}
	m.size += r.Size
	// A gap of a page, so that no two regions are neighbours in user addresses.
	reg := &region{Region: r, userAddr: firstUserAddr + offset + uint64(len(m.regions))*PageSize, offset: offset, mem: mem}
	if r.GPA == 0 {
		reg.next = PageSize // address 0 is never a buffer in a real guest
	}
	m.regions = append(m.regions, reg)
	return reg, nil
}

// Bytes returns the n bytes of guest memory at gpa, which lie in one region.
func (m *Memory) Bytes(gpa uint64, n int) ([]byte, error) {
	r := m.find(gpa)
	if r == nil || n < 0 || uint64(n) > r.Size-(gpa-r.GPA) {
		return nil, fmt.Errorf("guest memory: no region has %#x+%#x", gpa, n)
	}
	off := gpa - r.GPA
	return r.mem[off : off+uint64(n) : off+uint64(n)], nil
}

func (m *Memory) find(gpa uint64) *region {
	for _, r := range m.regions {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			return r
		}
	}
	return nil
}

// UserAddr translates a guest-physical address into the virtual address that the
// monitor claims for it. An address outside guest memory comes back unchanged,
// for those who want a wrong one.
func (m *Memory) UserAddr(gpa uint64) uint64 {
	if r := m.find(gpa); r != nil {
		return r.userAddr + (gpa - r.GPA)
	}
	return gpa
}

// Alloc takes n bytes of zeros whose address is a multiple of align, a power of
// two, out of the preferred region or else the first that has room. Nothing is
// ever given back.
func (m *Memory) Alloc(n int, align uint64) (Buffer, error) {
	for _, r := range append([]*region{m.prefer}, m.regions...) {
		if r == nil {
			continue
		}
		off := (r.next + align - 1) &^ (align - 1)
		if off > r.Size || uint64(n) > r.Size-off {
			continue
		}
		r.next = off + uint64(n)
		return Buffer{GPA: r.GPA + off, Bytes: r.mem[off:r.next:r.next]}, nil
	}
	return Buffer{}, fmt.Errorf("guest memory: no room for %d bytes", n)
}

// Prefer makes Alloc look first into the region that holds gpa.
func (m *Memory) Prefer(gpa uint64) { m.prefer = m.find(gpa) }

// Free returns the bytes that Alloc can still give out, were there no alignment.
func (m *Memory) Free() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += r.Size - r.next
	}
	return n
}

// File is the memfd. It stays open until Close.
func (m *Memory) File() *os.File { return m.file }

// Truncate shrinks the memfd beneath the back-end's mapping, as no sane monitor
// does. What lies behind size must not be touched afterwards, by us neither.
func (m *Memory) Truncate(size int64) error { return m.file.Truncate(size) }

// Close unmaps guest memory. Buffers must not be touched afterwards.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range slices.Concat(m.regions, m.unplugged) {
		errs = append(errs, unix.Munmap(r.mem))
	}
	m.regions, m.unplugged = nil, nil
	if err := m.file.Close(); !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
