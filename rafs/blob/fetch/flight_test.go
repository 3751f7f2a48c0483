package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// slow is a source whose answers take d, or until the request is cancelled.
func slow(im *image, d time.Duration) *source {
	return &source{data: im.raw, before: func(ctx context.Context, _ []byte, _ int64) (bool, error) {
		select {
		case <-time.After(d):
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}}
}

func TestManyReadersOneRequest(t *testing.T) {
	for _, cached := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			im := newImage(t, blob.CompressorLZ4Block, blob.DigesterBlake3, 100_000)
			src := slow(im, time.Second)
			o := fetch.Options{Backend: src}
			if cached {
				o.Cache = cache.New(newFolder())
			}
			e := engine(t, im, o)
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 20 * time.Millisecond) // some come after it landed
					seg := im.segment(0, i*1000, 1000)
					if err := read(t, t.Context(), e, []blob.Segment{seg}, im.plain[0][i*1000:i*1000+1000]); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := src.requests.Load(); n != 1 {
				t.Errorf("cached %v: %d requests, want 1", cached, n)
			}
			if s := e.Stats(); s.Flights != 1 {
				t.Errorf("cached %v: %d flights, want 1", cached, s.Flights)
			}
		})
	}
}

// Who leaves leaves alone; when all have left the request ends, and who comes
// then starts anew.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(4, 10_000)...)
		var cancelled atomic.Int32
		src := slow(im, 10*time.Second)
		wait := src.before
		src.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
			done, err := wait(ctx, p, off)
			if err != nil {
				cancelled.Add(1)
			}
			return done, err
		}
		e := engine(t, im, fetch.Options{Backend: src, Cache: cache.New(newFolder())})
		segs, want := im.whole(0, 4)
		leave := func(after time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			return read(t, ctx, e, segs, want)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := leave(time.Second); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("first reader: %v, want DeadlineExceeded", err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if err := read(t, t.Context(), e, segs[1:2], im.plain[1]); err != nil {
			t.Errorf("reader who stayed: %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("reader who stayed waited %v, want 10s", took)
		}
		wg.Wait()
		if n := src.requests.Load(); n != 1 || cancelled.Load() != 0 {
			t.Errorf("%d requests, %d cancelled, want 1 and 0", n, cancelled.Load())
		}
		// All leave a request for something else.
		im2 := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 5000)
		src.data = im2.raw
		e2 := engine(t, im2, fetch.Options{Backend: src})
		segs, want = im2.whole(0, 1)
		gone := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return read(t, ctx, e2, segs, want)
		}
		wg.Go(func() { _ = gone() })
		if err := gone(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("reader who left: %v, want DeadlineExceeded", err)
		}
		wg.Wait()
		synctest.Wait()
		if cancelled.Load() != 1 {
			t.Errorf("%d requests were cancelled when nobody wanted them, want 1", cancelled.Load())
		}
		if err := read(t, t.Context(), e2, segs, want); err != nil {
			t.Errorf("reader who came later: %v", err)
		}
	})
}

// A chunk that hangs delays nobody who does not want it, and gives up in time.
func TestNobodyWaitsForAnothersChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(40, 50_000)...)
		src := &source{data: im.raw}
		src.before = func(ctx context.Context, _ []byte, off int64) (bool, error) {
			if off < 150_000 {
				<-ctx.Done()
				return false, ctx.Err()
			}
			time.Sleep(10 * time.Millisecond)
			return false, nil
		}
		e := engine(t, im, fetch.Options{Backend: src, Amplify: -1, Cache: cache.New(newFolder())})
		var wg sync.WaitGroup
		start := time.Now()
		for k := range 3 {
			wg.Go(func() {
				segs, want := im.whole(k, k+1)
				if err := read(t, t.Context(), e, segs, want); !errors.Is(err, fetch.ErrTimeout) {
					t.Errorf("chunk that hangs: %v, want ErrTimeout", err)
				}
				if took := time.Since(start); took != time.Minute {
					t.Errorf("chunk that hangs took %v, want 1m", took)
				}
			})
		}
		synctest.Wait()
		for k := 3; k < 40; k++ {
			segs, want := im.whole(k, k+1)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(start); took != 37*10*time.Millisecond {
			t.Errorf("37 other chunks in turn took %v, want 370ms", took)
		}
		wg.Wait()
	})
}

func TestDemandBeforePrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(60, 100_000)...)
		src := slow(im, time.Second)
		var mu sync.Mutex
		var order []int64
		wait := src.before
		src.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
			mu.Lock()
			order = append(order, off/100_000)
			mu.Unlock()
			return wait(ctx, p, off)
		}
		e := engine(t, im, fetch.Options{
			Backend: src, Connections: 4, MaxRange: 1, Amplify: -1, Cache: cache.New(newFolder()),
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := e.Prefetch(t.Context(), slices.Values(im.chunks[:40])); err != nil {
				t.Errorf("prefetch: %v", err)
			}
		})
		time.Sleep(500 * time.Millisecond)
		if n := src.requests.Load(); n != 2 {
			t.Errorf("prefetch has %d requests under way, want half of 4", n)
		}
		// Demand finds the other half free, and is next wherever one becomes free.
		start := time.Now()
		for k := 50; k < 54; k++ {
			wg.Go(func() {
				segs, want := im.whole(k, k+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 1500*time.Millisecond {
					t.Errorf("chunk %d took %v beside a prefetch, want at most 1.5s", k, took)
				}
			})
		}
		synctest.Wait()
		// A chunk that a prefetch has under way is joined, not fetched again.
		segs, want := im.whole(1, 2)
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Error(err)
		}
		wg.Wait()
		slices.Sort(order)
		if n := len(slices.Compact(order)); n != 44 || src.requests.Load() != 44 {
			t.Errorf("%d requests for %d chunks, want 44 for 44", src.requests.Load(), n)
		}
		for k := range 40 {
			if !e.Ready(&im.chunks[k]) {
				t.Errorf("chunk %d is not ready after its prefetch", k)
			}
		}
	})
}

// Ending a prefetch ends its requests, but not those that a guest joined.
func TestPrefetchCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(20, 100_000)...)
		src := slow(im, time.Minute/2)
		e := engine(t, im, fetch.Options{Backend: src, Connections: 8, MaxRange: 1, Cache: cache.New(newFolder())})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := e.Prefetch(ctx, slices.Values(im.chunks)); !errors.Is(err, context.Canceled) {
				t.Errorf("prefetch: %v, want Canceled", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			segs, want := im.whole(2, 3)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Errorf("reader who joined: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		if s := e.Stats(); s.RequestsNow != 1 || src.requests.Load() != 4 {
			t.Errorf("%d requests left of %d, want 1 of 4", s.RequestsNow, src.requests.Load())
		}
		wg.Wait()
	})
}

func TestPrefetchNeedsACache(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 5000)
	e := engine(t, im, fetch.Options{})
	if err := e.Prefetch(t.Context(), slices.Values(im.chunks)); !errors.Is(err, fetch.ErrNoCache) {
		t.Errorf("got %v, want ErrNoCache", err)
	}
}

// Prefetch goes on past a chunk that is bad, and says so.
func TestPrefetchPastABadChunk(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(5, 5000)...)
	bad := slices.Clone(im.raw)
	bad[12_000] ^= 1
	src := &source{data: bad}
	e := engine(t, im, fetch.Options{Backend: src, Cache: cache.New(newFolder())})
	if err := e.Prefetch(t.Context(), slices.Values(im.chunks)); !errors.Is(err, blob.ErrDigest) {
		t.Errorf("got %v, want ErrDigest", err)
	}
	for k := range im.chunks {
		if got := e.Ready(&im.chunks[k]); got != (k != 2) {
			t.Errorf("chunk %d: ready = %v", k, got)
		}
	}
	if n := src.requests.Load(); n != 2 {
		t.Errorf("%d requests, want one for all and one more for the bad one", n)
	}
}

// Memory in flight stays below its limit; a chunk above the limit still works.
func TestMemoryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, append(repeat(64, 64<<10), 4<<20)...)
		src := slow(im, 10*time.Millisecond)
		e := engine(t, im, fetch.Options{
			Backend: src, MemoryLimit: 1 << 20, Connections: 32, Amplify: -1, Cache: cache.New(newFolder()),
		})
		var wg sync.WaitGroup
		for k := range 65 {
			wg.Go(func() {
				segs, want := im.whole(k, k+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Error(err)
				}
			})
		}
		for range 30 {
			synctest.Wait()
			if n := e.Stats().BytesNow; n > 1<<20 && n != 8<<20 {
				t.Errorf("%d bytes in flight, want at most 1 MiB, or the large chunk alone", n)
			}
			time.Sleep(5 * time.Millisecond)
		}
		wg.Wait()
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(8, 5000)...)
		e := engine(t, im, fetch.Options{Backend: slow(im, time.Hour), Cache: cache.New(newFolder())})
		segs, want := im.whole(0, 8)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := read(t, t.Context(), e, segs, want); !errors.Is(err, fetch.ErrClosed) {
					t.Errorf("read under close: %v, want ErrClosed", err)
				}
			})
		}
		synctest.Wait()
		for range 2 {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		if err := read(t, t.Context(), e, segs, want); !errors.Is(err, fetch.ErrClosed) {
			t.Errorf("read after close: %v, want ErrClosed", err)
		}
		if err := e.Prefetch(t.Context(), slices.Values(im.chunks)); !errors.Is(err, fetch.ErrClosed) {
			t.Errorf("prefetch after close: %v, want ErrClosed", err)
		}
	})
}

// Who joins a fetch that is about to give up gets a time of their own: an outage
// fails nobody before that.
func TestJoiningLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 5000)
		start := time.Now()
		back := make(chan struct{})
		src := &source{data: im.raw, before: func(ctx context.Context, _ []byte, _ int64) (bool, error) {
			select {
			case <-back:
				return false, nil
			case <-ctx.Done():
				return false, ctx.Err()
			}
		}}
		e := engine(t, im, fetch.Options{Backend: src, Timeout: 10 * time.Second})
		segs, want := im.whole(0, 1)
		var wg sync.WaitGroup
		for _, r := range []struct {
			at, end time.Duration
			err     error
		}{
			{0, 10 * time.Second, fetch.ErrTimeout}, {2 * time.Second, 20 * time.Second, fetch.ErrTimeout},
			{9 * time.Second, 20 * time.Second, fetch.ErrTimeout}, {19 * time.Second, 25 * time.Second, nil},
		} {
			wg.Go(func() {
				time.Sleep(r.at)
				if err := read(t, t.Context(), e, segs, want); !errors.Is(err, r.err) {
					t.Errorf("reader who came at %v: %v, want %v", r.at, err, r.err)
				}
				if took := time.Since(start); took != r.end {
					t.Errorf("reader who came at %v was done at %v, want %v", r.at, took, r.end)
				}
			})
		}
		time.Sleep(25 * time.Second)
		close(back)
		wg.Wait()
		if n := src.requests.Load(); n != 3 {
			t.Errorf("%d requests, want one after the other: 3", n)
		}
	})
}

// A chunk that somebody waits for does not wait for its neighbours in the same
// request, also when those never come, or when its own first bytes were wrong.
func TestNeighboursComeLater(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil bool  // the first try's first chunk
		end   error // of the first try
		later error // for who waits for the last chunk
		took  time.Duration
	}{
		"all comes":             {took: 0},
		"the rest never comes":  {end: backend.ErrUnavailable, later: backend.ErrUnavailable, took: 0},
		"wrong, fetched again":  {spoil: true, took: 11 * time.Second},
		"wrong, and broken off": {spoil: true, end: backend.ErrUnavailable, later: backend.ErrUnavailable, took: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				im := newImage(t, blob.CompressorLZ4Block, blob.DigesterBlake3, repeat(3, 10_000)...)
				first := int(im.chunks[0].CompressedSize)
				src := &source{data: im.raw}
				src.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
					if backend.IsFresh(ctx) {
						time.Sleep(time.Second)
						return false, nil
					}
					if off != 0 && tc.end != nil {
						return false, tc.end // of who came late and tries alone
					}
					if len(p) != len(im.raw) {
						t.Errorf("request for %d bytes at %d, want all in one", len(p), off)
					}
					copy(p, im.raw[:first])
					if tc.spoil {
						p[5] ^= 1
					}
					backend.Progress(ctx)(first - 1)
					backend.Progress(ctx)(first)
					time.Sleep(10 * time.Second)
					if tc.end != nil {
						return false, tc.end
					}
					copy(p[first:], im.raw[first:])
					return true, nil
				}
				e := engine(t, im, fetch.Options{Backend: src, Cache: cache.New(newFolder())})
				start := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					synctest.Wait() // until the first chunk is on its way
					segs, want := im.whole(2, 3)
					if err := read(t, t.Context(), e, segs, want); !errors.Is(err, tc.later) {
						t.Errorf("last chunk: %v, want %v", err, tc.later)
					}
				})
				segs, want := im.whole(0, 1)
				err := read(t, t.Context(), e, segs, want)
				if (err != nil) != (tc.took < 0) {
					t.Errorf("first chunk: %v", err)
				}
				if took := time.Since(start); tc.took >= 0 && took != tc.took {
					t.Errorf("first chunk took %v, want %v", took, tc.took)
				}
				wg.Wait()
			})
		})
	}
}

// A chunk that is not what the catalog says is not put into the cache, where
// another one has that place.
func TestPrefetchOfAForeignChunk(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(2, 5000)...)
	e := engine(t, im, fetch.Options{Cache: cache.New(newFolder()), Amplify: -1})
	segs, want := im.whole(0, 1)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Fatal(err)
	}
	c := im.chunks[1]
	c.UncompressedOffset = im.chunks[0].UncompressedOffset
	if err := e.Prefetch(t.Context(), slices.Values([]blob.Chunk{c})); err != nil {
		t.Error(err)
	}
	got := make([]byte, 5000)
	if _, err := e.ReadReady(im.info, [][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ready chunk 0 has wrong bytes, or %v", err)
	}
}
