package virtq

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

func region(t testing.TB, size int) []byte {
	t.Helper()
	return make([]byte, InflightSize(size))
}

func (d *driver) log(b []byte) {
	d.t.Helper()
	f, err := NewInflight(b, d.cfg.Size)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.q.SetInflight(f); err != nil {
		d.t.Fatal(err)
	}
}

func TestInflightSize(t *testing.T) {
	for size, want := range map[int]int{1: 64, 3: 64, 4: 128, 128: 2112, 1024: 16448} {
		if got := InflightSize(size); got != want {
			t.Errorf("InflightSize(%d) = %d, want %d", size, got, want)
		}
	}
}

func TestInflightLayout(t *testing.T) {
	d := newDriver(t, 8)
	b := region(t, 8)
	d.log(b)
	d.start()
	for _, h := range []uint16{0, 2, 4} {
		d.simple(h)
	}
	d.offer(4, 0, 2)
	_, chains := d.heads()
	if version, num := le.Uint16(b[8:]), le.Uint16(b[10:]); version != 1 || num != 8 {
		t.Errorf("version, desc_num = %d, %d, want 1, 8", version, num)
	}
	for i, h := range []int{4, 0, 2} {
		e := b[16+16*h:]
		if e[0] != 1 || le.Uint64(e[8:]) != uint64(i+1) {
			t.Errorf("entry %d: inflight, counter = %d, %d, want 1, %d", h, e[0], le.Uint64(e[8:]), i+1)
		}
	}
	d.push(chains[0], 0)
	d.push(chains[1], 0)
	if b[16+16*4] != 1 {
		t.Error("head 4 left the log before it was published")
	}
	d.publish()
	if b[16+16*4] != 0 || b[16] != 0 || b[16+16*2] != 1 {
		t.Error("the log has not exactly head 2 in flight")
	}
	last, used, next := le.Uint16(b[12:]), le.Uint16(b[14:]), le.Uint16(b[16+6:])
	if last != 0 || used != 2 || next != 4 {
		t.Errorf("last_batch_head, used_idx, next of 0 = %d, %d, %d, want 0, 2, 4", last, used, next)
	}
}

// takeOver is what another process does with the rings and the log.
func (d *driver) takeOver(b []byte) {
	d.t.Helper()
	d.q = New(Limits{})
	d.log(b)
	d.start()
}

func TestResubmission(t *testing.T) {
	d := newDriver(t, 8)
	b := region(t, 8)
	d.log(b)
	d.start()
	for _, h := range []uint16{0, 2, 4, 6} {
		d.simple(h)
	}
	d.offer(4, 0, 2)
	_, chains := d.heads()
	d.push(chains[1], 0)
	d.publish()
	d.offer(6) // not popped by the process that dies
	dead := d.q
	d.cfg.Base = d.avail // Cloud Hypervisor's base, which says nothing
	d.takeOver(b)
	heads, again := d.heads()
	if want := []uint16{4, 2, 6}; !slices.Equal(heads, want) {
		t.Fatalf("heads = %d, want %d: in flight first, in the order of the pops", heads, want)
	}
	for _, c := range again {
		d.push(c, 5)
	}
	d.publish()
	if got := d.usedIdx(); got != 4 {
		t.Errorf("used index = %d, want 4", got)
	}
	if base := d.q.Stop(); base != 4 {
		t.Errorf("base = %d, want 4", base)
	}
	dead.Stop()
}

// A process may die between any two stores of Publish.
func TestDeathInPublish(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(d *driver, b []byte) // undoes what came after the death
		want   []uint16
	}{
		{"before the used index", func(d *driver, b []byte) {
			b[16+16*0], b[16+16*2] = 1, 1
			le.PutUint16(b[14:], 0)
			le.PutUint16(d.mem[usedAt+usedIdxOff:], 0)
		}, []uint16{0, 2, 4}},
		{"after the used index", func(d *driver, b []byte) {
			b[16+16*0], b[16+16*2] = 1, 1
			le.PutUint16(b[14:], 0)
		}, []uint16{4}},
		{"in the middle of the batch", func(d *driver, b []byte) {
			b[16+16*2] = 1
			le.PutUint16(b[14:], 0)
		}, []uint16{4}},
		{"before used_idx", func(d *driver, b []byte) { le.PutUint16(b[14:], 0) }, []uint16{4}},
		{"after it", func(d *driver, b []byte) {}, []uint16{4}},
	} {
		d := newDriver(t, 8)
		b := region(t, 8)
		d.log(b)
		d.start()
		for _, h := range []uint16{0, 2, 4} {
			d.simple(h)
		}
		d.offer(0, 2, 4)
		_, chains := d.heads()
		d.push(chains[0], 0)
		d.push(chains[1], 0)
		d.publish()
		tc.damage(d, b)
		dead := d.q
		d.takeOver(b)
		if heads, _ := d.heads(); !slices.Equal(heads, tc.want) {
			t.Errorf("%s: heads = %d, want %d", tc.name, heads, tc.want)
		}
		dead.Stop()
	}
}

func TestUnpopLeavesTheLog(t *testing.T) {
	d := newDriver(t, 8)
	b := region(t, 8)
	d.log(b)
	d.start()
	d.simple(0)
	d.simple(2)
	d.offer(0, 2)
	_, chains := d.heads()
	for _, c := range chains {
		if err := d.q.Return(c); err != nil {
			t.Fatal(err)
		}
	}
	if base := d.q.Stop(); base != 0 || b[16] != 0 || b[16+32] != 0 {
		t.Errorf("base = %d, log has %d and %d, want all 0", base, b[16], b[16+32])
	}
}

func TestResetClearsTheLog(t *testing.T) {
	for _, explicit := range []bool{true, false} {
		d := newDriver(t, 8)
		b := region(t, 8)
		d.log(b)
		d.start()
		d.simple(0)
		d.simple(2)
		d.offer(0, 2)
		_, chains := d.heads()
		d.push(chains[1], 0)
		d.publish()
		d.q.Stop()
		if explicit {
			d.q.Reset()
		}
		clear(d.mem[availAt : usedAt+0x1000])
		d.avail, d.cfg.Base = 0, 0
		d.start()
		d.wantEmpty()
		if b[16] != 0 {
			t.Error("head 0 is still in the log after a reset")
		}
	}
}

// A log of zeroes may meet a ring that has run for long.
func TestFreshLogOnAnOldRing(t *testing.T) {
	d := newDriver(t, 8)
	d.log(region(t, 8))
	le.PutUint16(d.mem[usedAt+usedIdxOff:], 5000)
	d.avail, d.cfg.Base = 5000, 5000
	d.setAvail(5000)
	d.start()
	d.simple(0)
	d.offer(0)
	if c := d.pop(); c.Head != 0 {
		t.Errorf("head = %d, want 0", c.Head)
	}
}

func TestInflightRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int
		set  func(b []byte) []byte
	}{
		{"too short", 8, func(b []byte) []byte { return b[:len(b)-1] }},
		{"no descriptors", 0, func(b []byte) []byte { return b }},
		{"too many", MaxSize + 1, func([]byte) []byte { return make([]byte, InflightSize(MaxSize+1)) }},
		{"version", 8, func(b []byte) []byte { le.PutUint16(b[8:], 2); return b }},
		{"descriptors", 8, func(b []byte) []byte { le.PutUint16(b[8:], 1); le.PutUint16(b[10:], 16); return b }},
	} {
		if _, err := NewInflight(tc.set(region(t, 8)), tc.size); !errors.Is(err, ErrInflightRegion) {
			t.Errorf("%s: err = %v, want ErrInflightRegion", tc.name, err)
		}
	}
	for _, tc := range []struct {
		name string
		set  func(b []byte)
	}{
		{"batch head outside", func(b []byte) { b[16] = 1; le.PutUint16(b[12:], 16); le.PutUint16(b[14:], 0xffff) }},
		{"batch larger than the ring", func(b []byte) { b[16] = 1; le.PutUint16(b[14:], 100) }},
		{"head beyond the ring", func(b []byte) { b[16+16*12] = 1 }},
	} {
		d := newDriver(t, 8)
		b := region(t, 16)
		f, err := NewInflight(b, 16)
		if err != nil {
			t.Fatal(err)
		}
		tc.set(b)
		if err := d.q.SetInflight(f); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the log is not forgotten because it was refused
			if err := d.tryStart(); !errors.Is(err, ErrInflightRegion) {
				t.Errorf("%s: Start = %v, want ErrInflightRegion", tc.name, err)
			}
		}
	}
	d := newDriver(t, 16)
	f, err := NewInflight(region(t, 8), 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.q.SetInflight(f); err != nil {
		t.Fatal(err)
	}
	if err := d.tryStart(); !errors.Is(err, ErrConfig) {
		t.Errorf("Start of a ring larger than its log = %v, want ErrConfig", err)
	}
}

// Whatever happens until a process dies, the next one answers each request that
// was made and not answered exactly once.
func TestRandomLives(t *testing.T) {
	const size, seeds = 16, 200
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 0))
		d := newDriver(t, size)
		b := region(t, size)
		d.log(b)
		d.start()
		asked, answered := map[uint16]bool{}, uint16(0)
		free := rng.Perm(size)
		reap := func() {
			for ; answered != d.usedIdx(); answered++ {
				id, _ := d.used(answered)
				if !asked[uint16(id)] {
					t.Fatalf("seed %d: head %d was answered and not asked", seed, id)
				}
				delete(asked, uint16(id))
				free = append(free, int(id))
			}
		}
		for life := range 5 {
			var held []*Chain
			for range rng.IntN(60) {
				switch op := rng.IntN(6); {
				case op < 2 && len(free) > 0:
					h := uint16(free[0])
					free = free[1:]
					d.desc(int(h), bufAt, 8, descWrite, 0)
					asked[h] = true
					d.offer(h)
				case op < 4:
					c := new(Chain)
					if ok, err := d.q.Pop(c); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					} else if ok {
						held = append(held, c)
					}
				case len(held) > 0:
					i := rng.IntN(len(held))
					c := held[i]
					held = slices.Delete(held, i, i+1)
					if op == 4 {
						d.push(c, 1)
					} else if err := d.q.Return(c); err != nil {
						t.Fatal(err)
					}
				default:
					d.publish()
					reap()
				}
			}
			switch d.cfg.Base = d.avail; {
			case life == 4:
			case rng.IntN(2) == 0: // it dies
				t.Cleanup(func(dead *Queue) func() { return func() { dead.Stop() } }(d.q))
				d.takeOver(b)
			default: // the front-end stops it and goes on
				d.publish()
				for _, c := range held {
					if err := d.q.Return(c); err != nil {
						t.Fatal(err)
					}
				}
				d.q.Stop()
				d.start()
			}
			if life == 4 {
				for _, c := range held {
					d.push(c, 1)
				}
			}
		}
		_, rest := d.heads()
		for _, c := range rest {
			d.push(c, 1)
		}
		d.publish()
		reap()
		if len(asked) != 0 {
			t.Fatalf("seed %d: not answered: %v", seed, asked)
		}
	}
}
