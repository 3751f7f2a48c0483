package fetch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func granted(t *ticket) bool {
	select {
	case <-t.granted:
		return true
	default:
		return false
	}
}

// line puts tickets in line one after the other.
func inLine(t *testing.T, wg *sync.WaitGroup, ctx context.Context, tickets ...*ticket) {
	t.Helper()
	for _, x := range tickets {
		wg.Go(func() { _ = x.acquire(ctx) })
		synctest.Wait()
	}
}

func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		g := newGate(4, 100)
		p1, p2, p3 := g.ticket(prefetch, 1, 20), g.ticket(prefetch, 1, 20), g.ticket(prefetch, 1, 20)
		d1, d2, d3 := g.ticket(demand, 1, 70), g.ticket(demand, 1, 10), g.ticket(demand, 0, 500)
		inLine(t, &wg, ctx, p1, p2, p3, d1, d2, d3)
		want := func(why string, tickets map[*ticket]bool) {
			t.Helper()
			synctest.Wait()
			for x, is := range tickets {
				if granted(x) != is {
					t.Errorf("%s: ticket of class %d for %v: granted %v, want %v", why, x.class, x.want, !is, is)
				}
			}
		}
		want("half for prefetch; demand in turn", map[*ticket]bool{p1: true, p2: true, p3: false, d1: false, d2: false})
		p1.release(1, 20)
		want("demand goes before prefetch", map[*ticket]bool{d1: true, d2: true, p3: false, d3: false})
		d1.release(1, 70)
		d2.release(1, 10)
		want("a large demand keeps prefetch back", map[*ticket]bool{d3: false, p3: false})
		p2.release(1, 20)
		want("more than everything is granted alone", map[*ticket]bool{d3: true, p3: false})
		p3.promote()
		want("a promoted ticket waits in the line of demand", map[*ticket]bool{p3: false})
		d3.release(1, 500)
		want("and is granted from there", map[*ticket]bool{p3: true})
		p3.release(5, 500)
		if a := g.out(); a != (amount{}) {
			t.Errorf("%+v is out after everything came back", a)
		}
		// One who leaves lets those behind go on.
		big, small := g.ticket(demand, 1, 100), g.ticket(demand, 1, 10)
		hold := g.ticket(demand, 1, 50)
		inLine(t, &wg, ctx, hold)
		short, leave := context.WithTimeout(ctx, time.Second)
		inLine(t, &wg, short, big)
		inLine(t, &wg, ctx, small)
		want("a large one first", map[*ticket]bool{big: false, small: false})
		time.Sleep(2 * time.Second)
		want("it left", map[*ticket]bool{big: false, small: true})
		leave()
		cancel()
		wg.Wait()
	})
}

// Whatever comes and goes, nothing is granted above the limits and all comes back.
func TestGateRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(3, 1000)
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 1))
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(2000))*time.Millisecond)
				defer cancel()
				x := g.ticket(class(i%2), 1, r.Int64N(600))
				if x.acquire(ctx) != nil {
					return
				}
				if a := g.out(); a.slots > 3 || a.bytes > 1000 {
					t.Errorf("%+v is out", a)
				}
				time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
				if r.IntN(3) == 0 {
					x.promote()
				}
				x.release(1, 1000)
			})
		}
		wg.Wait()
		if a := g.out(); a != (amount{}) || fmt.Sprint(g.used) != fmt.Sprint([2]amount{}) {
			t.Errorf("%+v is out after everything came back, %+v by class", a, g.used)
		}
	})
}

func TestBuffers(t *testing.T) {
	b := buffers{limit: 3 << 20}
	one := b.get(1 << 20)
	b.put(one)
	if again := b.get(1<<20 - 5); &again[0] != &one[0] || len(again) != 1<<20-5 {
		t.Errorf("a kept buffer was not used again, or has %d bytes", len(again))
	}
	for range 10 {
		b.put(make([]byte, 1<<20))
		b.put(make([]byte, 5000))
	}
	if b.kept != 3<<20 {
		t.Errorf("keeps %d bytes, want its limit of 3 MiB", b.kept)
	}
	for _, n := range []int{0, 1, 4096, 4097, 1<<20 + 1, 16 << 20, 40 << 20} {
		if p := b.get(n); len(p) != n {
			t.Errorf("get(%d) has %d bytes", n, len(p))
		}
	}
}
