package vhostuser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// WaitKick waits until Pop may find a chain, or until ctx ends, whose error it
// returns then. It may return early; the caller pops. It flushes first.
//
// Waking from a sleep costs some microseconds on either side, so it polls the ring
// first if requests have lately come soon after the last one: see patience. It does
// not where the driver has just been called: a driver that sleeps needs a processor
// to wake up on, and it may be ours. While it polls and until it sleeps the driver
// is not asked for kicks. It sleeps in poll(2), which wakes in a third of the time
// that the netpoller takes.
func (r *Ring) WaitKick(ctx context.Context) error {
	r.Flush()
	start := time.Now()
	if stop := cmp.Or(ctx.Err(), r.worker.ctx.Err()); stop != nil {
		return stop
	}
	var polled time.Duration
	if !r.called.Swap(false) {
		polled = r.worker.patience.next()
	}
	if done, err := r.spin(ctx, start, polled); done || err != nil {
		return err
	}
	more, err := r.queue.EnableNotify()
	if err == nil && !more {
		err = r.sleep(ctx)
		r.worker.patience.slept(polled, time.Since(start))
	}
	if err != nil {
		r.Broken(err)
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if err := r.queue.DisableNotify(); err != nil {
		r.Broken(err)
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return cmp.Or(ctx.Err(), r.worker.ctx.Err())
}

// spin polls the ring until budget is spent and reports whether there is something
// to pop.
func (r *Ring) spin(ctx context.Context, start time.Time, budget time.Duration) (bool, error) {
	if budget == 0 {
		return false, nil
	}
	for {
		// A look at the clock costs more than one at the ring.
		for range 8 {
			more, err := r.queue.Pending()
			if err != nil {
				return false, err
			}
			if more {
				r.stats.spins.Add(1)
				r.worker.patience.paid()
				return true, nil
			}
		}
		if r.halted.Load() {
			return false, cmp.Or(ctx.Err(), r.worker.ctx.Err())
		}
		if time.Since(start) > budget {
			return false, nil
		}
	}
}

// sleep waits for a kick, an interruption or the end of ctx.
func (r *Ring) sleep(ctx context.Context) error {
	r.stats.sleeps.Add(1)
	if ctx != r.worker.ctx { // whose end interrupts
		defer context.AfterFunc(ctx, r.interrupt)()
	}
	fds := [2]unix.PollFd{{Fd: int32(r.worker.wake.fd), Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN}}
	timeout := -1
	if r.worker.kick != nil {
		fds[1].Fd = int32(r.worker.kick.fd)
	} else {
		timeout = int(waitTimeout / time.Millisecond)
	}
	if _, err := unix.Poll(fds[:], timeout); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("waiting for a kick: %w", err)
	}
	if fds[0].Revents != 0 {
		if err := r.worker.wake.drain(); err != nil {
			return err
		}
	}
	switch {
	case fds[1].Revents&unix.POLLIN != 0:
		return r.worker.kick.drain()
	case fds[1].Revents != 0:
		return fmt.Errorf("kick descriptor: poll says %#x", fds[1].Revents)
	}
	return nil
}

// patience decides for how long a wait polls. It is KVM's halt polling (Linux,
// Documentation/virt/kvm/halt-polling.rst) for rings: a sleep that turned out to be
// short earns polling for twice that time, a long one ends it, so that an idle ring
// uses no processor time. Polling that was in vain, as on a machine where the other
// side waits for our processor, is paid for with waits that do not poll.
type patience struct {
	max    time.Duration // 0: never poll; immutable
	budget time.Duration // for which a wait polls
	debt   int           // waits that do not poll before the next one that does
	fine   int           // the debt for the next time in vain
}

// maxFine bounds the waits between two attempts to poll.
const maxFine = 63

// next returns for how long this wait polls.
func (p *patience) next() time.Duration {
	if p.debt > 0 {
		p.debt--
		return 0
	}
	return p.budget
}

// paid tells that polling found something.
func (p *patience) paid() { p.fine = 0 }

// slept tells how long a wait took that polling for polled, if any, did not end.
func (p *patience) slept(polled, wait time.Duration) {
	if polled > 0 {
		p.fine = min(2*p.fine+1, maxFine)
		p.debt = p.fine
	}
	if wait > p.max {
		p.budget = 0
		return
	}
	p.budget = min(2*wait, p.max)
}
