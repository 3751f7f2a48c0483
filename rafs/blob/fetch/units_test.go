package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
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
)

func smallUnits(t testing.TB, kind string) *unitImage {
	return newUnitImage(t, kind, []int{100, 300, 1}, []int{7}, []int{256, 77}, []int{5, 15, 16, 17})
}

func noFailure(t testing.TB) func(int, error) {
	return func(_ int, err error) { t.Error(err) }
}

// Every kind reads right, chunk by chunk, all at once and by a prefetch; a unit is
// asked for once; the next process asks for nothing.
func TestUnits(t *testing.T) {
	testenv.LeakCheck(t)
	for _, kind := range unitKinds {
		t.Run(kind, func(t *testing.T) {
			im := smallUnits(t, kind)
			im.readEach(t, im.engine(t, fetch.Options{Amplify: -1}), noFailure(t))
			segs, want := im.whole(0, len(im.chunks))
			if err := read(t, t.Context(), im.engine(t, fetch.Options{}), segs, want); err != nil {
				t.Error(err)
			}
			store := cache.New(newFolder())
			o := im.backend()
			e := im.engine(t, fetch.Options{Cache: store, Backend: o, Amplify: -1})
			for _, chunks := range im.units {
				if len(chunks) == 0 {
					continue
				}
				mid := chunks[len(chunks)/2]
				segs, want := im.whole(mid, mid+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Fatal(err)
				}
				before := o.requests()
				segs, want = im.whole(chunks[0], chunks[len(chunks)-1]+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Error(err)
				}
				if n := o.requests() - before; n != 0 {
					t.Errorf("%d more requests for chunks of a unit that was fetched", n)
				}
			}
			next := cache.New(newFolder())
			if err := im.engine(t, fetch.Options{Cache: next}).Prefetch(t.Context(), slices.Values(im.chunks)); err != nil {
				t.Errorf("prefetch: %v", err)
			}
			for _, c := range []*cache.Cache{store, next} {
				none := objects{}
				im.readEach(t, im.engine(t, fetch.Options{Cache: c, Backend: none}), func(i int, err error) {
					if c == next || im.chunks[i].Shared {
						t.Errorf("second process: %v", err)
					}
				})
			}
		})
	}
}

// One request serves all who read from one unit at the same time.
func TestManyReadersOneUnit(t *testing.T) {
	for _, cached := range []bool{false, true} {
		im := newUnitImage(t, "batch", slices.Repeat([]int{3000}, 100))
		o := im.backend()
		opts := fetch.Options{Backend: o}
		if cached {
			opts.Cache = cache.New(newFolder())
		}
		e := im.engine(t, opts)
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
		// The header, the chunk information, the unit; readers that come when the
		// flights have landed find what they brought.
		if n := o.requests(); n != 3 {
			t.Errorf("cache %v: %d requests, want 3", cached, n)
		}
	}
}

// interesting are the bytes of an object worth a flip: all but most zeros of the
// header of chunk information.
func (im *unitImage) interesting(id string) []int {
	var at []int
	data := im.objects[id]
	header := len(data) + 1
	if id == im.info.MetaID {
		header = int(im.ci.Offset + im.ci.CompressedSize)
	}
	for i := range data {
		if i < header+64 || i >= header+4092 || i%512 == 100 {
			at = append(at, i)
		}
	}
	return at
}

// Every byte of the blob, and of the object that has its chunk information,
// inverted in turn, is without effect on a chunk or an error.
func TestFlippedUnitsNeverReachReader(t *testing.T) {
	for _, kind := range unitKinds {
		t.Run(kind, func(t *testing.T) {
			im := smallUnits(t, kind)
			failed, flips := 0, 0
			for id := range im.objects {
				for _, i := range im.interesting(id) {
					o := im.backend()
					o[id].data = bytes.Clone(o[id].data)
					o[id].data[i] ^= 0x08
					e := im.engine(t, fetch.Options{Backend: o, Cache: cache.New(newFolder()), Amplify: -1})
					any := false
					im.readEach(t, e, func(k int, err error) { // read compares what did not fail
						any = true
						if !errors.Is(err, blob.ErrDigest) && !errors.Is(err, blob.ErrCorrupt) {
							t.Errorf("byte %d of %.4s: %v, want ErrDigest or ErrCorrupt", i, id, err)
						}
						if e.Ready(&im.chunks[k]) {
							t.Errorf("byte %d of %.4s: chunk %d is ready and wrong", i, id, k)
						}
					})
					if any {
						failed++
					}
					flips++
				}
			}
			if failed < flips/3 {
				t.Errorf("%d of %d flips were noticed, want a third at least", failed, flips)
			}
		})
	}
}

// Every byte of the cache, inverted in turn, is found by the next process, which
// fetches the unit again.
func TestFlippedCacheOfUnits(t *testing.T) {
	for _, kind := range []string{"batch-encrypted", "zran"} {
		im := newUnitImage(t, kind, []int{60, 70}, []int{50, 5})
		f := newFolder()
		im.readEach(t, im.engine(t, fetch.Options{Cache: cache.New(f)}), noFailure(t))
		for k := range im.chunks {
			for j := range im.plain[k] {
				f.file(t, ".data").flip(int(im.chunks[k].UncompressedOffset) + j)
				e := im.engine(t, fetch.Options{Cache: cache.New(f)})
				segs, want := im.whole(k, k+1)
				if err := read(t, t.Context(), e, segs, want); err != nil {
					t.Error(err)
				}
				if s := e.Stats(); s.BadCache != 1 {
					t.Errorf("%s: byte %d of chunk %d: %d bad chunks in the cache, want 1", kind, j, k, s.BadCache)
				}
			}
		}
	}
}

// metaDir is a folder with the file that a bootstrap layer carries.
func (im *unitImage) metaDir(t testing.TB, file []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, im.info.ID+".blob.meta"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The file beside the bootstrap saves asking the blob. Whatever it says, what is
// read is right: a wrong one is told by the digests, and the blob asked.
func TestFileOfChunkInformation(t *testing.T) {
	for _, kind := range []string{"batch", "batch-encrypted", "zran"} {
		t.Run(kind, func(t *testing.T) {
			im := smallUnits(t, kind)
			o := im.backend()
			e := im.engine(t, fetch.Options{Backend: o, MetaDir: im.metaDir(t, im.file), Cache: cache.New(newFolder()), Amplify: -1})
			im.readEach(t, e, noFailure(t))
			if n := int(o.requests()); n != len(im.units) {
				t.Errorf("%d requests, want %d", n, len(im.units))
			}
			for i := range im.file {
				if i >= len(im.tables)+24*len(im.chunks) && i < len(im.file)-4096 || i >= len(im.file)-4096+64 && i < len(im.file)-4 {
					continue // padding
				}
				bad := bytes.Clone(im.file)
				bad[i] ^= 0x08
				im.readEach(t, im.engine(t, fetch.Options{MetaDir: im.metaDir(t, bad)}), noFailure(t))
			}
			for _, n := range []int{0, 1, 4096, len(im.file) - 1, len(im.file) - 4096} {
				im.readEach(t, im.engine(t, fetch.Options{MetaDir: im.metaDir(t, im.file[:n])}), noFailure(t))
			}
		})
	}
}

// A source that fails while chunk information is loaded costs the reads of that
// moment; later ones load it.
func TestChunkInformationIsLoadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := smallUnits(t, "batch")
		o := im.backend()
		var broken error = backend.ErrUnavailable
		o[im.info.ID].before = func(_ context.Context, p []byte, off int64) (bool, error) {
			if off >= int64(im.ci.Offset) {
				return false, broken
			}
			return false, nil
		}
		e := im.engine(t, fetch.Options{Backend: o, Amplify: -1})
		segs, want := im.whole(0, 1)
		if err := read(t, t.Context(), e, segs, want); !errors.Is(err, broken) {
			t.Errorf("while the source fails: %v, want %v", err, broken)
		}
		own, ownWant := im.whole(3, 4)
		if err := read(t, t.Context(), e, own, ownWant); err != nil {
			t.Errorf("a chunk of its own needs no chunk information: %v", err)
		}
		asked := o.requests()
		if err := read(t, t.Context(), e, segs, want); !errors.Is(err, broken) || o.requests() != asked {
			t.Errorf("at once after that: %v and %d requests, want %v and none", err, o.requests()-asked, broken)
		}
		broken = nil
		time.Sleep(2 * time.Second)
		im.readEach(t, e, noFailure(t))
	})
}

// Chunk information that was damaged on its way, with chunks that cannot be found
// by it, is loaded again around anything shared.
func TestChunkInformationIsLoadedFresh(t *testing.T) {
	im := smallUnits(t, "batch")
	o := im.backend()
	o[im.info.ID].before = func(ctx context.Context, p []byte, off int64) (bool, error) {
		if off != int64(im.ci.Offset) || backend.IsFresh(ctx) {
			return false, nil
		}
		copy(p, o[im.info.ID].data[off:])
		for i := range p[:len(p)-8] {
			p[i] ^= 1
		}
		return true, nil
	}
	im.readEach(t, im.engine(t, fetch.Options{Backend: o}), noFailure(t))
}

// FuzzChunkInformation: whatever a blob says of its chunks, and a table of contents
// of that, what is read is right or an error.
func FuzzChunkInformation(f *testing.F) {
	kinds := []string{"batch", "batch-toc", "batch-encrypted", "zran"}
	for i, kind := range kinds {
		im := smallUnits(f, kind)
		tail := im.objects[im.info.MetaID][im.ci.Offset:]
		f.Add(uint8(i), tail)
		f.Add(uint8(i), tail[:len(tail)/2])
		f.Add(uint8(i+4), im.file)
	}
	f.Fuzz(func(t *testing.T, how uint8, tail []byte) {
		im := smallUnits(t, kinds[how%4])
		if how&4 != 0 {
			// A file cannot do harm at all: the blob is right.
			im.readEach(t, im.engine(t, fetch.Options{MetaDir: im.metaDir(t, tail)}), noFailure(t))
			return
		}
		o, id := im.backend(), im.info.MetaID
		o[id].data = append(bytes.Clone(o[id].data[:im.ci.Offset]), tail...)
		im.readEach(t, im.engine(t, fetch.Options{Backend: o}), func(i int, err error) {
			if !im.chunks[i].Shared {
				t.Error(err)
			}
		})
	})
}
