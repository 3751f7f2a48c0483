package faultserver

import (
	"sync"
	"time"
)

// pieceSize is what one answer sends before another one gets its turn.
const pieceSize = 16 << 10

// line is a link of limited bandwidth that all answers share.
type line struct {
	mu   sync.Mutex
	rate int       // bytes per second; 0 is without limit
	free time.Time // when the bytes that were let through so far have left
}

func (l *line) setRate(rate int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.free = rate, time.Time{}
}

// pass returns when n more bytes have left, or false if ctx ended before.
func (l *line) pass(ctx interface{ Done() <-chan struct{} }, n int) bool {
	l.mu.Lock()
	if l.rate <= 0 {
		l.mu.Unlock()
		return true
	}
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	d := time.Until(l.free)
	l.mu.Unlock()
	return wait(ctx, d)
}

// wait sleeps for d, or returns false when ctx ends before.
func wait(ctx interface{ Done() <-chan struct{} }, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
