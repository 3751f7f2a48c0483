package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The layer holds all that the folder has: names, hard links, long targets, times,
// extended attributes.
func TestWriteLayer(t *testing.T) {
	tree := t.TempDir()
	file := filepath.Join(tree, "d", "file")
	long := strings.Repeat("x/", 200)
	must(t, os.Mkdir(filepath.Join(tree, "d"), 0o750))
	must(t, os.WriteFile(file, []byte("content"), 0o640))
	must(t, os.Link(file, filepath.Join(tree, "e")))
	must(t, os.Symlink(long, filepath.Join(tree, "l")))
	must(t, os.Chtimes(file, time.Time{}, time.Unix(1e9, 123)))
	xattr := unix.Lsetxattr(file, "user.key", []byte{0, 1, '='}, 0) == nil
	packed := filepath.Join(t.TempDir(), "layer")
	must(t, writeLayer(t.Context(), tree, packed))

	got := map[string]*tar.Header{}
	for _, h := range headers(t, packed) {
		got[strings.TrimSuffix(h.Name, "/")] = h
	}
	if len(got) != 4 || got["d"].Mode != 0o750 || got["d"].Typeflag != tar.TypeDir {
		t.Fatalf("entries = %v, want d, d/file, e and l", got)
	}
	f := got["d/file"]
	if f.Size != 7 || f.Mode != 0o640 || f.ModTime.UnixNano() != 1e18+123 || f.Uid != os.Getuid() {
		t.Errorf("d/file = %+v, want 7 bytes, mode 0640, its own time to the nanosecond", f)
	}
	if want := string([]byte{0, 1, '='}); xattr && f.PAXRecords["SCHILY.xattr.user.key"] != want {
		t.Errorf("records = %q, want user.key", f.PAXRecords)
	}
	if e := got["e"]; e.Typeflag != tar.TypeLink || e.Linkname != "d/file" {
		t.Errorf("e = %c to %q, want a hard link to d/file", e.Typeflag, e.Linkname)
	}
	if l := got["l"]; l.Typeflag != tar.TypeSymlink || l.Linkname != long {
		t.Errorf("l = %c to %q, want a symlink to %q", l.Typeflag, l.Linkname, long)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := writeLayer(ctx, tree, packed); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want context.Canceled", err)
	}
}

func headers(t *testing.T, packed string) (out []*tar.Header) {
	t.Helper()
	f, err := os.Open(packed)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		out = append(out, h)
	}
}

// What stands for an image's metadata is found in the last layer, or it is an error.
func TestTakeBootstrap(t *testing.T) {
	tree, folder := t.TempDir(), filepath.Join(t.TempDir(), "oci")
	must(t, os.Mkdir(filepath.Join(tree, "image"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, bootstrapName), []byte("metadata"), 0o644))
	must(t, packTree(t.Context(), tree, folder))
	out := filepath.Join(t.TempDir(), "image.boot")
	must(t, takeBootstrap(folder, out))
	if got, err := os.ReadFile(out); err != nil || string(got) != "metadata" {
		t.Errorf("bootstrap = %q, %v, want metadata", got, err)
	}
	if err := takeBootstrap(t.TempDir(), out); err == nil {
		t.Error("an empty folder gave a bootstrap")
	}
	if err := extract(bytes.NewReader(make([]byte, 1024)), bootstrapName, out); !errors.Is(err, io.EOF) {
		t.Errorf("empty archive: %v, want io.EOF", err)
	}
}

// Figures stand beside what they are to be.
func TestAims(t *testing.T) {
	r := &report{
		Servers: []*serverReport{{Name: "rafsd", ListenMS: 12, Memory: memoryUse{RSS: 31e6}}, {Name: "nydusd", Peer: true}},
		Density: []densityReport{{Server: "rafsd", Daemons: 40, PSS: 15e6}},
		Rows: []rowReport{
			{Name: "A", Cells: []cellReport{{ToNydusd: 1.2}}}, {Name: "B", Cells: []cellReport{{ToNydusd: 0.79}}},
		},
	}
	var b strings.Builder
	r.printAims(&b)
	var verdicts []string
	for line := range strings.Lines(b.String()) {
		f := strings.Fields(line)
		if len(f) > 0 && !strings.HasPrefix(line, "aims") {
			verdicts = append(verdicts, f[0]+" "+f[len(f)-1])
		}
	}
	if got, want := strings.Join(verdicts, ", "), "exec met, RSS missed, PSS met, lowest missed"; got != want {
		t.Errorf("verdicts = %s, want %s:\n%s", got, want, &b)
	}
}

// Images of earlier builds go, nothing else does.
func TestRemoveOthers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"image-x", "image-x-rafsd-1", "image-x-rafsd-2"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	must(t, removeOthers(filepath.Join(dir, "image-x-rafsd-"), filepath.Join(dir, "image-x-rafsd-2")))
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || filepath.Base(left[0]) != "image-x" || filepath.Base(left[1]) != "image-x-rafsd-2" {
		t.Errorf("left = %q, %v, want image-x and image-x-rafsd-2", left, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
