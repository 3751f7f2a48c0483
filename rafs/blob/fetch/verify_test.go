package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

func TestReadEveryFormat(t *testing.T) {
	testenv.LeakCheck(t)
	for _, c := range []blob.Compressor{blob.CompressorNone, blob.CompressorLZ4Block, blob.CompressorZstd} {
		for _, d := range []blob.Digester{blob.DigesterBlake3, blob.DigesterSHA256} {
			t.Run(fmt.Sprintf("%v-%v", c, d), func(t *testing.T) {
				im := newImage(t, c, d, 1, 4096, 5000, 100_000, 7, 1<<20, 4096, 12_345, 1<<20)
				store, err := cache.Open(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				defer store.Close()
				e := engine(t, im, fetch.Options{Cache: store})
				segs, want := im.whole(0, len(im.chunks))
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Fatal(err)
				}
				checkReady(t, e, im)
				// Part of each of some chunks, and a hole between them.
				part := []blob.Segment{im.segment(3, 99_000, 1000), {Length: 50}, im.segment(5, 17, 4096)}
				want = bytes.Join([][]byte{im.plain[3][99_000:], make([]byte, 50), im.plain[5][17:4113]}, nil)
				if err := read(t, t.Context(), e, part, want); err != nil {
					t.Error(err)
				}
				// The next process fetches nothing, and verifies before it believes.
				dead := &source{before: func(context.Context, []byte, int64) (bool, error) {
					return false, backend.ErrUnavailable
				}}
				next := engine(t, im, fetch.Options{Cache: store, Backend: dead})
				for i := range im.chunks {
					if next.Ready(&im.chunks[i]) {
						t.Errorf("chunk %d is ready before this process verified it", i)
					}
				}
				segs, want = im.whole(0, len(im.chunks))
				if err := read(t, t.Context(), next, segs, want); err != nil {
					t.Error(err)
				}
				checkReady(t, next, im)
				if s := next.Stats(); s.Requests != 0 || s.FirstUses != uint64(len(im.chunks)) {
					t.Errorf("second process: %d requests, %d first uses, want 0 and %d", s.Requests, s.FirstUses, len(im.chunks))
				}
			})
		}
	}
}

// checkReady reads every chunk straight from the cache.
func checkReady(t *testing.T, e *fetch.Engine, im *image) {
	t.Helper()
	for i := range im.chunks {
		c := &im.chunks[i]
		if !e.Ready(c) {
			t.Errorf("chunk %d is not ready after it was read", i)
			continue
		}
		dst := pieces(len(im.plain[i]))
		dst = dst[:len(dst)-1]
		if n, err := e.ReadReady(c.Blob, dst, int64(c.UncompressedOffset)); err != nil || n != len(im.plain[i]) {
			t.Errorf("ready chunk %d: %d bytes, %v", i, n, err)
		} else if !bytes.Equal(bytes.Join(dst, nil), im.plain[i]) {
			t.Errorf("ready chunk %d: wrong bytes", i)
		}
	}
}

// Every byte of the blob, inverted in turn, is either without effect on a chunk
// or an error; with and without a cache.
func TestFlippedBlobNeverReachesReader(t *testing.T) {
	for _, c := range []blob.Compressor{blob.CompressorNone, blob.CompressorLZ4Block, blob.CompressorZstd} {
		im := newImage(t, c, blob.DigesterBlake3, 400, 600, 200, 300)
		for _, cached := range []bool{false, true} {
			failed := 0
			for i := range im.raw {
				bad := bytes.Clone(im.raw)
				bad[i] ^= 0x08
				o := fetch.Options{Backend: &source{data: bad}}
				if cached {
					o.Cache = cache.New(newFolder())
				}
				e := engine(t, im, o)
				for k := range im.chunks {
					segs, want := im.whole(k, k+1)
					hit := uint64(i) >= im.chunks[k].CompressedOffset &&
						uint64(i) < im.chunks[k].CompressedOffset+uint64(im.chunks[k].CompressedSize)
					switch err := read(t, t.Context(), e, segs, want); {
					case err == nil: // read compares
					case !hit:
						t.Errorf("%v: byte %d of the blob spoils chunk %d: %v", c, i, k, err)
					case !errors.Is(err, blob.ErrDigest) && !errors.Is(err, blob.ErrCorrupt):
						t.Errorf("%v: byte %d: %v, want ErrDigest or ErrCorrupt", c, i, err)
					default:
						failed++
						if e.Ready(&im.chunks[k]) {
							t.Errorf("%v: byte %d: chunk %d is ready and wrong", c, i, k)
						}
					}
				}
			}
			if failed < len(im.raw)*9/10 {
				t.Errorf("%v: %d of %d flips were noticed, want nearly all", c, failed, len(im.raw))
			}
		}
	}
}

// Every byte of the cache's data file, inverted in turn, is found by the next
// process, which heals it from the source.
func TestFlippedCacheNeverReachesReader(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterSHA256, 4096, 1000, 4096)
	f := newFolder()
	segs, want := im.whole(0, 3)
	fill := engine(t, im, fetch.Options{Cache: cache.New(f)})
	if err := read(t, t.Context(), fill, segs, want); err != nil {
		t.Fatal(err)
	}
	data := f.file(t, ".data")
	for i := range data.data {
		data.flip(i)
		src := &source{data: im.raw}
		e := engine(t, im, fetch.Options{Cache: cache.New(f), Backend: src})
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Errorf("byte %d: %v", i, err)
		}
		padding := i >= 4096+1000 && i < 8192
		if s := e.Stats(); (s.BadCache == 1) == padding || (src.requests.Load() == 1) == padding {
			t.Errorf("byte %d: %d found bad, %d requests", i, s.BadCache, src.requests.Load())
		}
		if padding {
			data.flip(i)
		}
		checkReady(t, e, im)
	}
}

// A chunk that comes wrong once is fetched again, around shared copies, and right.
func TestBadOnceIsFetchedAgain(t *testing.T) {
	im := newImage(t, blob.CompressorZstd, blob.DigesterBlake3, repeat(4, 3000)...)
	var log bytes.Buffer
	bad := 0
	src := &source{data: im.raw}
	src.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
		if bad++; bad == 1 {
			copy(p, im.raw[off:])
			p[im.chunks[1].CompressedOffset+3] ^= 1
			return true, nil
		}
		if !backend.IsFresh(ctx) || off != int64(im.chunks[1].CompressedOffset) || len(p) != int(im.chunks[1].CompressedSize) {
			t.Errorf("second request: %d bytes at %d, fresh %v, want chunk 1 alone, fresh", len(p), off, backend.IsFresh(ctx))
		}
		return false, nil
	}
	e := engine(t, im, fetch.Options{
		Backend: src, Cache: cache.New(newFolder()), Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	segs, want := im.whole(0, 4)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Fatal(err)
	}
	if s := e.Stats(); s.BadBackend != 1 || s.Refetches != 1 || s.Requests != 2 {
		t.Errorf("%d bad, %d refetches, %d requests, want 1, 1, 2", s.BadBackend, s.Refetches, s.Requests)
	}
	if n := strings.Count(log.String(), "failed verification"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, &log)
	}
}

// A chunk that stays wrong is an error each time, logged once, and its
// neighbours in the same request are served.
func TestAlwaysBad(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(3, 3000)...)
	bad := bytes.Clone(im.raw)
	bad[4000] ^= 1
	var log bytes.Buffer
	e := engine(t, im, fetch.Options{
		Backend: &source{data: bad}, Cache: cache.New(newFolder()), Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for round := range 3 {
		for k := range 3 {
			segs, want := im.whole(k, k+1)
			if err := read(t, t.Context(), e, segs, want); errors.Is(err, blob.ErrDigest) != (k == 1) {
				t.Errorf("round %d, chunk %d: %v", round, k, err)
			}
		}
	}
	if n := strings.Count(log.String(), "failed verification"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, &log)
	}
	if s := e.Stats(); s.BadBackend < 6 {
		t.Errorf("%d bad chunks counted, want 2 a round", s.BadBackend)
	}
}

// A segment that claims another digest than the catalog is served only if its
// own digest is right, and never gets into the cache.
func TestForeignChunk(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(3, 3000)...)
	e := engine(t, im, fetch.Options{Cache: cache.New(newFolder())})
	seg := im.segment(0, 0, 3000)
	seg.Chunk.CompressedOffset = im.chunks[1].CompressedOffset
	seg.Chunk.Digest = im.chunks[1].Digest
	if err := read(t, t.Context(), e, []blob.Segment{seg}, im.plain[1]); err != nil {
		t.Error(err)
	}
	if e.Ready(&im.chunks[0]) {
		t.Error("chunk 0 is ready after a read of something else under its number")
	}
	seg.Chunk.Digest[0] ^= 1
	if err := read(t, t.Context(), e, []blob.Segment{seg}, im.plain[1]); !errors.Is(err, blob.ErrDigest) {
		t.Errorf("wrong digest: %v, want ErrDigest", err)
	}
	segs, want := im.whole(0, 3)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Error(err)
	}
}

func TestReadRefuses(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 3000)
	e := engine(t, im, fetch.Options{})
	for name, change := range map[string]func(*blob.Segment){
		"outside the chunk": func(s *blob.Segment) { s.Offset = 1 },
		"wraps around":      func(s *blob.Segment) { s.Offset = 1<<32 - 1 },
		"chunk too large":   func(s *blob.Segment) { s.Chunk.UncompressedSize = blob.MaxChunkSize + 1 },
		"range too large":   func(s *blob.Segment) { s.Chunk.CompressedSize = blob.MaxChunkSize + 1 },
		"nothing to fetch":  func(s *blob.Segment) { s.Chunk.CompressedSize = 0 },
		"range far away":    func(s *blob.Segment) { s.Chunk.CompressedOffset = 1 << 63 },
		"unknown blob":      func(s *blob.Segment) { s.Chunk.Blob = &blob.Info{Index: 7} },
		"no room":           func(s *blob.Segment) { s.Chunk.UncompressedSize = 5000; s.Length = 5000 },
	} {
		seg := im.segment(0, 0, 3000)
		change(&seg)
		if n, err := e.Read(t.Context(), []blob.Segment{seg}, [][]byte{make([]byte, 3000)}); err == nil {
			t.Errorf("%s: read %d bytes, want an error", name, n)
		}
	}
	if s := e.Stats(); s.Requests != 0 {
		t.Errorf("%d requests, want 0", s.Requests)
	}
}

// What has to be fetched again waits for no memory that others hold who wait for
// the same, and never for its own.
func TestBadChunksDoNotWaitForMemory(t *testing.T) {
	for name, limit := range map[string]int64{"one at a time": 200_000, "each above the limit": 50_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(4, 80_000)...)
				src := slow(im, time.Second)
				wait := src.before
				src.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
					if _, err := wait(ctx, p, off); err != nil {
						return false, err
					}
					copy(p, im.raw[off:])
					if !backend.IsFresh(ctx) {
						p[17] ^= 1
					}
					return true, nil
				}
				e := engine(t, im, fetch.Options{Backend: src, MemoryLimit: limit, Amplify: -1})
				start := time.Now()
				var wg sync.WaitGroup
				for k := range 4 {
					wg.Go(func() {
						segs, want := im.whole(k, k+1)
						if err := read(t, t.Context(), e, segs, want); err != nil {
							t.Errorf("chunk %d: %v", k, err)
						}
					})
				}
				wg.Wait()
				if took := time.Since(start); took > 8*time.Second {
					t.Errorf("4 chunks, each fetched twice in 2s, took %v, want at most 8s", took)
				}
			})
		})
	}
}
