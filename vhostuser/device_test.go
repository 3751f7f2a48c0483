package vhostuser_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// echo is a device that copies what it may read to where it may write. With a
// gate it first gives a chain to a goroutine of its own, which waits there.
type echo struct {
	gate    func(ctx context.Context, c *virtq.Chain) error // nil: none; an error returns the chain
	serving atomic.Int32
	resets  atomic.Int32
	waits   sync.WaitGroup

	mu     sync.Mutex
	popped []string // what was read, in the order of the pops
	errs   []error  // of malformed chains
}

func (e *echo) Reset() { e.resets.Add(1) }

func (e *echo) ServeRing(ctx context.Context, r *vhostuser.Ring) error {
	e.serving.Add(1)
	defer e.serving.Add(-1)
	for {
		for {
			c := new(virtq.Chain)
			ok, err := r.Pop(c)
			if !ok && err != nil {
				return err
			}
			if !ok {
				break
			}
			e.serve(ctx, r, c, err)
		}
		if err := r.WaitKick(ctx); err != nil {
			return err
		}
	}
}

func (e *echo) serve(ctx context.Context, r *vhostuser.Ring, c *virtq.Chain, bad error) {
	data := join(c.Readable)
	e.waits.Add(1) // before it is seen, and then waited for
	e.mu.Lock()
	e.popped = append(e.popped, string(data))
	if bad != nil {
		e.errs = append(e.errs, bad)
	}
	e.mu.Unlock()
	switch {
	case bad != nil:
		r.Complete(c, 0)
		e.waits.Done()
	case e.gate == nil:
		r.Complete(c, scatter(c.Writable, data))
		e.waits.Done()
	default:
		go func() {
			defer e.waits.Done()
			if err := e.gate(ctx, c); err != nil {
				r.Return(c)
				return
			}
			r.Complete(c, scatter(c.Writable, data))
			r.Flush()
		}()
	}
}

func (e *echo) seen() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.popped...)
}

func (e *echo) chainErrors() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]error(nil), e.errs...)
}

func join(bufs [][]byte) (b []byte) {
	for _, p := range bufs {
		b = append(b, p...)
	}
	return b
}

func scatter(bufs [][]byte, b []byte) (n uint32) {
	for _, p := range bufs {
		k := copy(p, b)
		b = b[k:]
		n += uint32(k)
	}
	return n
}

// serve serves dev until the test ends and returns the server and its socket.
func serve(t testing.TB, dev vhostuser.Device, cfg vhostuser.Config) (*vhostuser.Server, string) {
	t.Helper()
	testenv.LeakCheck(t)
	cfg.Device = dev
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	srv, err := vhostuser.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, path := vhostusertest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after its context ended", err)
		}
	})
	return srv, path
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

const patience = 10 * time.Second

// eventually polls for what another goroutine is about to do.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// buffers are one request: text to read and room to write.
type buffers struct {
	in   vhostusertest.Desc
	out  vhostusertest.Desc
	room []byte
}

func request(t testing.TB, vm *vhostusertest.VM, text string) buffers {
	t.Helper()
	in, err := vm.Memory.Place([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, room, err := vm.Memory.Room(64)
	if err != nil {
		t.Fatal(err)
	}
	return buffers{in, out, room}
}

// offer puts request b into descriptors head and head+1 and makes it available.
func offer(t testing.TB, r *vhostusertest.Ring, b buffers, head uint16) {
	t.Helper()
	in := b.in
	in.Flags, in.Next = vhostusertest.DescNext, head+1
	r.PutDesc(head, in)
	r.PutDesc(head+1, b.out)
	if err := r.OfferHead(head); err != nil {
		t.Fatal(err)
	}
}

// finished waits until the back-end has published used index want.
func finished(t testing.TB, r *vhostusertest.Ring, want uint16) {
	t.Helper()
	eventually(t, "used index", func() bool { return r.UsedIdx() == want })
}

// exchange sends text through descriptors 0 and 1 and checks what comes back.
func exchange(t testing.TB, vm *vhostusertest.VM, ring int, text string) {
	t.Helper()
	r := vm.Rings[ring]
	b, want := request(t, vm, text), r.UsedIdx()+1
	offer(t, r, b, 0)
	finished(t, r, want)
	id, n := r.UsedElem(want - 1)
	if id != 0 || string(b.room[:n]) != text {
		t.Errorf("ring %d: used head %d with %q, want head 0 with %q", ring, id, b.room[:n], text)
	}
}

func TestServeAndReturnNil(t *testing.T) {
	dev := &echo{}
	_, path := serve(t, dev, vhostuser.Config{})
	for _, dialect := range []vhostusertest.Dialect{vhostusertest.QEMU, vhostusertest.CloudHypervisor} {
		t.Run(dialect.String(), func(t *testing.T) {
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: dialect, Queues: 3})
			for ring := range vm.Rings {
				for _, text := range []string{"one", "two", "three"} {
					exchange(t, vm, ring, text)
				}
			}
		})
	}
}

func TestListenerMustBeUnix(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := vhostuser.NewServer(vhostuser.Config{Device: &echo{}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := srv.Serve(t.Context(), l); err == nil {
		t.Error("Serve on a TCP listener succeeded")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Serve: err = %v, want net.ErrClosed", err)
	}
}
