package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// Nodes of the fake file system.
const (
	nodeReady = 10 // reads at once
	nodeSlow  = 11 // reads when the gate opens
	nodePanic = 12 // panics
)

// fake is a file system of made-up nodes. Byte i of a file is byte(i).
type fake struct {
	fuse.RawFileSystem
	gate    chan struct{} // closed: slow reads go on
	waiting chan struct{} // a token for each slow read that waits
}

func newFake() *fake {
	return &fake{fuse.NewDefaultRawFileSystem(), make(chan struct{}), make(chan struct{}, 64)}
}

func (f *fake) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == nodePanic {
		panic("asked for")
	}
	out.Attr.Ino, out.Attr.Mode = in.NodeId, fuse.S_IFREG|0o644
	return fuse.OK
}

func (f *fake) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	out.NodeId, out.Attr.Ino, out.Attr.Mode = nodeReady, nodeReady, fuse.S_IFREG
	out.Attr.Size = uint64(len(name))
	return fuse.OK
}

// List has "." and as many entries with long names as anybody wants.
func (f *fake) List(node, off uint64, plus bool, add func([]byte, uint64, uint64, uint32, *fuse.EntryOut) bool) fuse.Status {
	if node == nodeSlow {
		return fuse.ENOTDIR
	}
	for i := off; ; i++ {
		name := fmt.Appendf(nil, "%d-%s", i, strings.Repeat("n", int(i%50)))
		out := &fuse.EntryOut{NodeId: i + 100}
		if i == 0 {
			name, out.NodeId = []byte("."), 0
		}
		if !add(name, i+100, i+1, fuse.S_IFREG, out) {
			return fuse.OK
		}
	}
}

func fill(dst [][]byte, off uint64) int {
	n := 0
	for _, part := range dst {
		for i := range part {
			part[i] = byte(off) + byte(n)
			n++
		}
	}
	return n
}

func (f *fake) ReadNow(node, off uint64, dst [][]byte) (int, fuse.Status, bool) {
	switch node {
	case nodeReady:
		return fill(dst, off), fuse.OK, true
	case nodeSlow:
		return 0, fuse.OK, false
	}
	panic("asked for")
}

func (f *fake) ReadWait(ctx context.Context, _, off uint64, dst [][]byte) (int, fuse.Status) {
	f.waiting <- struct{}{}
	select {
	case <-f.gate:
		return fill(dst, off), fuse.OK
	case <-ctx.Done():
		return 0, fuse.EINTR
	}
}

// serve runs a device behind a vhost-user session until the test ends.
func serve(t *testing.T, f *fake) (*Device, string) {
	t.Helper()
	d := New(f, Options{})
	return d, serveDevice(t, d)
}

// serveDevice is serve for a device that is there already.
func serveDevice(t *testing.T, d *Device) string {
	t.Helper()
	server, err := vhostuser.NewServer(vhostuser.Config{Device: d})
	if err != nil {
		t.Fatal(err)
	}
	l, path := vhostusertest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

func boot(t *testing.T, f *fake, o vhostusertest.Options) (*Device, *vhostusertest.VM) {
	t.Helper()
	d, path := serve(t, f)
	return d, vhostusertest.MustBoot(t, path, o)
}

func wantData(t *testing.T, got []byte, off int) {
	t.Helper()
	for i, b := range got {
		if b != byte(off+i) {
			t.Fatalf("byte %d: %#x, want %#x", i, b, byte(off+i))
		}
	}
}

func TestInitOffersWhatAReadOnlyImageAllows(t *testing.T) {
	testenv.LeakCheck(t)
	_, vm := boot(t, newFake(), vhostusertest.Options{QueueSize: 1024})
	c, err := vhostusertest.NewClient(vm)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.Init(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.MaxWrite != MaxRead || r.MaxPages != MaxRead/pageSize || r.TimeGran != 1 || r.MaxBackground != maxBackground {
		t.Errorf("init: %+v", r)
	}
	want := uint64(fuse.CAP_ASYNC_READ | fuse.CAP_EXPORT_SUPPORT | fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO |
		fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES | fuse.CAP_CACHE_SYMLINKS | fuse.CAP_EXPLICIT_INVAL_DATA)
	if r.Flags&want != want {
		t.Errorf("init flags %#x lack %#x", r.Flags, want&^r.Flags)
	}
	if never := uint64(fuse.CAP_PASSTHROUGH | fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_WRITEBACK_CACHE); r.Flags&never != 0 {
		t.Errorf("init flags %#x have %#x", r.Flags, r.Flags&never)
	}
}

func TestReadsOfEverySize(t *testing.T) {
	testenv.LeakCheck(t)
	f := newFake()
	close(f.gate)
	_, vm := boot(t, f, vhostusertest.Options{QueueSize: 1024})
	c := vhostusertest.MustMount(t, vm)
	for _, layout := range []vhostusertest.DataLayout{vhostusertest.Pages, vhostusertest.Scattered, vhostusertest.Folio} {
		c.Layout = layout
		for _, node := range []uint64{nodeReady, nodeSlow} {
			for _, size := range []int{0, 1, 4096, 5000, 128 << 10, MaxRead} {
				p := make([]byte, size)
				n, err := c.Read(t.Context(), node, 0, 77, p)
				if err != nil || n != size {
					t.Fatalf("read of %d bytes of %d: %d, %v", size, node, n, err)
				}
				wantData(t, p, 77)
				if node == nodeSlow {
					<-f.waiting
				}
			}
		}
	}
}

func TestListings(t *testing.T) {
	testenv.LeakCheck(t)
	_, vm := boot(t, newFake(), vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	for _, size := range []uint32{200, 4096, 32 << 10} {
		for name, list := range map[string]func(context.Context, uint64, uint64, uint64, uint32) ([]vhostusertest.Dirent, error){
			"readdir": c.Readdir, "readdirplus": c.Readdirplus,
		} {
			off := uint64(0)
			for range 3 {
				some, err := list(t.Context(), nodeReady, 0, off, size)
				if err != nil || len(some) == 0 {
					t.Fatalf("%s of %d bytes at %d: %d entries, %v", name, size, off, len(some), err)
				}
				for _, e := range some {
					want := fmt.Sprintf("%d-%s", off, strings.Repeat("n", int(off%50)))
					if off == 0 {
						want = "."
					}
					if e.Name != want || e.Ino != off+100 || e.Off != off+1 || e.Type != syscall.DT_REG {
						t.Fatalf("%s, entry %d: %+v", name, off, e)
					}
					if name == "readdirplus" && off > 0 && e.Entry.Node != off+100 {
						t.Fatalf("%s, entry %d: node %d", name, off, e.Entry.Node)
					}
					off++
				}
			}
			if _, err := list(t.Context(), nodeReady, 0, 0, 16); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s into 16 bytes: %v, want EINVAL", name, err)
			}
			if _, err := list(t.Context(), nodeSlow, 0, 0, 4096); !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("%s of a file: %v, want ENOTDIR", name, err)
			}
		}
	}
}

func TestNobodyWaitsBehindASlowRead(t *testing.T) {
	testenv.LeakCheck(t)
	f := newFake()
	d, vm := boot(t, f, vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	type result struct {
		n   int
		err error
	}
	slow := make(chan result)
	p := make([]byte, 4096)
	go func() {
		n, err := c.Read(t.Context(), nodeSlow, 0, 0, p)
		slow <- result{n, err}
	}()
	<-f.waiting
	if _, err := c.Getattr(t.Context(), nodeReady); err != nil {
		t.Errorf("getattr behind a slow read: %v", err)
	}
	if n, err := c.Read(t.Context(), nodeReady, 0, 0, make([]byte, 4096)); n != 4096 || err != nil {
		t.Errorf("read behind a slow read: %d, %v", n, err)
	}
	if err := c.Forget(t.Context(), nodeReady, 1); err != nil {
		t.Errorf("forget behind a slow read: %v", err)
	}
	if got := d.Stats().Waiting; got != 1 {
		t.Errorf("waiting: %d, want 1", got)
	}
	close(f.gate)
	if r := <-slow; r.n != 4096 || r.err != nil {
		t.Errorf("slow read: %d, %v", r.n, r.err)
	}
	wantData(t, p, 0)
}

func TestAStopGivesSlowReadsBack(t *testing.T) {
	testenv.LeakCheck(t)
	f := newFake()
	_, vm := boot(t, f, vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	slow := make(chan error)
	p := make([]byte, 4096)
	go func() {
		_, err := c.Read(t.Context(), nodeSlow, 0, 0, p)
		slow <- err
	}()
	<-f.waiting
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	close(f.gate)
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Kick(); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; err != nil {
		t.Errorf("read across stop and resume: %v", err)
	}
	wantData(t, p, 0)
}

func TestAPanicCostsOneRequest(t *testing.T) {
	testenv.LeakCheck(t)
	d, vm := boot(t, newFake(), vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	if _, err := c.Getattr(t.Context(), nodePanic); !errors.Is(err, syscall.EIO) {
		t.Errorf("getattr that panics: %v, want EIO", err)
	}
	if _, err := c.Read(t.Context(), nodePanic, 0, 0, make([]byte, 16)); !errors.Is(err, syscall.EIO) {
		t.Errorf("read that panics: %v, want EIO", err)
	}
	if _, err := c.Getattr(t.Context(), nodeReady); err != nil {
		t.Errorf("getattr afterwards: %v", err)
	}
	if got := d.Stats().Panics; got != 2 {
		t.Errorf("panics: %d, want 2", got)
	}
}

func TestTheLibrarysMagicNameIsAnOrdinaryName(t *testing.T) {
	testenv.LeakCheck(t)
	_, vm := boot(t, newFake(), vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	const magicName = ".go-fuse-epoll-hack"
	e, err := c.Lookup(t.Context(), vhostusertest.RootNode, magicName)
	if err != nil || e.Node != nodeReady || e.Attr.Size != uint64(len(magicName)) {
		t.Errorf("lookup: %+v, %v", e, err)
	}
	if _, err := c.Statfs(t.Context(), magicNode); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("statfs of the magic node: %v, want ESTALE", err)
	}
}

// TestMalformedRequests sends what no kernel sends. Every chain comes back, with a
// reply header where there is room for one, and the ring goes on.
func TestMalformedRequests(t *testing.T) {
	testenv.LeakCheck(t)
	for name, c := range map[string]struct {
		in    []byte
		reply int
		used  uint32
		errno syscall.Errno
	}{
		"empty":                        {nil, 64, 16, syscall.EIO},
		"half a header":                {header(3, 1, 20), 64, 16, syscall.EIO},
		"no room for a reply":          {header(3, 1, 56), 8, 0, 0},
		"room for half a reply":        {header(3, 1, 56), 40, 16, syscall.EIO},
		"length beyond the chain":      {binary.LittleEndian.AppendUint32(nil, 4096), 64, 16, syscall.EIO},
		"read without arguments":       {header(15, nodeReady, 40), 64, 16, syscall.EINVAL},
		"unknown opcode":               {header(4000, 1, 40), 64, 16, syscall.ENOSYS},
		"unknown opcode, huge":         {header(0xffffffff, 1, 40), 64, 16, syscall.ENOSYS},
		"lookup without a name":        {header(1, 1, 40), 200, 16, syscall.EINVAL},
		"lookup of an empty name":      {header(1, 1, 41), 200, 16, syscall.EINVAL},
		"lookup, name not ended":       {lookupOf("abc")[:43], 200, 16, syscall.EINVAL},
		"lookup of a path":             {lookupOf("a/../b\x00"), 200, 16, syscall.EINVAL},
		"lookup of a long name":        {lookupOf(strings.Repeat("n", 256) + "\x00"), 200, 16, syscall.ENAMETOOLONG},
		"lookup of the longest name":   {lookupOf(strings.Repeat("n", 255) + "\x00"), 200, 144, 0},
		"lookup into too little":       {lookupOf("abc\x00"), 100, 16, syscall.EIO},
		"getattr without arguments":    {header(3, 1, 40), 200, 16, syscall.EINVAL},
		"getxattr with too little":     {header(22, 1, 42), 64, 16, syscall.EIO},
		"forget that wants an answer":  {header(2, 1, 48), 64, 0, 0},
		"init of another major":        {header(26, 0, 104), 80, 16, syscall.EIO},
		"batch forget of 2^32-1 nodes": {batchForget(), 64, 0, 0},
		"extension beyond the request": {withExtension(header(17, 1, 56)), 200, 16, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			_, vm := boot(t, newFake(), vhostusertest.Options{})
			descs := place(t, vm, c.in)
			room, reply, err := vm.Memory.Room(c.reply)
			if err != nil {
				t.Fatal(err)
			}
			r := vm.Rings[1]
			if err := r.Offer(vhostusertest.Linked(append(descs, room)...)...); err != nil {
				t.Fatal(err)
			}
			if err := r.WaitUsed(1, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			_, used := r.UsedElem(0)
			if used != c.used {
				t.Errorf("used.len %d, want %d", used, c.used)
			}
			if used >= 16 {
				checkReply(t, reply, used, c.errno)
			}
		})
	}
}

func checkReply(t *testing.T, reply []byte, used uint32, errno syscall.Errno) {
	t.Helper()
	if got := binary.LittleEndian.Uint32(reply); got != used {
		t.Errorf("out_header.len %d, used.len %d", got, used)
	}
	if got := syscall.Errno(-int32(binary.LittleEndian.Uint32(reply[4:]))); got != errno {
		t.Errorf("errno %v, want %v", got, errno)
	}
}

func place(t *testing.T, vm *vhostusertest.VM, in []byte) []vhostusertest.Desc {
	t.Helper()
	if len(in) == 0 {
		return nil
	}
	d, err := vm.Memory.Place(in)
	if err != nil {
		t.Fatal(err)
	}
	d.Flags &^= vhostusertest.DescWrite
	return []vhostusertest.Desc{d}
}

// header makes the first n bytes of a request, zeros behind the header.
func header(op uint32, node uint64, n int) []byte {
	b := make([]byte, max(n, 40))
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint32(b[4:], op)
	binary.LittleEndian.PutUint64(b[8:], 7)
	binary.LittleEndian.PutUint64(b[16:], node)
	return b[:n]
}

func lookupOf(name string) []byte {
	return append(header(1, 1, 40+len(name))[:40], name...)
}

func batchForget() []byte {
	b := header(42, 0, 48)
	binary.LittleEndian.PutUint32(b[40:], 0xffffffff)
	return b
}

func withExtension(b []byte) []byte {
	binary.LittleEndian.PutUint16(b[36:], 0xffff)
	return b
}

func TestRepliesNeverCarryOldBytes(t *testing.T) {
	_, vm := boot(t, newFake(), vhostusertest.Options{})
	in, err := vm.Memory.Place(header(3, nodeReady, 56))
	if err != nil {
		t.Fatal(err)
	}
	in.Flags &^= vhostusertest.DescWrite
	room, reply, err := vm.Memory.Room(256)
	if err != nil {
		t.Fatal(err)
	}
	copy(reply, bytes.Repeat([]byte{0xaa}, 256))
	if err := vm.Rings[1].Offer(vhostusertest.Linked(in, room)...); err != nil {
		t.Fatal(err)
	}
	if err := vm.Rings[1].WaitUsed(1, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	_, used := vm.Rings[1].UsedElem(0)
	if !bytes.Equal(reply[used:], bytes.Repeat([]byte{0xaa}, 256-int(used))) {
		t.Errorf("bytes after the %d used ones were written", used)
	}
	if bytes.Contains(reply[:used], []byte{0xaa, 0xaa}) {
		t.Errorf("the reply has holes: %x", reply[:used])
	}
}

func TestAnotherGuestAfterTheFirst(t *testing.T) {
	testenv.LeakCheck(t)
	f := newFake()
	_, path := serve(t, f)
	for range 3 {
		vm, err := vhostusertest.Boot(t.Context(), path, vhostusertest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := vhostusertest.Mount(t.Context(), vm)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Getattr(t.Context(), nodeReady); err != nil {
			t.Error(err)
		}
		if err := errors.Join(c.Close(), vm.Close()); err != nil {
			t.Error(err)
		}
	}
}
