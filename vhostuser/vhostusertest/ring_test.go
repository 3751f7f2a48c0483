package vhostusertest

import (
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

// device is the other side of one ring, as simple as can be, on the same memory.
type device struct {
	t    testing.TB
	r    *Ring
	last uint16
	used uint16
}

func newTestRing(t testing.TB, num uint16, eventIdx, indirect bool) (*Ring, *device) {
	t.Helper()
	m, err := NewMemory([]Region{{Size: 16 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRing(m, 1, num)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	r.eventIdx, r.indirect = eventIdx, indirect
	return r, &device{t: t, r: r}
}

// pop returns the head of the next chain and the chain itself.
func (d *device) pop() (uint16, []Desc) {
	idx := binary.LittleEndian.Uint16(d.r.Avail.Bytes[2:])
	if idx == d.last {
		d.t.Fatal("nothing to pop")
	}
	at := 4 + 2*int(d.last%d.r.Num)
	head := binary.LittleEndian.Uint16(d.r.Avail.Bytes[at:])
	d.last++
	table, i := d.r.Desc.Bytes, head
	if first := readDesc(table, head); first.Flags&DescIndirect != 0 {
		var err error
		if table, err = d.r.memory.Bytes(first.Addr, int(first.Len)); err != nil {
			d.t.Fatal(err)
		}
		i = 0
	}
	var chain []Desc
	for {
		c := readDesc(table, i)
		chain = append(chain, c)
		if c.Flags&DescNext == 0 {
			return head, chain
		}
		i = c.Next
	}
}

func readDesc(b []byte, i uint16) Desc {
	b = b[16*int(i):]
	return Desc{
		Addr: binary.LittleEndian.Uint64(b), Len: binary.LittleEndian.Uint32(b[8:]),
		Flags: binary.LittleEndian.Uint16(b[12:]), Next: binary.LittleEndian.Uint16(b[14:]),
	}
}

// push finishes a chain.
func (d *device) push(id, n uint32) {
	at := 4 + 8*int(d.used%d.r.Num)
	binary.LittleEndian.PutUint32(d.r.Used.Bytes[at:], id)
	binary.LittleEndian.PutUint32(d.r.Used.Bytes[at+4:], n)
	d.used++
	binary.LittleEndian.PutUint16(d.r.Used.Bytes[2:], d.used)
}

// event asks for a kick when the available index passes v.
func (d *device) event(v uint16) {
	binary.LittleEndian.PutUint16(d.r.Used.Bytes[4+8*int(d.r.Num):], v)
}

func mustRequest(t testing.TB, r *Ring, size RequestSize) *Request {
	t.Helper()
	q, err := r.NewRequest(size)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// The shapes are those of a trace of Linux 6.1 (readable and writable bytes).
func TestShapes(t *testing.T) {
	for _, tc := range []struct {
		name        string
		fill        func(*Request)
		read, write []uint32
	}{
		{"INIT", (*Request).Init, []uint32{40, 64}, []uint32{16, 64}},
		{"GETATTR", func(q *Request) { q.Getattr(1) }, []uint32{40, 16}, []uint32{16, 104}},
		{"LOOKUP", func(q *Request) { q.Lookup(1, "hello") }, []uint32{40, 6}, []uint32{16, 128}},
		{"OPEN", func(q *Request) { q.Open(OpOpen, 2, 0) }, []uint32{40, 8}, []uint32{16, 16}},
		{"READ", func(q *Request) { q.Read(OpRead, 2, 0, 0, 3*PageSize) }, []uint32{40, 40}, []uint32{16, PageSize, PageSize, PageSize}},
		{"READ of 100", func(q *Request) { q.Read(OpRead, 2, 0, 0, 100) }, []uint32{40, 40}, []uint32{16, 100}},
		{"READDIRPLUS", func(q *Request) { q.Read(OpReaddirplus, 1, 0, 0, PageSize) }, []uint32{40, 40}, []uint32{16, PageSize}},
		{"RELEASE", func(q *Request) { q.Release(OpRelease, 2, 7) }, []uint32{40, 24}, []uint32{16}},
		{"STATFS", func(q *Request) { q.Plain(OpStatfs, 1, sizeStatfsOut) }, []uint32{40}, []uint32{16, 80}},
		{"DESTROY", func(q *Request) { q.Plain(OpDestroy, 0, 0) }, []uint32{40}, []uint32{16}},
		{"READLINK", func(q *Request) { q.Readlink(3) }, []uint32{40}, []uint32{16, PageSize}},
		{"size of GETXATTR", func(q *Request) { q.Getxattr(3, "user.a", 0) }, []uint32{40, 15}, []uint32{16, 8}},
		{"LISTXATTR", func(q *Request) { q.Getxattr(3, "", 64) }, []uint32{40, 8}, []uint32{16, 64}},
		{"FORGET", func(q *Request) { q.Forget(3, 1) }, []uint32{40, 8}, nil},
	} {
		for _, indirect := range []bool{false, true} {
			r, dev := newTestRing(t, 16, true, indirect)
			q := mustRequest(t, r, RequestSize{Args: 256, Reply: 256, Data: 3 * PageSize})
			tc.fill(q)
			if err := errors.Join(r.Submit(q), r.Publish()); err != nil {
				t.Fatal(err)
			}
			_, chain := dev.pop()
			var read, write []uint32
			for _, d := range chain {
				if d.Flags&DescWrite != 0 {
					write = append(write, d.Len)
				} else {
					read = append(read, d.Len)
				}
			}
			if !equal(read, tc.read) || !equal(write, tc.write) {
				t.Errorf("%s, indirect %v: chain = R %v W %v, want R %v W %v", tc.name, indirect, read, write, tc.read, tc.write)
			}
			header, err := r.memory.Bytes(chain[0].Addr, sizeInHeader)
			if err != nil {
				t.Fatal(err)
			}
			total := uint32(0)
			for _, n := range tc.read {
				total += n
			}
			if got := binary.LittleEndian.Uint32(header); got != total {
				t.Errorf("%s: in header says %d bytes, want %d", tc.name, got, total)
			}
		}
	}
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestLayouts(t *testing.T) {
	for _, tc := range []struct {
		layout     DataLayout
		descs      int
		neighbours bool
	}{{Pages, 4, true}, {Scattered, 4, false}, {Folio, 1, true}} {
		r, _ := newTestRing(t, 16, true, true)
		q := mustRequest(t, r, RequestSize{Args: 64, Reply: 64, Data: 4 * PageSize, Layout: tc.layout})
		q.Read(OpRead, 2, 0, 0, 4*PageSize)
		data := q.Descs()[3:]
		if len(data) != tc.descs {
			t.Errorf("layout %d: %d descriptors, want %d", tc.layout, len(data), tc.descs)
		}
		for i := 1; i < len(data); i++ {
			if got := data[i-1].Addr+PageSize == data[i].Addr; got != tc.neighbours {
				t.Errorf("layout %d: pages %d and %d are neighbours: %v, want %v", tc.layout, i-1, i, got, tc.neighbours)
			}
		}
	}
}

func TestKicks(t *testing.T) {
	for _, tc := range []struct {
		name     string
		eventIdx bool
		prepare  func(*device)
		want     uint64
	}{
		{"plain", false, func(*device) {}, 1},
		{"plain, not wanted", false, func(d *device) { d.r.Used.Bytes[0] = 1 }, 0},
		{"event index reached", true, func(d *device) { d.event(0) }, 1},
		{"event index reached in the middle", true, func(d *device) { d.event(1) }, 1},
		{"event index ahead", true, func(d *device) { d.event(2) }, 0},
		{"event index behind", true, func(d *device) { d.event(0xffff) }, 0},
	} {
		r, dev := newTestRing(t, 16, tc.eventIdx, true)
		tc.prepare(dev)
		for range 2 {
			q := mustRequest(t, r, RequestSize{Args: 64, Reply: 256})
			q.Getattr(1)
			if err := r.Submit(q); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Publish(); err != nil {
			t.Fatal(err)
		}
		if r.Kicks != tc.want || r.kick.clear() != tc.want {
			t.Errorf("%s: %d kicks, want %d", tc.name, r.Kicks, tc.want)
		}
	}
}

// The ring goes round several times, out of order, and gives every descriptor back.
func TestRingGoesRound(t *testing.T) {
	for _, indirect := range []bool{false, true} {
		r, dev := newTestRing(t, 8, true, indirect)
		a := mustRequest(t, r, RequestSize{Args: 64, Reply: 256})
		b := mustRequest(t, r, RequestSize{Args: 64, Reply: 256})
		for range 70_000 { // over the 16-bit indexes
			a.Getattr(1)
			b.Getattr(2)
			if err := errors.Join(r.Submit(a), r.Submit(b), r.Publish()); err != nil {
				t.Fatal(err)
			}
			first, _ := dev.pop()
			second, _ := dev.pop()
			dev.push(uint32(second), 1)
			dev.push(uint32(first), 2)
			if q, err := r.Reap(); q != b || q.Used() != 1 || err != nil {
				t.Fatalf("reaped %p (%v), want %p", q, err, b)
			}
			if q, err := r.Reap(); q != a || q.Used() != 2 || err != nil {
				t.Fatalf("reaped %p (%v), want %p", q, err, a)
			}
		}
		if len(r.free) != 8 || r.InFlight() != 0 {
			t.Errorf("%d descriptors free and %d requests in flight, want 8 and 0", len(r.free), r.InFlight())
		}
	}
}

func TestReapRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*device)
	}{
		{"head that is not in flight", func(d *device) { d.push(3, 0) }},
		{"head beyond the ring", func(d *device) { d.push(8, 0) }},
		{"head twice", func(d *device) {
			h, _ := d.pop()
			d.push(uint32(h), 0)
			if _, err := d.r.Reap(); err != nil {
				d.t.Fatal(err)
			}
			d.push(uint32(h), 0)
		}},
		{"index too far ahead", func(d *device) { d.r.Used.Bytes[2] = 9 }},
	} {
		r, dev := newTestRing(t, 8, true, true)
		q := mustRequest(t, r, RequestSize{Args: 64, Reply: 256})
		q.Getattr(1)
		if err := errors.Join(r.Submit(q), r.Publish()); err != nil {
			t.Fatal(err)
		}
		tc.spoil(dev)
		if _, err := r.Reap(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: reap = %v, want ErrProtocol", tc.name, err)
		}
	}
}

func TestWaitIsBounded(t *testing.T) {
	r, dev := newTestRing(t, 8, true, true)
	if err := r.Wait(time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("wait on an idle ring = %v, want ErrTimeout", err)
	}
	dev.push(0, 0)
	if r.Arm() {
		t.Error("armed although something is there to reap")
	}
	if err := r.Wait(time.Millisecond); err != nil {
		t.Errorf("wait = %v although something is there to reap", err)
	}
}

// reply is what a device writes for q.
func reply(q *Request, length uint32, code int32, unique uint64) {
	binary.LittleEndian.PutUint32(q.out.Bytes, length)
	binary.LittleEndian.PutUint32(q.out.Bytes[4:], uint32(code))
	binary.LittleEndian.PutUint64(q.out.Bytes[8:], unique)
	q.used = length
}

func TestCheck(t *testing.T) {
	r, _ := newTestRing(t, 8, true, true)
	for _, tc := range []struct {
		name     string
		spoil    func(*Request)
		zeroUsed bool
		errno    syscall.Errno
		data     uint32
		want     string
	}{
		{"whole", func(q *Request) { reply(q, 116, 0, q.unique) }, false, 0, 100, ""},
		{"short", func(q *Request) { reply(q, 16, 0, q.unique) }, false, 0, 0, ""},
		{"error", func(q *Request) { reply(q, 16, -5, q.unique) }, false, syscall.EIO, 0, ""},
		{"used length of 0", func(q *Request) { reply(q, 116, 0, q.unique); q.used = 0 }, false, 0, 0, "used length is 0"},
		{"used length of 0, tolerated", func(q *Request) { reply(q, 116, 0, q.unique); q.used = 0 }, true, 0, 100, ""},
		{"used length too long", func(q *Request) { reply(q, 100, 0, q.unique); q.used = 116 }, true, 0, 0, "used length is 116"},
		{"nothing", func(q *Request) { q.used = 0 }, false, 0, 0, "length is 0"},
		{"shorter than a header", func(q *Request) { reply(q, 15, 0, q.unique) }, false, 0, 0, "length is 15"},
		{"longer than the room", func(q *Request) { reply(q, 117, 0, q.unique) }, false, 0, 0, "length is 117"},
		{"another unique", func(q *Request) { reply(q, 16, 0, q.unique+1) }, false, 0, 0, "unique is"},
		{"positive error", func(q *Request) { reply(q, 16, 5, q.unique) }, false, 0, 0, "error is 5"},
		{"error of the kernel's own", func(q *Request) { reply(q, 16, -512, q.unique) }, false, 0, 0, "error is -512"},
		{"error with data", func(q *Request) { reply(q, 17, -5, q.unique) }, false, 0, 0, "with a length of 17"},
	} {
		q := mustRequest(t, r, RequestSize{Args: 64, Data: PageSize})
		q.Read(OpRead, 2, 0, 0, 100)
		tc.spoil(q)
		errno, data, err := q.Check(tc.zeroUsed)
		if errno != tc.errno || data != tc.data || (err == nil) != (tc.want == "") {
			t.Errorf("%s: check = %v, %d, %v, want %v, %d, %q", tc.name, errno, data, err, tc.errno, tc.data, tc.want)
		}
		if err != nil && (!errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: check = %v, want %q", tc.name, err, tc.want)
		}
	}
	q := mustRequest(t, r, RequestSize{Args: 64, Reply: 256})
	q.Getattr(1)
	reply(q, 20, 0, q.unique)
	if _, _, err := q.Check(false); !errors.Is(err, ErrProtocol) {
		t.Errorf("cut off GETATTR: check = %v, want ErrProtocol", err)
	}
}

// A load generator that makes garbage measures its own collector.
func TestLoadPathAllocatesNothing(t *testing.T) {
	for _, indirect := range []bool{false, true} {
		r, dev := newTestRing(t, 64, true, indirect)
		q := mustRequest(t, r, RequestSize{Args: 64, Reply: 256, Data: 8 * PageSize})
		used := func(id uint32) { dev.push(id, 0) }
		i := 0
		if n := testing.AllocsPerRun(1000, func() {
			if i++; i%2 == 0 {
				q.Lookup(1, "name")
			} else {
				q.Read(OpRead, 1, 0, 0, 8*PageSize)
			}
			if err := errors.Join(r.Submit(q), r.Publish()); err != nil {
				t.Fatal(err)
			}
			used(uint32(q.chain[0]))
			if got, err := r.Reap(); got != q || err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("indirect %v: %v allocations a request, want 0", indirect, n)
		}
	}
}

// BenchmarkDriver is what the driver itself costs for each request.
func BenchmarkDriver(b *testing.B) {
	r, dev := newTestRing(b, 64, true, true)
	q := mustRequest(b, r, RequestSize{Args: 64, Reply: 256})
	dev.event(0x8000) // no kicks, mostly
	b.ReportAllocs()
	for b.Loop() {
		q.Getattr(1)
		if err := errors.Join(r.Submit(q), r.Publish()); err != nil {
			b.Fatal(err)
		}
		reply(q, 120, 0, q.unique)
		dev.push(uint32(q.chain[0]), 120)
		if got, err := r.Reap(); got != q || err != nil {
			b.Fatal(err)
		}
		if _, _, err := q.Check(false); err != nil {
			b.Fatal(err)
		}
	}
}
