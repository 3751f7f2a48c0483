package vhostusertest

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// What follows writes into a ring without judging it, for drivers that are broken
// or mean harm. Such a ring is beyond Submit and Reap afterwards.

// PutDesc writes descriptor i of the table.
func (r *Ring) PutDesc(i uint16, d Desc) { d.put(r.Desc.Bytes[int(i)*descSize:]) }

// PutAvail writes the head at position i of the available ring, modulo its size.
func (r *Ring) PutAvail(i, head uint16) {
	at := availRing + 2*int(i&(r.Num-1))
	binary.LittleEndian.PutUint16(r.Avail.Bytes[at:], head)
}

// SetAvailIdx publishes an available index.
func (r *Ring) SetAvailIdx(v uint16) {
	r.published = v
	r.fence.Full() // the heads before the index
	guestmem.PartOf(r.Avail.Bytes).Store16(availIdxOff, v)
}

// AvailIdx returns the published available index.
func (r *Ring) AvailIdx() uint16 { return guestmem.PartOf(r.Avail.Bytes).Load16(availIdxOff) }

// UsedIdx returns the back-end's used index.
func (r *Ring) UsedIdx() uint16 { return guestmem.PartOf(r.Used.Bytes).Load16(usedIdxOff) }

// UsedElem returns the used element at position i, modulo the ring's size: the
// head of a chain and the bytes written into it.
func (r *Ring) UsedElem(i uint16) (id, n uint32) {
	at := usedRing + usedElem*int(i&(r.Num-1))
	return binary.LittleEndian.Uint32(r.Used.Bytes[at:]), binary.LittleEndian.Uint32(r.Used.Bytes[at+4:])
}

// Offer writes descs as a direct chain into descriptors 0, 1, ... and makes its
// first the next available head, visible and kicked. Next fields are taken as
// they are.
func (r *Ring) Offer(descs ...Desc) error {
	for i, d := range descs {
		r.PutDesc(uint16(i), d)
	}
	return r.OfferHead(0)
}

// OfferHead makes head the next available one, visible and kicked.
func (r *Ring) OfferHead(head uint16) error {
	r.PutAvail(r.availIdx, head)
	r.availIdx++
	r.SetAvailIdx(r.availIdx)
	return r.Kick()
}

// Linked sets NEXT on all but the last of descs, so that each leads to the one
// after it in a table that begins with them, and returns them.
func Linked(descs ...Desc) []Desc {
	for i := range descs {
		if i+1 < len(descs) {
			descs[i].Flags |= DescNext
			descs[i].Next = uint16(i + 1)
		}
	}
	return descs
}

// Table writes descs into guest memory and returns the descriptor that leads to
// them as an indirect table.
func (m *Memory) Table(descs ...Desc) (Desc, error) {
	var raw []byte
	for _, d := range descs {
		raw = d.Append(raw)
	}
	b, err := m.Alloc(len(raw), descSize)
	if err != nil {
		return Desc{}, err
	}
	copy(b.Bytes, raw)
	return Desc{Addr: b.GPA, Len: uint32(len(raw)), Flags: DescIndirect}, nil
}

// Place copies b into guest memory and returns the descriptor of it.
func (m *Memory) Place(b []byte) (Desc, error) {
	buf, err := m.Alloc(len(b), 8)
	if err != nil {
		return Desc{}, err
	}
	copy(buf.Bytes, b)
	return Desc{Addr: buf.GPA, Len: uint32(len(b))}, nil
}

// Room takes n bytes of guest memory for the back-end to write to and returns the
// descriptor of them with the bytes.
func (m *Memory) Room(n int) (Desc, []byte, error) {
	buf, err := m.Alloc(n, 8)
	if err != nil {
		return Desc{}, nil, err
	}
	return Desc{Addr: buf.GPA, Len: uint32(n), Flags: DescWrite}, buf.Bytes, nil
}

// WaitBroken waits until the back-end has said, through the ring's error
// descriptor, that it has given the ring up.
func (r *Ring) WaitBroken(timeout time.Duration) error {
	if err := r.errs.wait(timeout); err != nil {
		return fmt.Errorf("ring %d: waiting for its error descriptor: %w", r.Index, err)
	}
	return nil
}

// WaitUsed waits until the back-end's used index is v, with or without a call
// for it.
func (r *Ring) WaitUsed(v uint16, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); r.UsedIdx() != v; runtime.Gosched() {
		if time.Now().After(deadline) {
			return fmt.Errorf("ring %d: used index is %d: want %d: %w", r.Index, r.UsedIdx(), v, ErrTimeout)
		}
	}
	return nil
}
