package fetch_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// unreliable fails, spoils or delays about every third answer.
func unreliable(im *image, seed uint64) *source {
	s := &source{data: im.raw}
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 9))
	s.before = func(ctx context.Context, p []byte, off int64) (bool, error) {
		mu.Lock()
		kind, spot, d := r.IntN(12), r.IntN(len(p)), time.Duration(r.IntN(50))*time.Millisecond
		mu.Unlock()
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return false, ctx.Err()
		}
		switch kind {
		case 0:
			return false, fmt.Errorf("%w: by chance", backend.ErrUnavailable)
		case 1:
			copy(p, im.raw[off:])
			p[spot] ^= 4
			return true, nil
		case 2:
			<-time.After(time.Second)
		case 3:
			clear(p)
			return true, nil
		}
		return false, nil
	}
	return s
}

// Everything at once: readers that come and leave, prefetches that are cancelled,
// a source and a cache that fail by chance, little memory, two processes. No wrong
// byte, nothing left over, and nothing hangs: that would end the bubble.
func TestRandomLoad(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomLoad(t, seed) })
		})
	}
}

func randomLoad(t *testing.T, seed uint64) {
	im := newImage(t, blob.CompressorLZ4Block, blob.DigesterBlake3, append(repeat(60, 9000), 300_000, 5000, 700_000)...)
	f := newFolder()
	var mu sync.Mutex
	chance := rand.New(rand.NewPCG(seed, 10))
	f.failWith(func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if chance.IntN(20) == 0 {
			return syscall.EIO
		}
		return nil
	})
	var wg sync.WaitGroup
	var served [2]int
	for n := range 2 {
		o := fetch.Options{
			Backend: unreliable(im, seed), MemoryLimit: 400_000, Connections: 3, MaxRange: 60_000, Recent: 500_000,
		}
		if seed%3 != 0 {
			o.Cache = cache.New(f)
		}
		e := engine(t, im, o)
		for g := range 12 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(100*n+g)))
				for range 40 {
					ok := randomRead(t, e, im, r)
					mu.Lock()
					if ok {
						served[n]++
					}
					mu.Unlock()
				}
			})
		}
		wg.Go(func() {
			for i := range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50*i)*time.Millisecond)
				_ = e.Prefetch(ctx, slices.Values(im.chunks))
				cancel()
			}
		})
	}
	wg.Wait()
	if served[0] < 100 || served[1] < 100 {
		t.Errorf("%v of 480 reads were served, want most", served)
	}
}

func randomRead(t *testing.T, e *fetch.Engine, im *image, r *rand.Rand) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(3000))*time.Millisecond)
	defer cancel()
	i := r.IntN(len(im.chunks))
	segs, want := im.whole(i, min(len(im.chunks), i+1+r.IntN(5)))
	if cut := r.IntN(5000); r.IntN(2) == 0 {
		segs[0].Offset += uint32(cut)
		segs[0].Length -= uint32(cut)
		want = want[cut:]
		if segs[0].Length == 0 {
			return true
		}
	}
	if r.IntN(3) == 0 && e.Ready(&segs[0].Chunk) {
		c := &segs[0].Chunk
		got := make([]byte, c.UncompressedSize)
		if _, err := e.ReadReady(c.Blob, [][]byte{got}, int64(c.UncompressedOffset)); err == nil && string(got) != string(im.plain[i]) {
			t.Errorf("chunk %d: wrong bytes of a ready chunk", i)
		}
	}
	return read(t, ctx, e, segs, want) == nil
}
