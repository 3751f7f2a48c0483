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
// Waking from a sleep costs a processor's wake-up on either side, so it polls the
// ring first where that has lately ended waits sooner: see patience. While it polls
// and until it sleeps the driver is not asked for kicks. It sleeps in poll(2), which
// wakes in a third of the time that the netpoller takes.
func (r *Ring) WaitKick(ctx context.Context) error {
	r.Flush()
	start := time.Now()
	if stop := cmp.Or(ctx.Err(), r.worker.ctx.Err()); stop != nil {
		return stop
	}
	budget := r.worker.patience.next()
	defer func() { r.worker.patience.waited(budget > 0, time.Since(start)) }()
	if done, err := r.spin(ctx, start, budget); done || err != nil {
		return err
	}
	more, err := r.queue.EnableNotify()
	if err == nil && !more {
		err = r.sleep(ctx)
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

// patience decides whether a wait polls before it sleeps, by what either has cost
// lately. Which is better depends on the machine, not on the guest alone: where a
// processor is free, a driver that is called needs its processor to wake up, and
// polling spares us the same; where none is free, it waits for ours, and polling is
// what it waits for. So both are tried, the one that ended waits later only once in
// a while. A ring whose last wait was long is idle and does not poll at all.
type patience struct {
	max    time.Duration // for which a wait polls; 0: never; immutable
	polled average       // of waits that polled first
	slept  average       // of waits that did not
	busy   bool          // the last wait was no longer than twice max
	turn   int           // waits since the worse way was tried
}

// tryEvery is how many waits pass between two tries of the worse way.
const tryEvery = 64

// next returns for how long this wait polls.
func (p *patience) next() time.Duration {
	if p.max == 0 || !p.busy {
		return 0
	}
	poll := p.polled.known && (!p.slept.known || p.polled.mean <= p.slept.mean)
	if p.turn++; p.turn >= tryEvery {
		p.turn, poll = 0, !poll
	}
	if !poll {
		return 0
	}
	return p.max
}

// waited tells how long a wait took, and whether it polled first.
func (p *patience) waited(polled bool, took time.Duration) {
	p.busy = took <= 2*p.max
	// One long thought of the guest says nothing of either way.
	took = min(took, 2*p.max)
	if polled {
		p.polled.add(took)
	} else {
		p.slept.add(took)
	}
}

// average is a moving average of durations.
type average struct {
	mean  time.Duration
	known bool
}

func (a *average) add(d time.Duration) {
	if !a.known {
		a.mean, a.known = d, true
		return
	}
	a.mean += (d - a.mean) / 8
}
