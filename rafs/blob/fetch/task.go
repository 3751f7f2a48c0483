package fetch

import (
	"context"
	"sync"
	"time"
)

// task is work that is done once for all who need its outcome, and again after a
// failure, though not at once.
type task struct {
	mu      sync.Mutex
	running chan struct{} // closed when the work ends; nil: nobody is at it
	err     error         // of the last time
	until   time.Time     // err stands until then
}

// do runs fn, or waits for somebody else's, at most until ctx ends. A failure
// stands for as long as rest says.
func (t *task) do(ctx context.Context, rest func(error) time.Duration, fn func() error) error {
	t.mu.Lock()
	if wait := t.running; wait != nil {
		t.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.err
	}
	if t.err != nil && time.Now().Before(t.until) {
		defer t.mu.Unlock()
		return t.err
	}
	t.running, t.err = make(chan struct{}), nil
	t.mu.Unlock()
	err := fn()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err = err; err != nil {
		t.until = time.Now().Add(rest(err))
	}
	close(t.running)
	t.running = nil
	return err
}
