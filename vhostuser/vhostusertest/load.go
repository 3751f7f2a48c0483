package vhostusertest

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Load keeps requests in flight on one ring. It allocates nothing per request and
// blocks a thread while it waits. No Client may own the ring meanwhile.
type Load struct {
	Ring *Ring
	// Requests are kept in flight: their number is the queue depth.
	Requests []*Request
	// Fill makes a request of q, which is one of Requests. False ends the load.
	Fill func(q *Request) bool
	// Check, if set, judges a reply besides Request.Check; data is the length
	// of the data.
	Check func(q *Request, data uint32) error
	// Poll spins on the used ring instead of sleeping until a call comes.
	Poll bool
	// Timeout bounds the time without any answer; DefaultTimeout when 0.
	Timeout time.Duration
	// ZeroUsed tolerates a back-end that reports a used length of 0.
	ZeroUsed bool
}

// LoadResult is what a Load did. Latency runs from the moment at which a request
// became visible to the moment at which its reply was taken.
type LoadResult struct {
	Ops, Bytes uint64 // Bytes of data
	Elapsed    time.Duration
	Latency    Histogram
	Kicks      uint64
}

// Run runs the load for about d, until Fill has had enough, or until a reply is
// wrong, and waits for everything in flight.
func (l *Load) Run(d time.Duration) (*LoadResult, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if l.Timeout == 0 {
		l.Timeout = DefaultTimeout
	}
	res := &LoadResult{}
	kicks := l.Ring.Kicks
	start := time.Now()
	idle, now, inFlight, more := l.Requests, start, 0, true
	ready := make([]*Request, 0, len(l.Requests))
	for {
		n, err := l.fill(idle, now, &more)
		if err != nil {
			return nil, err
		}
		if inFlight += n; inFlight == 0 {
			break
		}
		if ready, err = l.reap(ready[:0], res); err != nil {
			return nil, err
		}
		idle, now = ready, time.Now()
		inFlight -= len(ready)
		more = more && now.Sub(start) < d
	}
	res.Elapsed = time.Since(start)
	res.Kicks = l.Ring.Kicks - kicks
	return res, nil
}

// fill submits what is idle and publishes it at once.
func (l *Load) fill(idle []*Request, now time.Time, more *bool) (int, error) {
	n := 0
	for _, q := range idle {
		if *more = *more && l.Fill(q); !*more {
			break
		}
		q.Started = now
		if err := l.Ring.Submit(q); err != nil {
			return n, err
		}
		n++
	}
	return n, l.Ring.Publish()
}

// reap waits for at least one answer and takes all that are there.
func (l *Load) reap(ready []*Request, res *LoadResult) ([]*Request, error) {
	for {
		q, err := l.Ring.Reap()
		if err != nil {
			return nil, err
		}
		if q == nil && len(ready) > 0 {
			break
		}
		if q == nil {
			if err := l.wait(); err != nil {
				return nil, err
			}
			continue
		}
		ready = append(ready, q)
	}
	now := time.Now()
	for _, q := range ready {
		errno, data, err := q.Check(l.ZeroUsed)
		if err == nil && errno != 0 {
			err = fmt.Errorf("%s: %w", opName(q.op), errno)
		}
		if err == nil && l.Check != nil {
			err = l.Check(q, data)
		}
		if err != nil {
			return nil, err
		}
		res.Ops++
		res.Bytes += uint64(data)
		res.Latency.Record(now.Sub(q.Started))
	}
	return ready, nil
}

func (l *Load) wait() error {
	if !l.Poll {
		return l.Ring.Wait(l.Timeout)
	}
	l.Ring.Disarm()
	deadline := time.Now().Add(l.Timeout)
	for spins := 1; l.Ring.UsedIdx() == l.Ring.lastUsed; spins++ {
		if spins%4096 == 0 && time.Now().After(deadline) {
			return errors.Join(ErrTimeout, fmt.Errorf("ring %d: %d requests in flight", l.Ring.Index, l.Ring.InFlight()))
		}
	}
	return nil
}
