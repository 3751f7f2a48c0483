package export_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// every lists all images that there are: those that live with rafstest, and all
// that nydus-image made.
func every(t testing.TB) []rafstest.Case {
	t.Helper()
	out := rafstest.Nydus(t)
	for _, c := range rafstest.Core(t) {
		if !slices.ContainsFunc(out, func(o rafstest.Case) bool { return o.Name == c.Name }) {
			out = append(out, c)
		}
	}
	return out
}

func named(t testing.TB, cases []rafstest.Case, name string) rafstest.Case {
	t.Helper()
	for _, c := range cases {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no image %s", name)
	return rafstest.Case{}
}

// open opens an image with its data.
func open(t testing.TB, c rafstest.Case) (*image.Image, *export.Data) {
	t.Helper()
	im, err := image.Open(c.Bootstrap, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im, data(t, im, c.Blobs)
}

func data(t testing.TB, im *image.Image, dirs rafstest.Blobs) *export.Data {
	t.Helper()
	b, err := localfs.New(dirs[0], dirs[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	d, err := export.NewData(im, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return d
}

// readTar makes the entries of a tar those of a tree: what a further name of a
// hard link lacks is that of the first. The root is left out.
func readTar(t testing.TB, r io.Reader) []rafstest.Entry {
	t.Helper()
	var out []rafstest.Entry
	at := map[string]int{}
	links := map[int][]int{} // by the first, its further names
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d entries: %v", len(out), err)
		}
		if h.Name == "./" {
			continue
		}
		path := "/" + strings.TrimSuffix(h.Name, "/")
		if h.Typeflag == tar.TypeLink {
			first, ok := at["/"+h.Linkname]
			if !ok {
				t.Fatalf("%q: hard link to %q, which is not before it", h.Name, h.Linkname)
			}
			links[first] = append(links[first], len(out))
			out = append(out, rafstest.Entry{Path: path})
			continue
		}
		at[path] = len(out)
		out = append(out, tarEntry(t, tr, h, path))
	}
	for first, more := range links {
		out[first].Nlink += uint32(len(more))
		for _, i := range more {
			path := out[i].Path
			out[i] = out[first]
			out[i].Path = path
		}
	}
	return out
}

var modes = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

func tarEntry(t testing.TB, r io.Reader, h *tar.Header, path string) rafstest.Entry {
	t.Helper()
	e := rafstest.Entry{
		Path: path, Mode: modes[h.Typeflag] | uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Nlink: 1,
		Mtime: h.ModTime.Unix(), MtimeNsec: uint32(h.ModTime.Nanosecond()), Link: h.Linkname, Size: uint64(h.Size),
	}
	switch h.Typeflag {
	case tar.TypeReg:
		hash := sha256.New()
		if _, err := io.Copy(hash, r); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		e.SHA256 = hex.EncodeToString(hash.Sum(nil))
	case tar.TypeSymlink:
		e.Size = uint64(len(h.Linkname))
	case tar.TypeChar, tar.TypeBlock:
		e.Rdev = uint32(h.Devminor)&0xff | uint32(h.Devmajor)<<8 | uint32(h.Devminor)&^0xff<<12
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[strings.NewReplacer("%3D", "=", "%25", "%").Replace(name)] = v
	}
	return e
}

// each turns a list into what rafstest.Compare takes.
func each(entries []rafstest.Entry) iter.Seq2[rafstest.Entry, error] {
	return func(yield func(rafstest.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// shows is what an image shows, by its manifest or, without one, by itself.
func shows(t testing.TB, c rafstest.Case, im *image.Image) []rafstest.Entry {
	t.Helper()
	if c.Want != nil {
		return c.Want
	}
	var out []rafstest.Entry
	for e, err := range rafstest.Tree(im, c.Blobs) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// withoutSockets drops what a tar cannot hold.
func withoutSockets(entries []rafstest.Entry) (out []rafstest.Entry, sockets int64) {
	for _, e := range entries {
		if e.Mode&unix.S_IFMT == unix.S_IFSOCK {
			sockets++
			continue
		}
		out = append(out, e)
	}
	return out, sockets
}

// command runs a program and returns what it printed.
func command(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	path := testenv.NeedsTool(t, name)[0]
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

// run is command for a program that must not fail.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// save writes a file into the test's folder.
func save(t testing.TB, name string, p []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func unpack(t testing.TB, im *image.Image, d *export.Data, o export.UnpackOptions) ([]byte, export.Stats) {
	t.Helper()
	var out bytes.Buffer
	stats, err := export.Unpack(t.Context(), im, d, &out, o)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), stats
}
