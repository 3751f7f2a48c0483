package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/chunk"
)

// memory is a Cutter that keeps each file as one chunk.
type memory struct{ files []string }

func (m *memory) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return err
	}
	m.files = append(m.files, string(data))
	return add(chunk.Ref{Index: uint32(len(m.files) - 1)})
}

// entry is an entry of a tar: a header, and the data that gives it its size.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o700}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}, ""}
}

func link(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// merge reads layers and merges them.
func merge(files *memory, limits Limits, tars ...[]byte) (*Tree, error) {
	var layers []*Layer
	for _, data := range tars {
		l, err := ReadTar(context.Background(), bytes.NewReader(data), files, ReadOptions{Limits: limits})
		if err != nil {
			for _, l := range layers {
				l.Close()
			}
			return nil, err
		}
		layers = append(layers, l)
	}
	return Merge(context.Background(), "", layers...)
}

// list describes a tree, a line a name: a folder ends with a slash and its mode
// where it is not that of dir, a file has its data, a name of an inode that was
// listed already is "== the first name".
func list(t testing.TB, tr *Tree, files *memory) []string {
	t.Helper()
	var out []string
	paths := map[ID]string{}
	var walk func(dir ID, at string)
	walk = func(dir ID, at string) {
		for c, err := range tr.Children(dir) {
			if err != nil {
				t.Fatal(err)
			}
			full := path.Join(at, c.Name)
			paths[c.ID] = full
			if c.Inode != c.ID {
				out = append(out, full+" == "+paths[c.Inode])
				continue
			}
			switch c.Type() {
			case TypeDir:
				mode := ""
				if c.Mode&0o7777 != 0o700 {
					mode = fmt.Sprintf(" %o", c.Mode&0o7777)
				}
				out = append(out, full+"/"+mode)
				walk(c.ID, full)
			case TypeFile:
				data := ""
				for ref, err := range tr.Refs(c) {
					if err != nil {
						t.Fatal(err)
					}
					data += files.files[ref.Index]
				}
				out = append(out, full+" "+data)
			case TypeLink:
				out = append(out, full+" -> "+c.Target)
			default:
				out = append(out, fmt.Sprintf("%s %o", full, c.Mode))
			}
		}
	}
	walk(Root, "")
	if len(paths) != tr.Len()-1 {
		t.Errorf("%d names below the root, Len is %d", len(paths), tr.Len())
	}
	return out
}

// lookup finds what must be there.
func lookup(t testing.TB, tr *Tree, p string) Node {
	t.Helper()
	n, ok, err := tr.Lookup(p)
	if err != nil || !ok {
		t.Fatalf("lookup %q: %t, %v", p, ok, err)
	}
	return n
}

func TestMerge(t *testing.T) {
	type layer = []entry
	for _, tc := range []struct {
		name   string
		layers []layer
		want   []string
	}{
		{"names are cleaned", []layer{{dir("./a"), file("/a//./b", "1"), file("c/d/e", "2")}},
			[]string{"a/", "a/b 1", "c/ 755", "c/d/ 755", "c/d/e 2"}},
		{"the last entry of a name wins", []layer{{file("a", "1"), file("a", "2"), symlink("b", "x"), file("b", "3")}},
			[]string{"a 2", "b 3"}},
		{"a folder that comes again keeps what is in it", []layer{{file("a/b", "1"), dir("a")}},
			[]string{"a/", "a/b 1"}},
		{"a file removes a folder", []layer{{dir("a"), file("a/b", "1"), file("a", "2")}},
			[]string{"a 2"}},
		{"a folder in place of a file hides the folder below both",
			[]layer{{dir("a"), file("a/low", "1")}, {file("a", "2"), dir("a"), file("a/up", "3")}},
			[]string{"a/", "a/up 3"}},
		{"an upper layer adds and replaces", []layer{{dir("a"), file("a/b", "1"), file("a/c", "2")}, {dir("a"), file("a/b", "3")}},
			[]string{"a/", "a/b 3", "a/c 2"}},
		{"an upper folder's attributes win, those of a missing parent do not",
			[]layer{{dir("a"), dir("b")}, {entry{tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o711}, ""}, file("b/x", "1")}},
			[]string{"a/ 711", "b/", "b/x 1"}},
		{"a file replaces a lower folder", []layer{{dir("a"), file("a/b", "1")}, {file("a", "2")}},
			[]string{"a 2"}},
		{"a folder replaces a lower file", []layer{{file("a", "1")}, {dir("a"), file("a/b", "2")}},
			[]string{"a/", "a/b 2"}},
		{"a folder replaces a lower symlink", []layer{{symlink("a", "etc"), dir("etc")}, {dir("a"), file("a/b", "2")}},
			[]string{"a/", "a/b 2", "etc/"}},
		{"whiteouts of a file, a folder and of nothing",
			[]layer{{file("a", "1"), dir("b"), file("b/c", "2"), file("d", "3")}, {file(".wh.a", ""), file(".wh.b", ""), file(".wh.x", "")}},
			[]string{"d 3"}},
		{"a whiteout hides lower layers only, wherever it stands",
			[]layer{{dir("a"), file("a/low", "1"), file("f", "1")}, {dir("a"), file("a/up", "2"), file(".wh.a", ""), file("f", "2"), file(".wh.f", "")}},
			[]string{"a/", "a/up 2", "f 2"}},
		{"an opaque folder", []layer{{dir("a"), file("a/low", "1"), dir("a/sub"), file("a/sub/x", "2")}, {file("a/up", "3"), file("a/.wh..wh..opq", "")}},
			[]string{"a/", "a/up 3"}},
		{"an opaque root", []layer{{file("low", "1")}, {file(".wh..wh..opq", ""), file("up", "2")}},
			[]string{"up 2"}},
		{"what one layer hides the next may bring back",
			[]layer{{file("a/b", "1")}, {file(".wh.a", "")}, {file("a/c", "3")}},
			[]string{"a/ 755", "a/c 3"}},
		{"bookkeeping of aufs is no whiteout", []layer{{file("a", "1")}, {file(".wh..wh.aufs", ""), file(".wh..wh.plnk/x", "2"), file(".wh..wh.orph/y/z", "")}},
			[]string{"a 1"}},
		{"hard links", []layer{{file("a", "1"), link("d/b", "a"), link("c", "./d/b")}},
			[]string{"a 1", "c == a", "d/ 755", "d/b == a"}},
		{"a hard link holds what its target was", []layer{{file("a", "1"), link("b", "a"), file("a", "2")}},
			[]string{"a 2", "b 1"}},
		{"hard links to a symlink and a device", []layer{{symlink("s", "x"), link("t", "s"), {tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}, ""}, link("q", "p")}},
			[]string{"p 10600", "q == p", "s -> x", "t == s"}},
		{"a hard link into a lower layer", []layer{{file("d/a", "1")}, {link("b", "d/a"), link("c", "b")}},
			[]string{"b 1", "c == b", "d/ 755", "d/a == b"}},
		{"a hard link to what the same layer removes or replaces",
			[]layer{{file("a", "1"), file("c", "3")}, {link("b", "a"), file(".wh.a", ""), link("d", "c"), file("c", "4")}},
			[]string{"b 1", "c 4", "d 3"}},
		{"a removed name leaves the other links", []layer{{file("a", "1"), link("b", "a"), link("c", "a")}, {file(".wh.a", "")}},
			[]string{"b 1", "c == b"}},
		{"symlinks are kept as they are", []layer{{symlink("a", "../../etc/passwd"), symlink("b", "/abs"), symlink("c", "c")}},
			[]string{"a -> ../../etc/passwd", "b -> /abs", "c -> c"}},
		{"no layers at all", nil, nil},
		{"an empty layer", []layer{{}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range tc.layers {
				tars = append(tars, pack(t, l...))
			}
			var files memory
			got, err := merge(&files, Limits{}, tars...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, list(t, got, &files)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	when := time.Unix(1<<33+5, 123456789)
	long := strings.Repeat("v", 65535)
	data := pack(t,
		entry{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7, Gid: 8, ModTime: when, Format: tar.FormatPAX}, ""},
		entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o106755, Uid: 1<<31 + 1, Gid: 1<<32 - 1, ModTime: when, Format: tar.FormatPAX,
			PAXRecords: map[string]string{
				"SCHILY.xattr.user.b": "2\x00\n", "SCHILY.xattr.user.a": long, "SCHILY.xattr.user.x%3Dy%25": "",
				"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.com.apple.quarantine": "gone", "comment": "none",
			}}, "data"},
		entry{tar.Header{Name: "c", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 4095, Devminor: 1<<20 - 1}, ""},
		entry{tar.Header{Name: "b", Typeflag: tar.TypeBlock, Mode: 0o600, Devmajor: 8, Devminor: 257}, ""},
		entry{tar.Header{Name: "old", Typeflag: tar.TypeReg, ModTime: time.Unix(-5, 500), Format: tar.FormatPAX}, ""},
	)
	l, err := ReadTar(context.Background(), bytes.NewReader(data), &memory{}, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if l.Entries != 5 || l.Bytes != 4 || l.DroppedXattrs != 1 {
		t.Errorf("layer: %d entries, %d bytes, %d dropped xattrs; want 5, 4, 1", l.Entries, l.Bytes, l.DroppedXattrs)
	}
	got, err := Merge(context.Background(), "", l)
	if err != nil {
		t.Fatal(err)
	}
	root, f := lookup(t, got, ""), lookup(t, got, "f")
	if root.Mode != TypeDir|0o751 || root.UID != 7 || root.GID != 8 || root.Mtime != 1<<33+5 || root.MtimeNsec != 123456789 {
		t.Errorf("root: got %+v", root)
	}
	if f.Mode != TypeFile|0o6755 || f.UID != 1<<31+1 || f.GID != 1<<32-1 || f.Size != 4 || f.Mtime != 1<<33+5 || f.MtimeNsec != 123456789 {
		t.Errorf("file: got %+v", f)
	}
	want := []Xattr{{"security.capability", "cap"}, {"user.a", long}, {"user.b", "2\x00\n"}, {"user.x=y%", ""}}
	if diff := cmp.Diff(want, f.Xattrs); diff != "" {
		t.Errorf("xattrs (-want +got):\n%s", diff)
	}
	for name, want := range map[string]uint32{"c": 0xfff<<8 | 0xff | 0xfff00<<12, "b": 8<<8 | 1 | 0x100<<12} {
		if got := lookup(t, got, name).Rdev; got != want {
			t.Errorf("device %s: got %#x, want %#x", name, got, want)
		}
	}
	if old := lookup(t, got, "old"); old.Mtime != -5 || old.MtimeNsec != 500 {
		t.Errorf("mtime: got %d.%09d, want -5 s and 500 ns", old.Mtime, old.MtimeNsec)
	}
}

func TestReadTarStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := ReadTar(ctx, bytes.NewReader(pack(t, file("a", "1"))), &memory{}, ReadOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	whole := pack(t, file("a", strings.Repeat("x", 2000)))
	for _, n := range []int{100, 512, 700, 2000} {
		if _, err := ReadTar(context.Background(), bytes.NewReader(whole[:n]), &memory{}, ReadOptions{}); err == nil {
			t.Errorf("tar cut off at %d: got no error", n)
		}
	}
}
