package virtq

import (
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Bits of a descriptor's flags (VIRTIO 1.2 §2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// descSize is the size of a descriptor in bytes.
const descSize = 16

// minIndirect is how many descriptors an indirect table may always have. The
// specification allows as many as the queue has; Linux stays below that, but
// others fill a 1 MiB request of 4 KiB pages into a queue of 128.
const minIndirect = 1024

// Chain is a request: buffers to read, then buffers to write. The slices lie in
// guest memory, which the guest may change at any time. They are valid until
// Push or Return. A Chain can be used again, which spares allocations, but it must
// not be copied while it is in flight.
type Chain struct {
	// Head names the chain in the queue.
	Head uint16
	// Readable and Writable are the buffers in order. Neighbours in our memory
	// are one slice, and none is empty.
	Readable, Writable [][]byte
	// ReadLen and WriteLen are the sums of their lengths in bytes.
	ReadLen, WriteLen int

	snap *guestmem.Snapshot // pinned while in flight
	gen  uint32             // the run of the queue that it belongs to
}

// reset empties c and keeps what it has allocated.
func (c *Chain) reset() {
	*c = Chain{Readable: c.Readable[:0], Writable: c.Writable[:0]}
}

// drop gives up the memory of the chain.
func (c *Chain) drop() {
	if c.snap != nil {
		c.snap.Unpin()
		c.snap = nil
	}
	c.reset()
}

// clip takes away the capacity that served to merge slices, so that an append to
// a buffer can never write beyond it.
func clip(bufs [][]byte) {
	for i, b := range bufs {
		bufs[i] = b[:len(b):len(b)]
	}
}

// desc is a private copy of a descriptor.
type desc struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

func makeDesc(addr, rest uint64) desc {
	return desc{addr: addr, len: uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48)}
}

// walk fills c from the chain that starts at c.Head. On an error c has what came
// before it, so that the owner may still answer the request.
// Precondition: popMu is held and c.Head < size.
func (q *Queue) walk(c *Chain) error {
	err := q.walkDirect(c)
	clip(c.Readable)
	clip(c.Writable)
	return err
}

func (q *Queue) walkDirect(c *Chain) error {
	at := int(c.Head)
	for range q.size {
		off := at * descSize
		d := makeDesc(q.desc.Get64(off), q.desc.Get64(off+8))
		if d.flags&descIndirect != 0 {
			return q.walkIndirect(c, d)
		}
		if err := q.add(c, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if at = int(d.next); at >= q.size {
			return fmt.Errorf("%w: %d from head %d: want less than %d", ErrNext, at, c.Head, q.size)
		}
	}
	return fmt.Errorf("%w: more than %d descriptors from head %d", ErrLoop, q.size, c.Head)
}

// walkIndirect walks a private copy of the table that d describes
// (VIRTIO 1.2 §2.7.5.3). The table ends the chain.
func (q *Queue) walkIndirect(c *Chain, d desc) error {
	switch {
	case !q.indirect:
		return fmt.Errorf("%w: not negotiated, head %d", ErrIndirect, c.Head)
	case d.flags&descNext != 0:
		return fmt.Errorf("%w: with a next descriptor, head %d", ErrIndirect, c.Head)
	case d.len == 0 || d.len%descSize != 0 || int64(d.len) > descSize*int64(max(q.size, minIndirect)):
		return fmt.Errorf("%w: %d bytes, head %d", ErrIndirect, d.len, c.Head)
	}
	table, err := q.copyTable(d)
	if err != nil {
		return fmt.Errorf("%w: indirect table of head %d: %w", ErrBuffer, c.Head, err)
	}
	n, at := len(table)/descSize, 0
	for range n {
		b := table[at*descSize:][:descSize]
		d := makeDesc(le.Uint64(b), le.Uint64(b[8:]))
		if d.flags&descIndirect != 0 {
			return fmt.Errorf("%w: inside another, head %d", ErrIndirect, c.Head)
		}
		if err := q.add(c, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if at = int(d.next); at >= n {
			return fmt.Errorf("%w: %d in the indirect table of head %d: want less than %d", ErrNext, at, c.Head, n)
		}
	}
	return fmt.Errorf("%w: more than %d descriptors in the indirect table of head %d", ErrLoop, n, c.Head)
}

// copyTable copies an indirect table out of guest memory, where it may straddle
// regions. The copy lives until the next call.
func (q *Queue) copyTable(d desc) ([]byte, error) {
	var err error
	if q.pieces, err = q.snap.Slices(q.pieces[:0], d.addr, d.len); err != nil {
		return nil, err
	}
	q.table = q.table[:0]
	for _, p := range q.pieces {
		q.table = append(q.table, p...)
	}
	return q.table, nil
}

// add appends the buffer of one descriptor to c.
func (q *Queue) add(c *Chain, d desc) (err error) {
	bufs, total, limit := &c.Readable, &c.ReadLen, q.limits.Readable
	if d.flags&descWrite != 0 {
		bufs, total, limit = &c.Writable, &c.WriteLen, q.limits.Writable
	} else if c.WriteLen > 0 {
		// VIRTIO 1.2 §2.7.4.2: what the device reads comes first.
		return fmt.Errorf("%w: head %d", ErrOrder, c.Head)
	}
	if int64(d.len) > int64(limit-*total) {
		return fmt.Errorf("%w: %d + %d bytes from head %d: want at most %d", ErrTooLong, *total, d.len, c.Head, limit)
	}
	if *bufs, err = q.snap.Slices(*bufs, d.addr, d.len); err != nil {
		return fmt.Errorf("%w: head %d: %w", ErrBuffer, c.Head, err)
	}
	*total += int(d.len)
	return nil
}
