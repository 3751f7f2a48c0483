package vhostusertest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// island is the smallest file system that is worth a visit: node 1 is a directory
// with one file, node 2, of islandSize bytes. It answers what Linux sends, by
// hand, so that no decoder is shared with anybody.
type island struct {
	mu      sync.Mutex
	inits   int
	resets  int
	forgets map[uint64]uint64
	ended   bool
	// hold, if set, is asked before each READ is answered: an error leaves the
	// request unanswered, as a back-end does that dies.
	hold func(ctx context.Context) error
	held sync.WaitGroup
}

const islandSize = 3<<20 + 123

func islandByte(off uint64) byte { return byte(off*7 ^ off>>8 ^ off>>16) }

func (d *island) Reset() {
	d.mu.Lock()
	d.resets++
	d.mu.Unlock()
}

func (d *island) ServeRing(ctx context.Context, r *vhostuser.Ring) error {
	for {
		for {
			c := new(virtq.Chain)
			ok, err := r.Pop(c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			d.request(ctx, r, c)
		}
		r.Flush()
		if err := r.WaitKick(ctx); err != nil {
			return err
		}
	}
}

// request serves a chain, apart when it is held.
func (d *island) request(ctx context.Context, r *vhostuser.Ring, c *virtq.Chain) {
	in := bytes.Join(c.Readable, nil)
	if op := binary.LittleEndian.Uint32(in[4:]); op != vhostusertest.OpRead || d.hold == nil {
		r.Complete(c, d.answer(in, c.Writable))
		return
	}
	d.held.Go(func() {
		if err := d.hold(ctx); err != nil {
			return // as if the process had died: neither completed nor returned
		}
		r.Complete(c, d.answer(in, c.Writable))
		r.Flush()
	})
}

// answer writes the reply and returns its length.
func (d *island) answer(in []byte, out [][]byte) uint32 {
	op, unique := binary.LittleEndian.Uint32(in[4:]), binary.LittleEndian.Uint64(in[8:])
	body, errno := d.body(op, binary.LittleEndian.Uint64(in[16:]), in[40:])
	if op == vhostusertest.OpForget {
		return 0
	}
	head := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	head = binary.LittleEndian.AppendUint32(head, uint32(-int32(errno)))
	head = binary.LittleEndian.AppendUint64(head, unique)
	var n uint32
	for rest := append(head, body...); len(rest) > 0 && len(out) > 0; out = out[1:] {
		k := copy(out[0], rest)
		rest, n = rest[k:], n+uint32(k)
	}
	return n
}

func (d *island) body(op uint32, node uint64, args []byte) ([]byte, syscall.Errno) {
	u64 := binary.LittleEndian.Uint64
	switch op {
	case vhostusertest.OpInit:
		d.mu.Lock()
		d.inits++
		d.mu.Unlock()
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 7), 38)[:8:8], 0
	case vhostusertest.OpGetattr:
		return append(make([]byte, 16), islandAttr(node)...), 0
	case vhostusertest.OpLookup:
		if string(args) != "file\x00" {
			return nil, syscall.ENOENT
		}
		return islandEntry(), 0
	case vhostusertest.OpReaddirplus:
		if u64(args[8:]) > 0 {
			return nil, 0
		}
		b := binary.LittleEndian.AppendUint64(islandEntry(), 2)
		b = binary.LittleEndian.AppendUint64(b, 1)
		b = binary.LittleEndian.AppendUint32(b, 4)
		return append(binary.LittleEndian.AppendUint32(b, 8), "file\x00\x00\x00\x00"...), 0
	case vhostusertest.OpRead:
		off := u64(args[8:])
		n := min(uint64(binary.LittleEndian.Uint32(args[16:])), islandSize-min(off, islandSize))
		b := make([]byte, n)
		for i := range b {
			b[i] = islandByte(off + uint64(i))
		}
		return b, 0
	case vhostusertest.OpForget:
		d.mu.Lock()
		d.forgets[node] += u64(args)
		d.mu.Unlock()
	case vhostusertest.OpDestroy:
		d.mu.Lock()
		d.ended = true
		d.mu.Unlock()
		return nil, 0
	}
	return nil, syscall.ENOSYS
}

func islandEntry() []byte {
	b := make([]byte, 40)
	b[0] = 2
	return append(b, islandAttr(2)...)
}

func islandAttr(node uint64) []byte {
	b := make([]byte, 88)
	binary.LittleEndian.PutUint64(b, node)
	mode := uint32(syscall.S_IFDIR | 0o755)
	if node == 2 {
		mode = syscall.S_IFREG | 0o644
		binary.LittleEndian.PutUint64(b[8:], islandSize)
	}
	binary.LittleEndian.PutUint32(b[60:], mode)
	return b
}

// serveIsland serves d on path until the function that it returns is called.
func serveIsland(t testing.TB, d *island, path string) (stop func()) {
	t.Helper()
	if d.forgets == nil {
		d.forgets = map[uint64]uint64{}
	}
	srv, err := vhostuser.NewServer(vhostuser.Config{Device: d, StopTimeout: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Serve = %v", err)
			}
			d.held.Wait()
		})
	}
	t.Cleanup(stop)
	return stop
}

func island0(t testing.TB) (*island, string) {
	t.Helper()
	testenv.LeakCheck(t)
	d := &island{}
	path := t.TempDir() + "/sock"
	serveIsland(t, d, path)
	return d, path
}

// visit sees everything there is on the island.
func visit(t testing.TB, c *vhostusertest.Client) {
	t.Helper()
	var seen []string
	err := c.Walk(t.Context(), vhostusertest.RootNode, func(path string, e vhostusertest.Entry) error {
		seen = append(seen, path)
		w := &islandWriter{}
		if err := c.ReadFile(t.Context(), w, e.Node, e.Attr.Size); err != nil {
			return err
		}
		if w.off != islandSize {
			return fmt.Errorf("%s has %d bytes, want %d", path, w.off, islandSize)
		}
		return nil
	})
	if err != nil || len(seen) != 1 || seen[0] != "file" {
		t.Fatalf("walk = %q, %v, want one file", seen, err)
	}
	if _, err := c.Lookup(t.Context(), vhostusertest.RootNode, "nope"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("lookup of nothing = %v, want ENOENT", err)
	}
}

// islandWriter checks the file's content.
type islandWriter struct{ off uint64 }

func (w *islandWriter) Write(p []byte) (int, error) {
	for i, b := range p {
		if b != islandByte(w.off+uint64(i)) {
			return i, fmt.Errorf("byte %d is %#x, want %#x", w.off+uint64(i), b, islandByte(w.off+uint64(i)))
		}
	}
	w.off += uint64(len(p))
	return len(p), nil
}

// Machines of every kind visit the island.
func TestMachines(t *testing.T) {
	for _, tc := range []struct {
		name   string
		opts   vhostusertest.Options
		layout vhostusertest.DataLayout
	}{
		{"qemu", vhostusertest.Options{}, vhostusertest.Pages},
		{"cloud hypervisor", vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor}, vhostusertest.Pages},
		{"direct descriptors", vhostusertest.Options{Features: vhostuser.FeatureVersion1}, vhostusertest.Scattered},
		{"event index, direct", vhostusertest.Options{Features: vhostuser.FeatureEventIdx}, vhostusertest.Folio},
		{"no protocol features", vhostusertest.Options{ProtocolFeatures: 1 << 63}, vhostusertest.Scattered},
		{"a table, acknowledged", vhostusertest.Options{ProtocolFeatures: vhostuser.ProtocolReplyAck}, vhostusertest.Pages},
		{"small ring", vhostusertest.Options{QueueSize: 2}, vhostusertest.Pages},
		{"large ring", vhostusertest.Options{QueueSize: 1024}, vhostusertest.Folio},
		{"eight queues", vhostusertest.Options{Queues: 8}, vhostusertest.Pages},
		{"two regions", vhostusertest.Options{Regions: []vhostusertest.Region{{Size: 64 << 10}, {GPA: 1 << 32, Size: 32 << 20}}}, vhostusertest.Pages},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, path := island0(t)
			vm := vhostusertest.MustBoot(t, path, tc.opts)
			c := vhostusertest.MustMount(t, vm)
			c.Layout = tc.layout
			visit(t, c)
			if err := c.Forget(t.Context(), 2, 5); err != nil {
				t.Fatal(err)
			}
			if err := c.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.forgets[2] != 5 || !d.ended || d.inits != 1 {
				t.Errorf("back-end saw %d lookups forgotten, DESTROY: %v, %d INITs, want 5, true, 1", d.forgets[2], d.ended, d.inits)
			}
		})
	}
}

// A machine that is stopped, goes on, reboots, and gets more memory.
func TestLifeOfAMachine(t *testing.T) {
	for _, dialect := range []vhostusertest.Dialect{vhostusertest.QEMU, vhostusertest.CloudHypervisor} {
		t.Run(dialect.String(), func(t *testing.T) {
			d, path := island0(t)
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: dialect})
			c := vhostusertest.MustMount(t, vm)
			visit(t, c)
			step := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			step("stop", vm.Stop())
			step("go on", vm.Start())
			visit(t, c)
			step("pause", vm.Enable(false))
			step("go on", vm.Enable(true))
			visit(t, c)
			step("plug", vm.Plug(vhostusertest.Region{GPA: 1 << 34, Size: 8 << 20}))
			vm.Memory.Prefer(1 << 34)
			c.Layout = vhostusertest.Scattered // nothing that was laid out before has it
			visit(t, c)
			step("close", c.Close())
			step("reset", vm.Reset())
			step("unplug", vm.Unplug(1<<34))
			step("boot again", vm.Start())
			c = vhostusertest.MustMount(t, vm)
			visit(t, c)
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.inits != 2 {
				t.Errorf("%d INITs, want 2", d.inits)
			}
		})
	}
}

// A back-end dies with requests in flight; the next one finds them in the
// in-flight area and answers them, each once.
func TestReconnectAnswersWhatWasInFlight(t *testing.T) {
	for _, dialect := range []vhostusertest.Dialect{vhostusertest.QEMU, vhostusertest.CloudHypervisor} {
		t.Run(dialect.String(), func(t *testing.T) {
			testenv.LeakCheck(t)
			path := t.TempDir() + "/sock"
			dying := make(chan struct{})
			arrived := make(chan struct{}, 10)
			first := &island{hold: func(ctx context.Context) error {
				arrived <- struct{}{}
				<-dying
				return errors.New("dead")
			}}
			kill := serveIsland(t, first, path)
			vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{
				Dialect:          dialect,
				ProtocolFeatures: vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolInflightSHMFD,
			})
			c := vhostusertest.MustMount(t, vm)
			results := make(chan error, 3)
			for i := range 3 {
				go func() {
					p := make([]byte, 4096)
					n, err := c.Read(t.Context(), 2, 0, uint64(i)*4096, p)
					if err == nil && (n != len(p) || p[9] != islandByte(uint64(i)*4096+9)) {
						err = fmt.Errorf("read %d bytes, byte 9 is %#x", n, p[9])
					}
					results <- err
				}()
				<-arrived
			}
			close(dying)
			kill()
			area, err := vm.Inflight().Ring(1)
			if err != nil || len(area.Heads) != 3 || area.Version != 1 || area.DescNum != vhostusertest.DefaultQueueSize {
				t.Errorf("in-flight area = %+v, %v, want 3 heads", area, err)
			}

			serveIsland(t, &island{}, path)
			if err := vm.Reconnect(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
			visit(t, c)
			if n := c.InFlight(); n != 0 {
				t.Errorf("%d requests in flight, want 0", n)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	_, path := island0(t)
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{QueueSize: 1024})
	c, err := vhostusertest.Mount(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, poll := range []bool{false, true} {
		load := vhostusertest.Load{Ring: vm.Rings[1], Poll: poll}
		for i := range 8 {
			q, err := vm.Rings[1].NewRequest(vhostusertest.RequestSize{Args: 64, Reply: 64, Data: 8192})
			if err != nil {
				t.Fatal(err)
			}
			q.Tag = i
			load.Requests = append(load.Requests, q)
		}
		const total = 1000
		left, off := total, make([]uint64, 8)
		load.Fill = func(q *vhostusertest.Request) bool {
			off[q.Tag] = uint64(left) * 512
			q.Read(vhostusertest.OpRead, 2, 0, off[q.Tag], 8192)
			left--
			return left >= 0
		}
		load.Check = func(q *vhostusertest.Request, data uint32) (err error) {
			w := &islandWriter{off: off[q.Tag]}
			q.EachPage(data, func(p []byte) {
				if _, e := w.Write(p); e != nil {
					err = e
				}
			})
			return err
		}
		res, err := load.Run(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if res.Ops != total || res.Bytes != total*8192 || res.Latency.Count() != total {
			t.Errorf("poll %v: %d requests, %d bytes, %d latencies, want %d of 8192", poll, res.Ops, res.Bytes, res.Latency.Count(), total)
		}
	}
}

// What a mean guest writes costs it its ring; the helpers that write it are tried
// here, what the back-end must make of it in package vhostuser.
func TestHostileRing(t *testing.T) {
	_, path := island0(t)
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Queues: 2})
	c := vhostusertest.MustMount(t, vm)
	ring := vm.Rings[2]
	ring.PutDesc(0, vhostusertest.Desc{Addr: 4096, Len: 1, Flags: vhostusertest.DescNext, Next: 0})
	ring.PutAvail(ring.AvailIdx(), ring.Num) // a head beyond the table
	ring.SetAvailIdx(ring.AvailIdx() + 1)
	if err := ring.Kick(); err != nil {
		t.Fatal(err)
	}
	if err := ring.WaitBroken(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := c.Forget(t.Context(), 2, 1); err != nil {
		t.Errorf("hiprio after ring 2 broke: %v", err)
	}
}
