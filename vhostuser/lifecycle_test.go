package vhostuser_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

var dialects = []vhostusertest.Dialect{vhostusertest.QEMU, vhostusertest.CloudHypervisor}

// gate holds requests until it is opened or their ring is to stop.
type gate chan struct{}

func (g gate) hold(ctx context.Context, _ *virtq.Chain) error {
	select {
	case <-g:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stuck holds requests until it is opened, whoever wants their ring.
func (g gate) stuck(context.Context, *virtq.Chain) error {
	<-g
	return nil
}

func TestStopAndGoOn(t *testing.T) {
	for _, dialect := range dialects {
		t.Run(dialect.String(), func(t *testing.T) {
			_, path := serve(t, &echo{}, vhostuser.Config{})
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: dialect})
			for turn := range 3 {
				exchange(t, vm, 0, "hiprio")
				exchange(t, vm, 1, "one")
				exchange(t, vm, 1, "two")
				if err := vm.Stop(); err != nil {
					t.Fatal(err)
				}
				// What is offered to a stopped ring waits.
				r := vm.Rings[1]
				b, want := request(t, vm, "later"), r.UsedIdx()+1
				offer(t, r, b, 0)
				if got := r.UsedIdx(); got != uint16(3*turn+2) {
					t.Errorf("turn %d: used index %d on a stopped ring, want %d", turn, got, 3*turn+2)
				}
				if err := vm.Start(); err != nil {
					t.Fatal(err)
				}
				finished(t, r, want)
			}
		})
	}
}

func TestReset(t *testing.T) {
	for _, dialect := range dialects {
		t.Run(dialect.String(), func(t *testing.T) {
			dev := &echo{}
			_, path := serve(t, dev, vhostuser.Config{})
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: dialect})
			for range 3 {
				exchange(t, vm, 1, "one")
				exchange(t, vm, 1, "two")
				if err := vm.Reset(); err != nil {
					t.Fatal(err)
				}
				if err := vm.Start(); err != nil {
					t.Fatal(err)
				}
			}
			want := int32(0)
			if dialect == vhostusertest.QEMU {
				want = 3 // Cloud Hypervisor does not tell
			}
			if got := dev.resets.Load(); got != want {
				t.Errorf("the device was reset %d times, want %d", got, want)
			}
		})
	}
}

// Requests that wait for something slow come back when the ring stops, and are
// served again when it goes on. The newest count as never popped.
func TestStopUnpops(t *testing.T) {
	g := make(gate)
	dev := &echo{gate: g.hold}
	_, path := serve(t, dev, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	r := vm.Rings[1]
	reqs := []buffers{request(t, vm, "a"), request(t, vm, "b"), request(t, vm, "c")}
	for i, b := range reqs {
		offer(t, r, b, uint16(2*i))
	}
	eventually(t, "three requests popped", func() bool { return len(dev.seen()) == 3 })
	g <- struct{}{} // one of them is answered, whichever
	finished(t, r, 1)
	id, _ := r.UsedElem(0)
	base, err := vm.GetBase(r)
	if err != nil {
		t.Fatal(err)
	}
	// What is newer than the one that was answered was never popped.
	if want := uint16(id/2 + 1); base != want {
		t.Errorf("base = %d, want %d", base, want)
	}
	close(g)
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	finished(t, r, 3)
	for i, b := range reqs {
		if want := string("abc"[i]); string(b.room[:1]) != want {
			t.Errorf("request %d was answered %q, want %q", i, b.room[:1], want)
		}
	}
}

// A device that does not let go costs the front-end a bounded wait.
func TestStopIsBounded(t *testing.T) {
	g := make(gate)
	dev := &echo{gate: g.stuck}
	_, path := serve(t, dev, vhostuser.Config{StopTimeout: 50 * time.Millisecond})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Timeout: 5 * time.Second})
	r := vm.Rings[1]
	b := request(t, vm, "late")
	offer(t, r, b, 0)
	eventually(t, "request popped", func() bool { return len(dev.seen()) == 1 })
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	offer(t, r, request(t, vm, "next"), 2)
	eventually(t, "next request popped", func() bool { return len(dev.seen()) == 2 })
	close(g)
	dev.waits.Wait()
	finished(t, r, 2)
	if string(b.room[:4]) != "late" {
		t.Errorf("the late request was answered %q", b.room[:4])
	}
}

// A chain that a device did not give back in time does not stand for one of a later
// run: a stop waits for that.
func TestStopWaitsAfterALateRequest(t *testing.T) {
	late, next := make(gate), make(gate)
	dev := &echo{gate: func(ctx context.Context, c *virtq.Chain) error {
		if string(join(c.Readable)) == "late" {
			return late.stuck(ctx, c)
		}
		return next.stuck(ctx, c)
	}}
	var warnings lineCount
	_, path := serve(t, dev, vhostuser.Config{StopTimeout: 50 * time.Millisecond, Log: warnings.logger("not given back")})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	r := vm.Rings[1]
	offer(t, r, request(t, vm, "late"), 0)
	eventually(t, "request popped", func() bool { return len(dev.seen()) == 1 })
	if err := errors.Join(vm.Stop(), vm.Start()); err != nil {
		t.Fatal(err)
	}
	offer(t, r, request(t, vm, "next"), 2)
	eventually(t, "next request popped", func() bool { return len(dev.seen()) == 2 })
	close(late)
	finished(t, r, 1)
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	// That the wait was in vain is what shows that there was one.
	if got := warnings.load(); got != 2 {
		t.Errorf("%d stops waited in vain, want 2", got)
	}
	close(next)
	dev.waits.Wait()
}

// lineCount counts the lines of a log that contain a text.
type lineCount struct {
	text string
	n    atomic.Int64
}

func (c *lineCount) logger(text string) *slog.Logger {
	c.text = text
	return slog.New(slog.NewTextHandler(c, nil))
}

func (c *lineCount) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.text)) {
		c.n.Add(1)
	}
	return len(b), nil
}

func (c *lineCount) load() int64 { return c.n.Load() }

// ENABLE alone is how Cloud Hypervisor pauses.
func TestPause(t *testing.T) {
	dev := &echo{}
	_, path := serve(t, dev, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor})
	exchange(t, vm, 1, "before")
	if err := vm.Enable(false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no ring served", func() bool { return dev.serving.Load() == 0 })
	r := vm.Rings[1]
	b := request(t, vm, "meanwhile")
	offer(t, r, b, 0)
	if got := r.UsedIdx(); got != 1 {
		t.Errorf("used index = %d on a paused ring, want 1", got)
	}
	if err := vm.Enable(true); err != nil {
		t.Fatal(err)
	}
	if err := vm.Enable(true); err != nil { // again: nothing new
		t.Fatal(err)
	}
	finished(t, r, 2)
	eventually(t, "each ring served once", func() bool { return dev.serving.Load() == 2 })
	exchange(t, vm, 1, "after")
}

// A front-end whose back-end dies with requests in flight gets each answered
// once by the next one, the old ones first.
func TestInflightAfterDeath(t *testing.T) {
	g := make(gate)
	dev := &echo{gate: g.stuck}
	_, path := serve(t, dev, vhostuser.Config{StopTimeout: 10 * time.Millisecond})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor})
	r := vm.Rings[1]
	texts := []string{"a", "b", "c"}
	var reqs []buffers
	for i, text := range texts {
		b := request(t, vm, text)
		reqs = append(reqs, b)
		offer(t, r, b, uint16(2*i))
		eventually(t, text+" popped", func() bool { return len(dev.seen()) == i+1 })
	}
	// The connection ends; to the log, that is a death with three in flight.
	if err := vm.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "requests popped again", func() bool { return len(dev.seen()) == 6 })
	if got := dev.seen()[3:]; !slices.Equal(got, texts) {
		t.Errorf("popped again: %q, want %q", got, texts)
	}
	close(g)
	dev.waits.Wait()
	finished(t, r, 3)
	for i, b := range reqs {
		if string(b.room[:1]) != texts[i] {
			t.Errorf("request %d was answered %q, want %q", i, b.room[:1], texts[i])
		}
	}
	exchange(t, vm, 1, "new")
	state, err := vm.Inflight().Ring(1)
	if err != nil || len(state.Heads) != 0 || state.UsedIdx != 4 {
		t.Errorf("in-flight area = %+v, %v, want none, used index 4", state, err)
	}
}

func TestSecondFrontEnd(t *testing.T) {
	dev := &echo{}
	_, path := serve(t, dev, vhostuser.Config{})
	for turn := range 3 {
		vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
		exchange(t, vm, 1, "first")
		other, err := vhostusertest.Dial(t.Context(), path, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.WaitClosed(); err != nil {
			t.Errorf("turn %d: a second front-end: %v, want it refused", turn, err)
		}
		exchange(t, vm, 1, "undisturbed")
		if err := errors.Join(other.Close(), vm.Close()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "three resets", func() bool { return dev.resets.Load() == 3 })
}

// SIGTERM ends the server at once, whatever the front-end does.
func TestCancel(t *testing.T) {
	g := make(gate)
	dev := &echo{gate: g.hold}
	srv, err := vhostuser.NewServer(vhostuser.Config{Device: dev})
	if err != nil {
		t.Fatal(err)
	}
	l, path := vhostusertest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
	offer(t, vm.Rings[1], request(t, vm, "a"), 0)
	eventually(t, "request popped", func() bool { return len(dev.seen()) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if dev.serving.Load() != 0 || dev.resets.Load() != 1 {
		t.Errorf("after Serve: %d rings served, %d resets, want 0, 1", dev.serving.Load(), dev.resets.Load())
	}
	if err := vm.Front.WaitClosed(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still accepts")
	}
}

// The driver's notification moves while the ring runs, and none is lost.
func TestCallIsSwapped(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Features: vhostuser.FeatureVersion1})
	r := vm.Rings[1]
	for i := range 200 {
		call := eventfd(t, unix.EFD_NONBLOCK)
		b, want := request(t, vm, "x"), r.UsedIdx()+1
		if i%2 == 0 {
			offer(t, r, b, 0)
		}
		if err := vm.Front.TellU64(vhostuser.ReqSetVringCall, 1, call); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			offer(t, r, b, 0)
		}
		for r.UsedIdx() != want {
			fds := []unix.PollFd{{Fd: int32(call), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, int(patience.Milliseconds())); n != 1 && !errors.Is(err, unix.EINTR) {
				t.Fatalf("turn %d: no notification, used index %d, want %d", i, r.UsedIdx(), want)
			}
			var buf [8]byte
			_, _ = unix.Read(call, buf[:])
		}
	}
}

// Kick and call descriptors may be blocking, pipes, or not be there at all.
func TestKindsOfDescriptors(t *testing.T) {
	for _, tc := range []struct {
		name string
		kick func(t *testing.T) (payload uint64, fds []int, kick func())
	}{
		{"blocking", func(t *testing.T) (uint64, []int, func()) {
			fd := eventfd(t, 0)
			return 1, []int{fd}, func() { unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }
		}},
		{"none", func(t *testing.T) (uint64, []int, func()) { return 1 | vhostuser.VringNoFD, nil, func() {} }},
		{"pipe", func(t *testing.T) (uint64, []int, func()) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
			return 1, []int{p[0]}, func() { unix.Write(p[1], []byte{1, 0, 0, 0, 0, 0, 0, 0}) }
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, path := serve(t, &echo{}, vhostuser.Config{PollMax: -1})
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{})
			payload, fds, kick := tc.kick(t)
			// A kick of a ring that runs replaces its descriptor.
			if err := vm.Front.TellU64(vhostuser.ReqSetVringKick, payload, fds...); err != nil {
				t.Fatal(err)
			}
			if err := vm.Front.TellU64(vhostuser.ReqSetVringCall, 1|vhostuser.VringNoFD); err != nil {
				t.Fatal(err)
			}
			r := vm.Rings[1]
			for range 5 {
				b, want := request(t, vm, "x"), r.UsedIdx()+1
				in := b.in
				in.Flags, in.Next = vhostusertest.DescNext, 1
				r.PutDesc(0, in)
				r.PutDesc(1, b.out)
				r.PutAvail(r.AvailIdx(), 0)
				r.SetAvailIdx(r.AvailIdx() + 1)
				kick()
				finished(t, r, want)
			}
		})
	}
}

func TestWithoutProtocolFeatures(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
	vm.Features &^= vhostuser.FeatureProtocolFeatures
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	exchange(t, vm, 1, "enabled from the start")
}

func TestManyRings(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Queues: 64})
	for ring := range vm.Rings {
		exchange(t, vm, ring, "x")
	}
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
}
