package virtq

import (
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Push marks a chain as used, with used bytes written to its writable buffers.
// The driver sees that after Publish. The caller no longer touches the buffers,
// and c can be popped into again.
//
// On a queue that has been stopped meanwhile the chain counts as returned.
func (q *Queue) Push(c *Chain, used uint32) (err error) {
	q.pushMu.Lock()
	for !q.running && c.gen == q.gen {
		q.pushMu.Unlock()
		if stopped, err := q.returnStopped(c); stopped {
			return err
		}
		q.pushMu.Lock() // it was started meanwhile
	}
	defer q.pushMu.Unlock()
	defer c.drop()
	defer guestmem.Catch(guestmem.Arm(), &err)
	if c.gen != q.gen || c.snap == nil {
		return fmt.Errorf("%w: head %d", ErrStale, c.Head)
	}
	if !q.heads[c.Head].state.CompareAndSwap(inFlight, idle) {
		return fmt.Errorf("%w: head %d", ErrNotInFlight, c.Head)
	}
	// A driver may trust the length beyond its buffers: never claim more.
	used = min(used, uint32(c.WriteLen))
	// At most size chains are in flight, so the slot has been consumed.
	slot := int(q.usedIdx+uint16(len(q.batch))) & (q.size - 1)
	q.batch = append(q.batch, c.Head)
	// VIRTIO 1.2 §2.7.8: struct virtq_used_elem { le32 id, len }.
	q.used.Put64(usedRingOff+usedElemSize*slot, uint64(c.Head)|uint64(used)<<32)
	return nil
}

// Publish shows the driver all chains pushed since the last time, at once, and
// reports whether it wants to be notified of that.
func (q *Queue) Publish() (notify bool, err error) {
	q.pushMu.Lock()
	defer q.pushMu.Unlock()
	if len(q.batch) == 0 || !q.running {
		return false, nil
	}
	defer guestmem.Catch(guestmem.Arm(), &err)
	batch := q.batch
	q.batch = q.batch[:0]
	q.usedIdx += uint16(len(batch))
	if q.inflight != nil {
		q.inflight.link(batch)
	}
	q.storeUsedLocked()
	if q.inflight != nil {
		q.inflight.finish(batch, q.usedIdx)
	}
	// The driver's wish is read after the index is visible: a driver that enables
	// notifications and then finds the index unchanged gets one.
	q.pushFence.Full()
	return q.wantsNotifyLocked(), nil
}

// storeUsedLocked stores used.flags and used.idx as one word.
func (q *Queue) storeUsedLocked() {
	q.used.Store32(0, uint32(q.usedFlags)|uint32(q.usedIdx)<<16)
}

// wantsNotifyLocked decides as VIRTIO 1.2 §2.7.7.2 says.
func (q *Queue) wantsNotifyLocked() bool {
	const noInterrupt = 1
	if !q.eventIdx {
		return q.avail.Load16(availFlagsOff)&noInterrupt == 0
	}
	event := q.avail.Load16(availRingOff + 2*q.size)
	old, first := q.signalled, !q.everDecided
	q.signalled, q.everDecided = q.usedIdx, true
	return first || q.usedIdx-event-1 < q.usedIdx-old
}
