package virtq

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Pop takes the next chain into c.
//
// It reports false without an error if there is none or the queue is stopped. It
// reports true for a chain, with an error that wraps ErrChain if the chain is
// malformed: c then has the buffers before the fault, and must be pushed like any
// other. With every other error the queue is broken: it pops nothing until it is
// stopped and started again.
func (q *Queue) Pop(c *Chain) (ok bool, err error) {
	c.reset()
	q.popMu.Lock()
	defer q.popMu.Unlock()
	if ok, err = q.popGuarded(c); ok || err == nil {
		return ok, err
	}
	if c.snap != nil {
		// The chain was popped before its descriptors vanished.
		q.parkLocked(c.Head)
		c.drop()
	}
	q.pushMu.Lock()
	q.broken = err
	q.pushMu.Unlock()
	return false, err
}

func (q *Queue) popGuarded(c *Chain) (ok bool, err error) {
	defer guestmem.Catch(guestmem.Arm(), &err)
	if !q.running || q.broken != nil {
		return false, q.broken
	}
	h, found, err := q.nextHead()
	if !found {
		return false, err
	}
	c.Head, c.gen = h, q.gen
	q.snap.Pin()
	c.snap = q.snap
	err = q.walk(c)
	return true, err // ok is false until here, for a fault
}

// nextHead takes a parked head or else the next one of the available ring.
func (q *Queue) nextHead() (h uint16, ok bool, err error) {
	if len(q.parked) > 0 {
		h = q.parked[0]
		q.parked = slices.Delete(q.parked, 0, 1)
		q.heads[h].state.Store(inFlight)
		return h, true, nil
	}
	if more, err := q.look(); !more {
		return 0, false, err
	}
	slot := int(q.lastAvail) & (q.size - 1)
	h = q.avail.Get16(availRingOff + 2*slot)
	if int(h) >= q.size {
		return 0, false, fmt.Errorf("%w: %d at available entry %d: want less than %d", ErrHead, h, q.lastAvail, q.size)
	}
	if q.heads[h].state.Load() != idle {
		return 0, false, fmt.Errorf("%w: %d at available entry %d", ErrInFlight, h, q.lastAvail)
	}
	q.counter++
	if q.inflight != nil {
		q.inflight.mark(h, q.counter)
	}
	q.heads[h].counter = q.counter
	q.heads[h].state.Store(inFlight)
	q.popped[slot] = h
	q.entries = min(q.entries+1, q.size)
	q.lastAvail++
	return h, true, nil
}

// look reports whether the available ring has an entry to pop. It reads avail.idx
// only when those known have all been popped.
func (q *Queue) look() (bool, error) {
	if q.availIdx != q.lastAvail {
		return true, nil
	}
	idx := q.avail.Load16(availIdxOff)
	if n := idx - q.lastAvail; int(n) > q.size {
		return false, fmt.Errorf("%w: %d is %d ahead of %d: want at most %d", ErrAvailIndex, idx, n, q.lastAvail, q.size)
	}
	q.availIdx = idx
	return idx != q.lastAvail, nil
}

// Return gives a chain back as if it had not been popped: a later Pop of this run,
// or of the next if that goes on with the same rings, takes it again. The caller no
// longer touches its buffers.
func (q *Queue) Return(c *Chain) error {
	q.popMu.Lock()
	defer q.popMu.Unlock()
	return q.returnLocked(c)
}

// returnStopped is Return if the queue is stopped, and nothing if it runs.
func (q *Queue) returnStopped(c *Chain) (stopped bool, err error) {
	q.popMu.Lock()
	defer q.popMu.Unlock()
	if q.running {
		return false, nil
	}
	return true, q.returnLocked(c)
}

// returnLocked is Return. Precondition: popMu is held.
func (q *Queue) returnLocked(c *Chain) error {
	defer c.drop()
	if c.gen != q.gen || c.snap == nil {
		return fmt.Errorf("%w: head %d", ErrStale, c.Head)
	}
	if !q.parkLocked(c.Head) {
		return fmt.Errorf("%w: head %d", ErrNotInFlight, c.Head)
	}
	return nil
}

// parkLocked parks h in the order of the pops, and reports false if it was not in
// flight. Precondition: popMu is held.
func (q *Queue) parkLocked(h uint16) bool {
	if !q.heads[h].state.CompareAndSwap(inFlight, parked) {
		return false
	}
	at, _ := slices.BinarySearchFunc(q.parked, q.heads[h].counter, func(p uint16, counter uint64) int {
		return cmp.Compare(q.heads[p].counter, counter)
	})
	q.parked = slices.Insert(q.parked, at, h)
	return true
}
