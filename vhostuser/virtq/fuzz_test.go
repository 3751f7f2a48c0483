package virtq

import (
	"errors"
	"testing"
)

// program is a fuzzed sequence of what a guest and a device do.
type program struct {
	*driver
	b       []byte
	held    []*Chain
	pending int
}

func (p *program) byte() byte {
	if len(p.b) == 0 {
		return 0
	}
	b := p.b[0]
	p.b = p.b[1:]
	return b
}

func (p *program) num() uint16 { return uint16(p.byte()) | uint16(p.byte())<<8 }

// addr is more often inside memory, and near an edge, than not.
func (p *program) addr() uint64 {
	switch v := uint64(p.num()); v & 7 {
	case 0:
		return v << 48
	case 1:
		return lastPage - v>>4
	case 2:
		return memSize - v>>8
	case 3:
		return tableAt + v>>8*descSize
	default:
		return bufAt + v>>3
	}
}

func (p *program) len() uint32 {
	switch v := uint32(p.num()); v & 3 {
	case 0:
		return v << 16
	case 1:
		return v >> 8 * descSize
	default:
		return v >> 6
	}
}

func (p *program) step() {
	switch op := p.byte(); op % 12 {
	case 0, 1:
		p.desc(int(op/12)%p.cfg.Size, p.addr(), p.len(), p.num(), p.num())
	case 2:
		p.indirect(int(op/12), p.addr(), p.len(), p.num(), p.num())
	case 3:
		p.offer(p.num())
	case 4, 5:
		p.offer(uint16(int(op/12) % p.cfg.Size))
	case 6:
		p.setAvail(p.num())
	case 7, 8:
		p.popOne()
	case 9:
		p.giveBack(op)
	case 10:
		p.check(p.q.DisableNotify())
		_, err := p.q.EnableNotify()
		p.check(err)
		_, err = p.q.Publish()
		p.check(err)
		p.pending = 0
	case 11:
		p.restart()
	}
	if n := p.q.Outstanding(); n != len(p.held) {
		p.t.Fatalf("Outstanding = %d, want %d", n, len(p.held))
	}
}

func (p *program) check(err error) {
	if err != nil && !errors.Is(err, ErrRing) {
		p.t.Fatalf("err = %v, want none or ErrRing", err)
	}
}

// popOne pops a chain and judges it: what an error is, where the buffers lie.
func (p *program) popOne() {
	c := new(Chain)
	ok, err := p.q.Pop(c)
	switch {
	case !ok:
		p.check(err)
		return
	case err != nil && !errors.Is(err, ErrChain):
		p.t.Fatalf("Pop = true, %v, want ErrChain", err)
	}
	p.held = append(p.held, c)
	if len(p.held) > p.cfg.Size || int(c.Head) >= p.cfg.Size {
		p.t.Fatalf("%d chains in flight, head %d, in a queue of %d", len(p.held), c.Head, p.cfg.Size)
	}
	p.judge(c.Readable, c.ReadLen)
	p.judge(c.Writable, c.WriteLen)
	if n := len(c.Readable) + len(c.Writable); n > 2*(p.cfg.Size+minIndirect) {
		p.t.Fatalf("chain of %d slices", n)
	}
}

func (p *program) judge(bufs [][]byte, total int) {
	n := 0
	for _, b := range bufs {
		if len(b) == 0 || cap(b) != len(b) {
			p.t.Fatalf("slice of length %d, capacity %d", len(b), cap(b))
		}
		n += len(b)
		b[0], b[len(b)-1] = b[len(b)-1], b[0] // it is mapped and may be written
	}
	if n != total || n > DefaultLimit {
		p.t.Fatalf("%d bytes, want %d and at most %d", n, total, DefaultLimit)
	}
}

func (p *program) giveBack(op byte) {
	if len(p.held) == 0 {
		return
	}
	i := int(op/12) % len(p.held)
	c := p.held[i]
	p.held = append(p.held[:i], p.held[i+1:]...)
	if op&64 != 0 {
		if err := p.q.Return(c); err != nil {
			p.t.Fatal(err)
		}
		return
	}
	p.push(c, uint32(p.num()))
	p.pending++
}

// restart stops the queue and goes on; what is held comes back before.
func (p *program) restart() {
	if _, err := p.q.Publish(); err != nil {
		p.t.Fatal(err)
	}
	for _, c := range p.held {
		if err := p.q.Return(c); err != nil {
			p.t.Fatal(err)
		}
	}
	p.held = p.held[:0]
	p.cfg.Base = p.q.Stop()
	p.start()
}

// FuzzChain runs a program of a hostile guest against a queue. Whatever it does,
// errors are of the documented classes, slices lie in guest memory and within the
// limits, counts are right, and in the end nobody holds guest memory.
func FuzzChain(f *testing.F) {
	f.Add([]byte{3, 3, 0, 8, 0, 64, 0, 0, 0, 0, 0, 4, 7, 9, 10})
	f.Add([]byte{2, 3, 0, 3, 0, 1, 1, 4, 0, 0, 0, 2, 4, 1, 64, 0, 1, 0, 0, 0, 4, 7, 9, 10, 11, 7})
	f.Add([]byte{0, 1, 0, 4, 4, 64, 0, 1, 0, 0, 0, 4, 7, 4, 7, 6, 9, 0, 7})
	f.Add([]byte{4, 2, 3, 200, 1, 7, 11, 4, 16, 7, 73, 11, 7, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &program{b: b}
		size := 1 << (p.byte() % 7)
		p.driver = newDriver(t, size)
		flags := p.byte()
		p.cfg.Indirect, p.cfg.EventIdx = flags&1 != 0, flags&2 != 0
		if flags&4 != 0 {
			p.log(region(t, size))
		}
		p.start()
		for range 512 {
			if len(p.b) == 0 {
				break
			}
			p.step()
		}
		for _, c := range p.held {
			p.push(c, 1)
		}
		p.q.Stop()
		select {
		case <-p.guest.Close().Gone():
		default:
			t.Fatal("guest memory is pinned after the end")
		}
	})
}

// benchChain makes a chain like that of a GETATTR: two descriptors in a table.
func benchQueue(b *testing.B, depth int) *driver {
	d := started(b, 128)
	d.setUsedEvent(0x8000)
	for i := range depth {
		at := tableAt + i*2*descSize
		d.desc(i, uint64(at), 2*descSize, descIndirect, 0)
		d.putDesc(at, uint64(bufAt+i*256), 56, descNext, 1)
		d.putDesc(at+descSize, uint64(bufAt+i*256+64), 120, descWrite, 0)
	}
	return d
}

func benchmarkPopPush(b *testing.B, depth int) {
	d := benchQueue(b, depth)
	chains := make([]Chain, depth)
	b.ReportAllocs()
	for n := 0; n < b.N; n += depth {
		for i := range depth {
			d.offer(uint16(i))
		}
		for i := range chains {
			if ok, err := d.q.Pop(&chains[i]); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		for i := range chains {
			if err := d.q.Push(&chains[i], 120); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := d.q.Publish(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPopPush1(b *testing.B)  { benchmarkPopPush(b, 1) }
func BenchmarkPopPush16(b *testing.B) { benchmarkPopPush(b, 16) }

// BenchmarkPopRead1MiB pops chains of 1 MiB in pages, as Linux sends them.
func BenchmarkPopRead1MiB(b *testing.B) {
	const pages = 128
	d := started(b, 128)
	d.desc(0, tableAt, (pages+2)*descSize, descIndirect, 0)
	d.indirect(0, bufAt, 80, descNext, 1)
	d.indirect(1, bufAt+128, 16, descNext|descWrite, 2)
	for i := range pages {
		flags := uint16(descNext | descWrite)
		if i == pages-1 {
			flags = descWrite
		}
		d.indirect(2+i, uint64(i)*4096, 4096, flags, uint16(3+i))
	}
	c := new(Chain)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		d.offer(0)
		if ok, err := d.q.Pop(c); !ok || err != nil || len(c.Writable) != 2 {
			b.Fatal(ok, err, len(c.Writable))
		}
		if err := d.q.Push(c, 16); err != nil {
			b.Fatal(err)
		}
		if _, err := d.q.Publish(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPopDoesNotAllocate(t *testing.T) {
	d := started(t, 8)
	d.simple(0)
	c := new(Chain)
	if n := testing.AllocsPerRun(100, func() {
		d.offer(0)
		if ok, err := d.q.Pop(c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := d.q.Push(c, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.q.Publish(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a chain, want 0", n)
	}
}
