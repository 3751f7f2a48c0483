// Package backendtest is the suite that every backend passes, so that code above
// package backend needs to know none of them. It is for tests only.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// Fixture is a source to test.
type Fixture struct {
	// Put stores an object in the source and returns its id.
	Put func(t *testing.T, data []byte) (id string)
	// New makes a backend over the source. The suite closes it.
	New func(t *testing.T) backend.Backend
}

// Run runs the suite.
func Run(t *testing.T, f Fixture) {
	for name, test := range map[string]func(*testing.T, Fixture){
		"ranges":     testRanges,
		"outside":    testOutside,
		"missing":    testMissing,
		"ids":        testIDs,
		"concurrent": testConcurrent,
		"context":    testContext,
		"close":      testClose,
	} {
		t.Run(name, func(t *testing.T) { test(t, f) })
	}
}

// Data gives n bytes without a pattern, the same for the same seed.
func Data(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 77))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func open(t *testing.T, f Fixture, id string) backend.Reader {
	t.Helper()
	b := f.New(t)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	r, err := b.Open(id)
	if err != nil {
		t.Fatalf("open %s: %v", id, err)
	}
	return r
}

func testRanges(t *testing.T, f Fixture) {
	data := Data(300_000, 1)
	r := open(t, f, f.Put(t, data))
	for _, c := range []struct{ off, n int }{
		{0, 1}, {0, 512}, {0, len(data)}, {1, len(data) - 1}, {len(data) - 1, 1},
		{4096, 4096}, {65_535, 65_537}, {299_000, 1000}, {123_456, 7},
	} {
		// The bytes around the range must stay as they are.
		buf := bytes.Repeat([]byte{0xa5}, c.n+16)
		if err := r.ReadRange(t.Context(), buf[8:8+c.n], int64(c.off)); err != nil {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
			continue
		}
		if !bytes.Equal(buf[8:8+c.n], data[c.off:c.off+c.n]) {
			t.Errorf("%d bytes at %d differ from the object", c.n, c.off)
		}
		if guard := bytes.Repeat([]byte{0xa5}, 8); !bytes.Equal(buf[:8], guard) || !bytes.Equal(buf[8+c.n:], guard) {
			t.Errorf("%d bytes at %d: wrote outside the buffer", c.n, c.off)
		}
	}
	if err := r.ReadRange(t.Context(), nil, 10); err != nil {
		t.Errorf("no bytes at 10: %v", err)
	}
	if n, err := r.Size(t.Context()); err != nil || n != int64(len(data)) {
		t.Errorf("size = %d, %v, want %d", n, err, len(data))
	}
}

func testOutside(t *testing.T, f Fixture) {
	data := Data(10_000, 2)
	r := open(t, f, f.Put(t, data))
	for _, c := range []struct{ off, n int64 }{
		{-1, 10}, {9_999, 2}, {10_000, 1}, {10_001, 5}, {0, 10_001}, {1 << 40, 4096},
	} {
		err := r.ReadRange(t.Context(), make([]byte, c.n), c.off)
		if !errors.Is(err, backend.ErrRange) || !backend.Permanent(err) {
			t.Errorf("%d bytes at %d of 10000: %v, want a permanent ErrRange", c.n, c.off, err)
		}
	}
	// The reader still works.
	buf := make([]byte, 100)
	if err := r.ReadRange(t.Context(), buf, 50); err != nil || !bytes.Equal(buf, data[50:150]) {
		t.Errorf("100 bytes at 50 after ranges outside: %v", err)
	}
	empty := open(t, f, f.Put(t, nil))
	if n, err := empty.Size(t.Context()); err != nil || n != 0 {
		t.Errorf("size of an empty object = %d, %v, want 0", n, err)
	}
	if err := empty.ReadRange(t.Context(), make([]byte, 1), 0); !errors.Is(err, backend.ErrRange) {
		t.Errorf("1 byte at 0 of an empty object: %v, want ErrRange", err)
	}
}

func testMissing(t *testing.T, f Fixture) {
	r := open(t, f, strings.Repeat("0123456789abcdef", 4))
	if err := r.ReadRange(t.Context(), make([]byte, 1), 0); !errors.Is(err, backend.ErrNotFound) || !backend.Permanent(err) {
		t.Errorf("read of a missing object: %v, want a permanent ErrNotFound", err)
	}
	if _, err := r.Size(t.Context()); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("size of a missing object: %v, want ErrNotFound", err)
	}
}

func testIDs(t *testing.T, f Fixture) {
	b := f.New(t)
	defer b.Close()
	for _, id := range []string{
		"", ".", "..", "../secret", "a/b", "/etc/passwd", "a\x00b", "a b", "%2e%2e", "a?b", "a#b", strings.Repeat("a", 65),
	} {
		if _, err := b.Open(id); !errors.Is(err, blob.ErrBadID) {
			t.Errorf("open %q: %v, want ErrBadID", id, err)
		}
	}
}

func testConcurrent(t *testing.T, f Fixture) {
	data := Data(200_000, 3)
	id := f.Put(t, data)
	r := open(t, f, id)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			for range 20 {
				off := rnd.IntN(len(data) - 1)
				p := make([]byte, 1+rnd.IntN(min(20_000, len(data)-off)))
				if err := r.ReadRange(t.Context(), p, int64(off)); err != nil {
					t.Errorf("%d bytes at %d: %v", len(p), off, err)
				} else if !bytes.Equal(p, data[off:off+len(p)]) {
					t.Errorf("%d bytes at %d differ from the object", len(p), off)
				}
			}
		})
	}
	wg.Wait()
}

func testContext(t *testing.T, f Fixture) {
	r := open(t, f, f.Put(t, Data(1000, 4)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.ReadRange(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read under a cancelled context: %v, want context.Canceled", err)
	}
	if _, err := r.Size(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("size under a cancelled context: %v, want context.Canceled", err)
	}
}

func testClose(t *testing.T, f Fixture) {
	id := f.Put(t, Data(1000, 5))
	b := f.New(t)
	used, err := b.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	unused, err := b.Open(f.Put(t, Data(1000, 6)))
	if err != nil {
		t.Fatal(err)
	}
	if err := used.ReadRange(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	for name, r := range map[string]backend.Reader{"used": used, "unused": unused} {
		if err := r.ReadRange(t.Context(), make([]byte, 10), 0); !errors.Is(err, backend.ErrClosed) {
			t.Errorf("read of the %s reader after close: %v, want ErrClosed", name, err)
		}
	}
	if _, err := b.Open(id); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("open after close: %v, want ErrClosed", err)
	}
}
