package vhostuser_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// bootWithErr boots a machine and returns the error descriptor of its ring 1.
func bootWithErr(t *testing.T, path string) (*vhostusertest.VM, int) {
	t.Helper()
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Queues: 2})
	fd := eventfd(t, unix.EFD_NONBLOCK)
	if err := vm.Front.TellU64(vhostuser.ReqSetVringErr, 1, fd); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Front.AskU64(vhostuser.ReqGetFeatures); err != nil { // a fence
		t.Fatal(err)
	}
	return vm, fd
}

func waitEvent(t *testing.T, fd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("no event: poll = %d, %v", n, err)
		}
		return
	}
}

// A ring that its driver breaks tells the front-end, leaves the other rings
// alone, and works again after it has been stopped and started.
func TestBrokenRing(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(r *vhostusertest.Ring) error
	}{
		{"avail index jumps", func(r *vhostusertest.Ring) error { r.SetAvailIdx(1000); return r.Kick() }},
		{"avail index goes back", func(r *vhostusertest.Ring) error { r.SetAvailIdx(r.AvailIdx() - 1); return r.Kick() }},
		{"head outside", func(r *vhostusertest.Ring) error { return r.OfferHead(128) }},
		{"head at the top", func(r *vhostusertest.Ring) error { return r.OfferHead(math.MaxUint16) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv, path := serve(t, &echo{}, vhostuser.Config{})
			vm, errFD := bootWithErr(t, path)
			exchange(t, vm, 1, "before")
			if err := tc.do(vm.Rings[1]); err != nil {
				t.Fatal(err)
			}
			waitEvent(t, errFD)
			exchange(t, vm, 2, "another ring")
			exchange(t, vm, 0, "hiprio")
			// Pausing does not repair it; a reset does.
			if err := vm.Enable(false); err != nil {
				t.Fatal(err)
			}
			if err := vm.Enable(true); err != nil {
				t.Fatal(err)
			}
			if got := srv.Stats().Broken; got != 1 {
				t.Errorf("broken rings = %d, want 1", got)
			}
			if err := vm.Reset(); err != nil {
				t.Fatal(err)
			}
			if err := vm.Start(); err != nil {
				t.Fatal(err)
			}
			exchange(t, vm, 1, "after")
		})
	}
}

// A guest may break a ring and reset the device as often as it likes. The log does
// not grow with that.
func TestBreakingRingsDoesNotFloodTheLog(t *testing.T) {
	var lines lineCount
	srv, path := serve(t, &echo{}, vhostuser.Config{Log: lines.logger("level=ERROR")})
	vm, errFD := bootWithErr(t, path)
	const times = 150
	started := time.Now()
	for range times {
		if err := vm.Rings[1].OfferHead(math.MaxUint16); err != nil {
			t.Fatal(err)
		}
		waitEvent(t, errFD)
		if _, err := unix.Read(errFD, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(vm.Reset(), vm.Start()); err != nil {
			t.Fatal(err)
		}
	}
	if got := srv.Stats().Broken; got != times {
		t.Errorf("%d rings broken, want %d", got, times)
	}
	// The first ones are all there, then one a second.
	if got, most := lines.load(), 33+int64(time.Since(started)/time.Second); got < 32 || got > most {
		t.Errorf("%d log lines, want 32 to %d", got, most)
	}
}

// A driver decides with which used index a ring starts, and so whether requests
// seem to be lost: no reason to fill the log either.
func TestLostRequestsDoNotFloodTheLog(t *testing.T) {
	var lines lineCount
	_, path := serve(t, &echo{}, vhostuser.Config{Log: lines.logger("of which there is no log")})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	const times = 100
	started := time.Now()
	for range times {
		if err := vm.Reset(); err != nil {
			t.Fatal(err)
		}
		vm.Rings[1].Used.Bytes[2] = 7
		if err := vm.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if got, most := lines.load(), 33+int64(time.Since(started)/time.Second); got < 32 || got > most {
		t.Errorf("%d log lines, want 32 to %d", got, most)
	}
}

// hold keeps chains in flight until the ring stops.
func hold(ctx context.Context, _ *virtq.Chain) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestHeadTwiceInFlight(t *testing.T) {
	dev := &echo{gate: hold}
	_, path := serve(t, dev, vhostuser.Config{})
	vm, errFD := bootWithErr(t, path)
	r := vm.Rings[1]
	offer(t, r, request(t, vm, "x"), 0)
	eventually(t, "request popped", func() bool { return len(dev.seen()) == 1 })
	if err := r.OfferHead(0); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, errFD)
	if n := len(dev.seen()); n != 1 {
		t.Errorf("popped %d times, want once", n)
	}
}

// A malformed chain costs the driver that chain: it comes back with no bytes, and
// the ring goes on.
func TestMalformedChains(t *testing.T) {
	const (
		next     = vhostusertest.DescNext
		write    = vhostusertest.DescWrite
		indirect = vhostusertest.DescIndirect
	)
	dev := &echo{}
	_, path := serve(t, dev, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	in, err := vm.Memory.Place([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	nested, err := vm.Memory.Table(vhostusertest.Desc{Addr: in.Addr, Len: 16, Flags: indirect})
	if err != nil {
		t.Fatal(err)
	}
	loop, err := vm.Memory.Table(vhostusertest.Desc{Addr: in.Addr, Len: 16, Flags: next})
	if err != nil {
		t.Fatal(err)
	}
	at := in.Addr
	r := vm.Rings[1]
	for i, tc := range []struct {
		name  string
		descs []vhostusertest.Desc
		want  error
	}{
		{"loop", []vhostusertest.Desc{{Addr: at, Len: 1, Flags: next}}, virtq.ErrLoop},
		{"next outside", []vhostusertest.Desc{{Addr: at, Len: 1, Flags: next, Next: 128}}, virtq.ErrNext},
		{"outside of memory", []vhostusertest.Desc{{Addr: 1 << 50, Len: 1}}, virtq.ErrBuffer},
		{"leaves memory", []vhostusertest.Desc{{Addr: vhostusertest.DefaultMemory - 1, Len: 2}}, virtq.ErrBuffer},
		{"address overflows", []vhostusertest.Desc{{Addr: math.MaxUint64, Len: 2, Flags: write}}, virtq.ErrBuffer},
		{"write before read", []vhostusertest.Desc{{Addr: at, Len: 1, Flags: write | next, Next: 1}, {Addr: at, Len: 1}}, virtq.ErrOrder},
		{"4 GiB", []vhostusertest.Desc{{Addr: 0, Len: math.MaxUint32, Flags: write}}, virtq.ErrTooLong},
		{"indirect in indirect", []vhostusertest.Desc{nested}, virtq.ErrIndirect},
		{"indirect with next", []vhostusertest.Desc{{Addr: nested.Addr, Len: 16, Flags: indirect | next, Next: 1}}, virtq.ErrIndirect},
		{"indirect of 0 bytes", []vhostusertest.Desc{{Addr: nested.Addr, Flags: indirect}}, virtq.ErrIndirect},
		{"indirect of 15 bytes", []vhostusertest.Desc{{Addr: nested.Addr, Len: 15, Flags: indirect}}, virtq.ErrIndirect},
		{"indirect of 4 GiB", []vhostusertest.Desc{{Addr: nested.Addr, Len: 0xfffffff0, Flags: indirect}}, virtq.ErrIndirect},
		{"loop in a table", []vhostusertest.Desc{loop}, virtq.ErrLoop},
	} {
		want := r.UsedIdx() + 1
		if err := r.Offer(tc.descs...); err != nil {
			t.Fatal(err)
		}
		finished(t, r, want)
		if id, n := r.UsedElem(want - 1); id != 0 || n != 0 {
			t.Errorf("%s: used head %d with %d bytes, want head 0 with none", tc.name, id, n)
		}
		errs := dev.chainErrors()
		if len(errs) != i+1 || !errors.Is(errs[i], tc.want) {
			t.Fatalf("%s: chain errors %v, want one more, %v", tc.name, errs, tc.want)
		}
		exchange(t, vm, 1, tc.name)
	}
	// Nothing to read and nothing to write is a chain like any other.
	want := r.UsedIdx() + 1
	if err := r.Offer(vhostusertest.Desc{}); err != nil {
		t.Fatal(err)
	}
	finished(t, r, want)
}

// Guest memory that is truncated costs the rings that touch it. The process
// lives, and so does the next front-end.
func TestMemoryVanishes(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm, fd := bootWithErr(t, path)
	exchange(t, vm, 1, "before")
	if err := vm.Memory.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := vm.Rings[1].Kick(); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, fd)
	for _, r := range vm.Rings {
		if _, err := vm.GetBase(r); err != nil {
			t.Errorf("GET_VRING_BASE after memory has vanished: %v", err)
		}
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	exchange(t, vhostusertest.MustBoot(t, path, vhostusertest.Options{}), 1, "the next one")
}

// Memory may vanish while the device has it: a fault in the device's own
// goroutine is an error of the ring.
func TestBuffersVanish(t *testing.T) {
	entered, truncated := make(chan struct{}), make(chan struct{})
	dev := &funcDevice{serve: func(ctx context.Context, r *vhostuser.Ring) error {
		var c virtq.Chain
		for {
			if ok, err := r.Pop(&c); err != nil {
				return err
			} else if ok {
				close(entered)
				<-truncated
				c.Writable[0][0]++
				t.Error("the fault did not happen")
			}
			if err := r.WaitKick(ctx); err != nil {
				return err
			}
		}
	}}
	_, path := serve(t, dev, vhostuser.Config{StopTimeout: 50 * time.Millisecond})
	vm, errFD := bootWithErr(t, path)
	offer(t, vm.Rings[1], request(t, vm, "x"), 0)
	<-entered
	if err := vm.Memory.Truncate(0); err != nil {
		t.Fatal(err)
	}
	close(truncated)
	waitEvent(t, errFD)
}

// funcDevice is a device made of a function.
type funcDevice struct {
	serve func(ctx context.Context, r *vhostuser.Ring) error
}

func (d *funcDevice) ServeRing(ctx context.Context, r *vhostuser.Ring) error { return d.serve(ctx, r) }
func (d *funcDevice) Reset()                                                 {}

// What a device does wrong on one ring does not reach the others.
func TestDeviceFails(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail func() error
	}{
		{"error", func() error { return errors.New("enough") }},
		{"panic", func() error { panic("enough") }},
		{"nil", func() error { return nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := &echo{}
			dev := &funcDevice{serve: func(ctx context.Context, r *vhostuser.Ring) error {
				if r.Index() != 1 {
					return other.ServeRing(ctx, r)
				}
				var c virtq.Chain
				for {
					if ok, _ := r.Pop(&c); ok {
						return tc.fail()
					}
					if err := r.WaitKick(ctx); err != nil {
						return err
					}
				}
			}}
			srv, path := serve(t, dev, vhostuser.Config{StopTimeout: 50 * time.Millisecond})
			vm, errFD := bootWithErr(t, path)
			offer(t, vm.Rings[1], request(t, vm, "x"), 0)
			waitEvent(t, errFD)
			exchange(t, vm, 2, "another ring")
			eventually(t, "ring counted as broken", func() bool { return srv.Stats().Broken == 1 })
			if err := vm.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestMemoryComesAndGoes(t *testing.T) {
	for _, dialect := range dialects {
		t.Run(dialect.String(), func(t *testing.T) {
			_, path := serve(t, &echo{}, vhostuser.Config{})
			opts := vhostusertest.Options{Dialect: dialect}
			if dialect == vhostusertest.CloudHypervisor {
				opts.ProtocolFeatures = vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck // whole tables only
			}
			vm := vhostusertest.MustBoot(t, path, opts)
			const gpa = 1 << 32
			for turn := range 3 {
				if err := vm.Plug(vhostusertest.Region{GPA: gpa, Size: 1 << 20}); err != nil {
					t.Fatal(err)
				}
				vm.Memory.Prefer(gpa)
				exchange(t, vm, 1, "in new memory")
				vm.Memory.Prefer(0)
				if err := vm.Unplug(gpa); err != nil {
					t.Fatal(err)
				}
				exchange(t, vm, 1, "in old memory")
				r := vm.Rings[1]
				want := r.UsedIdx() + 1
				if err := r.Offer(vhostusertest.Desc{Addr: gpa, Len: 8}); err != nil {
					t.Fatal(err)
				}
				finished(t, r, want) // malformed now
				if turn == 2 {
					return
				}
			}
		})
	}
}

// A request that takes long does not keep the front-end from taking memory away:
// it is interrupted and served again.
func TestMemoryGoesUnderARequest(t *testing.T) {
	g := make(gate)
	dev := &echo{gate: g.hold}
	_, path := serve(t, dev, vhostuser.Config{StopTimeout: 2 * time.Second})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Regions: []vhostusertest.Region{
		{Size: 4 << 20}, {GPA: 1 << 32, Size: 1 << 20},
	}})
	b := request(t, vm, "slow")
	offer(t, vm.Rings[1], b, 0)
	eventually(t, "request popped", func() bool { return len(dev.seen()) == 1 })
	if err := vm.Unplug(1 << 32); err != nil {
		t.Fatal(err)
	}
	eventually(t, "request popped again", func() bool { return len(dev.seen()) == 2 })
	close(g)
	finished(t, vm.Rings[1], 1)
	if string(b.room[:4]) != "slow" {
		t.Errorf("answered %q", b.room[:4])
	}
}

// A memory table without a ring's own memory costs that ring.
func TestRingLosesItsMemory(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm, errFD := bootWithErr(t, path)
	r := vhostuser.Region{GuestPhys: 1 << 40, Size: 4096, UserAddr: 1 << 40}
	if err := vm.Front.Tell(vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, []vhostuser.Region{r}), int(vm.Memory.File().Fd())); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, errFD)
	if base, err := vm.GetBase(vm.Rings[1]); err != nil || base != 0 {
		t.Errorf("base = %d, %v, want 0", base, err)
	}
}
