package spill

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

type pair struct{ key, value string }

// collect reads all records.
func collect(t testing.TB, next func() bool, key, value func() []byte, err func() error) (out []pair) {
	t.Helper()
	for next() {
		out = append(out, pair{string(key()), string(value())})
	}
	if err() != nil {
		t.Fatal(err())
	}
	return out
}

// randomPairs makes records with few different keys, which share beginnings, and
// with values of all sizes.
func randomPairs(seed uint64, n int) []pair {
	r := rand.New(rand.NewPCG(seed, 1))
	pairs := make([]pair, n)
	for i := range pairs {
		key := strings.Repeat("usr/", r.IntN(4)) + fmt.Sprint(r.IntN(n/2+1))
		if r.IntN(20) == 0 {
			key = ""
		}
		pairs[i] = pair{key, strings.Repeat("v", r.IntN(30)*r.IntN(30)) + fmt.Sprint(i)}
		if r.IntN(50) == 0 {
			pairs[i].value = ""
		}
	}
	return pairs
}

func TestSorter(t *testing.T) {
	for _, n := range []int{0, 1, 2, 100, 5000} {
		pairs := randomPairs(uint64(n), n)
		want := slices.Clone(pairs)
		slices.SortStableFunc(want, func(a, b pair) int { return strings.Compare(a.key, b.key) })
		// From everything in memory to several passes over many runs.
		for _, budget := range []int{1 << 24, 1 << 16, 40 << 10, 2000, 1} {
			if budget == 1 && n > 100 {
				continue // a run a record
			}
			dir := t.TempDir()
			s := NewSorter(dir, budget)
			for _, p := range pairs {
				if err := s.Add([]byte(p.key), []byte(p.value)); err != nil {
					t.Fatal(err)
				}
			}
			m, err := s.Sort()
			if err != nil {
				t.Fatal(err)
			}
			got := collect(t, m.Next, m.Key, m.Value, m.Err)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(pair{}), cmp.Transformer("nil", func(p []pair) []pair { return append([]pair{}, p...) })); diff != "" {
				t.Errorf("%d records, budget %d (-want +got):\n%.2000s", n, budget, diff)
			}
			if m.Next() {
				t.Errorf("%d records, budget %d: a record after the end", n, budget)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("folder has %v, %v", left, err)
			}
			if err := errors.Join(s.Close(), s.Close()); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestRun(t *testing.T) {
	pairs := randomPairs(1, 1000)
	slices.SortStableFunc(pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	for _, budget := range []int{1 << 20, 100} {
		w := NewRun(t.TempDir(), budget)
		for _, p := range pairs {
			if err := w.Append([]byte(p.key), []byte(p.value)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Append([]byte("!"), nil); err == nil {
			t.Error("a key that is less than the last one: got no error")
		}
		run, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c := run.Cursor(20)
			got := collect(t, c.Next, c.Key, c.Value, c.Err)
			if !slices.Equal(got, pairs) {
				t.Errorf("budget %d: other records than were written", budget)
			}
		}
		if err := errors.Join(run.Close(), run.Close()); err != nil {
			t.Error(err)
		}
		if c := run.Cursor(20); budget == 100 && (c.Next() || c.Err() == nil) {
			t.Error("cursor of a closed run: got no error")
		}
	}
}

func TestMergeKeepsTheOrderOfCursors(t *testing.T) {
	run := func(keys ...string) *Cursor {
		w := NewRun("", 1000)
		for _, k := range keys {
			if err := w.Append([]byte(k), nil); err != nil {
				t.Fatal(err)
			}
		}
		r, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return r.Cursor(100)
	}
	m := Merge(run("a", "c", "c"), run(), run("a", "b", "c"), run("c"))
	var got []string
	for m.Next() {
		got = append(got, fmt.Sprint(string(m.Key()), m.Source()))
	}
	if want := []string{"a0", "a2", "b2", "c0", "c0", "c2", "c3"}; m.Err() != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, m.Err(), want)
	}
	if m := Merge(); m.Next() || m.Err() != nil {
		t.Error("no cursors at all: got a record")
	}
}

// An array and a log behind a cache of a page or two hold what a slice holds.
func TestArrayAndLogAgainstMemory(t *testing.T) {
	for _, budget := range []int{0, 3 * pageSize, 1 << 20} {
		r := rand.New(rand.NewPCG(3, uint64(budget)))
		array, log := NewArray(t.TempDir(), 24, budget), NewLog(t.TempDir(), budget)
		var records [][24]byte
		var text []byte
		for range 20000 {
			var rec [24]byte
			for i := range rec {
				rec[i] = byte(r.Uint32())
			}
			at := r.IntN(len(records) + 1)
			if r.IntN(3) == 0 {
				at = len(records) + r.IntN(3)
			}
			for at >= len(records) {
				records = append(records, [24]byte{})
			}
			records[at] = rec
			if err := array.Set(int64(at), rec[:]); err != nil {
				t.Fatal(err)
			}
			piece := rec[:r.IntN(24)]
			off, err := log.Append(piece)
			if err != nil || off != int64(len(text)) {
				t.Fatalf("append: at %d, %v; want %d", off, err, len(text))
			}
			text = append(text, piece...)
			at = r.IntN(len(records))
			if err := array.Get(int64(at), rec[:]); err != nil || rec != records[at] {
				t.Fatalf("budget %d: record %d: got %x, %v, want %x", budget, at, rec, err, records[at])
			}
			from := r.IntN(len(text) + 1)
			got := make([]byte, min(r.IntN(10000), len(text)-from))
			if err := log.Read(got, int64(from)); err != nil || !bytes.Equal(got, text[from:][:len(got)]) {
				t.Fatalf("budget %d: other bytes at %d, %v", budget, from, err)
			}
		}
		var rec [24]byte
		for _, err := range []error{
			array.Get(array.Len(), rec[:]), array.Get(-1, rec[:]), array.Get(0, rec[:5]), array.Set(0, rec[:5]),
			log.Read(make([]byte, 2), log.Len()-1), log.Read(nil, -1),
		} {
			if err == nil {
				t.Error("beyond the end, or of another size: got no error")
			}
		}
		if err := errors.Join(array.Close(), array.Close(), log.Close(), log.Close()); err != nil {
			t.Error(err)
		}
		if _, err := log.Append([]byte("x")); !errors.Is(err, errClosed) {
			t.Errorf("append after close: got %v, want %v", err, errClosed)
		}
	}
}

// What is small is never a file.
func TestSmallStaysInMemory(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "none")
	s, log, array, w := NewSorter(nowhere, 1<<16), NewLog(nowhere, 1<<16), NewArray(nowhere, 8, 1<<16), NewRun(nowhere, 1<<16)
	for i := range 1000 {
		key := fmt.Appendf(nil, "%08d", i)
		_, err := log.Append(key)
		if err := errors.Join(err, s.Add(key, key), array.Append(key), w.Append(key, nil)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Sort()
	_, err2 := w.Finish()
	if err := errors.Join(err, err2, s.Close(), log.Close(), array.Close()); err != nil {
		t.Error(err)
	}
	log = NewLog(nowhere, 0)
	_, err = log.Append(make([]byte, 3*pageSize))
	var failed *Error
	if !errors.As(err, &failed) || failed.Dir != nowhere || !strings.Contains(err.Error(), "--work-dir") {
		t.Errorf("no folder: got %v", err)
	}
}

// A full disk is told as such, with what to do.
func TestFullDisk(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, log, array, w := NewSorter(dir, 1000), NewLog(dir, 0), NewArray(dir, 1000, 0), NewRun(dir, 0)
	for name, add := range map[string]func(i int) error{
		"sorter": func(i int) error { return s.Add(fmt.Appendf(nil, "%8d", i), make([]byte, 500)) },
		"log":    func(int) error { _, err := log.Append(make([]byte, 500)); return err },
		"array":  func(int) error { return array.Append(make([]byte, 1000)) },
		"run":    func(i int) error { return w.Append(fmt.Appendf(nil, "%8d", i), make([]byte, 500)) },
	} {
		var err error
		for i := 0; err == nil && i < 1000; i++ {
			err = add(i)
		}
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room there") {
			t.Errorf("%s: got %v, want %v and what to do", name, err, syscall.ENOSPC)
		}
	}
	if err := errors.Join(s.Close(), log.Close(), array.Close(), w.Close()); err != nil {
		t.Error(err)
	}
}
