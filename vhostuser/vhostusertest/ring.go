package vhostusertest

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Offsets in the parts of a split ring (VIRTIO 1.2 §2.7).
const (
	descSize    = 16
	availIdxOff = 2
	availRing   = 4
	usedIdxOff  = 2
	usedRing    = 4
	usedElem    = 8
)

// Flags of a descriptor (VIRTIO 1.2 §2.7.5).
const (
	DescNext     uint16 = 1
	DescWrite    uint16 = 2
	DescIndirect uint16 = 4
)

const (
	noInterrupt uint16 = 1 // VRING_AVAIL_F_NO_INTERRUPT
	noNotify    uint16 = 1 // VRING_USED_F_NO_NOTIFY
)

// Desc is one descriptor (VIRTIO 1.2 §2.7.5).
type Desc struct {
	Addr  uint64 // guest-physical
	Len   uint32 // in bytes
	Flags uint16
	Next  uint16
}

// Append appends the encoded descriptor to b, as an indirect table has it.
func (d Desc) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.Addr)
	b = binary.LittleEndian.AppendUint32(b, d.Len)
	b = binary.LittleEndian.AppendUint16(b, d.Flags)
	return binary.LittleEndian.AppendUint16(b, d.Next)
}

func (d Desc) put(b []byte) {
	binary.LittleEndian.PutUint64(b[0:], d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Ring is the driver's side of one split virtqueue, with the three parts in
// guest memory and the descriptors that the monitor gave the back-end for it.
// Its methods are for one goroutine at a time.
type Ring struct {
	Index int
	Num   uint16
	// The parts. They may be changed while the ring is stopped, to set up a
	// wrong one.
	Desc, Avail, Used Buffer

	memory   *Memory
	fence    guestmem.Fence
	eventIdx bool
	indirect bool

	kick, call, errs eventFD

	free      []uint16   // descriptors that are in no chain
	owners    []*Request // by head
	availIdx  uint16     // of what was submitted
	published uint16     // of what the back-end sees
	lastUsed  uint16     // of what was reaped
	base      uint16     // where the back-end starts
	unique    uint64     // of the last request

	pool []*Request // made by a Client, not in use

	// Kicks counts writes to the kick descriptor.
	Kicks uint64
}

// newRing places a ring as Linux places it: the parts of a modern device follow
// each other, 64 bytes aligned.
func newRing(m *Memory, index int, num uint16) (*Ring, error) {
	r := &Ring{Index: index, Num: num, memory: m, kick: -1, call: -1, errs: -1}
	n := int(num)
	var err error
	for _, p := range []struct {
		b    *Buffer
		size int
	}{{&r.Desc, descSize * n}, {&r.Avail, availRing + 2*n + 4}, {&r.Used, usedRing + usedElem*n + 4}} {
		if *p.b, err = m.Alloc(p.size, 64); err != nil {
			return nil, fmt.Errorf("ring %d: %w", index, err)
		}
	}
	for _, fd := range []*eventFD{&r.kick, &r.call, &r.errs} {
		if *fd, err = newEventFD(); err != nil {
			r.close()
			return nil, fmt.Errorf("ring %d: %w", index, err)
		}
	}
	r.free = make([]uint16, 0, num)
	r.owners = make([]*Request, num)
	r.reset()
	return r, nil
}

// reset is what a driver does that has reset its device: everything that was in
// flight is forgotten.
func (r *Ring) reset() {
	clear(r.Desc.Bytes)
	clear(r.Avail.Bytes)
	clear(r.Used.Bytes)
	clear(r.owners)
	r.free = r.free[:0]
	for i := r.Num; i > 0; i-- {
		r.free = append(r.free, i-1)
	}
	r.availIdx, r.published, r.lastUsed, r.base = 0, 0, 0, 0
	r.kick.clear()
	r.call.clear()
}

func (r *Ring) close() {
	r.kick.close()
	r.call.close()
	r.errs.close()
}

// Submit puts q into the ring. The back-end sees it after Publish.
func (r *Ring) Submit(q *Request) error {
	need := len(q.descs)
	if r.indirect {
		need = 1
	}
	if need > len(r.free) {
		return fmt.Errorf("ring %d: %d descriptors free: want %d", r.Index, len(r.free), need)
	}
	q.chain = q.chain[:0]
	for range need {
		id := r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
		q.chain = append(q.chain, id)
	}
	head := q.chain[0]
	if r.indirect {
		r.PutDesc(head, Desc{Addr: q.table.GPA, Len: uint32(len(q.descs) * descSize), Flags: DescIndirect})
	} else {
		for i, d := range q.descs {
			if i+1 < len(q.descs) {
				d.Next = q.chain[i+1]
			}
			r.PutDesc(q.chain[i], d)
		}
	}
	r.owners[head] = q
	r.PutAvail(r.availIdx, head)
	r.availIdx++
	return nil
}

// Publish shows the back-end what was submitted and kicks it if it wants that.
func (r *Ring) Publish() error {
	old := r.published
	if r.availIdx == old {
		return nil
	}
	r.SetAvailIdx(r.availIdx)
	r.fence.Full()
	if r.eventIdx {
		event := guestmem.PartOf(r.Used.Bytes).Load16(usedRing + usedElem*int(r.Num))
		if r.availIdx-event-1 >= r.availIdx-old { // VIRTIO 1.2 §2.7.7.2, vring_need_event
			return nil
		}
	} else if guestmem.PartOf(r.Used.Bytes).Load16(0)&noNotify != 0 {
		return nil
	}
	return r.Kick()
}

// Kick writes the kick descriptor, wanted or not.
func (r *Ring) Kick() error {
	r.Kicks++
	return r.kick.signal()
}

// Reap takes the next request that the back-end has finished, or nil.
func (r *Ring) Reap() (*Request, error) {
	if r.UsedIdx() == r.lastUsed {
		return nil, nil
	}
	if pending := r.UsedIdx() - r.lastUsed; pending > r.Num {
		return nil, fmt.Errorf("ring %d: %w: used index is %d ahead: want at most %d", r.Index, ErrProtocol, pending, r.Num)
	}
	id, n := r.UsedElem(r.lastUsed)
	if id >= uint32(r.Num) || r.owners[id] == nil {
		return nil, fmt.Errorf("ring %d: %w: used element %d names head %d, which is not in flight", r.Index, ErrProtocol, r.lastUsed, id)
	}
	q := r.owners[id]
	r.owners[id] = nil
	r.free = append(r.free, q.chain...)
	r.lastUsed++
	q.used = n
	return q, nil
}

// InFlight returns how many requests were submitted and not reaped.
func (r *Ring) InFlight() int {
	n := 0
	for _, q := range r.owners {
		if q != nil {
			n++
		}
	}
	return n
}

// Arm asks for a call after the next request that is finished. False: one is
// already there, and there may be no call for it.
func (r *Ring) Arm() bool {
	if r.eventIdx {
		guestmem.PartOf(r.Avail.Bytes).Store16(availRing+2*int(r.Num), r.lastUsed)
	} else {
		guestmem.PartOf(r.Avail.Bytes).Store16(0, 0)
	}
	r.fence.Full()
	return r.UsedIdx() == r.lastUsed
}

// Disarm asks for no calls, as a driver does that polls.
func (r *Ring) Disarm() {
	if r.eventIdx {
		guestmem.PartOf(r.Avail.Bytes).Store16(availRing+2*int(r.Num), r.lastUsed-1)
	} else {
		guestmem.PartOf(r.Avail.Bytes).Store16(0, noInterrupt)
	}
}

// Wait waits until there is something to reap.
func (r *Ring) Wait(timeout time.Duration) error {
	for {
		if !r.Arm() {
			return nil
		}
		if err := r.call.wait(timeout); err != nil {
			return fmt.Errorf("ring %d: %d requests in flight: %w", r.Index, r.InFlight(), err)
		}
	}
}

// RoundTrip submits q and waits until it is finished. No other request may be in
// flight.
func (r *Ring) RoundTrip(q *Request, timeout time.Duration) error {
	if err := r.Submit(q); err != nil {
		return err
	}
	if err := r.Publish(); err != nil {
		return err
	}
	for {
		done, err := r.Reap()
		if err != nil {
			return err
		}
		if done == q {
			return nil
		}
		if err := r.Wait(timeout); err != nil {
			return err
		}
	}
}
