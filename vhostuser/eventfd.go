package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// eventOne is what adds 1 to an eventfd's counter.
var eventOne = binary.NativeEndian.AppendUint64(nil, 1)

// eventFD is a descriptor that the front-end passed for events: an eventfd, or
// something that reads and writes like one. Its flags are shared with the
// front-end and never changed here.
type eventFD struct {
	fd       int  // immutable
	blocking bool // immutable

	refs atomic.Int32 // holders; the last one closes fd
}

// newEventFD takes over fd. The result has one holder.
func newEventFD(fd int) *eventFD {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	e := &eventFD{fd: fd, blocking: err != nil || flags&unix.O_NONBLOCK == 0}
	e.refs.Store(1)
	return e
}

// hold adds a holder. nil may be held and released.
func (e *eventFD) hold() *eventFD {
	if e != nil {
		e.refs.Add(1)
	}
	return e
}

func (e *eventFD) release() {
	if e != nil && e.refs.Add(-1) == 0 {
		_ = unix.Close(e.fd)
	}
}

// ready reports whether fd is ready for events now.
func (e *eventFD) ready(events int16) bool {
	p := [1]unix.PollFd{{Fd: int32(e.fd), Events: events}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents&events != 0
}

// signal adds an event. A full counter is one that the reader has yet to see.
func (e *eventFD) signal() error {
	if e.blocking && !e.ready(unix.POLLOUT) {
		return nil
	}
	for {
		_, err := unix.Write(e.fd, eventOne)
		switch {
		case err == nil || errors.Is(err, unix.EAGAIN):
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("event descriptor: %w", err)
		}
	}
}

// drain takes the events that are there. Precondition: poll said that there are.
func (e *eventFD) drain() error {
	var err error
	if e.blocking {
		err = e.readNoWait()
	} else {
		var buf [8]byte
		_, err = unix.Read(e.fd, buf[:])
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("event descriptor: %w", err)
	}
	return nil
}

// readNoWait reads from a descriptor that blocks if another process has taken the
// event since poll saw it.
func (e *eventFD) readNoWait() error {
	var buf [8]byte
	_, err := unix.Preadv2(e.fd, [][]byte{buf[:]}, -1, unix.RWF_NOWAIT)
	if errors.Is(err, unix.EOPNOTSUPP) && e.ready(unix.POLLIN) {
		_, err = unix.Read(e.fd, buf[:]) // some kinds of files cannot tell
	}
	return err
}

// eventSlot holds a descriptor that is replaced while others signal it.
type eventSlot struct {
	mu sync.RWMutex
	e  *eventFD // guarded by mu; nil: nobody wants the event
}

// set takes over e, nil for none, and releases what was there.
func (s *eventSlot) set(e *eventFD) {
	s.mu.Lock()
	old := s.e
	s.e = e
	s.mu.Unlock()
	old.release()
}

// hold returns what is there with a holder more, or nil.
func (s *eventSlot) hold() *eventFD {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.e.hold()
}

func (s *eventSlot) signal() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.e == nil {
		return nil
	}
	return s.e.signal()
}
