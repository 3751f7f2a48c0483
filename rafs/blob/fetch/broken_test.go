package fetch_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// Whatever the cache's files answer, readers get right bytes; once the cache
// works again, it is used again.
func TestBrokenCache(t *testing.T) {
	on := func(op, ext string, err error) func(string, string) error {
		return func(o, name string) error {
			if o == op && strings.HasSuffix(name, ext) {
				return err
			}
			return nil
		}
	}
	for name, fail := range map[string]func(op, name string) error{
		"no space":            on("pwrite", ".data", syscall.ENOSPC),
		"no space for map":    on("pwrite", ".map", syscall.ENOSPC),
		"quota":               on("pwrite", ".data", syscall.EDQUOT),
		"error on write":      on("pwrite", ".data", syscall.EIO),
		"error on read":       on("preadv", ".data", syscall.EIO),
		"error on read map":   on("preadv", ".map", syscall.EIO),
		"everything is wrong": func(string, string) error { return syscall.EIO },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImage(t, blob.CompressorLZ4Block, blob.DigesterBlake3, repeat(10, 20_000)...)
				f := newFolder()
				e := engine(t, im, fetch.Options{Cache: cache.New(f)})
				segs, want := im.whole(0, 10)
				if err := read(t, t.Context(), e, segs[:5], want[:5*20_000]); err != nil {
					t.Fatal(err)
				}
				f.failWith(fail)
				for range 3 {
					if err := read(t, t.Context(), e, segs, want); err != nil {
						t.Errorf("with the fault: %v", err)
					}
				}
				// A map that cannot be read is a map without chunks.
				if s := e.Stats(); s.FillErrors+s.CacheErrors == 0 && name != "error on read map" {
					t.Error("no failure of the cache was counted")
				}
				f.failWith(nil)
				time.Sleep(2 * time.Second)
				// What is in memory goes by and by; the cache fills with the rest.
				fresh := engine(t, im, fetch.Options{Cache: cache.New(f)})
				for _, x := range []*fetch.Engine{e, fresh} {
					if err := read(t, t.Context(), x, segs, want); err != nil {
						t.Errorf("after the fault: %v", err)
					}
				}
				checkReady(t, fresh, im)
			})
		})
	}
}

func TestCacheThatCannotBeOpened(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, 20_000)
	f := newFolder()
	f.failWith(func(string, string) error { return syscall.EROFS })
	e := engine(t, im, fetch.Options{Cache: cache.New(f)})
	segs, want := im.whole(0, 1)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Error(err)
	}
	if s := e.Stats(); s.CacheErrors != 1 {
		t.Errorf("%d failures of the cache counted, want 1", s.CacheErrors)
	}
}

// Without a cache, reads in turn of one large chunk fetch it once.
func TestRecentChunks(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(4, 1<<20)...)
	src := &source{data: im.raw}
	e := engine(t, im, fetch.Options{Backend: src, Recent: 2 << 20})
	in := func(k int) {
		t.Helper()
		for off := 0; off < 1<<20; off += 128 << 10 {
			seg := im.segment(k, off, 128<<10)
			if err := read(t, t.Context(), e, []blob.Segment{seg}, im.plain[k][off:off+128<<10]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for k, requests := range []int32{1, 2, 3, 4} {
		in(k)
		if n := src.requests.Load(); n != requests {
			t.Errorf("after chunk %d: %d requests, want %d", k, n, requests)
		}
	}
	in(3) // still there
	in(2)
	if n := src.requests.Load(); n != 4 {
		t.Errorf("the last two chunks again: %d requests, want 4", n)
	}
	in(0) // had to go
	if n := src.requests.Load(); n != 5 {
		t.Errorf("the first chunk again: %d requests, want 5", n)
	}
}

// Two processes, here two engines, on one folder: every byte right, whoever fills.
func TestTwoEnginesOneFolder(t *testing.T) {
	testenv.LeakCheck(t)
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(50, 30_000)...)
	dir := t.TempDir()
	var engines []*fetch.Engine
	for range 2 {
		c, err := cache.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		engines = append(engines, engine(t, im, fetch.Options{Cache: c}))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 3))
			for range 100 {
				i := r.IntN(50)
				segs, want := im.whole(i, min(50, i+1+r.IntN(6)))
				if err := read(t, t.Context(), engines[g%2], segs, want); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range engines {
		segs, want := im.whole(0, 50)
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Error(err)
		}
		checkReady(t, e, im)
	}
}

// The folder goes away, or its files shrink, under an engine that uses it.
func TestFolderRemovedAndFilesCut(t *testing.T) {
	testenv.LeakCheck(t)
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(20, 30_000)...)
	dir := filepath.Join(t.TempDir(), "cache")
	c, err := cache.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := engine(t, im, fetch.Options{Cache: c})
	segs, want := im.whole(0, 20)
	if err := read(t, t.Context(), e, segs[:10], want[:300_000]); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 2 {
		t.Fatalf("files %q, %v, want two", names, err)
	}
	for _, name := range names {
		if err := os.Truncate(name, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := e.ReadReady(im.info, [][]byte{make([]byte, 30_000)}, 0); err == nil {
		t.Errorf("ready read of a file that was cut: %d bytes, want an error", n)
	}
	for range 2 {
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Errorf("files cut: %v", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Errorf("folder removed: %v", err)
	}
	next := engine(t, im, fetch.Options{Cache: c})
	if err := read(t, t.Context(), next, segs, want); err != nil {
		t.Errorf("engine over a removed folder: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(20, 30_000)...)
	c, err := cache.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := engine(t, im, fetch.Options{Cache: c})
	segs, want := im.whole(0, 20)
	for range 2 {
		for k := range segs {
			if err := read(t, t.Context(), e, segs[k:k+1], want[k*30_000:(k+1)*30_000]); err != nil {
				t.Errorf("chunk %d: %v", k, err)
			}
		}
	}
	if s := e.Stats(); s.FillErrors == 0 || s.Fills == 0 || s.Fills > 8 {
		t.Errorf("%d fills and %d failed fills on a disk for 8 of 20 chunks", s.Fills, s.FillErrors)
	}
}

// Memory of the reader that is gone is the reader's matter: what was verified
// stays ready for others.
func TestReaderMemoryGone(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(2, 8192)...)
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := engine(t, im, fetch.Options{Cache: c})
	segs, want := im.whole(0, 2)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Fatal(err)
	}
	gone, err := unix.Mmap(-1, 0, 16384, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(gone) }()
	if _, err := e.ReadReady(im.info, [][]byte{gone}, 0); !errors.Is(err, unix.EFAULT) {
		t.Errorf("ready read: %v, want EFAULT", err)
	}
	if _, err := e.Read(t.Context(), segs, [][]byte{gone}); !errors.Is(err, unix.EFAULT) {
		t.Errorf("read: %v, want EFAULT", err)
	}
	checkReady(t, e, im)
}

// The same while bytes are copied that were just fetched: the fault is the
// reader's panic, and nothing stays in flight.
func TestReaderMemoryGoneDuringCopy(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(8, 8192)...)
	e := engine(t, im, fetch.Options{}) // its cleanup looks for what is left
	gone, err := unix.Mmap(-1, 0, 8*8192, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(gone) }()
	segs, want := im.whole(0, 8)
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if recover() == nil {
				t.Error("a copy to memory that is gone did not fault")
			}
		}()
		_, _ = e.Read(t.Context(), segs, [][]byte{gone})
	}()
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Error(err)
	}
}

// A data file that was cut is never made long again: what is missing would read as
// zeros, and as ready. Neither a fill nor another process does so.
func TestCutFileNeverReadsAsZeros(t *testing.T) {
	for name, regrow := range map[string]func(t *testing.T, e *fetch.Engine, c *cache.Cache, im *image){
		"by a fill": func(t *testing.T, e *fetch.Engine, _ *cache.Cache, im *image) {
			segs, want := im.whole(19, 20)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Errorf("chunk that was not there: %v", err)
			}
		},
		"by another process": func(t *testing.T, _ *fetch.Engine, c *cache.Cache, im *image) {
			other := engine(t, im, fetch.Options{Cache: c})
			segs, want := im.whole(0, 20)
			if err := read(t, t.Context(), other, segs[10:], want[300_000:]); err != nil {
				t.Error(err)
			}
			if !other.Ready(&im.chunks[19]) {
				t.Error("the other process has no use of the cache")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(20, 30_000)...)
			dir := t.TempDir()
			c, err := cache.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			e := engine(t, im, fetch.Options{Cache: c, Amplify: -1})
			segs, want := im.whole(0, 10)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Fatal(err)
			}
			names, err := filepath.Glob(filepath.Join(dir, "*.data"))
			if err != nil || len(names) != 1 {
				t.Fatalf("files %q, %v, want one", names, err)
			}
			if err := os.Truncate(names[0], 0); err != nil {
				t.Fatal(err)
			}
			regrow(t, e, c, im)
			got := make([]byte, 30_000)
			for k := range 10 {
				ready := e.Ready(&im.chunks[k])
				_, err := e.ReadReady(im.info, [][]byte{got}, int64(im.chunks[k].UncompressedOffset))
				if ready && err == nil && !bytes.Equal(got, im.plain[k]) {
					t.Errorf("chunk %d: ready, and wrong", k)
				}
			}
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Error(err)
			}
		})
	}
}
