package virtq

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

func TestBatchIsPublishedAtOnce(t *testing.T) {
	d := started(t, 8)
	for _, h := range []uint16{0, 2, 4} {
		d.simple(h)
	}
	d.offer(0, 2, 4)
	_, chains := d.heads()
	for i, c := range chains {
		d.push(c, uint32(10+i))
	}
	if got := d.usedIdx(); got != 0 {
		t.Errorf("used index before Publish = %d, want 0", got)
	}
	if !d.publish() {
		t.Error("first Publish wants no notification")
	}
	if got := d.usedIdx(); got != 3 {
		t.Errorf("used index = %d, want 3", got)
	}
	for i, want := range []uint32{0, 2, 4} {
		if id, n := d.used(uint16(i)); id != want || n != uint32(10+i) {
			t.Errorf("used element %d = %d, %d, want %d, %d", i, id, n, want, 10+i)
		}
	}
	if d.publish() {
		t.Error("Publish of nothing wants a notification")
	}
}

func TestUsedLengthIsBounded(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.offer(0)
	d.push(d.pop(), 1<<31)
	d.publish()
	if _, n := d.used(0); n != 16 {
		t.Errorf("used length = %d, want the 16 bytes that there are", n)
	}
}

func TestPushTwice(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.offer(0)
	c := d.pop()
	again := &Chain{Head: c.Head, gen: c.gen, snap: c.snap}
	again.snap.Pin()
	d.push(c, 0)
	if err := d.q.Push(again, 0); !errors.Is(err, ErrNotInFlight) {
		t.Errorf("second Push = %v, want ErrNotInFlight", err)
	}
	if err := d.q.Push(c, 0); !errors.Is(err, ErrStale) {
		t.Errorf("Push of an empty chain = %v, want ErrStale", err)
	}
	d.publish()
	if got := d.usedIdx(); got != 1 {
		t.Errorf("used index = %d, want 1", got)
	}
}

// The used ring is not read back: a guest that writes to it harms itself only.
func TestUsedRingIsWriteOnly(t *testing.T) {
	d := started(t, 8)
	for i := range uint16(3) {
		d.simple(0)
		d.offer(0)
		le.PutUint16(d.mem[usedAt+usedIdxOff:], 0x4242)
		d.push(d.pop(), 0)
		d.publish()
		if got := d.usedIdx(); got != i+1 {
			t.Errorf("used index = %d, want %d", got, i+1)
		}
	}
}

func TestNeedNotifyEventIdx(t *testing.T) {
	d := started(t, 8)
	turn := func(event uint16, n int) bool {
		d.setUsedEvent(event)
		for range n {
			d.simple(0)
			d.offer(0)
			d.push(d.pop(), 0)
		}
		return d.publish()
	}
	for i, tc := range []struct {
		event uint16
		n     int
		want  bool
	}{
		{100, 1, true}, // the first is always told: 0 -> 1
		{1, 1, true},   // 1 -> 2, entry 1 was awaited
		{1, 1, false},  // 2 -> 3
		{4, 1, false},  // 3 -> 4
		{4, 3, true},   // 4 -> 7
		{9, 2, false},  // 7 -> 9
		{9, 1, true},   // 9 -> 10
	} {
		if got := turn(tc.event, tc.n); got != tc.want {
			t.Errorf("turn %d, %d chains awaiting entry %d: notify = %v, want %v", i, tc.n, tc.event, got, tc.want)
		}
	}
}

func TestNeedNotifyFlag(t *testing.T) {
	d := newDriver(t, 8)
	d.cfg.EventIdx = false
	d.start()
	for i, flags := range []uint16{0, 1, 0} {
		d.setAvailFlags(flags)
		d.simple(0)
		d.offer(0)
		d.push(d.pop(), 0)
		if got, want := d.publish(), flags == 0; got != want {
			t.Errorf("turn %d, avail flags %d: notify = %v, want %v", i, flags, got, want)
		}
	}
}

func TestKickSuppression(t *testing.T) {
	for _, eventIdx := range []bool{true, false} {
		d := newDriver(t, 8)
		d.cfg.EventIdx = eventIdx
		d.start()
		enable := func(want bool) {
			t.Helper()
			more, err := d.q.EnableNotify()
			if err != nil || more != want {
				t.Errorf("EnableNotify = %v, %v, want %v", more, err, want)
			}
		}
		if err := d.q.DisableNotify(); err != nil {
			t.Fatal(err)
		}
		if got := d.usedFlags(); (got == noNotify) == eventIdx {
			t.Errorf("EVENT_IDX %v: used flags = %d after DisableNotify", eventIdx, got)
		}
		enable(false)
		d.simple(0)
		d.offer(0)
		enable(true) // came meanwhile
		d.push(d.pop(), 0)
		d.publish()
		enable(false)
		if got := d.availEvent(); eventIdx && got != 1 {
			t.Errorf("avail_event = %d, want 1", got)
		}
		if got, idx := d.usedFlags(), d.usedIdx(); got != 0 || idx != 1 {
			t.Errorf("EVENT_IDX %v: used flags, index = %d, %d, want 0, 1", eventIdx, got, idx)
		}
		if got := d.availEvent(); !eventIdx && got != 0 {
			t.Errorf("avail_event = %d was written without EVENT_IDX", got)
		}
	}
}

func TestIndexesWrap(t *testing.T) {
	d := newDriver(t, 4)
	d.cfg.Base, d.avail = 0xfffe, 0xfffe
	le.PutUint16(d.mem[usedAt+usedIdxOff:], 0xfffe)
	d.setAvail(d.avail)
	d.start()
	for i := range 6 {
		d.simple(0)
		d.offer(0)
		d.push(d.pop(), 1)
		d.publish()
		if got, want := d.usedIdx(), uint16(0xfffe+i+1); got != want {
			t.Errorf("used index = %d, want %d", got, want)
		}
	}
	if base := d.q.Stop(); base != 4 {
		t.Errorf("base = %d, want 4", base)
	}
}

func TestLargestQueue(t *testing.T) {
	d := started(t, MaxSize)
	heads := make([]uint16, MaxSize)
	for i := range heads {
		heads[i] = uint16(i)
		d.desc(i, bufAt, 1, 0, 0)
	}
	for range 3 {
		d.offer(heads...)
		got, chains := d.heads()
		if len(got) != MaxSize || d.q.Outstanding() != MaxSize {
			t.Fatalf("popped %d, outstanding %d, want %d", len(got), d.q.Outstanding(), MaxSize)
		}
		for _, c := range chains {
			d.push(c, 0)
		}
		d.publish()
		if got := d.q.Outstanding(); got != 0 {
			t.Fatalf("outstanding %d, want 0", got)
		}
	}
}

func TestStopReturnsTheBase(t *testing.T) {
	d := started(t, 8)
	for _, h := range []uint16{0, 2, 4, 6} {
		d.simple(h)
	}
	d.offer(0, 2, 4, 6)
	_, chains := d.heads()
	// 0 is answered, 2 comes back, 4 is answered, 6 comes back.
	d.push(chains[0], 0)
	d.push(chains[2], 0)
	d.publish()
	for _, i := range []int{3, 1} {
		if err := d.q.Return(chains[i]); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.q.Outstanding(); got != 0 {
		t.Errorf("Outstanding = %d, want 0", got)
	}
	// 6 is the newest and counts as never popped; 2 is not.
	if base := d.q.Stop(); base != 3 {
		t.Fatalf("base = %d, want 3", base)
	}
	if again := d.q.Stop(); again != 3 {
		t.Errorf("base of a second Stop = %d, want 3", again)
	}
	d.cfg.Base = 3
	d.start()
	heads, _ := d.heads()
	if want := []uint16{2, 6}; !slices.Equal(heads, want) {
		t.Errorf("heads after the restart = %d, want %d", heads, want)
	}
}

func TestUnpopAll(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.simple(2)
	d.simple(4)
	d.offer(0, 2, 4)
	_, chains := d.heads()
	for _, i := range []int{1, 0, 2} { // in any order
		if err := d.q.Return(chains[i]); err != nil {
			t.Fatal(err)
		}
	}
	if base := d.q.Stop(); base != 0 {
		t.Errorf("base = %d, want 0", base)
	}
	d.start()
	if heads, _ := d.heads(); !slices.Equal(heads, []uint16{0, 2, 4}) {
		t.Errorf("heads = %d, want 0 2 4", heads)
	}
}

func TestReturnWhileRunning(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.simple(2)
	d.offer(0)
	c := d.pop()
	d.offer(2)
	if err := d.q.Return(c); err != nil {
		t.Fatal(err)
	}
	if more, err := d.q.EnableNotify(); !more || err != nil {
		t.Errorf("EnableNotify = %v, %v with a chain that came back", more, err)
	}
	if heads, _ := d.heads(); !slices.Equal(heads, []uint16{0, 2}) {
		t.Errorf("heads = %d, want 0 2", heads)
	}
	if err := d.q.Return(&Chain{}); !errors.Is(err, ErrStale) {
		t.Errorf("Return of nothing = %v, want ErrStale", err)
	}
}

// A chain that is late keeps its place while the ring goes on, and is answered
// exactly once.
func TestLateChains(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.simple(2)
	d.simple(4)
	d.offer(0, 2, 4)
	_, chains := d.heads()
	base := d.q.Stop()
	if base != 3 {
		t.Fatalf("base = %d, want 3", base)
	}
	d.push(chains[0], 0) // after the stop: it counts as returned
	if got := d.usedIdx(); got != 0 || d.publish() {
		t.Errorf("used index = %d on a stopped queue, want 0", got)
	}
	d.cfg.Base = base
	d.start()
	if heads, _ := d.heads(); !slices.Equal(heads, []uint16{0}) {
		t.Errorf("heads = %d, want 0: the others are still in flight", heads)
	}
	d.push(chains[1], 7)
	d.publish()
	if id, n := d.used(0); id != 2 || n != 7 || d.usedIdx() != 1 {
		t.Errorf("used = %d, %d at index %d, want 2, 7 at 1", id, n, d.usedIdx())
	}
	if got := d.q.Outstanding(); got != 2 {
		t.Errorf("Outstanding = %d, want 2", got)
	}
}

// A chain that is pushed just as its queue starts again is used: if it counted as
// returned, nobody would know that there is something to pop.
func TestPushWhileTheQueueStarts(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	for range 50 {
		d.offer(0)
		c := d.pop()
		d.q.lock()
		d.q.running = false
		d.q.pushMu.Unlock()
		pushed := make(chan error)
		go func() { pushed <- d.q.Push(c, 1) }()
		for range 1000 {
			runtime.Gosched() // until it waits for popMu
		}
		d.q.pushMu.Lock()
		d.q.running = true
		d.q.unlock()
		if err := <-pushed; err != nil {
			t.Fatal(err)
		}
		if n := len(d.q.parked); n != 0 {
			t.Fatalf("%d chains returned to a queue that runs, want none", n)
		}
		d.publish()
	}
}

func TestResetForgets(t *testing.T) {
	for _, explicit := range []bool{true, false} {
		d := started(t, 8)
		d.simple(0)
		d.simple(2)
		d.offer(0, 2)
		_, chains := d.heads()
		d.push(chains[0], 0)
		d.publish()
		d.q.Stop()
		if explicit {
			d.q.Reset()
		}
		clear(d.mem[availAt : usedAt+0x1000])
		d.avail, d.cfg.Base = 0, 0
		d.start()
		if got := d.q.Outstanding(); got != 0 {
			t.Errorf("Outstanding = %d after a reset, want 0", got)
		}
		d.simple(2)
		d.offer(2)
		now := d.pop()
		if err := d.q.Push(chains[1], 3); !errors.Is(err, ErrStale) {
			t.Errorf("Push of a chain from before the reset = %v, want ErrStale", err)
		}
		if d.publish() || d.usedIdx() != 0 {
			t.Errorf("used index = %d, want 0", d.usedIdx())
		}
		d.push(now, 1)
		d.publish()
		if id, n := d.used(0); id != 2 || n != 1 {
			t.Errorf("used = %d, %d, want 2, 1", id, n)
		}
	}
}

func TestLost(t *testing.T) {
	d := newDriver(t, 8)
	d.cfg.Base, d.avail = 5, 5
	le.PutUint16(d.mem[usedAt+usedIdxOff:], 2)
	d.setAvail(5)
	d.start()
	if lost, out := d.q.Lost(), d.q.Outstanding(); lost != 3 || out != 0 {
		t.Errorf("Lost, Outstanding = %d, %d, want 3, 0", lost, out)
	}
	d.simple(0)
	d.offer(0)
	d.push(d.pop(), 0)
	d.publish()
	if got := d.usedIdx(); got != 3 {
		t.Errorf("used index = %d, want 3", got)
	}
}

func TestRemap(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.offer(0)
	c := d.pop()
	old, err := d.guest.Replace([]guestmem.Region{{Size: lastPage, UserAddr: userBase}}, []int{d.fd})
	if err != nil {
		t.Fatal(err)
	}
	now := d.guest.Pin()
	defer now.Unpin()
	if err := d.q.Remap(now); err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.Gone():
		t.Error("memory is gone under a chain in flight")
	default:
	}
	c.Writable[0][0] = 1
	d.push(c, 1)
	d.publish()
	<-old.Gone()
	d.simple(2)
	d.offer(2)
	d.push(d.pop(), 0)
	d.publish()
	if got := d.usedIdx(); got != 2 {
		t.Errorf("used index = %d, want 2", got)
	}
	other, err := d.guest.Replace([]guestmem.Region{{Size: lastPage, UserAddr: 0x1000}}, []int{d.fd})
	if err != nil {
		t.Fatal(err)
	}
	moved := d.guest.Pin()
	defer moved.Unpin()
	if err := d.q.Remap(moved); !errors.Is(err, ErrConfig) {
		t.Errorf("Remap to memory without the rings = %v, want ErrConfig", err)
	}
	d.q.Stop()
	now.Unpin()
	<-other.Gone()
	now.Pin() // for the deferred one: the count goes from dead to dead
}

func TestVanishedUsedRing(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.offer(0)
	c := d.pop()
	d.truncate(usedAt)
	if err := d.q.Push(c, 0); !errors.Is(err, guestmem.ErrFault) {
		t.Errorf("Push = %v, want ErrFault", err)
	}
	if _, err := d.q.EnableNotify(); !errors.Is(err, guestmem.ErrFault) {
		t.Errorf("EnableNotify = %v, want ErrFault", err)
	}
	if _, err := d.q.Publish(); !errors.Is(err, guestmem.ErrFault) {
		t.Errorf("Publish = %v, want ErrFault", err)
	}
	if got := d.q.Outstanding(); got != 0 {
		t.Errorf("Outstanding = %d, want 0", got)
	}
}

// Chains are completed by many goroutines while one pops. Each head comes back
// exactly once a turn.
func TestConcurrentPushes(t *testing.T) {
	const size, turns = 64, 200
	d := started(t, size)
	for i := range size {
		d.desc(i, bufAt, 1, descWrite, 0)
	}
	work := make(chan *Chain, size)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for c := range work {
				if err := d.q.Push(c, 1); err != nil {
					t.Error(err)
				}
				if _, err := d.q.Publish(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := make([]int, size)
	reaped := uint16(0)
	for range turns {
		for i := range size {
			d.offer(uint16(i))
		}
		for n := 0; n < size; {
			c := new(Chain)
			ok, err := d.q.Pop(c)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				n++
				work <- c
			}
		}
		for idx := reaped + size; guestmem.PartOf(d.mem[usedAt:]).Load16(usedIdxOff) != idx; {
		}
		for range size {
			id, _ := d.used(reaped)
			seen[id]++
			reaped++
		}
	}
	close(work)
	wg.Wait()
	for i, n := range seen {
		if n != turns {
			t.Errorf("head %d came back %d times, want %d", i, n, turns)
		}
	}
}
