package e2e

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// gate holds back what is asked of a registry's blobs until it is opened.
type gate struct {
	reached chan struct{} // closed when the first request waits
	release chan struct{}
	first   sync.Once
	last    sync.Once
}

// holdBlobs makes every request for one of the blobs wait.
func holdBlobs(t *testing.T, r *registry.Registry, blobs []string) *gate {
	g := &gate{reached: make(chan struct{}), release: make(chan struct{})}
	r.Inspect(func(req *http.Request) {
		for _, b := range blobs {
			if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, b) {
				g.first.Do(func() { close(g.reached) })
				select {
				case <-g.release:
				case <-req.Context().Done():
				}
				return
			}
		}
	})
	t.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.last.Do(func() { close(g.release) }) }

func (g *gate) await(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-ctx.Done():
		t.Fatal("no chunk was asked for")
	}
}

// small publishes the small image and returns what a guest must see of it.
func small(t *testing.T) (*registry.Registry, published, []probe.Entry) {
	t.Helper()
	testenv.NeedsVM(t)
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "tar")
	r := startRegistry(t)
	image := smallImage(t)
	return r, publish(bounded(t), t, r, image), unpack(t, image)
}

// awaitPasses waits until a loop has read its files n more times.
func awaitPasses(ctx context.Context, t *testing.T, q *vm.Request, n int) {
	t.Helper()
	for n > 0 {
		r, err := q.Next(ctx)
		must(t, err)
		if r.Type == report.Pass {
			n--
		}
	}
}

// SIGTERM ends the daemon at once under a guest that reads, and under one whose read
// waits for the registry.
func TestTerminateUnderGuest(t *testing.T) {
	r, p, _ := small(t)
	ctx := bounded(t)
	t.Run("reading", func(t *testing.T) {
		s := serve(t, p.reference)
		v := s.machine(t, vm.Options{})
		loop, err := v.Send(report.Request{Op: report.OpLoop, Paths: []string{"/data/a"}, Direct: true})
		must(t, err)
		awaitPasses(ctx, t, loop, 2)
		must(t, s.Stop(syscall.SIGTERM, stopTime))
	})
	t.Run("waiting", func(t *testing.T) {
		g := holdBlobs(t, r, p.Chunks)
		s := serve(t, p.reference)
		v := s.machine(t, vm.Options{})
		_, err := v.Send(report.Request{Op: report.OpRead, Paths: []string{"/data/a"}})
		must(t, err)
		g.await(ctx, t)
		must(t, s.Stop(syscall.SIGTERM, stopTime))
	})
}

// A machine that is reset starts a new session on the same connection: new rings, a
// second FUSE_INIT without a DESTROY.
func TestReset(t *testing.T) {
	_, p, want := small(t)
	ctx := bounded(t)
	v := serve(t, p.reference).machine(t, vm.Options{Reboot: true})
	sameTree(t, v, want)
	for _, how := range []string{"system_reset", "reboot"} {
		from := v.Seen()
		if how == "reboot" {
			must(t, v.Do(ctx, report.Request{Op: report.OpReboot}, nil))
		} else {
			_, err := v.Monitor(ctx, how, nil)
			must(t, err)
		}
		_, _, err := v.AwaitType(ctx, from, report.Ready)
		must(t, err)
		sameTree(t, v, want)
	}
	must(t, v.PowerOff(ctx))
}

// stop and cont of the hypervisor stop and start all rings.
func TestPause(t *testing.T) {
	_, p, want := small(t)
	ctx := bounded(t)
	v := serve(t, p.reference).machine(t, vm.Options{CPUs: 2})
	loop, err := v.Send(report.Request{Op: report.OpLoop, Paths: []string{"/data/a", "/data/c"}, Direct: true})
	must(t, err)
	for range 5 {
		awaitPasses(ctx, t, loop, 2)
		for _, command := range []string{"stop", "cont"} {
			_, err := v.Monitor(ctx, command, nil)
			must(t, err)
		}
	}
	awaitPasses(ctx, t, loop, 2)
	must(t, v.Do(ctx, report.Request{Op: report.OpCancel, Target: loop.ID}, nil))
	sameTree(t, v, want)
	must(t, v.PowerOff(ctx))
}

// monitorTime bounds how long the hypervisor's monitor may stand still when it stops
// a machine that has a read waiting for the registry.
const monitorTime = 10 * time.Second

// A read that waits for the registry does not hold up the hypervisor's monitor, and is
// answered after the pause.
func TestPauseWhileReading(t *testing.T) {
	r, p, want := small(t)
	ctx := bounded(t)
	g := holdBlobs(t, r, p.Chunks)
	v := serve(t, p.reference).machine(t, vm.Options{CPUs: 2})
	read, err := v.Send(report.Request{Op: report.OpRead, Paths: []string{"/data/a"}})
	must(t, err)
	g.await(ctx, t)
	short, cancel := context.WithTimeout(ctx, monitorTime)
	defer cancel()
	for _, command := range []string{"stop", "cont"} {
		_, err := v.Monitor(short, command, nil)
		must(t, err)
	}
	g.open()
	got, err := read.Next(ctx)
	must(t, err)
	for _, e := range want {
		if e.Path == "/data/a" && (got.SHA256 != e.SHA256 || got.Size != e.Size) {
			t.Errorf("read after the pause: %d bytes with %s, want %d with %s", got.Size, got.SHA256, e.Size, e.SHA256)
		}
	}
	must(t, v.PowerOff(ctx))
}

// One read that waits delays nothing that does not need its chunk: metadata, and
// files that are there already.
func TestOneSlowReadDelaysNobody(t *testing.T) {
	r, p, want := small(t)
	ctx := bounded(t)
	v := serve(t, p.reference).machine(t, vm.Options{})
	must(t, v.Do(ctx, report.Request{Op: report.OpRead, Paths: []string{"/etc/hosts"}}, nil))
	must(t, v.Do(ctx, report.Request{Op: report.OpDrop}, nil))
	g := holdBlobs(t, r, p.Chunks)
	slow, err := v.Send(report.Request{Op: report.OpRead, Paths: []string{"/data/a"}})
	must(t, err)
	g.await(ctx, t)
	must(t, v.Do(ctx, report.Request{Op: report.OpRead, Paths: []string{"/etc/hosts"}, Direct: true}, nil))
	etc, err := v.Tree(ctx, "/etc")
	must(t, err)
	if len(etc) != 2 {
		t.Errorf("/etc has %d entries with itself, want 2", len(etc))
	}
	g.open()
	_, err = slow.Next(ctx)
	must(t, err)
	sameTree(t, v, want)
}

// Machines come and go on one daemon, with different numbers and sizes of rings.
func TestSecondMachine(t *testing.T) {
	_, p, want := small(t)
	ctx := bounded(t)
	s := serve(t, p.reference)
	for _, fs := range []vm.FS{
		{Queues: 1, QueueSize: 128},
		{Queues: 4, QueueSize: 1024},
		{Queues: 2, QueueSize: 512},
	} {
		fs.Socket, fs.Tag = s.fs.Socket, tag
		v := s.machine(t, vm.Options{FS: []vm.FS{fs}, CPUs: 2})
		sameTree(t, v, want)
		if fs.Queues == 4 {
			// A machine that is killed says nothing to the back-end.
			must(t, v.Close())
			continue
		}
		must(t, v.Do(ctx, report.Request{Op: report.OpUmount}, nil))
		must(t, v.Do(ctx, report.Request{Op: report.OpMount}, nil))
		sameTree(t, v, want)
		must(t, v.PowerOff(ctx))
	}
}
