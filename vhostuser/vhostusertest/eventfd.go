package vhostusertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// eventFD is a kick, call or error descriptor, made as QEMU makes it.
type eventFD int

func newEventFD() (eventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return eventFD(fd), nil
}

// one is what is written to an eventfd. It is never changed.
var one = [8]byte{1}

// signal adds one to the counter.
func (e eventFD) signal() error {
	for {
		_, err := unix.Write(int(e), one[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil && !errors.Is(err, unix.EAGAIN): // EAGAIN: saturated, it is readable
			return fmt.Errorf("eventfd: %w", err)
		default:
			return nil
		}
	}
}

// clear takes the counter without waiting.
func (e eventFD) clear() uint64 {
	var b [8]byte
	if n, err := unix.Read(int(e), b[:]); err != nil || n != len(b) {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// wait waits until the counter is not zero and takes it. It blocks a thread: a
// trip through the runtime's poller would be measured as the back-end's latency.
func (e eventFD) wait(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		fds := [1]unix.PollFd{{Fd: int32(e), Events: unix.POLLIN}}
		ms := int(time.Until(deadline).Milliseconds()) + 1
		n, err := unix.Poll(fds[:], max(ms, 0))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("eventfd: poll: %w", err)
		case n == 0:
			return ErrTimeout
		default:
			e.clear()
			return nil
		}
	}
}

func (e eventFD) close() {
	if e >= 0 {
		_ = unix.Close(int(e))
	}
}
