package export_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/faultserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// Each image comes out as the tree that its manifest says, and always as the
// same bytes.
func TestUnpack(t *testing.T) {
	testenv.LeakCheck(t)
	for _, c := range every(t) {
		t.Run(c.Name, func(t *testing.T) {
			im, d := open(t, c)
			got, stats := unpack(t, im, d, export.UnpackOptions{})
			want, sockets := withoutSockets(shows(t, c, im))
			entries := readTar(t, bytes.NewReader(got))
			rafstest.Compare(t, want, each(entries))
			if stats.Entries != int64(len(want))+1 || stats.Sockets != sockets {
				t.Errorf("%d entries, %d sockets, want %d and %d", stats.Entries, stats.Sockets, len(want)+1, sockets)
			}
			again, _ := unpack(t, im, d, export.UnpackOptions{})
			if !bytes.Equal(got, again) {
				t.Error("other bytes the second time")
			}
		})
	}
}

// The first entry is the root with what the image has of it.
func TestUnpackRoot(t *testing.T) {
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	got, _ := unpack(t, im, d, export.UnpackOptions{})
	h, err := tar.NewReader(bytes.NewReader(got)).Next()
	if err != nil {
		t.Fatal(err)
	}
	a, err := im.Attr(image.Root)
	if err != nil {
		t.Fatal(err)
	}
	if h.Name != "./" || h.Typeflag != tar.TypeDir || uint32(h.Mode) != a.Mode&0o7777 ||
		uint32(h.Uid) != a.UID || h.ModTime.Unix() != a.Mtime || uint32(h.ModTime.Nanosecond()) != a.MtimeNsec {
		t.Errorf("first entry is %+v, root has %+v", h, a)
	}
	without, _ := unpack(t, im, d, export.UnpackOptions{NoRoot: true})
	if h, err := tar.NewReader(bytes.NewReader(without)).Next(); err != nil || h.Name == "./" {
		t.Errorf("without the root: first is %+v, %v", h, err)
	}
}

// Names go up, and the bytes of a file are with the first name of its inode.
func TestUnpackOrder(t *testing.T) {
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	got, stats := unpack(t, im, d, export.UnpackOptions{NoRoot: true})
	var last []string
	links := int64(0)
	for tr := tar.NewReader(bytes.NewReader(got)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(strings.TrimSuffix(h.Name, "/"), "/")
		if slices.Compare(last, parts) >= 0 {
			t.Errorf("%q after %q", parts, last)
		}
		last = parts
		if h.Typeflag == tar.TypeLink {
			links++
			if slices.Compare(strings.Split(h.Linkname, "/"), parts) >= 0 {
				t.Errorf("%q is a link to %q, which comes later", h.Name, h.Linkname)
			}
		}
	}
	if links == 0 || links != stats.HardLinks {
		t.Errorf("%d hard links, stats say %d", links, stats.HardLinks)
	}
}

// GNU tar, run by root, makes the tree out of it.
func TestUnpackGNUTar(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, name := range []string{"v6-zstd-blake3", "v5-zstd-blake3", "v6-layers"} {
		c := named(t, every(t), name)
		im, d := open(t, c)
		got, _ := unpack(t, im, d, export.UnpackOptions{})
		dir := t.TempDir()
		run(t, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", save(t, "image.tar", got), "-C", dir)
		want, _ := withoutSockets(shows(t, c, im))
		rafstest.Compare(t, want, rafstest.Dir(dir))
	}
}

// A layer's bootstrap has whiteouts as entries, and so has the tar.
func TestUnpackWhiteouts(t *testing.T) {
	layers, err := filepath.Glob(filepath.Join(testenv.Fixtures(t), "nydus-made/images/v6-layers/layers/*"))
	if err != nil || len(layers) != 3 {
		t.Fatalf("layers: %q, %v", layers, err)
	}
	found := map[string]bool{}
	for _, path := range layers {
		c := rafstest.Case{Bootstrap: path, Blobs: rafstest.Blobs{filepath.Join(testenv.Fixtures(t), "nydus-made/blobs")}}
		im, err := image.Open(path, image.Options{InlineBlobID: filepath.Base(path)})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := unpack(t, im, data(t, im, c.Blobs), export.UnpackOptions{})
		rafstest.Compare(t, shows(t, c, im), each(readTar(t, bytes.NewReader(got))))
		for _, e := range readTar(t, bytes.NewReader(got)) {
			if base := filepath.Base(e.Path); strings.HasPrefix(base, ".wh.") {
				found[base] = true
			}
		}
		im.Close()
	}
	if len(found) < 2 || !found[".wh..wh..opq"] {
		t.Errorf("whiteouts %v, want several and an opaque one", found)
	}
}

// Progress goes up to the total, which is the bytes of all files.
func TestUnpackProgress(t *testing.T) {
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	var calls [][2]int64
	_, stats := unpack(t, im, d, export.UnpackOptions{Progress: func(done, total int64) { calls = append(calls, [2]int64{done, total}) }})
	if len(calls) < 2 || calls[len(calls)-1] != [2]int64{stats.Bytes, stats.Bytes} {
		t.Fatalf("calls %v, want several up to %d", calls, stats.Bytes)
	}
	for i, c := range calls {
		if c[1] != stats.Bytes || i > 0 && c[0] < calls[i-1][0] {
			t.Errorf("call %d is %v, total %d", i, c, stats.Bytes)
		}
	}
}

// failing takes n bytes.
type failing struct{ n int }

var errFull = errors.New("full")

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// A blob that is missing or bad, a writer that fails, a context that ends: an
// error that says which entry it is about, and nothing left behind.
func TestUnpackErrors(t *testing.T) {
	testenv.LeakCheck(t)
	c := named(t, rafstest.Core(t), "v6-zstd-blake3")
	im, d := open(t, c)
	if _, err := export.Unpack(t.Context(), im, d, &failing{100 << 10}, export.UnpackOptions{}); !errors.Is(err, errFull) {
		t.Errorf("writer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := export.Unpack(ctx, im, d, io.Discard, export.UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
	dir := t.TempDir()
	id := im.Blobs()[0].ID
	raw, err := os.ReadFile(filepath.Join(c.Blobs[0], id))
	if err != nil {
		t.Fatal(err)
	}
	chunk, _ := im.Chunk(0, im.Blobs()[0].ChunkCount-1)
	raw[chunk.CompressedOffset+uint64(chunk.CompressedSize)/2] ^= 0x40
	if err := os.WriteFile(filepath.Join(dir, id), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = export.Unpack(t.Context(), im, data(t, im, rafstest.Blobs{dir}), io.Discard, export.UnpackOptions{})
	if !errors.Is(err, blob.ErrDigest) && !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("flipped bit: %v", err)
	}
	if _, err := export.Unpack(t.Context(), im, data(t, im, rafstest.Blobs{t.TempDir()}), io.Discard, export.UnpackOptions{}); err == nil {
		t.Error("no blob: no error")
	}
}

// Over a registry whose connections break and whose bytes are wrong now and then,
// an image is the same.
func TestUnpackRegistry(t *testing.T) {
	c := named(t, rafstest.Core(t), "v6-layers")
	im, d := open(t, c)
	want, _ := unpack(t, im, d, export.UnpackOptions{})
	s := faultserver.New()
	for _, b := range im.Blobs() {
		s.PutAs(b.ID, read(t, filepath.Join(c.Blobs[0], b.ID)))
	}
	reg, err := registry.New(registry.Options{
		Host: "registry.test", Repo: "r", Scheme: "http", Keychain: authn.NewMultiKeychain(), Dial: faultserver.Serve(t, s),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	for _, f := range []faultserver.Fault{{Kind: faultserver.Truncate, At: 700, Times: 1}, {Kind: faultserver.Flip, At: 50, Times: 1}} {
		defer s.Inject(f)()
		far, err := export.NewData(im, backend.Retry(reg, backend.RetryPolicy{Base: time.Millisecond}), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := unpack(t, im, far, export.UnpackOptions{})
		if !bytes.Equal(got, want) {
			t.Errorf("fault %v: other bytes than from a folder", f.Kind)
		}
		if err := far.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(s.BlobRequests()) == 0 {
		t.Error("nothing came from the registry")
	}
}
