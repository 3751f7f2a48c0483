package vhostuser

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// checkInflight refuses a description with rings that we do not have, and returns
// the size of all regions in bytes.
func (s *session) checkInflight(f Inflight) (uint64, error) {
	if f.NumQueues == 0 || int(f.NumQueues) > len(s.rings) || f.QueueSize == 0 || int(f.QueueSize) > s.cfg.MaxRingSize {
		return 0, fmt.Errorf("%w: in-flight region of %d rings of %d: want 1 to %d of 1 to %d",
			ErrMessage, f.NumQueues, f.QueueSize, len(s.rings), s.cfg.MaxRingSize)
	}
	return uint64(f.NumQueues) * uint64(virtq.InflightSize(int(f.QueueSize))), nil
}

// getInflightFD makes a region of zeroes that cannot shrink. The front-end keeps
// it beyond our life. An answer of size 0 is an error to the front-end.
func (s *session) getInflightFD(m *message) error {
	f, err := DecodeInflight(m.payload)
	if err != nil {
		return err
	}
	size, err := s.checkInflight(f)
	if err != nil {
		s.refuse(m, err)
		return s.conn.reply(m, Inflight{}.Append(nil))
	}
	fd, err := sealedMemory("rafsd-inflight", int64(size))
	if err != nil {
		s.refuse(m, err)
		return s.conn.reply(m, Inflight{}.Append(nil))
	}
	defer unix.Close(fd)
	f.MmapSize, f.MmapOffset = size, 0
	return s.conn.reply(m, f.Append(nil), fd)
}

func sealedMemory(name string, size int64) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd %s: %w", name, err)
	}
	err = unix.Ftruncate(fd, size)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("memfd %s of %d bytes: %w", name, size, err)
	}
	return fd, nil
}

// setInflightFD takes a region back, perhaps from a process that has died.
func (s *session) setInflightFD(m *message) error {
	f, err := DecodeInflight(m.payload)
	if err != nil {
		return err
	}
	size, err := s.checkInflight(f)
	if err != nil {
		return err
	}
	for _, r := range s.rings {
		if r.control.started {
			return fmt.Errorf("%w: in-flight region while ring %d is started", errState, r.index)
		}
	}
	if len(m.fds) != 1 || f.MmapSize < size {
		return fmt.Errorf("%w: in-flight region of %d bytes with %d descriptors: want %d and 1", ErrMessage, f.MmapSize, len(m.fds), size)
	}
	whole, delta, err := mapInflight(m.fds[0], f.MmapOffset, size)
	if err != nil {
		return err
	}
	return s.setInflight(whole, delta, f)
}

// mapInflight maps size bytes at off of fd: they begin delta bytes into whole.
func mapInflight(fd int, off, size uint64) (whole []byte, delta uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, fmt.Errorf("in-flight region: stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || off > uint64(st.Size) || uint64(st.Size)-off < size {
		return nil, 0, fmt.Errorf("%w: in-flight region %#x+%#x in a file of %#x bytes", ErrMessage, off, size, st.Size)
	}
	delta = off % uint64(os.Getpagesize())
	whole, err = unix.Mmap(fd, int64(off-delta), int(size+delta), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, 0, fmt.Errorf("in-flight region: mmap: %w", err)
	}
	return whole, delta, nil
}

// setInflight gives the rings their parts of the mapping whole, which it takes
// over, or takes away what they have. Precondition: all rings are stopped.
func (s *session) setInflight(whole []byte, delta uint64, f Inflight) (err error) {
	logs := make([]*virtq.Inflight, len(s.rings))
	if whole != nil {
		if err := layInflight(logs, whole[delta:], f); err != nil {
			return errors.Join(err, unix.Munmap(whole))
		}
	}
	for i, r := range s.rings {
		err = errors.Join(err, r.queue.SetInflight(logs[i]))
	}
	if s.inflight != nil {
		err = errors.Join(err, unix.Munmap(s.inflight))
	}
	s.inflight = whole
	return err
}

// layInflight lays the log of each ring over its part of b.
func layInflight(logs []*virtq.Inflight, b []byte, f Inflight) (err error) {
	defer guestmem.Catch(guestmem.Arm(), &err)
	n := virtq.InflightSize(int(f.QueueSize))
	for i := range int(f.NumQueues) {
		if logs[i], err = virtq.NewInflight(b[i*n:][:n:n], int(f.QueueSize)); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	return nil
}
