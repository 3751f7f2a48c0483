package export_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// build makes an image of a tar.
func build(t testing.TB, version int, r io.Reader) rafstest.Case {
	t.Helper()
	dir := t.TempDir()
	c, err := buildIn(t, dir, version, r)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func buildIn(t testing.TB, dir string, version int, r io.Reader) (_ rafstest.Case, err error) {
	format := write.Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd}
	data, err := os.Create(filepath.Join(dir, "blob"))
	if err != nil {
		return rafstest.Case{}, err
	}
	defer data.Close()
	out := bufio.NewWriterSize(data, 128<<10)
	w, err := write.NewBlob(out, write.BlobOptions{Format: format, Version: version, TOC: version == 6, Packed: version == 5})
	if err != nil {
		return rafstest.Case{}, err
	}
	cutter, err := chunk.NewCutter(t.Context(), chunk.NewPool(1, 1, blob.DefaultChunkSize), w,
		chunk.Options{Compressor: format.Compressor, TempDir: dir, Packed: version == 5})
	if err != nil {
		return rafstest.Case{}, err
	}
	layer, err := tree.ReadTar(t.Context(), r, cutter, tree.ReadOptions{TempDir: dir})
	table, _, cerr := cutter.Close()
	if err = errors.Join(err, cerr); err != nil {
		return rafstest.Case{}, err
	}
	defer table.Close()
	var infos []*write.BlobInfo
	if table.Len() > 0 {
		info, err := w.Finish(write.Contents{Table: table})
		if err != nil {
			return rafstest.Case{}, err
		}
		infos = append(infos, info)
		err = errors.Join(out.Flush(), os.Rename(data.Name(), filepath.Join(dir, info.ID)))
		if err != nil {
			return rafstest.Case{}, err
		}
	} else {
		infos = append(infos, nil)
	}
	c := rafstest.Case{Name: "built", Bootstrap: filepath.Join(dir, "image.boot"), Blobs: rafstest.Blobs{dir}}
	return c, bootstrap(t, c.Bootstrap, layer, infos, write.Options{Format: format, Version: version, TempDir: dir})
}

func bootstrap(t testing.TB, path string, layer *tree.Layer, infos []*write.BlobInfo, o write.Options) error {
	tr, err := tree.Merge(t.Context(), o.TempDir, layer)
	if err != nil {
		return err
	}
	defer tr.Close()
	plan, err := write.New(tr, infos, o)
	if err != nil {
		return err
	}
	defer plan.Close()
	boot, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(boot, 128<<10)
	return errors.Join(write.Bootstrap(w, plan), w.Flush(), boot.Close())
}

// A tar made of an image is that image again: built anew it shows the same tree
// and comes out as the same bytes.
func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"v6-zstd-blake3", "v5-zstd-blake3", "v6-batch-1m", "v6-layers", "v6-bigdir", "v6-targz-ref", "v6-tar-tarfs"} {
		c := named(t, every(t), name)
		im, d := open(t, c)
		want, _ := withoutSockets(shows(t, c, im))
		// The root of v5 has no time.
		for version, o := range map[int]export.UnpackOptions{6: {}, 5: {NoRoot: true}} {
			first, _ := unpack(t, im, d, o)
			again := build(t, version, bytes.NewReader(first))
			im2, d2 := open(t, again)
			rafstest.Compare(t, want, rafstest.Tree(im2, again.Blobs))
			second, _ := unpack(t, im2, d2, o)
			if !bytes.Equal(first, second) {
				t.Errorf("%s through v%d: %d bytes, want the same %d", name, version, len(second), len(first))
			}
		}
	}
}

// odd is what tar programs seldom write, in the order of paths, as pax.
func odd() []*tar.Header {
	long := strings.Repeat("long/", 40) + strings.Repeat("n", 255)
	at := time.Unix(1700000000, 123456789)
	xattr := func(name, value string) map[string]string { return map[string]string{"SCHILY.xattr." + name: value} }
	out := []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o1755, Uid: 7, ModTime: time.Unix(5, 6), PAXRecords: xattr("user.root", "r")},
		{Name: "char", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 4095, Devminor: 1<<20 - 1},
		{Name: "empty", Typeflag: tar.TypeReg, Mode: 0o4755},
		{Name: "empty2", Typeflag: tar.TypeLink, Linkname: "empty"},
		{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o622},
		{Name: "fifo2", Typeflag: tar.TypeLink, Linkname: "fifo"},
		{Name: "late", Typeflag: tar.TypeReg, ModTime: time.Unix(1<<40, 999999999)},
		{Name: "line\nfeed = 30 %3D", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "to \xff\xfe\nnowhere", Mode: 0o777},
		{Name: "link2", Typeflag: tar.TypeLink, Linkname: "link"},
		{Name: "not-utf8-\xff\xfe", Typeflag: tar.TypeReg},
		{Name: "old", Typeflag: tar.TypeReg, ModTime: time.Unix(-86400*365*100, 500)},
		{Name: "owner", Typeflag: tar.TypeReg, Uid: 1<<32 - 2, Gid: 1<<32 - 2},
		{Name: "xattrs", Typeflag: tar.TypeReg, PAXRecords: map[string]string{
			"SCHILY.xattr.user.a%3Db": "1=2\n3 a=b\n", "SCHILY.xattr.user.p%25c": "\x00\xff", "SCHILY.xattr.user.none": "",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02",
		}},
	}
	dir := ""
	for part := range strings.SplitSeq(strings.TrimSuffix(long, long[200:]), "/") {
		if part == "" {
			break
		}
		dir += part + "/"
		out = append(out, &tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o700})
	}
	out = append(out, &tar.Header{Name: long, Typeflag: tar.TypeReg, Mode: 0o644})
	for _, h := range out {
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = at
		}
	}
	return out
}

// What is odd comes out of an image as it went in.
func TestUnpackOddities(t *testing.T) {
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	want := map[string]*tar.Header{}
	for _, h := range odd() {
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		want[h.Name] = h
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, version := range []int{5, 6} {
		im, d := open(t, build(t, version, bytes.NewReader(in.Bytes())))
		got, _ := unpack(t, im, d, export.UnpackOptions{})
		left := maps.Clone(want)
		for tr := tar.NewReader(bytes.NewReader(got)); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			w, ok := left[h.Name]
			if !ok {
				t.Errorf("v%d: %q is new", version, h.Name)
				continue
			}
			// The root of v5 has no time, and only regular files of it have several names.
			without := version == 5 && (h.Name == "./" || h.Name == "fifo2" || h.Name == "link2")
			if d := differs(h, w); d != "" && !without {
				t.Errorf("v%d: %q: %s", version, h.Name, d)
			}
			delete(left, h.Name)
		}
		for name := range left {
			t.Errorf("v%d: %q is gone", version, name)
		}
	}
}

func differs(got, want *tar.Header) string {
	if got.Typeflag != want.Typeflag || got.Linkname != want.Linkname {
		return "got type " + string(got.Typeflag) + " to " + got.Linkname
	}
	if want.Typeflag == tar.TypeLink {
		return "" // the rest is the target's
	}
	switch {
	case got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid:
		return "other mode or owner"
	case !got.ModTime.Equal(want.ModTime):
		return "got time " + got.ModTime.String()
	case got.Devmajor != want.Devmajor || got.Devminor != want.Devminor:
		return "other device"
	}
	for name, value := range want.PAXRecords {
		if v, ok := got.PAXRecords[name]; !ok || v != value {
			return "other " + name
		}
	}
	for name := range got.PAXRecords {
		if _, ok := want.PAXRecords[name]; !ok && strings.HasPrefix(name, "SCHILY.xattr.") {
			return "new " + name
		}
	}
	return ""
}
