package vhostuser

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// control is what the front-end has said of a ring.
//
//	           NUM, ADDR, BASE            KICK
//	configured <--------------+   +--------------> started
//	     ^                    |   |                   |  ENABLE(1)   ENABLE(0)
//	     +--------------------+---+                   v      ^          |
//	            GET_VRING_BASE, RESET_DEVICE       enabled --+----------+
//
// A worker runs while the ring is started and enabled and not broken. A pause by
// ENABLE(0) leaves the queue started: chains that the device returned are popped
// again after ENABLE(1).
type control struct {
	num     int // 0: not set
	addr    VringAddr
	hasAddr bool
	base    uint16
	started bool
	enabled bool
	working bool          // launched and not halted since
	kick    *eventFD      // of a started ring; nil: poll
	done    chan struct{} // closed when the last worker has ended; nil: there is none

	abandoned int // chains that the device did not give back when it was last waited for
}

// errState is wrapped by refusals of a message that comes at the wrong time.
var errState = errors.New("message at the wrong time")

func (r *Ring) setNum(num uint32, maxSize int) error {
	if r.control.started {
		return fmt.Errorf("%w: ring is started", errState)
	}
	if num == 0 || num > uint32(maxSize) || num&(num-1) != 0 {
		return fmt.Errorf("%w: ring size %d: want a power of two up to %d", ErrMessage, num, maxSize)
	}
	r.control.num = int(num)
	return nil
}

// setAddr takes the addresses. It does not look at the ring: its base may follow,
// as with Cloud Hypervisor, or have been told before, as with QEMU.
func (r *Ring) setAddr(a VringAddr) error {
	// Dirty logging, once offered, changes the flag and the log address on a live
	// ring and nothing else.
	if r.control.started && (a.Desc != r.control.addr.Desc || a.Avail != r.control.addr.Avail || a.Used != r.control.addr.Used) {
		return fmt.Errorf("%w: ring is started", errState)
	}
	if a.Flags != 0 {
		return fmt.Errorf("%w: ring flags %#x: logging was not offered", ErrMessage, a.Flags)
	}
	r.control.addr, r.control.hasAddr = a, true
	return nil
}

func (r *Ring) setBase(base uint32) error {
	if r.control.started {
		return fmt.Errorf("%w: ring is started", errState)
	}
	if base > 0xffff {
		return fmt.Errorf("%w: ring base %#x: want 16 bits", ErrMessage, base)
	}
	r.control.base = uint16(base)
	return nil
}

// start starts the queue over the memory of snap. kick is taken over, also on an
// error; nil stands for polling.
func (r *Ring) start(snap *guestmem.Snapshot, kick *eventFD, features uint64) error {
	c := &r.control
	if snap == nil || c.num == 0 || !c.hasAddr {
		kick.release()
		return fmt.Errorf("%w: ring is kicked before its memory, size or address", errState)
	}
	err := r.queue.Start(snap, virtq.Config{
		Size: c.num, Desc: c.addr.Desc, Avail: c.addr.Avail, Used: c.addr.Used, Base: c.base,
		Indirect: features&FeatureIndirectDesc != 0, EventIdx: features&FeatureEventIdx != 0,
	})
	if err != nil {
		kick.release()
		return err
	}
	r.mu.Lock()
	r.broken = nil
	r.mu.Unlock()
	c.kick, c.started = kick, true
	return nil
}

// launch starts a worker if the ring is in the state for one and has none.
func (r *Ring) launch(ctx context.Context, dev Device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.control.started || !r.control.enabled || r.control.working || r.broken != nil {
		return
	}
	r.control.working = true
	// Nobody could tell these from the chains of the run that begins.
	r.control.abandoned = 0
	run, cancel := context.WithCancel(ctx)
	r.cancel = cancel
	before, done := r.control.done, make(chan struct{})
	r.control.done = done
	w := worker{ctx: run, wake: r.wake.hold(), kick: r.control.kick.hold(), patience: patience{max: r.pollMax}}
	go func() {
		defer close(done)
		defer cancel()
		defer w.kick.release()
		defer w.wake.release()
		if before != nil {
			<-before // it was told to end; until then the ring stays halted
		}
		r.work(w, dev)
	}()
}

// work is the life of a worker.
func (r *Ring) work(w worker, dev Device) {
	defer context.AfterFunc(w.ctx, r.interrupt)()
	r.worker = w
	r.halted.Store(false)
	if w.ctx.Err() != nil {
		// halt came before; it must not be undone.
		r.halted.Store(true)
		return
	}
	err := r.serve(w.ctx, dev)
	if w.ctx.Err() != nil {
		return
	}
	if err == nil {
		err = errors.New("the device left the ring")
	}
	r.Broken(err)
}

// serve runs the device and turns what it throws into an error.
func (r *Ring) serve(ctx context.Context, dev Device) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	guestmem.Arm() // for the rest of this goroutine
	if err := r.queue.DisableNotify(); err != nil {
		return err
	}
	return dev.ServeRing(ctx, r)
}

// halt tells the ring to stop: Pop finds nothing and the worker's ctx ends.
func (r *Ring) halt() {
	r.control.working = false
	r.mu.Lock()
	if r.cancel != nil {
		r.cancel()
	}
	r.halted.Store(true)
	r.mu.Unlock()
	r.interrupt()
}

// await waits until the worker of a halted ring has ended and no chain is with the
// device; what it completed is flushed. It reports false if ctx ends before. What
// the device has not given back by then is not waited for again until the ring runs.
func (r *Ring) await(ctx context.Context) bool {
	for !r.atRest() {
		select {
		case <-r.control.done:
		case <-r.idle:
		case <-ctx.Done():
			if r.atRest() {
				break
			}
			r.control.abandoned = r.queue.Outstanding()
			r.Flush()
			return false
		}
	}
	r.Flush()
	return true
}

// atRest reports whether await has nothing to wait for. It forgets a worker that
// has ended.
func (r *Ring) atRest() bool {
	select {
	case <-r.control.done:
		r.control.done = nil
	default:
	}
	return r.control.done == nil && r.queue.Outstanding() <= r.control.abandoned
}

// stop ends the run of a halted ring and drops its kick and call descriptors. It
// returns the base of the next run. A chain that is still with the device does not
// reach the ring any more.
func (r *Ring) stop() uint16 {
	c := &r.control
	if c.started {
		r.Flush()
		c.base, c.started = r.queue.Stop(), false
	}
	r.call.set(nil)
	c.kick.release()
	c.kick = nil
	return c.base
}

// reset takes a stopped ring back to before its configuration. Its error
// descriptor stays: QEMU sends that once.
func (r *Ring) reset(enabled bool) {
	r.stop()
	r.queue.Reset()
	c := &r.control
	c.num, c.hasAddr, c.base, c.enabled = 0, false, 0, enabled
}

// close drops everything. Precondition: the ring is stopped.
func (r *Ring) close() {
	r.errs.set(nil)
	r.wake.set(nil)
}
