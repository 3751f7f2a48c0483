package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/chunk"
)

// layerOf makes a layer of entries; a file's data is a ref to chunk 5 of blob 1.
func layerOf(t *testing.T, o BuilderOptions, entries ...Entry) (*Layer, error) {
	t.Helper()
	b, err := NewBuilder(o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range entries {
		var refs iter.Seq[chunk.Ref]
		if entries[i].Type() == TypeFile {
			refs = slices.Values([]chunk.Ref{{Blob: 1, Index: 5}})
		}
		if err := b.Add(&entries[i], refs); err != nil {
			return nil, err
		}
	}
	return b.Layer()
}

func regular(path string, inode uint64) Entry {
	return Entry{Path: path, Attr: Attr{Mode: TypeFile | 0o640, UID: uint32(inode), Size: 7}, Inode: inode}
}

// Equal numbers of a source are one inode, whatever becomes of its names.
func TestInodeNumbers(t *testing.T) {
	dir := Entry{Path: "d", Attr: Attr{Mode: TypeDir | 0o700}}
	changed := regular("d/b", 9)
	changed.UID = 1 // attributes are those of the first
	l, err := layerOf(t, BuilderOptions{},
		dir, regular("a", 9), changed, regular("c", 0), regular("e", 0), regular("f", 8), regular("g", 8),
		Entry{Kind: KindHardLink, Path: "h", Target: "g"},
		regular("f", 0), // the first name of 8 is replaced
	)
	if err != nil {
		t.Fatal(err)
	}
	up, err := layerOf(t, BuilderOptions{}, Entry{Kind: KindHardLink, Path: "z", Target: "d/b"}, Entry{Kind: KindWhiteout, Path: "a"})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Merge(context.Background(), "", l, up)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var got []string
	for id := Root + 1; int(id) < tr.Len(); id++ {
		n, err := tr.Node(id)
		if err != nil {
			t.Fatal(err)
		}
		first, err := tr.Node(n.Inode)
		if err != nil {
			t.Fatal(err)
		}
		var refs []chunk.Ref
		for r, err := range tr.Refs(&n) {
			if err != nil {
				t.Fatal(err)
			}
			refs = append(refs, r)
		}
		got = append(got, fmt.Sprintf("%s %s %d%v", n.Name, first.Name, n.UID, refs))
	}
	want := []string{
		"c c 0[{1 5}]", "d d 0[]", "b b 9[{1 5}]", "e e 0[{1 5}]", "f f 0[{1 5}]",
		"g g 8[{1 5}]", "h g 8[{1 5}]", "z b 9[{1 5}]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

func TestBuilderRefuses(t *testing.T) {
	for name, e := range map[string]Entry{
		"a path that is not clean":  regular("a//b", 0),
		"a path that is absolute":   regular("/a", 0),
		"a path that leads out":     regular("a/../../b", 0),
		"a long name":               regular(strings.Repeat("n", 256), 0),
		"a long path":               regular(strings.Repeat("nnn/", 20000)+"x", 0),
		"NUL in a path":             regular("a\x00b", 0),
		"a root that is a file":     regular("", 0),
		"a root that is a link":     {Kind: KindHardLink, Target: "a"},
		"a whiteout of the root":    {Kind: KindWhiteout},
		"no type":                   {Path: "a", Attr: Attr{Mode: 0o644}},
		"a whole second of ns":      {Path: "a", Attr: Attr{Mode: TypeFifo, MtimeNsec: 1e9}},
		"more than 2^63 bytes":      {Path: "a", Attr: Attr{Mode: TypeFile, Size: 1 << 63}},
		"a symlink to NUL":          {Path: "a", Attr: Attr{Mode: TypeLink}, Target: "\x00"},
		"a hard link to nothing":    {Kind: KindHardLink, Path: "a"},
		"a hard link to a NUL name": {Kind: KindHardLink, Path: "a", Target: "b\x00"},
	} {
		e.Name = "its name"
		_, err := layerOf(t, BuilderOptions{}, e)
		var refused *EntryError
		if !errors.As(err, &refused) || refused.Name != "its name" {
			t.Errorf("%s: got %v, want an EntryError with the source's name", name, err)
		}
	}
}

func TestFilesOfManyChunks(t *testing.T) {
	b, err := NewBuilder(BuilderOptions{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	sizes := []int{0, 1, 2, 3, 511, 512, 513, 20000, 1}
	for i, n := range sizes {
		e := regular(fmt.Sprintf("f%d", i), 0)
		refs := func(yield func(chunk.Ref) bool) {
			for k := range n {
				if !yield(chunk.Ref{Blob: uint32(i), Index: uint32(k)}) {
					return
				}
			}
		}
		if err := b.Add(&e, refs); err != nil {
			t.Fatal(err)
		}
	}
	l, err := b.Layer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Layer(); err == nil {
		t.Error("second layer of a builder: got no error")
	}
	tr, err := Merge(context.Background(), t.TempDir(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for i, n := range sizes {
		node := lookup(t, tr, fmt.Sprintf("/f%d/", i))
		k := 0
		for ref, err := range tr.Refs(&node) {
			if err != nil || ref != (chunk.Ref{Blob: uint32(i), Index: uint32(k)}) {
				t.Fatalf("file %d, chunk %d: got %v, %v", i, k, ref, err)
			}
			k++
		}
		if k != n || node.Chunks.N() != n {
			t.Errorf("file %d: %d chunks, N says %d, want %d", i, k, node.Chunks.N(), n)
		}
		for range tr.Refs(&node) {
			break // who has enough may leave
		}
	}
	if _, ok, err := tr.Lookup("f0/x"); ok || err != nil {
		t.Errorf("what is not there: found %t, %v", ok, err)
	}
}

func overlayEntry(name string, kind byte, mode int64, xattrs map[string]string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Mode: mode, Format: tar.FormatPAX, PAXRecords: xattrs}, ""}
}

func TestWhiteoutSpecs(t *testing.T) {
	lower := pack(t, dir("d"), file("d/low", "1"), file("f", "2"), dir("e"), file("e/low", "3"))
	opaque := map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.kept": "k"}
	upper := pack(t,
		overlayEntry("f", tar.TypeChar, 0, nil),
		overlayEntry("d/", tar.TypeDir, 0o700, opaque),
		overlayEntry("e/", tar.TypeDir, 0o700, map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "n"}),
		file("d/up", "4"), file("e/.wh.low", ""), file("e/.wh..wh..opq", ""),
	)
	for spec, want := range map[Whiteouts][]string{
		WhiteoutOverlay: {"d/", "d/up 4", "e/", "e/.wh..wh..opq ", "e/.wh.low ", "e/low 3"},
		WhiteoutNone:    {"d/", "d/low 1", "d/up 4", "e/", "e/.wh..wh..opq ", "e/.wh.low ", "e/low 3", "f 20000"},
		WhiteoutOCI:     {"d/", "d/low 1", "d/up 4", "e/", "f 20000"},
	} {
		var files memory
		var layers []*Layer
		for _, data := range [][]byte{lower, upper} {
			l, err := ReadTar(context.Background(), bytes.NewReader(data), &files, ReadOptions{Whiteouts: spec})
			if err != nil {
				t.Fatal(err)
			}
			layers = append(layers, l)
		}
		tr, err := Merge(context.Background(), "", layers...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, list(t, tr, &files)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", spec, diff)
		}
		xattrs := []Xattr{{"trusted.overlay.opaque", "y"}, {"user.kept", "k"}}
		if spec == WhiteoutOverlay {
			xattrs = xattrs[1:]
		}
		if diff := cmp.Diff(xattrs, lookup(t, tr, "d").Xattrs); diff != "" {
			t.Errorf("%v: xattrs (-want +got):\n%s", spec, diff)
		}
		tr.Close()
	}
}

// libarchive writes xattrs in base64, alone or beside the other form.
func TestLibarchiveXattrs(t *testing.T) {
	data := pack(t, file("x", ""))
	data = setPAX(t, data, map[string]string{
		"LIBARCHIVE.xattr.user.a":       "AAEC/w",
		"LIBARCHIVE.xattr.user.padded":  "Zg==",
		"LIBARCHIVE.xattr.user.two%20w": "",
		"LIBARCHIVE.xattr.user.both":    "Zg",
		"SCHILY.xattr.user.both":        "f",
	})
	tr, err := merge(&memory{}, Limits{}, data)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	want := []Xattr{{"user.a", "\x00\x01\x02\xff"}, {"user.both", "f"}, {"user.padded", "f"}, {"user.two w", ""}}
	if diff := cmp.Diff(want, lookup(t, tr, "x").Xattrs); diff != "" {
		t.Errorf("xattrs (-want +got):\n%s", diff)
	}
	for key, value := range map[string]string{"user.a": "no base64!", "user.%zz": "Zg"} {
		data := setPAX(t, pack(t, file("x", "")), map[string]string{"LIBARCHIVE.xattr." + key: value})
		if _, err := merge(&memory{}, Limits{}, data); !errors.Is(err, ErrRefused) {
			t.Errorf("%s=%s: got %v, want %v", key, value, err, ErrRefused)
		}
	}
}

func TestNamesInErrors(t *testing.T) {
	for _, o := range []op{opNode, opWhiteout, opOpaque} {
		for _, path := range []string{"", "a", "a/b", "dir/a"} {
			for _, name := range []string{"", "a", "./a", "/a", "a/", "./a/b/", "/a/b/", "a//b", "x/./a", "d/.wh.a", "a/.wh.b", ".wh..wh..opq", "./a/.wh..wh..opq", "\x01"} {
				packed := packName(o, path, name)
				if got := unpackName(o, path, packed); got != name {
					t.Errorf("op %d, path %q, name %q: got %q from %q", o, path, name, got, packed)
				}
			}
		}
	}
}

// Who turns a folder into a file and back without end does not fill the memory.
func TestTurnsAreBounded(t *testing.T) {
	b, err := NewBuilder(BuilderOptions{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for i := range maxTurns + 2 {
		e := Entry{Path: "a", Attr: Attr{Mode: TypeFifo}}
		if i%2 == 1 {
			e.Mode = TypeDir
		}
		if err := b.Add(&e, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Layer(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("got %v, want the entry refused", err)
	}
}

func TestMergeStops(t *testing.T) {
	l, err := layerOf(t, BuilderOptions{}, regular("a", 0))
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	if _, err := Merge(ctx, "", l); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	if _, err := l.xattrs.Append(nil); err == nil {
		if _, err := l.refs.Append([]byte("x")); err == nil {
			t.Error("a layer that was taken over is not closed")
		}
	}
}

// Lookups find what is there and nothing else, in whatever order they come.
func TestLookup(t *testing.T) {
	var entries []Entry
	paths := map[string]bool{}
	for i := range 600 {
		p := fmt.Sprintf("d%d/f%d", i%3, i*7)
		if i%50 == 0 {
			p = fmt.Sprintf("d%d/sub%d/f", i%3, i)
		}
		paths[p] = true
		entries = append(entries, regular(p, 0))
	}
	l, err := layerOf(t, BuilderOptions{}, entries...)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Merge(context.Background(), "", l)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	try := func(p string) {
		t.Helper()
		n, ok, err := tr.Lookup(p)
		if err != nil || ok != paths[p] || ok && !strings.HasSuffix(p, "/"+n.Name) {
			t.Errorf("%q: got %q, %t, %v, want it there: %t", p, n.Name, ok, err, paths[p])
		}
	}
	sorted := slices.Sorted(maps.Keys(paths))
	for _, p := range sorted {
		try(p)
		try(p + "0000")
	}
	for i := range sorted {
		try(sorted[len(sorted)-1-i])
		try(sorted[i*7919%len(sorted)])
		try(sorted[i] + "/x")
	}
}
