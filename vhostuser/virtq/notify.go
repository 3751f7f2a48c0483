package virtq

import "github.com/rafsd/rafsd/vhostuser/guestmem"

// noNotify in used.flags tells the driver that kicks are not wanted.
const noNotify = 1

// DisableNotify tells the driver, as far as that is possible, that it need not
// kick: the owner pops until the queue is empty or polls it.
func (q *Queue) DisableNotify() error { return q.setNotify(noNotify) }

func (q *Queue) setNotify(flags uint16) (err error) {
	q.pushMu.Lock()
	defer q.pushMu.Unlock()
	// With EVENT_IDX the flag must be 0 (VIRTIO 1.2 §2.7.10.1) and a stale
	// avail_event does the same.
	if !q.running || q.eventIdx || q.usedFlags == flags {
		return nil
	}
	defer guestmem.Catch(guestmem.Arm(), &err)
	q.usedFlags = flags
	// This stores the index as published; chains pushed later are not in it.
	q.storeUsedLocked()
	return nil
}

// EnableNotify asks the driver for a kick at the next chain. If it reports true
// there is a chain already, made available before the driver could know, and the
// owner must pop instead of waiting.
func (q *Queue) EnableNotify() (more bool, err error) {
	if err := q.setNotify(0); err != nil {
		return false, err
	}
	q.popMu.Lock()
	defer q.popMu.Unlock()
	defer guestmem.Catch(guestmem.Arm(), &err)
	if !q.running || q.broken != nil {
		return false, q.broken
	}
	if q.eventIdx {
		q.used.Store16(usedRingOff+usedElemSize*q.size, q.lastAvail)
	}
	// The index is read after the wish is visible: either we see the chain or the
	// driver sees that it has to kick (VIRTIO 1.2 §2.7.13.4.1).
	q.fence.Full()
	return q.pendingLocked()
}

// Pending reports whether Pop would find something.
func (q *Queue) Pending() (more bool, err error) {
	q.popMu.Lock()
	defer q.popMu.Unlock()
	defer guestmem.Catch(guestmem.Arm(), &err)
	if !q.running || q.broken != nil {
		return false, q.broken
	}
	return q.pendingLocked()
}

func (q *Queue) pendingLocked() (bool, error) {
	if len(q.parked) > 0 {
		return true, nil
	}
	more, err := q.look()
	// Pop meets the same error and is the one to report it.
	return more || err != nil, nil
}
