package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// Device is what serves the rings of a session.
type Device interface {
	// ServeRing serves r until ctx ends. It is called in a goroutine of its own
	// each time that r has been started and enabled, and must look at the ring
	// before it waits: the kick may have been consumed already. Its loop is
	//
	//	for {
	//		for { ok, err := r.Pop(c); ...; r.Complete(c, used) }
	//		r.Flush()
	//		if err := r.WaitKick(ctx); err != nil { return err }
	//	}
	//
	// When ctx ends the front-end waits for the ring: ServeRing returns at once,
	// and chains that other goroutines work on are soon completed or returned.
	// An error that is not ctx's breaks the ring, as Broken does; so does a panic.
	// A fault in guest memory is a panic in this goroutine (guestmem.Arm), but not
	// in others that the device starts. Each chain is given back, whatever happens:
	// guest memory stays mapped until the last one is.
	ServeRing(ctx context.Context, r *Ring) error
	// Reset forgets what the driver has set up: it was reset, or the front-end is
	// gone. No ring is being served during the call.
	Reset()
}

// ErrBroken is wrapped by what Pop and WaitKick return on a ring that Broken has
// stopped.
var ErrBroken = errors.New("ring broken")

// Ring is one ring of a session, from its first configuration to the end of the
// session; it may be stopped and started again in between. Index, Pop, Complete,
// Return, Flush and Broken may be called from any goroutine, WaitKick only from
// ServeRing's.
type Ring struct {
	index   int             // immutable
	pollMax time.Duration   // of patience; immutable
	queue   *virtq.Queue    // immutable
	log     *slog.Logger    // immutable
	quiet   *rate.Sometimes // for what a guest can cause
	stats   *counters       // immutable
	wake    eventSlot       // interrupts WaitKick
	call    eventSlot       // the driver's notification
	errs    eventSlot       // tells the front-end that the ring broke
	halted  atomic.Bool     // Pop finds nothing: the ring is to stop
	idle    chan struct{}   // has a token when a chain ended while halted

	mu     sync.Mutex
	broken error              // guarded by mu; nil: not broken
	cancel context.CancelFunc // guarded by mu; ends ServeRing's ctx

	worker  worker  // of the goroutine of ServeRing
	control control // of the session's goroutine
}

// worker is what WaitKick needs.
type worker struct {
	ctx        context.Context // of ServeRing
	wake, kick *eventFD        // held; kick is nil for a ring that wants polling
	patience   patience
}

// newRing makes a ring that is not configured.
func newRing(index int, cfg *Config, stats *counters) (*Ring, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("ring %d: eventfd: %w", index, err)
	}
	r := &Ring{
		index: index, pollMax: cfg.PollMax, queue: virtq.New(cfg.Limits), stats: stats,
		log: cfg.Log.With("ring", index), quiet: cfg.quiet, idle: make(chan struct{}, 1),
	}
	r.wake.set(newEventFD(fd))
	return r, nil
}

// Index is the ring's number: 0 is hiprio for a file system.
func (r *Ring) Index() int { return r.index }

// Pop takes the next chain into c.
//
//	false, nil  there is none, or the ring is to stop: Flush, then WaitKick
//	true,  nil  c is a request; its buffers are pinned until Complete or Return
//	true,  err  c is malformed (virtq.ErrChain); it has the buffers before the
//	            fault, for an error reply, and must be completed like any other
//	false, err  the ring is broken: ServeRing returns err
//
// In the steady state it allocates nothing.
func (r *Ring) Pop(c *virtq.Chain) (ok bool, err error) {
	if r.halted.Load() {
		return false, nil
	}
	ok, err = r.queue.Pop(c)
	if err != nil && !ok {
		r.Broken(err)
	}
	return ok, err
}

// Complete gives a chain back to the driver with used bytes written to its
// writable buffers; the driver sees it after Flush. The caller must not touch the
// buffers any more, and may pop into c again. Completing a chain that the driver
// has meanwhile forgotten, by a reset, does nothing.
func (r *Ring) Complete(c *virtq.Chain, used uint32) {
	r.ended(r.queue.Push(c, used))
}

// Return gives a chain back unserved, because ctx has ended: it is as if it had
// not been popped, and when the ring goes on it is popped again. The caller must
// not touch its buffers any more.
func (r *Ring) Return(c *virtq.Chain) {
	err := r.queue.Return(c)
	r.ended(err)
	if err == nil && !r.halted.Load() {
		r.interrupt()
	}
}

// ended takes the result of giving a chain back.
func (r *Ring) ended(err error) {
	switch {
	case errors.Is(err, virtq.ErrStale):
		r.log.Debug("a request ended after its ring was reset", "err", err)
	case err != nil:
		r.Broken(err)
	}
	if r.halted.Load() {
		select {
		case r.idle <- struct{}{}:
		default:
		}
	}
}

// Flush shows the driver what was completed and notifies it if it wants that.
func (r *Ring) Flush() {
	notify, err := r.queue.Publish()
	if err == nil && notify {
		r.stats.calls.Add(1)
		err = r.call.signal()
	}
	if err != nil {
		r.Broken(err)
	}
}

// Broken stops the ring for good: the guest or its memory did something from
// which the ring cannot go on. The front-end is told, other rings go on, and a
// stop and a new start by the front-end repair it. Only the first call counts.
func (r *Ring) Broken(err error) {
	if !r.markBroken(err) {
		return
	}
	r.stats.broken.Add(1)
	r.quiet.Do(func() { r.log.Error("ring broken", "err", err) })
	if err := r.errs.signal(); err != nil {
		r.quiet.Do(func() { r.log.Warn("the front-end could not be told of the broken ring", "err", err) })
	}
	r.interrupt()
}

// markBroken reports whether err is the first that broke the ring.
func (r *Ring) markBroken(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return false
	}
	r.broken = err
	if r.cancel != nil {
		r.cancel()
	}
	r.halted.Store(true)
	return true
}

// interrupt makes WaitKick return.
func (r *Ring) interrupt() {
	if err := r.wake.signal(); err != nil {
		r.log.Error("interrupting the ring's worker", "err", err)
	}
}

// counters are what a session counts.
type counters struct {
	sleeps, spins, calls, broken atomic.Uint64
}

// Stats are counts since the server was made.
type Stats struct {
	Sleeps uint64 // waits for a kick that ended in a system call
	Spins  uint64 // waits that polling ended
	Calls  uint64 // notifications of the driver
	Broken uint64 // rings broken
}

func (c *counters) stats() Stats {
	return Stats{Sleeps: c.sleeps.Load(), Spins: c.spins.Load(), Calls: c.calls.Load(), Broken: c.broken.Load()}
}

// waitTimeout bounds a sleep on a ring whose front-end gave no kick descriptor,
// which asks the back-end to poll (vhost-user.rst, VHOST_USER_SET_VRING_KICK).
const waitTimeout = time.Millisecond
