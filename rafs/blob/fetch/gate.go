package fetch

import (
	"context"
	"slices"
	"sync"
)

// class orders work: demand is what a guest waits for.
type class uint8

const (
	demand class = iota
	prefetch
)

// gate shares out slots (requests, processors) and bytes of memory. Demand goes
// before prefetch whatever came first, and prefetch never holds more than half.
// Within a class it is first come, first served, so that large wishes are not
// starved by small ones. A wish larger than everything is granted when nothing is
// out: one chunk can always be worked on.
type gate struct {
	maxSlots, maxBytes int64 // immutable

	mu      sync.Mutex
	used    [2]amount // by class
	waiting [2][]*ticket
}

type amount struct{ slots, bytes int64 }

// ticket is one grant. Its parts are given back one by one.
type ticket struct {
	gate    *gate
	want    amount
	first   bool  // goes before all that wait in its class
	class   class // guarded by gate.mu
	held    amount
	granted chan struct{} // closed when granted
}

func newGate(slots int, bytes int64) *gate {
	return &gate{maxSlots: int64(slots), maxBytes: bytes}
}

func (g *gate) ticket(c class, slots int, bytes int64) *ticket {
	return &ticket{gate: g, class: c, want: amount{int64(slots), bytes}, granted: make(chan struct{})}
}

// acquire waits for the ticket's grant. After an error nothing is held.
func (t *ticket) acquire(ctx context.Context) error {
	g := t.gate
	g.mu.Lock()
	if t.first {
		g.waiting[t.class] = slices.Insert(g.waiting[t.class], 0, t)
	} else {
		g.waiting[t.class] = append(g.waiting[t.class], t)
	}
	g.grant()
	g.mu.Unlock()
	select {
	case <-t.granted:
		return nil
	default:
	}
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting[t.class], t); i >= 0 {
		g.waiting[t.class] = slices.Delete(g.waiting[t.class], i, i+1)
	} else {
		t.giveBack(t.held)
	}
	g.grant() // what waited behind it may go on
	return context.Cause(ctx)
}

// try takes the grant if nobody waits and it fits at once.
func (t *ticket) try() bool {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting[demand])+len(g.waiting[prefetch]) > 0 || !g.fits(t.class, t.want) {
		return false
	}
	t.held = t.want
	g.used[t.class].add(t.held, 1)
	close(t.granted)
	return true
}

// promote makes a ticket of prefetch one of demand: a guest waits for it now.
func (t *ticket) promote() {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.class == demand {
		return
	}
	if i := slices.Index(g.waiting[prefetch], t); i >= 0 {
		g.waiting[prefetch] = slices.Delete(g.waiting[prefetch], i, i+1)
		g.waiting[demand] = append(g.waiting[demand], t)
	}
	t.class = demand
	g.used[prefetch].add(t.held, -1)
	g.used[demand].add(t.held, 1)
	g.grant()
}

// release gives parts back, at most what is held.
func (t *ticket) release(slots int, bytes int64) {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	t.giveBack(amount{min(int64(slots), t.held.slots), min(bytes, t.held.bytes)})
	g.grant()
}

func (t *ticket) giveBack(a amount) {
	t.held.add(a, -1)
	t.gate.used[t.class].add(a, -1)
}

func (a *amount) add(b amount, sign int64) {
	a.slots += sign * b.slots
	a.bytes += sign * b.bytes
}

// grant hands out what fits, in order. The caller holds mu.
func (g *gate) grant() {
	for _, c := range [...]class{demand, prefetch} {
		for len(g.waiting[c]) > 0 {
			t := g.waiting[c][0]
			if !g.fits(c, t.want) {
				return // also keeps prefetch behind a demand that waits
			}
			g.waiting[c][0] = nil
			g.waiting[c] = g.waiting[c][1:]
			t.held = t.want
			g.used[c].add(t.held, 1)
			close(t.granted)
		}
	}
}

func (g *gate) fits(c class, want amount) bool {
	slots := g.used[demand].slots + g.used[prefetch].slots
	bytes := g.used[demand].bytes + g.used[prefetch].bytes
	if slots+want.slots > g.maxSlots || want.bytes > 0 && bytes > 0 && bytes+want.bytes > g.maxBytes {
		return false
	}
	if c == demand {
		return true
	}
	own := g.used[prefetch]
	return (own.slots == 0 || own.slots+want.slots <= g.maxSlots/2) &&
		(own.bytes == 0 || own.bytes+want.bytes <= g.maxBytes/2)
}

// out is what is handed out now.
func (g *gate) out() amount {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.used[demand]
	a.add(g.used[prefetch], 1)
	return a
}
