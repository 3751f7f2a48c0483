package virtq

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

func lengths(bufs [][]byte) (lens []int) {
	for _, b := range bufs {
		lens = append(lens, len(b))
		if cap(b) != len(b) {
			lens = append(lens, -cap(b)) // an append would write beyond the buffer
		}
	}
	return lens
}

func TestChains(t *testing.T) {
	const in, out, next = bufAt, bufAt + 0x1000, descNext
	for _, tc := range []struct {
		name  string
		setup func(d *driver)
		read  []int
		write []int
		err   error
	}{
		{"read only", func(d *driver) { d.desc(0, in, 48, 0, 0) }, []int{48}, nil, nil},
		{"write only", func(d *driver) { d.desc(0, in, 48, descWrite, 0) }, nil, []int{48}, nil},
		{"no bytes", func(d *driver) { d.desc(0, in, 0, 0, 0) }, nil, nil, nil},
		{"no bytes at a wild address", func(d *driver) { d.desc(0, 1<<60, 0, 0, 0) }, nil, nil, nil},
		{"neighbours merge", func(d *driver) {
			d.desc(0, in, 40, next, 1)
			d.desc(1, in+40, 8, next, 2)
			d.desc(2, out, 16, next|descWrite, 3)
			d.desc(3, out+16, 4080, descWrite, 0)
		}, []int{48}, []int{4096}, nil},
		{"gaps do not", func(d *driver) {
			d.desc(0, in, 40, next, 1)
			d.desc(1, in+64, 8, next, 2)
			d.desc(2, in+72, 16, descWrite, 0)
		}, []int{40, 8}, []int{16}, nil},
		{"straddles regions", func(d *driver) { d.desc(0, lastPage-8, 16, 0, 0) }, []int{8, 8}, nil, nil},
		{"indirect", func(d *driver) {
			d.desc(0, tableAt, 3*descSize, descIndirect, 0)
			d.indirect(0, in, 40, next, 2)
			d.indirect(2, out, 16, descWrite, 0)
		}, []int{40}, []int{16}, nil},
		{"indirect after direct, write flag ignored", func(d *driver) {
			d.desc(0, in, 40, next, 1)
			d.desc(1, tableAt, descSize, descIndirect|descWrite, 0)
			d.indirect(0, in+64, 8, 0, 0)
		}, []int{40, 8}, nil, nil},
		{"indirect table straddles regions", func(d *driver) {
			d.desc(0, lastPage-descSize, 2*descSize, descIndirect, 0)
			d.putDesc(lastPage-descSize, in, 40, next, 1)
			d.putDesc(lastPage, out, 16, descWrite, 0)
		}, []int{40}, []int{16}, nil},
		{"as long as the queue", func(d *driver) {
			for i := range 8 {
				d.desc(i, in, 1, next, uint16(i+1))
			}
			d.desc(7, in, 1, 0, 0)
		}, []int{1, 1, 1, 1, 1, 1, 1, 1}, nil, nil},

		{"loop of one", func(d *driver) { d.desc(0, in, 1, next, 0) }, []int{1, 1, 1, 1, 1, 1, 1, 1}, nil, ErrLoop},
		{"loop of two without bytes", func(d *driver) { d.desc(0, in, 0, next, 1); d.desc(1, in, 0, next, 0) }, nil, nil, ErrLoop},
		{"loop in a table", func(d *driver) {
			d.desc(0, tableAt, descSize, descIndirect, 0)
			d.indirect(0, in, 1, next, 0)
		}, []int{1}, nil, ErrLoop},
		{"next outside", func(d *driver) { d.desc(0, in, 1, next, 8) }, []int{1}, nil, ErrNext},
		{"next far outside", func(d *driver) { d.desc(0, in, 1, next, 0xffff) }, []int{1}, nil, ErrNext},
		{"next outside a table", func(d *driver) {
			d.desc(0, tableAt, 2*descSize, descIndirect, 0)
			d.indirect(0, in, 1, next, 2)
		}, []int{1}, nil, ErrNext},
		{"indirect in indirect", func(d *driver) {
			d.desc(0, tableAt, 2*descSize, descIndirect, 0)
			d.indirect(0, in, 1, next, 1)
			d.indirect(1, tableAt, 2*descSize, descIndirect, 0)
		}, []int{1}, nil, ErrIndirect},
		{"indirect with next", func(d *driver) { d.desc(0, tableAt, descSize, descIndirect|next, 1) }, nil, nil, ErrIndirect},
		{"indirect of nothing", func(d *driver) { d.desc(0, tableAt, 0, descIndirect, 0) }, nil, nil, ErrIndirect},
		{"indirect of 17 bytes", func(d *driver) { d.desc(0, tableAt, 17, descIndirect, 0) }, nil, nil, ErrIndirect},
		{"indirect too long", func(d *driver) { d.desc(0, 0, descSize*(minIndirect+1), descIndirect, 0) }, nil, nil, ErrIndirect},
		{"indirect of 4 GiB", func(d *driver) { d.desc(0, 0, 0xfffffff0, descIndirect, 0) }, nil, nil, ErrIndirect},
		{"indirect outside memory", func(d *driver) { d.desc(0, memSize-descSize, 2*descSize, descIndirect, 0) }, nil, nil, ErrBuffer},
		{"buffer outside memory", func(d *driver) { d.desc(0, in, 1, next, 1); d.desc(1, memSize, 1, 0, 0) }, []int{1}, nil, ErrBuffer},
		{"buffer leaves memory", func(d *driver) { d.desc(0, memSize-1, 2, 0, 0) }, nil, nil, ErrBuffer},
		{"address overflows", func(d *driver) { d.desc(0, 1<<64-1, 16, 0, 0) }, nil, nil, ErrBuffer},
		{"readable after writable", func(d *driver) {
			d.desc(0, in, 16, descWrite|next, 1)
			d.desc(1, in, 16, 0, 0)
		}, nil, []int{16}, ErrOrder},
		{"too much to read", func(d *driver) {
			d.desc(0, 0, lastPage, next, 1)
			d.desc(1, 0, DefaultLimit-lastPage+1, 0, 0)
		}, []int{lastPage}, nil, ErrTooLong},
		{"too much to write", func(d *driver) { d.desc(0, 0, 0xffffffff, descWrite, 0) }, nil, nil, ErrTooLong},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := started(t, 8)
			tc.setup(d)
			d.offer(0)
			c := new(Chain)
			ok, err := d.q.Pop(c)
			if !ok || !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Fatalf("Pop = %v, %v, want true, %v", ok, err, tc.err)
			}
			if err != nil && !errors.Is(err, ErrChain) {
				t.Errorf("err = %v, want ErrChain around it", err)
			}
			read, write := lengths(c.Readable), lengths(c.Writable)
			if !slices.Equal(read, tc.read) || !slices.Equal(write, tc.write) {
				t.Errorf("lengths = %v and %v, want %v and %v", read, write, tc.read, tc.write)
			}
			if sum(read) != c.ReadLen || sum(write) != c.WriteLen {
				t.Errorf("ReadLen, WriteLen = %d, %d, want %d, %d", c.ReadLen, c.WriteLen, sum(read), sum(write))
			}
			d.push(c, 0)
			d.publish()
			// A malformed chain has cost that chain only.
			d.simple(2)
			d.offer(2)
			if c := d.pop(); c.Head != 2 {
				t.Errorf("next head = %d, want 2", c.Head)
			}
		})
	}
}

func sum(lens []int) (n int) {
	for _, l := range lens {
		n += l
	}
	return n
}

func TestIndirectNotNegotiated(t *testing.T) {
	d := newDriver(t, 8)
	d.cfg.Indirect = false
	d.start()
	d.desc(0, tableAt, descSize, descIndirect, 0)
	d.indirect(0, bufAt, 1, 0, 0)
	d.offer(0)
	if ok, err := d.q.Pop(new(Chain)); !ok || !errors.Is(err, ErrIndirect) {
		t.Errorf("Pop = %v, %v, want true, ErrIndirect", ok, err)
	}
}

func TestLimits(t *testing.T) {
	d := newDriver(t, 8)
	d.q = New(Limits{Readable: 10, Writable: 20})
	d.start()
	for i, tc := range []struct {
		n     uint32
		flags uint16
		err   error
	}{{10, 0, nil}, {11, 0, ErrTooLong}, {20, descWrite, nil}, {21, descWrite, ErrTooLong}} {
		d.desc(i, bufAt, tc.n, tc.flags, 0)
		d.offer(uint16(i))
		if ok, err := d.q.Pop(new(Chain)); !ok || !errors.Is(err, tc.err) {
			t.Errorf("chain of %d bytes, flags %d: %v, %v, want true, %v", tc.n, tc.flags, ok, err, tc.err)
		}
	}
}

// A guest that rewrites its descriptors after they were popped changes nothing.
func TestDescriptorsAreReadOnce(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	d.offer(0)
	c := d.pop()
	d.desc(0, 1<<60, 1<<30, descNext, 0)
	if c.ReadLen != 16 || len(c.Readable[0]) != 16 || c.WriteLen != 16 {
		t.Errorf("chain has %d and %d bytes, want 16 and 16", c.ReadLen, c.WriteLen)
	}
}

func TestBrokenRings(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(d *driver)
		want error
	}{
		{"avail index jumps", func(d *driver) { d.setAvail(9) }, ErrAvailIndex},
		{"avail index goes back", func(d *driver) { d.setAvail(0xffff) }, ErrAvailIndex},
		{"head outside", func(d *driver) { d.offer(8) }, ErrHead},
		{"head far outside", func(d *driver) { d.offer(0xffff) }, ErrHead},
		{"head twice", func(d *driver) { d.simple(0); d.offer(0); d.pop(); d.offer(0) }, ErrInFlight},
		{"head twice in one batch", func(d *driver) { d.simple(0); d.offer(0, 0); d.pop() }, ErrInFlight},
		{"memory vanishes", func(d *driver) { d.truncate(availAt) }, guestmem.ErrFault},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := started(t, 8)
			tc.do(d)
			var last string
			for range 2 { // broken stays broken
				ok, err := d.q.Pop(new(Chain))
				if ok || !errors.Is(err, tc.want) {
					t.Fatalf("Pop = %v, %v, want false, %v", ok, err, tc.want)
				}
				if last != "" && err.Error() != last {
					t.Errorf("second error %q, want %q again", err, last)
				}
				last = err.Error()
			}
			out := d.q.Outstanding()
			d.q.Stop()
			if want := d.q.Outstanding(); out != want {
				t.Errorf("Outstanding = %d, want %d", out, want)
			}
		})
	}
}

func (d *driver) truncate(n int64) {
	d.t.Helper()
	if err := unix.Ftruncate(d.fd, n); err != nil {
		d.t.Fatal(err)
	}
}

// Memory that vanishes between the available ring and the descriptor table must
// not leave a chain in flight that nobody has.
func TestFaultInsideAChain(t *testing.T) {
	d := newDriver(t, 8)
	// The descriptor table lies behind the rings here, so that it can go alone.
	d.cfg.Desc = userBase + 0xd0000
	d.start()
	d.offer(0)
	d.truncate(0xd0000)
	ok, err := d.q.Pop(new(Chain))
	if ok || !errors.Is(err, guestmem.ErrFault) {
		t.Fatalf("Pop = %v, %v, want false, ErrFault", ok, err)
	}
	if n := d.q.Outstanding(); n != 0 {
		t.Errorf("Outstanding = %d, want 0", n)
	}
	if base := d.q.Stop(); base != 0 {
		t.Errorf("base = %d, want 0: the chain was never seen", base)
	}
	old := d.guest.Close()
	select {
	case <-old.Gone():
	default:
		t.Error("the memory is still pinned")
	}
}

func TestConfigRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(c *Config)
	}{
		{"size 0", func(c *Config) { c.Size = 0 }},
		{"size -8", func(c *Config) { c.Size = -8 }},
		{"size 3", func(c *Config) { c.Size = 3 }},
		{"size 65536", func(c *Config) { c.Size = 65536 }},
		{"descriptors outside", func(c *Config) { c.Desc = 0 }},
		{"descriptors leave the region", func(c *Config) { c.Desc = userBase + lastPage - 16 }},
		{"descriptors unaligned", func(c *Config) { c.Desc += 8 }},
		{"avail unaligned", func(c *Config) { c.Avail++ }},
		{"avail leaves the region", func(c *Config) { c.Avail = userBase + lastPage - 4 - 2*8 }},
		{"used unaligned", func(c *Config) { c.Used += 2 }},
		{"used leaves the region", func(c *Config) { c.Used = userBase + lastPage - 4 - 8*8 }},
		{"addresses at the top", func(c *Config) { c.Desc, c.Avail, c.Used = 1<<64-16, 1<<64-2, 1<<64-4 }},
	} {
		d := newDriver(t, 8)
		tc.set(&d.cfg)
		if err := d.tryStart(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: Start = %v, want ErrConfig", tc.name, err)
		}
		if ok, err := d.q.Pop(new(Chain)); ok || err != nil {
			t.Errorf("%s: Pop = %v, %v on a queue that did not start", tc.name, ok, err)
		}
	}
	d := started(t, 8)
	if err := d.tryStart(); !errors.Is(err, ErrConfig) {
		t.Errorf("second Start = %v, want ErrConfig", err)
	}
}

func TestAvailAtTwoModuloFour(t *testing.T) {
	d := newDriver(t, 1)
	d.cfg.Avail += 2
	d.start()
	d.desc(0, bufAt, 5, 0, 0)
	for i := range uint16(5) {
		le.PutUint16(d.mem[availAt+2+availRingOff:], 0)
		le.PutUint16(d.mem[availAt+2+availIdxOff:], i+1)
		c := d.pop()
		d.push(c, 0)
		d.publish()
		if got := d.usedIdx(); got != i+1 {
			t.Fatalf("used index = %d, want %d", got, i+1)
		}
	}
}
