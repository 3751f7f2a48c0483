package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// chainOf is a request in private memory, and where its answer goes.
func chainOf(in []byte, room int) (*request, []byte) {
	reply := make([]byte, room)
	return &request{chain: virtq.Chain{
		Readable: [][]byte{bytes.Clone(in)}, ReadLen: len(in),
		Writable: [][]byte{reply}, WriteLen: room,
	}}, reply
}

// initOf is an INIT as Linux 6.1 sends it.
func initOf() []byte {
	b := header(opInit, 0, 104)
	binary.LittleEndian.PutUint32(b[40:], 7)
	binary.LittleEndian.PutUint32(b[44:], 38)
	return b
}

// A guest that begins a session before each odd request writes no more into the
// log than one that does not.
func TestNewSessionsDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := New(newFake(), Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
		for range 50 {
			for _, in := range [][]byte{initOf(), header(4000, 1, 40)} {
				q, _ := chainOf(in, 80)
				if used, done := d.answer(t.Context(), nil, q, nil); !done || used < outHeaderSize {
					t.Fatalf("answer: %d, %t", used, done)
				}
			}
		}
		// The clock of the test stands still.
		if got := strings.Count(out.String(), "\n"); got != 1 {
			t.Errorf("%d log lines in no time, want 1", got)
		}
	})
}

// INIT writes what other requests of its session read, on other rings.
func TestInitBesideOtherRings(t *testing.T) {
	d := New(newFake(), Options{})
	var rings sync.WaitGroup
	for _, in := range [][]byte{initOf(), header(12, 1, 80), header(21, 1, 80)} { // INIT, RENAME, SETXATTR
		rings.Go(func() {
			for range 200 {
				q, reply := chainOf(in, 80)
				used, _ := d.answer(context.Background(), nil, q, nil)
				if int(binary.LittleEndian.Uint32(reply)) != used || used < outHeaderSize {
					t.Errorf("opcode %d: used %d, header says %d", q.header.opcode, used, binary.LittleEndian.Uint32(reply))
				}
			}
		})
	}
	rings.Wait()
}

// linkFake has one symlink.
type linkFake struct{ *fake }

const target = "a/target/of/some/length"

func (linkFake) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return []byte(target), fuse.OK
}

func TestReadlinkIsAsLongAsItSays(t *testing.T) {
	d := New(linkFake{newFake()}, Options{})
	for _, c := range []struct {
		room, used int
		errno      syscall.Errno
	}{
		{4096, outHeaderSize + len(target), 0},
		{outHeaderSize + len(target), outHeaderSize + len(target), 0},
		{outHeaderSize + len(target) - 1, outHeaderSize, syscall.EIO},
		{outHeaderSize, outHeaderSize, syscall.EIO},
	} {
		q, reply := chainOf(header(5, nodeReady, 40), c.room)
		used, _ := d.answer(t.Context(), nil, q, nil)
		if used != c.used {
			t.Errorf("%d bytes of room: used %d, want %d", c.room, used, c.used)
		}
		checkReply(t, reply, uint32(used), c.errno)
		if got := string(reply[outHeaderSize:max(used, outHeaderSize)]); c.errno == 0 && got != target {
			t.Errorf("%d bytes of room: %q, want %q", c.room, got, target)
		}
	}
}

// vanished returns memory that faults, as a guest's does that was truncated.
func vanished(t *testing.T) []byte {
	t.Helper()
	fd, err := unix.MemfdCreate("vanished", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// The request whose header cannot be read is not taken for the one that was served
// before it in the same place.
func TestAHeaderThatVanishedIsNobodyElses(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	d := New(newFake(), Options{})
	q, _ := chainOf(header(opForget, nodeReady, 48), 64)
	if used, _ := d.answer(t.Context(), nil, q, nil); used != 0 {
		t.Fatalf("forget: used %d", used)
	}
	reply := make([]byte, 64)
	q.chain = virtq.Chain{Readable: [][]byte{vanished(t)}, ReadLen: 4096, Writable: [][]byte{reply}, WriteLen: 64}
	if used, done := d.answer(t.Context(), nil, q, nil); used != outHeaderSize || !done {
		t.Errorf("used %d, done %t, want an error's header", used, done)
	}
	checkReply(t, reply, outHeaderSize, syscall.EIO)
	if got := binary.LittleEndian.Uint64(reply[8:]); got != 0 {
		t.Errorf("unique %d is another request's", got)
	}
}

// crowd counts the slow reads that wait at the same time.
type crowd struct {
	*fake
	now, most atomic.Int64
}

func (f *crowd) ReadWait(ctx context.Context, node, off uint64, dst [][]byte) (int, fuse.Status) {
	f.most.Store(max(f.most.Load(), f.now.Add(1)))
	defer f.now.Add(-1)
	return f.fake.ReadWait(ctx, node, off, dst)
}

// Reads beyond the bound wait on the ring; a stop of the ring gets them back too.
func TestWaitingReadsAreBounded(t *testing.T) {
	testenv.LeakCheck(t)
	f := &crowd{fake: newFake()}
	d := New(f, Options{})
	d.slots = make(chan struct{}, 1)
	vm := vhostusertest.MustBoot(t, serveDevice(t, d), vhostusertest.Options{})
	c := vhostusertest.MustMount(t, vm)
	const reads = 8
	ended := make(chan error, reads)
	for range reads {
		go func() {
			p := make([]byte, 4096)
			n, err := c.Read(t.Context(), nodeSlow, 0, 0, p)
			if err == nil && n != len(p) {
				err = errors.New("short read")
			}
			ended <- err
		}()
	}
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
	for range reads {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got := f.most.Load(); got != 1 {
		t.Errorf("%d reads waited at once, want 1", got)
	}
	if got := d.Stats().Waiting; got != 0 {
		t.Errorf("%d reads still wait", got)
	}
}
