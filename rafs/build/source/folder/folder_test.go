package folder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// contents keeps the digest of each file, one chunk a file.
type contents struct {
	sums  []string
	sizes []int64
	meet  func() // called once the first byte of a file was read, if not nil
}

func (c *contents) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	h := sha256.New()
	if _, err := io.CopyN(h, r, 1); err != nil {
		return err
	}
	if c.meet != nil {
		c.meet()
	}
	if _, err := io.CopyN(h, r, size-1); err != nil {
		return err
	}
	c.sums, c.sizes = append(c.sums, hex.EncodeToString(h.Sum(nil))), append(c.sizes, size)
	return add(chunk.Ref{Index: uint32(len(c.sums) - 1)})
}

// entries lists a tree as rafstest does.
func entries(t *testing.T, tr *tree.Tree, c *contents) iter.Seq2[rafstest.Entry, error] {
	t.Helper()
	links := map[tree.ID]uint32{}
	for id := range tree.ID(tr.Len()) {
		n, err := tr.Node(id)
		if err != nil {
			t.Fatal(err)
		}
		links[n.Inode]++
	}
	return func(yield func(rafstest.Entry, error) bool) {
		paths := map[tree.ID]string{tree.Root: ""}
		for id := tree.Root + 1; id < tree.ID(tr.Len()); id++ {
			n, err := tr.Node(id)
			if err != nil {
				yield(rafstest.Entry{}, err)
				return
			}
			paths[id] = paths[n.Parent] + "/" + n.Name
			e := rafstest.Entry{
				Path: paths[id], Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: links[n.Inode], Size: n.Size,
				Mtime: n.Mtime, MtimeNsec: n.MtimeNsec, Rdev: n.Rdev, Link: n.Target,
			}
			for _, x := range n.Xattrs {
				if e.Xattrs == nil {
					e.Xattrs = map[string]string{}
				}
				e.Xattrs[x.Name] = x.Value
			}
			if n.Type() == tree.TypeFile {
				sum := sha256.Sum256(nil)
				e.SHA256 = hex.EncodeToString(sum[:])
				for ref, err := range tr.Refs(&n) {
					if err != nil {
						yield(e, err)
						return
					}
					e.SHA256 = c.sums[ref.Index]
				}
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func read(t *testing.T, dir string, c *contents, o Options) (*tree.Tree, error) {
	t.Helper()
	o.TempDir = t.TempDir()
	l, err := Read(context.Background(), dir, c, o)
	if err != nil {
		return nil, err
	}
	tr, err := tree.Merge(context.Background(), o.TempDir, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr, nil
}

// must fails the test for the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644))
	return p
}

// everything makes a folder of all that Linux has.
func everything(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	must(t, os.Chmod(d, 0o751))
	f := put(t, d, "a/file", "some bytes")
	put(t, d, "a/empty", "")
	put(t, d, "a/new\nline=%", "x")
	put(t, d, "a/\xff\xfe", "no text")
	put(t, d, "z/"+strings.Repeat("n", 255), "long")
	must(t,
		os.Link(f, filepath.Join(d, "z/again")), os.Link(f, filepath.Join(d, "hard")),
		os.Symlink("../etc/passwd", filepath.Join(d, "a/link")),
		os.Link(filepath.Join(d, "a/link"), filepath.Join(d, "z/link2")),
		unix.Mkfifo(filepath.Join(d, "fifo"), 0o600),
		unix.Mknod(filepath.Join(d, "sock"), unix.S_IFSOCK|0o640, 0),
		unix.Mknod(filepath.Join(d, "char"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(filepath.Join(d, "block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))),
		os.Chown(f, 1<<31+5, 7), os.Chmod(f, 0o4711|os.ModeSetuid),
		unix.Setxattr(f, "user.k\ny", []byte("v\n\x00"), 0),
		unix.Setxattr(filepath.Join(d, "a"), "trusted.t", nil, 0),
		unix.Lsetxattr(filepath.Join(d, "a/link"), "security.s", []byte("of a symlink"), 0),
		unix.Lsetxattr(filepath.Join(d, "fifo"), "trusted.f", []byte("of a fifo"), 0),
		os.MkdirAll(filepath.Join(d, "deep", strings.Repeat("d/", 300)), 0o700),
		unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{}, {Sec: 1 << 33, Nsec: 123456789}}, 0),
		unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(d, "z"), []unix.Timespec{{}, {Sec: -5, Nsec: 1}}, 0),
	)
	return d
}

func TestEverything(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.LeakCheck(t)
	d := everything(t)
	var want []rafstest.Entry
	for e, err := range rafstest.Dir(d) {
		must(t, err)
		want = append(want, e)
	}
	var c contents
	tr, err := read(t, d, &c, Options{})
	must(t, err)
	rafstest.Compare(t, want, entries(t, tr, &c))
	root, err := tr.Node(tree.Root)
	must(t, err)
	if root.Mtime != 0 || root.Mode != tree.TypeDir|0o751 {
		t.Errorf("root: got mtime %d, mode %o; want 0 and %o", root.Mtime, root.Mode, tree.TypeDir|0o751)
	}
	if n := len(c.sums); n != 4 {
		t.Errorf("%d files were read, want 4: one inode, one reading", n)
	}
}

// The order of names on the disk does not matter, nor how many there are.
func TestManyNames(t *testing.T) {
	d := t.TempDir()
	want := 2*batch + 5
	for i := range want {
		// Backwards, and not by length.
		must(t, unix.Mknod(filepath.Join(d, fmt.Sprintf("%x", (i*7919)%want)), unix.S_IFREG|0o644, 0))
	}
	dir, err := os.Open(d)
	must(t, err)
	defer dir.Close()
	var got []string
	l := lister{fd: int(dir.Fd())}
	for {
		names, err := l.next()
		must(t, err)
		if len(names) == 0 {
			break
		}
		if len(names) > batch {
			t.Fatalf("%d names at a time, want at most %d", len(names), batch)
		}
		for _, n := range names {
			got = append(got, n.name)
		}
	}
	if len(got) != want || !slices.IsSorted(got) || len(slices.Compact(got)) != want {
		t.Errorf("got %d names, sorted %t; want %d, each once", len(got), slices.IsSorted(got), want)
	}
}

// A folder with more sub-folders than are kept is listed again for them.
func TestManyFolders(t *testing.T) {
	d := t.TempDir()
	must(t, os.Mkdir(filepath.Join(d, "many"), 0o755))
	for i := range maxHeld {
		must(t, os.Mkdir(filepath.Join(d, "many", fmt.Sprintf("%x", (i*7919)%maxHeld)), 0o755))
	}
	put(t, d, "many/file", "12")
	put(t, d, "many/a/file", "123")
	put(t, d, "few/a/file", "1")
	var c contents
	tr, err := read(t, d, &c, Options{})
	must(t, err)
	if want := 7 + maxHeld; tr.Len() != want || !slices.Equal(c.sizes, []int64{1, 2, 3}) {
		t.Errorf("got %d names and files of %v bytes, want %d names and 1, 2, 3", tr.Len(), c.sizes, want)
	}
}

// A listing may be old.
func TestLook(t *testing.T) {
	d := t.TempDir()
	put(t, d, "file", "x")
	must(t, os.Mkdir(filepath.Join(d, "folder"), 0o755))
	must(t, os.Symlink("file", filepath.Join(d, "link")))
	must(t, unix.Mkfifo(filepath.Join(d, "fifo"), 0o644))
	dir, err := os.Open(d)
	must(t, err)
	defer dir.Close()
	for name, want := range map[string]uint32{"file": unix.S_IFREG, "folder": unix.S_IFDIR, "link": unix.S_IFLNK, "fifo": unix.S_IFIFO} {
		for _, kind := range []byte{unix.DT_UNKNOWN, unix.DT_REG, unix.DT_DIR, unix.DT_LNK, unix.DT_FIFO} {
			var st unix.Stat_t
			fd, err := look(int(dir.Fd()), listed{name, kind}, &st)
			must(t, err)
			if got := st.Mode & unix.S_IFMT; got != want {
				t.Errorf("%s as kind %d: got mode %o, want %o", name, kind, got, want)
			}
			if fd >= 0 {
				must(t, unix.Close(fd))
			} else if want == unix.S_IFREG || want == unix.S_IFDIR {
				t.Errorf("%s as kind %d: not open", name, kind)
			}
		}
	}
	if _, err := look(int(dir.Fd()), listed{"gone", unix.DT_REG}, &unix.Stat_t{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is gone: got %v, want ErrNotExist", err)
	}
}

func TestOrderOfContents(t *testing.T) {
	d := t.TempDir()
	for i, name := range []string{"z", "a/b/x", "a/y", "m", "a.c/q", "late/1", "late/2", "first/f"} {
		put(t, d, name, strings.Repeat("c", i+1))
	}
	must(t, os.Symlink("a", filepath.Join(d, "s")))
	for _, tc := range []struct {
		name  string
		first []string
		want  []int64
		done  int // files when First is done
	}{
		{"files before folders, by bytes", nil, []int64{4, 1, 3, 2, 5, 8, 6, 7}, 0},
		{"a file, then a folder", []string{"/late/2", "/first"}, []int64{7, 8, 4, 1, 3, 2, 5, 6}, 2},
		{"what is covered counts once", []string{"/late/", "/late/1", "late"}, []int64{6, 7, 4, 1, 3, 2, 5, 8}, 2},
		{"all of it", []string{"/"}, []int64{4, 1, 3, 2, 5, 8, 6, 7}, 8},
		{"nothing there, and nothing followed", []string{"/nope/x", "/s/y", "/a/y/z", "/a/nope"}, []int64{4, 1, 3, 2, 5, 8, 6, 7}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c contents
			done := -1
			tr, err := read(t, d, &c, Options{First: tc.first, FirstDone: func() { done = len(c.sizes) }})
			must(t, err)
			if !slices.Equal(c.sizes, tc.want) || done != tc.done {
				t.Errorf("got sizes %v, %d of them first; want %v and %d", c.sizes, done, tc.want, tc.done)
			}
			if tr.Len() != 15 {
				t.Errorf("got %d names, want 15", tr.Len())
			}
		})
	}
}

func TestHardLinkAcrossPasses(t *testing.T) {
	d := t.TempDir()
	f := put(t, d, "b/f", "once")
	must(t, os.Link(f, filepath.Join(d, "a")))
	var c contents
	tr, err := read(t, d, &c, Options{First: []string{"/b"}})
	must(t, err)
	a, _, err := tr.Lookup("a")
	must(t, err)
	b, _, err := tr.Lookup("b/f")
	must(t, err)
	if len(c.sums) != 1 || a.Inode != b.Inode || b.Size != 4 || a.Size != 4 {
		t.Errorf("read %d files, inodes %d and %d, sizes %d and %d; want one of 4 bytes", len(c.sums), a.Inode, b.Inode, a.Size, b.Size)
	}
}

func TestSparse(t *testing.T) {
	const size = 3<<20 + 77
	p := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(p)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	want := make([]byte, size)
	for _, at := range []int{64 << 10, 1<<20 + 5, size - 1} {
		copy(want[at:], "data")
		_, err := f.WriteAt(want[at:min(at+4, size)], int64(at))
		must(t, err)
	}
	for _, sparse := range []bool{false, true} {
		got, err := io.ReadAll(&reader{fd: int(f.Fd()), size: size, sparse: sparse})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("sparse %t: got %d bytes, equal %t, error %v", sparse, len(got), bytes.Equal(got, want), err)
		}
	}
}

// What is not the same at the end of reading as it was at the start is named.
func TestChanges(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(p string) error
		want   string
	}{
		{"shrinks", func(p string) error { return os.Truncate(p, 100) }, "200000 bytes, then 100"},
		{"grows", func(p string) error { return os.Truncate(p, 1<<20) }, "200000 bytes, then 1048576"},
		{"same size", func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("y"), 200000), 0o644) }, "written to"},
		{"other mode", func(p string) error { return os.Chmod(p, 0o600) }, "other attributes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := t.TempDir()
			p := put(t, d, "sub/f", strings.Repeat("x", 200000))
			c := contents{meet: func() { must(t, tc.change(p)) }}
			_, err := read(t, d, &c, Options{})
			if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), `"sub/f"`) {
				t.Errorf("got %v, want ErrChanged, the name and %q", err, tc.want)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	t.Run("no folder", func(t *testing.T) {
		_, err := read(t, filepath.Join(t.TempDir(), "nope"), &contents{}, Options{})
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "nope") {
			t.Errorf("got %v, want ErrNotExist and the name", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		if _, err := read(t, put(t, t.TempDir(), "f", ""), &contents{}, Options{}); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("got %v, want ENOTDIR", err)
		}
	})
	t.Run("cutter", func(t *testing.T) {
		d := t.TempDir()
		put(t, d, "a/f", "x")
		full := errors.New("disk full")
		_, err := Read(context.Background(), d, failing{full}, Options{TempDir: t.TempDir()})
		if !errors.Is(err, full) || !strings.Contains(err.Error(), `"a/f"`) {
			t.Errorf("got %v, want the error of the cutter and the name", err)
		}
	})
	t.Run("too much data", func(t *testing.T) {
		d := t.TempDir()
		put(t, d, "a", "12345")
		put(t, d, "b", "12345")
		_, err := read(t, d, &contents{}, Options{Limits: tree.Limits{Data: 9}})
		if !errors.Is(err, tree.ErrRefused) || !strings.Contains(err.Error(), `"b"`) {
			t.Errorf("got %v, want b refused", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(context.Background())
		stop := errors.New("stop")
		cancel(stop)
		if _, err := Read(ctx, t.TempDir(), &contents{}, Options{TempDir: t.TempDir()}); !errors.Is(err, stop) {
			t.Errorf("got %v, want %v", err, stop)
		}
	})
}

type failing struct{ err error }

func (f failing) File(io.Reader, int64, func(chunk.Ref) error) error { return f.err }
