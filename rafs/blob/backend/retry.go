package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// RetryPolicy says how long a read goes on trying. Zero fields take the defaults.
type RetryPolicy struct {
	// Deadline bounds one call with all its tries. Default 30 s.
	Deadline time.Duration
	// Attempts bounds the tries of one call; 0 means as many as fit the deadline.
	Attempts int
	// Base is the pause after the first failure, doubled by each further one up
	// to Max; each pause is drawn from its upper half. Defaults 100 ms and 5 s.
	Base, Max time.Duration
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	if p.Deadline <= 0 {
		p.Deadline = 30 * time.Second
	}
	if p.Base <= 0 {
		p.Base = 100 * time.Millisecond
	}
	if p.Max <= 0 {
		p.Max = 5 * time.Second
	}
	return p
}

// pause is the time between failure number n, from 1, and the next try.
func (p RetryPolicy) pause(n int) time.Duration {
	d := p.Max
	if n < 32 && p.Base<<(n-1) > 0 && p.Base<<(n-1) < p.Max {
		d = p.Base << (n - 1)
	}
	return d/2 + rand.N(d/2+1)
}

// Retry repeats reads of b that fail with a transient error, with pauses that
// grow, inside a deadline. When a server asks to be left alone (Retry-After), all
// reads through the decorator wait so long, or to their deadline.
func Retry(b Backend, p RetryPolicy) Backend {
	return &retrying{Backend: b, policy: p.withDefaults(), start: time.Now()}
}

type retrying struct {
	Backend
	policy RetryPolicy
	start  time.Time
	// quietUntil is when the source may be asked again, in ns after start.
	quietUntil atomic.Int64
}

func (r *retrying) Open(id string) (Reader, error) {
	in, err := r.Backend.Open(id)
	if err != nil {
		return nil, err
	}
	return &retryReader{inner: in, r: r}, nil
}

type retryReader struct {
	inner Reader
	r     *retrying
}

func (r *retryReader) Size(ctx context.Context) (n int64, err error) {
	err = r.r.do(ctx, func(ctx context.Context) (err error) {
		n, err = r.inner.Size(ctx)
		return err
	})
	return n, err
}

func (r *retryReader) ReadRange(ctx context.Context, p []byte, off int64) error {
	return r.r.do(ctx, func(ctx context.Context) error { return r.inner.ReadRange(ctx, p, off) })
}

func (r *retrying) do(parent context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(parent, r.policy.Deadline)
	defer cancel()
	var last error
	for n := 1; ; n++ {
		if err := r.waitQuiet(ctx); err != nil {
			return r.gaveUp(parent, n-1, last, err)
		}
		err := try(ctx)
		if err == nil || parent.Err() != nil || Permanent(err) {
			return err
		}
		last = err
		if n == r.policy.Attempts {
			return r.gaveUp(parent, n, last, nil)
		}
		if d := retryAfter(err); d > 0 {
			r.quiet(d)
		}
		if err := sleep(ctx, r.policy.pause(n)); err != nil {
			return r.gaveUp(parent, n, last, err)
		}
	}
}

// quiet keeps everyone off the source for d; an earlier, longer wish stands.
func (r *retrying) quiet(d time.Duration) {
	until := int64(time.Since(r.start) + d)
	for {
		old := r.quietUntil.Load()
		if old >= until || r.quietUntil.CompareAndSwap(old, until) {
			return
		}
	}
}

func (r *retrying) waitQuiet(ctx context.Context) error {
	if until := r.quietUntil.Load(); until > 0 {
		if d := time.Duration(until) - time.Since(r.start); d > 0 {
			return sleep(ctx, d)
		}
	}
	return ctx.Err()
}

// gaveUp words the end of a call: the last failure if there was one, and the
// caller's own context if that ended rather than the deadline.
func (r *retrying) gaveUp(parent context.Context, tries int, last, end error) error {
	switch {
	case parent.Err() != nil:
		return parent.Err()
	case last == nil:
		return fmt.Errorf("%w: left alone as asked for %v", ErrUnavailable, r.policy.Deadline)
	case !errors.Is(last, ErrUnavailable):
		last = fmt.Errorf("%w: %w", ErrUnavailable, last)
	}
	if errors.Is(end, context.DeadlineExceeded) {
		return fmt.Errorf("gave up after %d tries in %v: %w", tries, r.policy.Deadline, last)
	}
	return fmt.Errorf("gave up after %d tries: %w", tries, last)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
