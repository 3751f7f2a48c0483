package virtq

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// The guest of the tests: one memfd, mapped by us as the driver and by the queue
// as the device. Guest addresses are offsets in it; a hole and a region that
// follows in the guest's space but not in ours are at its end.
const (
	memSize  = 1 << 20
	userBase = 0x7f0000000000
	descAt   = 0x1000
	availAt  = 0x82000
	usedAt   = 0x94000
	bufAt    = 0xe0000
	tableAt  = 0xf0000
	lastPage = memSize - 0x1000 // mapped as a region of its own
)

// driver is the guest's side of a queue, without any judgement.
type driver struct {
	t     testing.TB
	fd    int
	mem   []byte
	guest guestmem.Memory
	q     *Queue
	cfg   Config
	avail uint16
}

func newDriver(t testing.TB, size int) *driver {
	t.Helper()
	fd, err := unix.MemfdCreate("virtq-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, memSize); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{t: t, fd: fd, mem: mem, q: New(Limits{})}
	_, err = d.guest.Replace([]guestmem.Region{
		{Size: lastPage, UserAddr: userBase},
		{GuestPhys: lastPage, Size: memSize - lastPage, UserAddr: userBase + memSize, MmapOffset: lastPage},
	}, []int{fd, fd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.q.Stop()
		d.guest.Close()
		_ = unix.Munmap(mem)
		_ = unix.Close(fd)
	})
	d.cfg = Config{
		Size: size, Desc: userBase + descAt, Avail: userBase + availAt, Used: userBase + usedAt,
		Indirect: true, EventIdx: true,
	}
	return d
}

// started is newDriver with a queue that runs.
func started(t testing.TB, size int) *driver {
	t.Helper()
	d := newDriver(t, size)
	d.start()
	return d
}

func (d *driver) start() {
	d.t.Helper()
	if err := d.tryStart(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *driver) tryStart() error {
	s := d.guest.Pin()
	defer s.Unpin()
	return d.q.Start(s, d.cfg)
}

func (d *driver) putDesc(at int, addr uint64, n uint32, flags, next uint16) {
	b := d.mem[at:]
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], n)
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], next)
}

func (d *driver) desc(i int, addr uint64, n uint32, flags, next uint16) {
	d.putDesc(descAt+i*descSize, addr, n, flags, next)
}

func (d *driver) indirect(i int, addr uint64, n uint32, flags, next uint16) {
	d.putDesc(tableAt+i*descSize, addr, n, flags, next)
}

// offer makes heads available.
func (d *driver) offer(heads ...uint16) {
	for _, h := range heads {
		le.PutUint16(d.mem[availAt+availRingOff+2*(int(d.avail)&(d.cfg.Size-1)):], h)
		d.avail++
	}
	d.setAvail(d.avail)
}

func (d *driver) setAvail(idx uint16)    { guestmem.PartOf(d.mem[availAt:]).Store16(availIdxOff, idx) }
func (d *driver) setUsedEvent(i uint16)  { le.PutUint16(d.mem[availAt+availRingOff+2*d.cfg.Size:], i) }
func (d *driver) setAvailFlags(f uint16) { le.PutUint16(d.mem[availAt:], f) }
func (d *driver) usedFlags() uint16      { return le.Uint16(d.mem[usedAt:]) }
func (d *driver) usedIdx() uint16        { return le.Uint16(d.mem[usedAt+usedIdxOff:]) }

func (d *driver) availEvent() uint16 {
	return le.Uint16(d.mem[usedAt+usedRingOff+usedElemSize*d.cfg.Size:])
}

// used is the element at entry i of the used ring.
func (d *driver) used(i uint16) (id, n uint32) {
	b := d.mem[usedAt+usedRingOff+usedElemSize*(int(i)&(d.cfg.Size-1)):]
	return le.Uint32(b), le.Uint32(b[4:])
}

// simple makes descriptors h (to read) and h+1 (to write) a request of 16 bytes each.
func (d *driver) simple(h uint16) {
	at := uint64(bufAt + 32*int(h)%0x8000)
	d.desc(int(h), at, 16, descNext, h+1)
	d.desc(int(h)+1, at+16, 16, descWrite, 0)
}

// pop pops a chain that must be there and in order.
func (d *driver) pop() *Chain {
	d.t.Helper()
	c := new(Chain)
	if ok, err := d.q.Pop(c); !ok || err != nil {
		d.t.Fatalf("Pop = %v, %v, want a chain", ok, err)
	}
	return c
}

func (d *driver) wantEmpty() {
	d.t.Helper()
	if ok, err := d.q.Pop(new(Chain)); ok || err != nil {
		d.t.Fatalf("Pop = %v, %v, want nothing", ok, err)
	}
}

func (d *driver) push(c *Chain, used uint32) {
	d.t.Helper()
	if err := d.q.Push(c, used); err != nil {
		d.t.Fatalf("Push: %v", err)
	}
}

func (d *driver) publish() bool {
	d.t.Helper()
	notify, err := d.q.Publish()
	if err != nil {
		d.t.Fatalf("Publish: %v", err)
	}
	return notify
}

// heads pops all there is and returns the heads; the chains stay in flight.
func (d *driver) heads() (heads []uint16, chains []*Chain) {
	d.t.Helper()
	for {
		c := new(Chain)
		ok, err := d.q.Pop(c)
		if err != nil {
			d.t.Fatal(err)
		}
		if !ok {
			return heads, chains
		}
		heads, chains = append(heads, c.Head), append(chains, c)
	}
}
