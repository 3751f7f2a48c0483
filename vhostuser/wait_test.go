package vhostuser

import (
	"testing"
	"time"
)

const us = time.Microsecond

// wait is one wait: what polling it was allowed, and how it ended.
type wait struct {
	want time.Duration // polling
	took time.Duration // 0: polling ended it
}

func TestPatience(t *testing.T) {
	for _, tc := range []struct {
		name  string
		max   time.Duration
		waits []wait
	}{
		{"idle", 50 * us, []wait{{0, time.Second}, {0, time.Second}, {0, 51 * us}}},
		{"busy", 50 * us, []wait{{0, 10 * us}, {20 * us, 0}, {20 * us, 0}}},
		{"at most max", 50 * us, []wait{{0, 50 * us}, {50 * us, 0}}},
		{"one long wait ends it", 50 * us, []wait{{0, 10 * us}, {20 * us, time.Second}, {0, time.Second}, {0, time.Second}}},
		{"in vain twice", 50 * us, []wait{
			{0, 10 * us}, {20 * us, 30 * us}, // one wait of debt
			{0, 10 * us}, {20 * us, 30 * us}, // three
			{0, 10 * us}, {0, 10 * us}, {0, 10 * us}, {20 * us, 0}, // paid at last
			{20 * us, 30 * us}, {0, 10 * us}, {20 * us, 0}, // and begins with one again
		}},
		{"never", 0, []wait{{0, 1}, {0, 1}, {0, 0}, {0, 1}}},
	} {
		p := patience{max: tc.max}
		for i, w := range tc.waits {
			polled := p.next()
			if polled != w.want {
				t.Errorf("%s: wait %d polls for %v, want %v", tc.name, i, polled, w.want)
			}
			if w.took == 0 {
				p.paid()
			} else {
				p.slept(polled, w.took)
			}
		}
	}
	p := patience{max: 50 * us, budget: 10 * us}
	polls := 0
	for range 1000 {
		polled := p.next()
		if polled > 0 {
			polls++
		}
		p.slept(polled, 20*us)
	}
	if polls > 25 {
		t.Errorf("polled %d times in vain in 1000 waits, want at most 25", polls)
	}
}
