package image

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pages are those of a mapped file. The kernel takes them into the process when
// they are needed, all that it has of the 64 KiB around an address at a time
// (fault_around_bytes), and leaves them there as long as there is memory. pages
// counts these places, roughly, and gives all of them back when there are too
// many. What is needed again is still in the page cache.
type pages struct {
	data []byte
	file *os.File
	// recent has places that are counted, each in a slot that its number says, and
	// plus 1.
	recent  [keptPages]atomic.Uint32
	counted atomic.Uint32
	limit   uint32 // keptPages but for tests
}

const (
	placeBits = 16
	// keptPages is how many places stay: 4 MiB.
	keptPages = 64
)

// at notes that bytes at off are about to be read. Nil pages stay.
func (p *pages) at(off uint64) {
	if p != nil {
		p.count(uint32(off>>placeBits) + 1)
	}
}

func (p *pages) count(place uint32) {
	slot := &p.recent[place%keptPages]
	if slot.Load() == place {
		return
	}
	slot.Store(place)
	if p.counted.Add(1) < p.limit {
		return
	}
	for i := range p.recent {
		p.recent[i].Store(0)
	}
	p.counted.Store(0)
	// It fails only for an address that is none.
	_ = unix.Madvise(p.data, unix.MADV_DONTNEED)
}

// read reads bytes that lie alone: that takes a tenth of what their page would.
func (p *pages) read(b []byte, off uint64) {
	for n := 0; n < len(b); {
		k, err := unix.Pread(int(p.file.Fd()), b[n:], int64(off)+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			copy(b[n:], p.data[off+uint64(n):]) // ends as a mapping ends that cannot be read
			return
		}
		n += k
	}
}

func (p *pages) close() error {
	if p == nil {
		return nil
	}
	return p.file.Close()
}
