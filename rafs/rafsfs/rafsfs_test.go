package rafsfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fuse.Status
	}{
		{nil, fuse.OK},
		{image.ErrNode, fuse.Status(syscall.ESTALE)},
		{image.ErrNotFound, fuse.ENOENT},
		{image.ErrNotDir, fuse.ENOTDIR},
		{image.ErrNotSymlink, fuse.EINVAL},
		{image.ErrNotRegular, fuse.EINVAL},
		{image.ErrNoXattr, fuse.ENOATTR},
		{fmt.Errorf("chunk 3: %w", blob.ErrDigest), fuse.EIO},
		{fmt.Errorf("chunk 3: %w", blob.ErrCorrupt), fuse.EIO},
		{fmt.Errorf("waiting: %w", context.Canceled), fuse.EINTR},
		{context.DeadlineExceeded, fuse.EIO},
		{errors.New("anything else"), fuse.EIO},
	} {
		if got := errno(c.err); got != c.want {
			t.Errorf("errno(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestMadeUpNodesAreStale(t *testing.T) {
	f := anyFS(t)
	stale := fuse.Status(syscall.ESTALE)
	for _, node := range []uint64{0, 2, 1 << 31, 1 << 32, 1<<63 - 1, 1 << 63, ^uint64(0)} {
		h := fuse.InHeader{NodeId: node}
		if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, new(fuse.AttrOut)); s != stale {
			t.Errorf("getattr of %d: %v, want %v", node, s, stale)
		}
		if s := f.Lookup(nil, &h, "x", new(fuse.EntryOut)); s != stale {
			t.Errorf("lookup in %d: %v, want %v", node, s, stale)
		}
		if s := f.ReadDirPlus(nil, &fuse.ReadIn{InHeader: h}, fuse.NewDirEntryList(make([]byte, 4096), 0)); s != stale {
			t.Errorf("readdirplus of %d: %v, want %v", node, s, stale)
		}
		if _, s, ok := f.ReadNow(node, 0, [][]byte{make([]byte, 8)}); s != stale || !ok {
			t.Errorf("read of %d: %v %v, want %v", node, s, ok, stale)
		}
		if _, s := f.Readlink(nil, &h); s != stale {
			t.Errorf("readlink of %d: %v, want %v", node, s, stale)
		}
		if _, s := f.ListXAttr(nil, &h, nil); s != stale {
			t.Errorf("listxattr of %d: %v, want %v", node, s, stale)
		}
	}
}

func TestAbsenceIsCached(t *testing.T) {
	f := anyFS(t)
	var out fuse.EntryOut
	s := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "no such name", &out)
	if s != fuse.OK || out.NodeId != 0 || out.EntryTimeout() != Valid {
		t.Errorf("lookup: %v, node %d, valid %v; want OK, 0, %v", s, out.NodeId, out.EntryTimeout(), Valid)
	}
}

func TestABufferTooSmallIsNoEndOfFolder(t *testing.T) {
	f := anyFS(t)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}
	if s := f.ReadDir(nil, in, fuse.NewDirEntryList(make([]byte, 8), 0)); s != fuse.EINVAL {
		t.Errorf("readdir into 8 bytes: %v, want EINVAL", s)
	}
	if s := f.ReadDirPlus(nil, in, fuse.NewDirEntryList(make([]byte, 100), 0)); s != fuse.EINVAL {
		t.Errorf("readdirplus into 100 bytes: %v, want EINVAL", s)
	}
}

func TestChangesAreRefused(t *testing.T) {
	f := anyFS(t)
	h := &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	_, written := f.Write(nil, &fuse.WriteIn{}, []byte("x"))
	for op, s := range map[string]fuse.Status{
		"setattr": f.SetAttr(nil, &fuse.SetAttrIn{}, nil), "mkdir": f.Mkdir(nil, &fuse.MkdirIn{}, "d", nil),
		"mknod": f.Mknod(nil, &fuse.MknodIn{}, "n", nil), "unlink": f.Unlink(nil, h, "etc"),
		"rmdir": f.Rmdir(nil, h, "etc"), "rename": f.Rename(nil, &fuse.RenameIn{}, "a", "b"),
		"link": f.Link(nil, &fuse.LinkIn{}, "l", nil), "symlink": f.Symlink(nil, h, "to", "s", nil),
		"setxattr": f.SetXAttr(nil, &fuse.SetXAttrIn{}, "user.x", nil), "removexattr": f.RemoveXAttr(nil, h, "user.x"),
		"create": f.Create(nil, &fuse.CreateIn{}, "c", nil), "write": written,
		"fallocate": f.Fallocate(nil, &fuse.FallocateIn{}),
	} {
		if s != fuse.Status(syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", op, s)
		}
	}
}

type failing struct{ plainStore }

func (*failing) Ready(*blob.Chunk) bool { return false }
func (*failing) Read(context.Context, []blob.Segment, [][]byte) (int, error) {
	return 0, fmt.Errorf("chunk 1: %w", blob.ErrDigest)
}

func TestFailuresAreCountedAndLoggedOnce(t *testing.T) {
	f := anyFS(t)
	var logged bytes.Buffer
	f = New(f.image, &failing{}, Options{Log: slog.New(slog.NewTextHandler(&logged, nil))})
	node := firstFile(t, f, fuse.FUSE_ROOT_ID)
	for range 100 {
		if n, s := f.ReadWait(context.Background(), node, 0, [][]byte{make([]byte, 8)}); n != 0 || s != fuse.EIO {
			t.Fatalf("read: %d bytes, %v; want 0, EIO", n, s)
		}
	}
	if got := f.Stats().ReadErrors; got != 100 {
		t.Errorf("read errors: %d, want 100", got)
	}
	if got := strings.Count(logged.String(), "request failed"); got == 0 || got > 3 {
		t.Errorf("%d records for 100 failures, want one a second:\n%s", got, &logged)
	}
}

func firstFile(t *testing.T, f *FS, dir uint64) uint64 {
	t.Helper()
	for e, err := range list(f, dir) {
		if err != nil {
			t.Fatal(err)
		}
		switch mode := e.out.Attr.Mode & syscall.S_IFMT; {
		case mode == syscall.S_IFREG && e.out.Attr.Size > 0:
			return e.out.NodeId
		case mode == syscall.S_IFDIR:
			if node := firstFile(t, f, e.out.NodeId); node != 0 {
				return node
			}
		}
	}
	return 0
}

func TestWindow(t *testing.T) {
	buf := []byte("0123456789")
	w := window{dst: [][]byte{buf[:4], buf[4:5], buf[5:]}}
	for _, c := range []struct {
		n    int
		want string
	}{{4, "0123"}, {3, "4|56"}, {2, "78"}, {0, ""}, {5, "9"}} {
		if got := string(bytes.Join(w.next(c.n), []byte("|"))); got != c.want {
			t.Errorf("next(%d) = %q, want %q", c.n, got, c.want)
		}
	}
}
