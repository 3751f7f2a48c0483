package fetch_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// Chunk information of more than a megabyte lies in a file, which goes with the
// engine.
func TestLargeChunkInformation(t *testing.T) {
	testenv.LeakCheck(t)
	for _, kind := range []string{"batch", "batch-zstd", "batch-encrypted"} {
		im := newUnitImage(t, kind, slices.Repeat([][]int{slices.Repeat([]int{9}, 1000)}, 50)...)
		if n := im.info.ChunkInfo.UncompressedSize; n < 1<<20 {
			t.Fatalf("chunk information of %d bytes is not large", n)
		}
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		e := im.engine(t, fetch.Options{})
		for i := 0; i < len(im.chunks); i += 777 {
			segs, want := im.whole(i, i+1)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v, %v", kind, left, err)
		}
	}
}

// Encrypted chunk information may be longer than what is decoded in one go.
func TestLongEncryptedChunkInformation(t *testing.T) {
	im := newUnitImage(t, "batch-encrypted-raw", slices.Repeat([][]int{{1, 1}}, 200_000)...)
	if n := im.info.ChunkInfo.UncompressedSize; n <= 16<<20 {
		t.Fatalf("chunk information of %d bytes is not long", n)
	}
	e := im.engine(t, fetch.Options{Amplify: -1})
	for i := 0; i < len(im.chunks); i += 77_777 {
		segs, want := im.whole(i, i+1)
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Error(err)
		}
	}
}

// What all blobs together put into temporary files is bounded.
func TestChunkInformationIsBounded(t *testing.T) {
	testenv.LeakCheck(t)
	im := newUnitImage(t, "batch", slices.Repeat([][]int{slices.Repeat([]int{9}, 1000)}, 50)...)
	segs, want := im.whole(0, 1)
	for limit, ok := range map[uint64]bool{im.info.ChunkInfo.UncompressedSize: true, im.info.ChunkInfo.UncompressedSize - 1: false} {
		e := im.engine(t, fetch.Options{MetaLimit: int64(limit)})
		if err := read(t, t.Context(), e, segs, want); (err == nil) != ok || !ok && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%d bytes with a limit of %d: %v", im.info.ChunkInfo.UncompressedSize, limit, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Closing ends what waits for a source that does not answer.
func TestCloseWhileLoading(t *testing.T) {
	testenv.LeakCheck(t)
	for name, im := range map[string]*image{"chunk information": &smallUnits(t, "batch").image, "tar file": newTar(t, blob.DigesterBlake3, 1000)} {
		asked := make(chan struct{}, 10)
		src := &source{data: im.raw, before: func(ctx context.Context, _ []byte, _ int64) (bool, error) {
			asked <- struct{}{}
			<-ctx.Done()
			return false, context.Cause(ctx)
		}}
		e := engine(t, im, fetch.Options{Backend: src})
		done := make(chan error, 2)
		go func() {
			segs, want := im.whole(0, 1)
			done <- read(t, context.Background(), e, segs, want)
		}()
		<-asked
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, fetch.ErrClosed) {
			t.Errorf("%s: %v, want %v", name, err, fetch.ErrClosed)
		}
	}
}

// Many readers over a source that fails, lies and is slow, some of whom leave: what
// is read is right, and in the end nothing is held.
func TestUnitsUnderFaults(t *testing.T) {
	testenv.LeakCheck(t)
	for _, kind := range []string{"batch", "batch-encrypted", "zran"} {
		for _, cached := range []bool{false, true} {
			im := newUnitImage(t, kind, slices.Repeat([][]int{{700, 3000, 90, 5000}, {20}}, 12)...)
			o := im.backend()
			for _, s := range o {
				s.before = faults()
			}
			opts := fetch.Options{Backend: o, MemoryLimit: 64 << 10, Timeout: time.Second}
			if cached {
				opts.Cache = cache.New(newFolder())
			}
			e := im.engine(t, opts)
			var readers sync.WaitGroup
			for who := range 8 {
				readers.Go(func() { wander(t, im, e, rand.New(rand.NewPCG(uint64(who), 3))) })
			}
			readers.Wait()
		}
	}
}

// faults makes a source that fails one time in eight, and spoils a byte as often.
func faults() func(ctx context.Context, p []byte, off int64) (bool, error) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(5, 5))
	return func(ctx context.Context, p []byte, off int64) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		switch r.IntN(8) {
		case 0:
			return false, backend.ErrUnavailable
		case 1:
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			return true, nil
		}
		return false, nil
	}
}

// wander reads here and there, impatiently at times. read compares.
func wander(t *testing.T, im *unitImage, e *fetch.Engine, r *rand.Rand) {
	right := 0
	for range 150 {
		i := r.IntN(len(im.chunks))
		segs, want := im.whole(i, min(len(im.chunks), i+1+r.IntN(6)))
		ctx, cancel := context.WithCancel(t.Context())
		if r.IntN(4) == 0 {
			go cancel()
		}
		if read(t, ctx, e, segs, want) == nil {
			right++
		}
		cancel()
	}
	if right == 0 {
		t.Error("nothing could be read")
	}
}
