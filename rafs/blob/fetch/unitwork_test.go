package fetch_test

import (
	"runtime"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// manyUnits is an image with two chunks of a few bytes in each of n units.
func manyUnits(t testing.TB, n int) *unitImage {
	t.Helper()
	return newUnitImage(t, "batch", slices.Repeat([][]int{{8, 8}}, n)...)
}

// A read takes a few units along, however small they are in the blob: each may
// decode to as much as any.
func TestUnitsTakenAlongAreFew(t *testing.T) {
	im := manyUnits(t, 1000)
	e := im.engine(t, fetch.Options{Cache: cache.New(newFolder())})
	segs, want := im.whole(0, 1)
	if err := read(t, t.Context(), e, segs, want); err != nil {
		t.Fatal(err)
	}
	if got := e.Stats().Amplified; got == 0 || got > 2*64+1 {
		t.Errorf("one read of one chunk took %d chunks of other units along, want those of 64 units", got)
	}
}

// What a prefetch of units takes grows with their number, not with its square.
func TestPrefetchOfManyUnits(t *testing.T) {
	cost := func(n int) uint64 {
		im := manyUnits(t, n)
		e := im.engine(t, fetch.Options{Cache: cache.New(newFolder())})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := e.Prefetch(t.Context(), slices.Values(im.chunks)); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	cost(50)
	if few, many := cost(250), cost(2000); many > 16*few {
		t.Errorf("250 units took %d bytes of garbage, 2000 took %d: want 8 times as much", few, many)
	}
}
