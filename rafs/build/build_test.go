package build

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func put(t testing.TB, dir, name string, content []byte) {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, content, 0o644))
}

// noise is data that does not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func text(n int, what string) []byte { return []byte(strings.Repeat(what, n/len(what)+1)[:n]) }

// source makes a folder with files of many sizes, and one of everything else that
// needs no root.
func source(t testing.TB) string {
	t.Helper()
	d := t.TempDir()
	for i, n := range []int{0, 1, 15, 16, 4095, 4096, 4097, 70000, 1 << 20, 1<<20 + 1, 3<<20 + 500} {
		put(t, d, fmt.Sprintf("sizes/%d", n), noise(uint64(i), n))
		put(t, d, fmt.Sprintf("text/%d", n), text(n, fmt.Sprintf("line %d of it\n", i)))
	}
	for i := range 200 {
		put(t, d, fmt.Sprintf("many/%03d", i), text(i*7, "small "))
	}
	must(t,
		os.Link(filepath.Join(d, "sizes/70000"), filepath.Join(d, "text/link")),
		os.Symlink("../sizes/15", filepath.Join(d, "text/sym")),
		unix.Mkfifo(filepath.Join(d, "fifo"), 0o640),
		os.WriteFile(filepath.Join(d, "\xfe\nname"), []byte("odd"), 0o400),
		os.MkdirAll(filepath.Join(d, "empty/er"), 0o711),
		unix.Setxattr(filepath.Join(d, "sizes/1"), "user.a", []byte("b\n\x00"), 0),
	)
	return d
}

// dirEntries are what an image of a folder must show.
func dirEntries(t testing.TB, dir string) []rafstest.Entry {
	t.Helper()
	var want []rafstest.Entry
	for e, err := range rafstest.Dir(dir) {
		must(t, err)
		want = append(want, e)
	}
	return want
}

func openTest(t testing.TB, path string) *image.Image {
	t.Helper()
	im, err := image.Open(path, image.Options{})
	must(t, err)
	t.Cleanup(func() { im.Close() })
	return im
}

// compare holds an image against what it must show, and reads all its data.
func compare(t testing.TB, bootstrap string, blobs []string, want []rafstest.Entry) {
	t.Helper()
	rafstest.Compare(t, want, rafstest.Tree(openTest(t, bootstrap), rafstest.Blobs(blobs)))
}

// options begin a build into a folder of its own.
func options(t testing.TB, src string) Options {
	t.Helper()
	o := Defaults()
	o.Source, o.BlobDir, o.TempDir = src, t.TempDir(), t.TempDir()
	o.Bootstrap = filepath.Join(o.BlobDir, "image.boot")
	return o
}

func create(t testing.TB, o Options) *Result {
	t.Helper()
	r, err := Create(context.Background(), o)
	must(t, err)
	return r
}

// files are the names in a folder, without what the test did not ask for.
func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// flavours are the ways in which a folder can become an image.
func flavours() map[string]func(*Options) {
	m := map[string]func(*Options){
		"v6 lz4":      func(o *Options) { o.Compressor = blob.CompressorLZ4Block },
		"v6 none":     func(o *Options) { o.Compressor = blob.CompressorNone },
		"v6 sha256":   func(o *Options) { o.Digester = blob.DigesterSHA256 },
		"v6 4k":       func(o *Options) { o.ChunkSize = 4096 },
		"v6 16m":      func(o *Options) { o.ChunkSize = 16 << 20 },
		"v6 toc":      func(o *Options) { o.TOC = true },
		"v6 inline":   func(o *Options) { o.InlineMeta, o.Bootstrap = true, "" },
		"v6 both":     func(o *Options) { o.InlineMeta, o.TOC, o.Bootstrap = true, true, "" },
		"v6 batch":    func(o *Options) { o.BatchSize = 1 << 20 },
		"v6 batch64k": func(o *Options) { o.BatchSize, o.Compressor = 64<<10, blob.CompressorLZ4Block },
		"v6 encrypt":  func(o *Options) { o.Encrypt, o.Cipher = true, testKey() },
		"v6 secret":   func(o *Options) { o.Encrypt, o.Cipher, o.BatchSize, o.TOC = true, testKey(), 1<<18, true },
		"v6 first": func(o *Options) {
			o.Prefetch = Prefetch{PrefetchFS, []string{"/text", "relative", "/nope", "/many/007"}}
		},
		"v6 blob": func(o *Options) { o.Prefetch = Prefetch{PrefetchBlob, []string{"/many"}} },
		"v5":      func(o *Options) { o.Version = 5 },
		"v5 lz4": func(o *Options) {
			o.Version, o.Compressor, o.Digester = 5, blob.CompressorLZ4Block, blob.DigesterSHA256
		},
		"v5 aligned": func(o *Options) { o.Version, o.AlignedChunks = 5, true },
		"v5 inline":  func(o *Options) { o.Version, o.InlineMeta, o.Bootstrap = 5, true, "" },
		"v5 blob":    func(o *Options) { o.Version, o.Prefetch = 5, Prefetch{PrefetchBlob, []string{"/many", "/text"}} },
		"v6":         func(*Options) {},
	}
	return m
}

func testKey() *write.Cipher {
	k := &write.Cipher{}
	copy(k.Key[:], noise(1, 32))
	copy(k.IV[:], noise(2, 16))
	return k
}

// Each flavour shows the folder that it was made of; another run, with another
// number of workers, gives the same bytes.
func TestFlavours(t *testing.T) {
	src := source(t)
	want := dirEntries(t, src)
	for name, change := range flavours() {
		t.Run(name, func(t *testing.T) {
			o := options(t, src)
			change(&o)
			r := create(t, o)
			at := r.Bootstrap
			if o.InlineMeta {
				at = filepath.Join(o.BlobDir, r.Blob)
			}
			compare(t, at, []string{o.BlobDir}, want)
			if r.Version != o.Version || len(r.Blobs) != 1 || r.Blobs[0] != r.Blob || r.BlobSize == 0 || r.Inodes != len(want) || r.Names != len(want)+1 {
				// The root is an inode, and one file has two names.
				t.Errorf("result %+v, want version %d, one blob, %d inodes", r, o.Version, len(want))
			}
			again := o
			again.Workers, again.BlobDir = 3, t.TempDir()
			if o.Bootstrap != "" {
				again.Bootstrap = filepath.Join(again.BlobDir, "image.boot")
			}
			create(t, again)
			sameFiles(t, o.BlobDir, again.BlobDir)
		})
	}
}

func sameFiles(t testing.TB, a, b string) {
	t.Helper()
	names := files(t, a)
	if got := files(t, b); strings.Join(got, " ") != strings.Join(names, " ") {
		t.Fatalf("files %q and %q, want the same", names, got)
	}
	for _, name := range names {
		x, err := os.ReadFile(filepath.Join(a, name))
		must(t, err)
		y, err := os.ReadFile(filepath.Join(b, name))
		must(t, err)
		if !bytes.Equal(x, y) {
			t.Errorf("%s: %d and %d bytes, not the same", name, len(x), len(y))
		}
	}
}

// A tree of n files, each with something of its own.
func layerDir(t testing.TB, names map[string]string) string {
	t.Helper()
	d := t.TempDir()
	for name, content := range names {
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(filepath.Join(d, name), 0o755))
			continue
		}
		put(t, d, name, []byte(content))
	}
	return d
}

// paths lists an image.
func paths(t testing.TB, bootstrap string) []string {
	t.Helper()
	im := openTest(t, bootstrap)
	var got []string
	var walk func(dir string, node uint64)
	walk = func(dir string, node uint64) {
		must(t, im.ReadDir(node, 0, func(d image.Dirent) bool {
			if name := string(d.Name); name != "." && name != ".." {
				got = append(got, strings.TrimPrefix(dir+"/"+name, "/"))
				if d.Type == tree.TypeDir {
					walk(dir+"/"+name, d.Node)
				}
			}
			return true
		}))
	}
	walk("", image.Root)
	return got
}
