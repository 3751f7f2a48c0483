package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
)

var testInfo = &blob.Info{ID: strings.Repeat("ab", 32), ChunkSize: 8192, UncompressedSize: 10 * 8192}

// tableOf is a table of ten chunks of 5000 bytes, 8192 apart, filled with seed.
func tableOf(seed byte) Table {
	return Table{Info: testInfo, Count: 10, Chunk: func(i uint32) (blob.Chunk, bool) {
		return blob.Chunk{
			Blob: testInfo, Index: i, UncompressedOffset: uint64(i) * 8192, UncompressedSize: 5000,
			Digest: blob.DigesterBlake3.Sum(content(seed, i)),
		}, i != 7 // the image does not use chunk 7
	}}
}

func content(seed byte, i uint32) []byte {
	return bytes.Repeat([]byte{seed, byte(i)}, 2500)
}

func mustOpen(t *testing.T, dir string, table Table) *Blob {
	t.Helper()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b, err := c.Blob(table)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func mustFill(t *testing.T, b *Blob, table Table, i uint32, seed byte) {
	t.Helper()
	c, _ := table.Chunk(i)
	if err := b.Fill(&c, content(seed, i)); err != nil {
		t.Fatalf("fill chunk %d: %v", i, err)
	}
}

func files(t *testing.T, dir, ext string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+ext))
	if err != nil || len(names) != 1 {
		t.Fatalf("files *%s: %q, %v, want one", ext, names, err)
	}
	return names[0]
}

func TestFillReadDrop(t *testing.T) {
	testenv.LeakCheck(t)
	dir, table := filepath.Join(t.TempDir(), "new", "folder"), tableOf(1)
	b := mustOpen(t, dir, table)
	other := mustOpen(t, dir, table) // as another process would
	if b.Present(3) {
		t.Error("chunk 3 is present in a new cache")
	}
	mustFill(t, b, table, 3, 1)
	mustFill(t, b, table, 4, 1)
	got := make([]bool, 12)
	other.PresentRange(1, got)
	if want := []bool{1: false, 2: true, 3: true, 11: false}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("present from 1 on: %v, want %v", got, want)
	}
	// Over the edge of a chunk, into pieces of odd sizes.
	dst := [][]byte{make([]byte, 1), make([]byte, 4990), {}, make([]byte, 20)}
	if n, err := other.Preadv(dst, 3*8192+5); err != nil || n != 5011 {
		t.Errorf("preadv = %d, %v, want 5011", n, err)
	}
	want := append(content(1, 3)[5:], make([]byte, 16)...)
	if !bytes.Equal(bytes.Join(dst, nil), want) {
		t.Error("read bytes differ from what was filled")
	}
	c, _ := table.Chunk(3)
	if err := other.Drop(&c); err != nil {
		t.Fatal(err)
	}
	if b.Present(3) || !b.Present(4) {
		t.Errorf("after a drop of 3: present(3) = %v, present(4) = %v", b.Present(3), b.Present(4))
	}
	if st, err := os.Stat(files(t, dir, ".data")); err != nil || st.Size() != 10*8192 {
		t.Errorf("data file: %v, %v, want %d bytes", st, err, 10*8192)
	}
}

func TestReadMoreVectorsThanOneCallTakes(t *testing.T) {
	table := tableOf(1)
	b := mustOpen(t, t.TempDir(), table)
	mustFill(t, b, table, 0, 1)
	dst := make([][]byte, 2500)
	for i := range dst {
		dst[i] = make([]byte, 2)
	}
	if n, err := b.Preadv(dst, 0); n != 5000 || err != nil || !bytes.Equal(bytes.Join(dst, nil), content(1, 0)) {
		t.Errorf("preadv of 2500 vectors = %d, %v", n, err)
	}
	if n, err := b.Preadv([][]byte{make([]byte, 10)}, 10*8192-5); err == nil {
		t.Errorf("preadv past the end = %d without an error", n)
	}
}

// Two images that disagree about a blob use different files.
func TestImagesThatDisagree(t *testing.T) {
	dir := t.TempDir()
	one, two := tableOf(1), tableOf(2)
	a, b := mustOpen(t, dir, one), mustOpen(t, dir, two)
	mustFill(t, a, one, 5, 1)
	if b.Present(5) {
		t.Error("the second image sees a chunk of the first")
	}
	mustFill(t, b, two, 5, 2)
	got := make([]byte, 5000)
	if _, err := a.Preadv([][]byte{got}, 5*8192); err != nil || !bytes.Equal(got, content(1, 5)) {
		t.Errorf("the first image reads other bytes than it filled: %v", err)
	}
}

// Every byte of the map's header, inverted in turn, and every wrong size resets it.
func TestDamagedMap(t *testing.T) {
	dir, table := t.TempDir(), tableOf(1)
	b := mustOpen(t, dir, table)
	mustFill(t, b, table, 1, 1)
	path := files(t, dir, ".map")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, bad []byte) {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		fresh := mustOpen(t, dir, table)
		if fresh.Present(1) {
			t.Errorf("%s: chunk 1 is present, want a reset map", what)
		}
		mustFill(t, fresh, table, 1, 1)
		if err := fresh.Close(); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, good) {
			t.Errorf("%s: the map is not as a new one: %v", what, err)
		}
	}
	for _, i := range []int{0, 7, 8, 11, 12, 15, 16, 23, 24, 55, 56, 4095} {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		check(fmt.Sprintf("byte %d inverted", i), bad)
	}
	for _, n := range []int{0, 1, headerSize - 1, headerSize, len(good) - 1} {
		check(fmt.Sprintf("cut to %d", n), good[:n])
	}
	check("longer", append(bytes.Clone(good), 0))
	check("zeros", make([]byte, len(good)))
	// A data file that went away takes its map with it.
	if err := os.Remove(files(t, dir, ".data")); err != nil {
		t.Fatal(err)
	}
	if mustOpen(t, dir, table).Present(1) {
		t.Error("chunk 1 is present without its data file")
	}
}

// A reset keeps the data file's bytes: others may have verified them.
func TestResetKeepsData(t *testing.T) {
	dir, table := t.TempDir(), tableOf(1)
	reader := mustOpen(t, dir, table)
	mustFill(t, reader, table, 2, 1)
	if err := os.WriteFile(files(t, dir, ".map"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, dir, table)
	got := make([]byte, 5000)
	if _, err := reader.Preadv([][]byte{got}, 2*8192); err != nil || !bytes.Equal(got, content(1, 2)) {
		t.Errorf("after a reset by another process: %v, equal %v", err, bytes.Equal(got, content(1, 2)))
	}
}

func TestRefusedTables(t *testing.T) {
	c, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	chunk := func(off uint64, size uint32) blob.Chunk {
		return blob.Chunk{UncompressedOffset: off, UncompressedSize: size}
	}
	for name, chunks := range map[string][]blob.Chunk{
		"overlap":            {chunk(0, 8192), chunk(8191, 10)},
		"overlap, backwards": {chunk(8192, 10), chunk(0, 8193)},
		"same place":         {chunk(0, 4096), chunk(0, 4096)},
		"far away":           {chunk(blob.MaxUncompressedSize, 1)},
		"overflow":           {chunk(1<<64-1, 10)},
		"large":              {chunk(0, blob.MaxChunkSize+1)},
	} {
		table := Table{Info: testInfo, Count: uint32(len(chunks)), Chunk: func(i uint32) (blob.Chunk, bool) { return chunks[i], true }}
		if b, err := c.Blob(table); err == nil {
			b.Close()
			t.Errorf("%s: no error", name)
		}
	}
	backwards := []blob.Chunk{chunk(8192, 8192), chunk(0, 8192)}
	b, err := c.Blob(Table{Info: testInfo, Count: 2, Chunk: func(i uint32) (blob.Chunk, bool) { return backwards[i], true }})
	if err != nil {
		t.Fatalf("chunks in falling order: %v", err)
	}
	b.Close()
	if _, err := c.Blob(Table{Info: &blob.Info{ID: "../x"}}); !errors.Is(err, blob.ErrBadID) {
		t.Errorf("bad id: %v, want ErrBadID", err)
	}
}

func TestFillRefuses(t *testing.T) {
	table := tableOf(1)
	b := mustOpen(t, t.TempDir(), table)
	c, _ := table.Chunk(1)
	if err := b.Fill(&c, make([]byte, 4999)); err == nil {
		t.Error("fill with too few bytes: no error")
	}
	c.UncompressedOffset = 10 * 8192
	if err := b.Fill(&c, make([]byte, 5000)); err == nil {
		t.Error("fill outside the file: no error")
	}
	c.Index = 10
	if err := b.Fill(&c, make([]byte, 5000)); err == nil {
		t.Error("fill of an index outside the map: no error")
	}
}

func TestFullFileSystem(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	table := tableOf(1)
	b := mustOpen(t, dir, table)
	filled := 0
	for i := range uint32(7) {
		c, _ := table.Chunk(i)
		switch err := b.Fill(&c, content(1, i)); {
		case err == nil:
			filled++
			if !b.Present(i) {
				t.Errorf("chunk %d was filled and is absent", i)
			}
		case !errors.Is(err, ErrFull):
			t.Errorf("fill chunk %d: %v, want ErrFull", i, err)
		case b.Present(i):
			t.Errorf("chunk %d did not fit and is present", i)
		}
	}
	if filled == 0 || filled == 7 {
		t.Errorf("%d of 7 chunks fitted, want some", filled)
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	table := tableOf(1)
	b := mustOpen(t, dir, table)
	mustFill(t, b, table, 1, 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, dir, table)
	got := make([]byte, 5000)
	if _, err := b.Preadv([][]byte{got}, 8192); err != nil || !b.Present(1) || !bytes.Equal(got, content(1, 1)) {
		t.Errorf("read from a read-only folder: %v, present %v", err, b.Present(1))
	}
	c, _ := table.Chunk(2)
	if err := b.Fill(&c, content(1, 2)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("fill: %v, want ErrReadOnly", err)
	}
	if err := b.Drop(&c); !errors.Is(err, ErrReadOnly) {
		t.Errorf("drop: %v, want ErrReadOnly", err)
	}
	cache, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	if _, err := cache.Blob(tableOf(2)); !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("a blob that is not there: %v, want ENOENT", err)
	}
}

// A call that comes after Close, or runs while it does, reads this file or fails;
// never the file that got the descriptor's number next.
func TestCloseUnderReads(t *testing.T) {
	testenv.LeakCheck(t)
	dir, table := t.TempDir(), tableOf(1)
	for range 50 {
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Blob(table)
		if err != nil {
			t.Fatal(err)
		}
		mustFill(t, b, table, 0, 1)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				got := make([]byte, 5000)
				for {
					_, err := b.Preadv([][]byte{got}, 0)
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Errorf("got %v, want ErrClosed", err)
						}
						return
					}
					if !bytes.Equal(got, content(1, 0)) {
						t.Error("read other bytes")
					}
				}
			})
		}
		if err := errors.Join(b.Close(), b.Close(), c.Close()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(header{count: 10, dataSize: 81920, key: [32]byte{1, 2}}.encode())
	f.Add(make([]byte, headerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			return
		}
		if !bytes.Equal(h.encode(), b) {
			t.Fatalf("header %+v does not encode to what it came from", h)
		}
	})
}

// What lies between chunks is kept beside them, and makes none of them present.
func TestFillGap(t *testing.T) {
	testenv.LeakCheck(t)
	dir, table := t.TempDir(), tableOf(1)
	b := mustOpen(t, dir, table)
	mustFill(t, b, table, 3, 1)
	gap := bytes.Repeat([]byte{9}, 3192)
	if err := b.FillGap(gap, 3*8192+5000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if _, err := b.Preadv([][]byte{got}, 3*8192); err != nil || !bytes.Equal(got, append(content(1, 3), gap...)) {
		t.Errorf("chunk and gap: %v, or other bytes", err)
	}
	if b.Present(4) || !b.Present(3) {
		t.Error("a gap changed what is present")
	}
	for _, off := range []int64{-1, 10*8192 - 3191, 10 * 8192, 1 << 62} {
		if err := b.FillGap(gap, off); err == nil {
			t.Errorf("gap at %d: no error", off)
		}
	}
	if err := os.Truncate(files(t, dir, ".data"), 0); err != nil {
		t.Fatal(err)
	}
	if err := b.FillGap(gap, 0); err == nil {
		t.Error("a file that was cut was made long again")
	}
}
