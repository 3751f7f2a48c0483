package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	"github.com/rafsd/rafsd/rafs/layout"
)

// newTar makes an image of a blob that is served as it is, named by its SHA-256:
// chunks with 512 bytes between them, of which the image has no digests. Numbers
// of chunks do not go by their places.
func newTar(t testing.TB, d blob.Digester, sizes ...int) *image {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(len(sizes)), 9))
	im := &image{info: &blob.Info{Digester: d, ChunkSize: 1 << 20, ChunkCount: uint32(len(sizes)),
		Features: uint32(layout.FeatureTarfs | layout.FeatureCapTarTOC)}}
	add := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		im.raw = append(im.raw, p...)
		return p
	}
	for _, n := range sizes {
		add(512)
		at := uint64(len(im.raw))
		im.plain = append(im.plain, add(n))
		im.chunks = append(im.chunks, blob.Chunk{Blob: im.info, CompressedOffset: at, CompressedSize: uint32(n), UncompressedOffset: at, UncompressedSize: uint32(n)})
		add(-n & 511)
	}
	add(1024)
	slices.Reverse(im.chunks)
	slices.Reverse(im.plain)
	for i := range im.chunks {
		im.chunks[i].Index = uint32(i)
	}
	sum := sha256.Sum256(im.raw)
	im.info.ID = hex.EncodeToString(sum[:])
	im.info.CompressedSize, im.info.UncompressedSize = uint64(len(im.raw)), uint64(len(im.raw))
	return im
}

func TestTarball(t *testing.T) {
	testenv.LeakCheck(t)
	for _, d := range []blob.Digester{blob.DigesterBlake3, blob.DigesterSHA256} {
		// Chunks that pieces of 4 MiB cut, and one longer than those.
		im := newTar(t, d, 1, 512, 5000, 3<<20, 2<<20, 9<<20, 700)
		f := newFolder()
		e := engine(t, im, fetch.Options{Cache: cache.New(f)})
		segs, want := im.whole(0, len(im.chunks))
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Fatal(err)
		}
		checkReady(t, e, im)
		// The next process finds all of the file in the cache.
		dead := &source{before: func(context.Context, []byte, int64) (bool, error) { return false, backend.ErrUnavailable }}
		next := engine(t, im, fetch.Options{Cache: cache.New(f), Backend: dead})
		if err := read(t, t.Context(), next, segs, want); err != nil {
			t.Error(err)
		}
		if n := dead.requests.Load(); n != 0 {
			t.Errorf("second process: %d requests, want 0", n)
		}
		// One of the bytes between chunks is wrong: only the source can tell then.
		f.file(t, ".data").flip(3)
		if err := read(t, t.Context(), engine(t, im, fetch.Options{Cache: cache.New(f), Backend: dead}), segs, want); !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("with a header damaged in the cache, and no source: %v, want %v", err, backend.ErrUnavailable)
		}
		if err := read(t, t.Context(), engine(t, im, fetch.Options{Cache: cache.New(f)}), segs, want); err != nil {
			t.Error(err)
		}
	}
}

// Every byte of the file, inverted in turn: not one of it is served.
func TestFlippedTarballNeverReachesReader(t *testing.T) {
	im := newTar(t, blob.DigesterSHA256, 100, 30)
	for i := range im.raw {
		bad := bytes.Clone(im.raw)
		bad[i] ^= 0x08
		for _, o := range []fetch.Options{{}, {Cache: cache.New(newFolder())}} {
			o.Backend = &source{data: bad}
			e := engine(t, im, o)
			for k := range im.chunks {
				segs, want := im.whole(k, k+1)
				if err := read(t, t.Context(), e, segs, want); !errors.Is(err, blob.ErrDigest) {
					t.Fatalf("byte %d: chunk %d: %v, want %v", i, k, err, blob.ErrDigest)
				}
				if e.Ready(&im.chunks[k]) {
					t.Fatalf("byte %d: chunk %d is ready", i, k)
				}
			}
			if err := e.Prefetch(t.Context(), slices.Values(im.chunks)); o.Cache != nil && !errors.Is(err, blob.ErrDigest) {
				t.Fatalf("byte %d: prefetch: %v, want %v", i, err, blob.ErrDigest)
			}
		}
	}
}

// A file that changes after it was found to be right is noticed chunk by chunk,
// and so is a cache.
func TestTarballThatChanges(t *testing.T) {
	im := newTar(t, blob.DigesterBlake3, 1000, 2000, 3000)
	f, src := newFolder(), &source{data: bytes.Clone(im.raw)}
	e := engine(t, im, fetch.Options{Backend: src, Cache: cache.New(f), Amplify: -1})
	segs, want := im.whole(0, 1)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Fatal(err)
	}
	src.data[im.chunks[1].CompressedOffset+7] ^= 1
	segs, want = im.whole(1, 2)
	if err := read(t, t.Context(), e, segs, want); !errors.Is(err, blob.ErrDigest) {
		t.Errorf("a byte that changed: %v, want %v", err, blob.ErrDigest)
	}
	src.data[im.chunks[1].CompressedOffset+7] ^= 1
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Errorf("after it changed back: %v", err)
	}
	f.file(t, ".data").flip(int(im.chunks[1].UncompressedOffset) + 9)
	next := engine(t, im, fetch.Options{Backend: src, Cache: cache.New(f)})
	if err := read(t, t.Context(), next, segs, want); err != nil {
		t.Error(err)
	}
	if s := next.Stats(); s.BadCache != 1 {
		t.Errorf("%d bad chunks in the cache, want 1", s.BadCache)
	}
}

// A file that is shorter than the image says is not read again at once: what is
// there of it may be large.
func TestShortTarball(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newTar(t, blob.DigesterSHA256, 3000)
		src := &source{data: im.raw[:len(im.raw)-1]}
		e := engine(t, im, fetch.Options{Backend: src})
		segs, want := im.whole(0, 1)
		for range 2 {
			if err := read(t, t.Context(), e, segs, want); !errors.Is(err, backend.ErrRange) {
				t.Errorf("got %v, want %v", err, backend.ErrRange)
			}
			time.Sleep(2 * time.Second)
		}
		if n := src.requests.Load(); n != 1 {
			t.Errorf("%d requests within seconds, want 1", n)
		}
	})
}

// Many wait for one reading of the file; who leaves does not end it; a failure is
// forgotten after a while.
func TestTarballIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := newTar(t, blob.DigesterBlake3, repeat(50, 1000)...)
		src := &source{data: im.raw}
		var broken error
		src.before = func(ctx context.Context, p []byte, _ int64) (bool, error) {
			time.Sleep(time.Second)
			return false, broken
		}
		e := engine(t, im, fetch.Options{Backend: src, Amplify: -1})
		gone, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		segs, want := im.whole(0, 1)
		if err := read(t, gone, e, segs, want); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who cannot wait: %v, want %v", err, context.DeadlineExceeded)
		}
		var readers sync.WaitGroup
		for i := range im.chunks {
			readers.Go(func() {
				segs, want := im.whole(i, i+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Error(err)
				}
			})
		}
		readers.Wait()
		if n := src.requests.Load(); n > int32(1+len(im.chunks)) {
			t.Errorf("%d requests, want one for the file and at most one a chunk", n)
		}

		broken = backend.ErrUnavailable
		e = engine(t, im, fetch.Options{Backend: src, Amplify: -1})
		if err := read(t, t.Context(), e, segs, want); !errors.Is(err, broken) {
			t.Errorf("while the source fails: %v, want %v", err, broken)
		}
		broken = nil
		time.Sleep(2 * time.Second)
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

// What cannot be verified is not served: no digest, no SHA-256 for a name.
func TestNothingToVerifyBy(t *testing.T) {
	im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, 1000, 1000)
	im.chunks[1].Digest = blob.Digest{}
	e := engine(t, im, fetch.Options{})
	segs, want := im.whole(1, 2)
	if err := read(t, t.Context(), e, segs, want); !errors.Is(err, fetch.ErrNoDigest) {
		t.Errorf("chunk without a digest: %v, want %v", err, fetch.ErrNoDigest)
	}
	segs, want = im.whole(0, 1)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Error(err)
	}
	tar := newTar(t, blob.DigesterBlake3, 1000)
	tar.info.ID = "some-layer"
	segs, want = tar.whole(0, 1)
	if err := read(t, t.Context(), engine(t, tar, fetch.Options{}), segs, want); !errors.Is(err, fetch.ErrNoDigest) {
		t.Errorf("tar file by another name: %v, want %v", err, fetch.ErrNoDigest)
	}
}
