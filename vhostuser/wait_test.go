package vhostuser

import (
	"testing"
	"time"
)

const us = time.Microsecond

// live plays n waits. Where a wait polls it takes polled, otherwise slept. It returns
// how many polled.
func live(p *patience, n int, polled, slept time.Duration) (polls int) {
	for range n {
		took := slept
		budget := p.next()
		if budget > 0 {
			polls++
			took = polled
		}
		p.waited(budget > 0, took)
	}
	return polls
}

func TestPatience(t *testing.T) {
	for _, tc := range []struct {
		name          string
		max           time.Duration
		polled, slept time.Duration
		least, most   int // polls in 10,000 waits
	}{
		{"polling spares a wake-up", 100 * us, 40 * us, 90 * us, 9000, 10000},
		{"the driver waits for our processor", 100 * us, 110 * us, 10 * us, 1, 200},
		{"polling in vain", 100 * us, 150 * us, 50 * us, 1, 200},
		{"idle", 100 * us, time.Second, time.Second, 0, 0},
		{"slower than polling can wait", 100 * us, 201 * us, 201 * us, 0, 0},
		{"never", 0, us, us, 0, 0},
	} {
		p := patience{max: tc.max}
		if got := live(&p, 10000, tc.polled, tc.slept); got < tc.least || got > tc.most {
			t.Errorf("%s: polled %d times, want %d to %d", tc.name, got, tc.least, tc.most)
		}
	}
}

func TestPatienceFollowsTheMachine(t *testing.T) {
	p := patience{max: 100 * us}
	live(&p, 2000, 40*us, 90*us)
	live(&p, 5000, 150*us, 10*us) // the machine becomes busy
	if got := live(&p, 1000, 150*us, 10*us); got > 20 {
		t.Errorf("polled %d times of 1000 on a machine that became busy, want at most 20", got)
	}
	live(&p, 5000, 40*us, 90*us) // and free again
	if got := live(&p, 1000, 40*us, 90*us); got < 950 {
		t.Errorf("polled %d times of 1000 on a machine that became free, want at least 950", got)
	}
}

func TestPatienceEndsWithTheLastRequest(t *testing.T) {
	p := patience{max: 100 * us}
	live(&p, 2000, 40*us, 90*us)
	p.waited(p.next() > 0, time.Second)
	if got := p.next(); got != 0 {
		t.Errorf("after a second without a request the next wait polls for %v", got)
	}
}
