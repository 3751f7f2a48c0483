package fetch_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/faultserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// warm is an engine over 16 chunks of 1 MiB that are all ready.
func warm(b *testing.B) (*fetch.Engine, *image) {
	im := newImage(b, blob.CompressorZstd, blob.DigesterBlake3, repeat(16, 1<<20)...)
	c, err := cache.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	e := engine(b, im, fetch.Options{Cache: c})
	segs, want := im.whole(0, 16)
	if err := read(b, b.Context(), e, segs, want); err != nil {
		b.Fatal(err)
	}
	return e, im
}

func BenchmarkReady(b *testing.B) {
	e, im := warm(b)
	b.ReportAllocs()
	for b.Loop() {
		if !e.Ready(&im.chunks[7]) {
			b.Fatal("not ready")
		}
	}
}

func BenchmarkReadReady(b *testing.B) {
	for _, c := range []struct{ size, slice int }{{4 << 10, 4 << 10}, {128 << 10, 4 << 10}, {128 << 10, 128 << 10}, {1 << 20, 4 << 10}, {1 << 20, 1 << 20}} {
		b.Run(fmt.Sprintf("%dk-in-%dk", c.size>>10, c.slice>>10), func(b *testing.B) {
			e, im := warm(b)
			dst := make([][]byte, c.size/c.slice)
			for i := range dst {
				dst[i] = make([]byte, c.slice)
			}
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := e.ReadReady(im.info, dst, off); err != nil {
					b.Fatal(err)
				}
				off = (off + int64(c.size)) % (15 << 20)
			}
		})
	}
}

// BenchmarkFirstUse reads a chunk that a cache holds and this process has not
// verified yet.
func BenchmarkFirstUse(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dk", size>>10), func(b *testing.B) {
			const n = 64
			im := newImage(b, blob.CompressorZstd, blob.DigesterBlake3, repeat(n, size)...)
			c, err := cache.Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			fill := engine(b, im, fetch.Options{Cache: c})
			segs, want := im.whole(0, n)
			if err := read(b, b.Context(), fill, segs, want); err != nil {
				b.Fatal(err)
			}
			dst := [][]byte{make([]byte, size)}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var e *fetch.Engine
			for i := 0; b.Loop(); i++ {
				if i%n == 0 {
					b.StopTimer()
					e = engine(b, im, fetch.Options{Cache: c})
					b.StartTimer()
				}
				if _, err := e.Read(b.Context(), segs[i%n:i%n+1], dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCold reads 16 MiB in 1 MiB reads from a registry on loopback.
func BenchmarkCold(b *testing.B) {
	s := faultserver.New()
	ts := httptest.NewServer(s)
	defer ts.Close()
	im := newImage(b, blob.CompressorZstd, blob.DigesterBlake3, repeat(256, 64<<10)...)
	im.info.ID = s.Put(im.raw)
	back, err := registry.New(registry.Options{
		Host: strings.TrimPrefix(ts.URL, "http://"), Repo: "r", Keychain: authn.NewMultiKeychain(),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer back.Close()
	dst := [][]byte{make([]byte, 1<<20)}
	segs, _ := im.whole(0, 256)
	b.SetBytes(16 << 20)
	b.ReportAllocs()
	for b.Loop() {
		c, err := cache.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		e := engine(b, im, fetch.Options{Backend: back, Cache: c})
		for i := 0; i < 256; i += 16 {
			if _, err := e.Read(b.Context(), segs[i:i+16], dst); err != nil {
				b.Fatal(err)
			}
		}
		c.Close()
	}
	b.ReportMetric(float64(len(s.BlobRequests()))/float64(b.N), "requests/op")
}
