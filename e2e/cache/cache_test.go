package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestEntry(t *testing.T) {
	t.Setenv("RAFSD_CACHE", t.TempDir())
	var calls atomic.Int32
	fill := func(_ context.Context, dir string) error {
		calls.Add(1)
		return os.WriteFile(filepath.Join(dir, "f"), []byte("made"), 0o644)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := Entry(t.Context(), "kernel/one", fill)
			if err != nil {
				t.Error(err)
				return
			}
			if text, err := os.ReadFile(filepath.Join(dir, "f")); string(text) != "made" {
				t.Errorf("entry holds %q, %v, want %q", text, err, "made")
			}
		})
	}
	wg.Wait()
	if !Has("kernel") || !Has("kernel/one") || Has("kernel/two") {
		t.Errorf("Has: kernel %t, kernel/one %t, kernel/two %t, want the first two", Has("kernel"), Has("kernel/one"), Has("kernel/two"))
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the entry was made %d times, want once", n)
	}
}

func TestEntryFails(t *testing.T) {
	t.Setenv("RAFSD_CACHE", t.TempDir())
	failure := errors.New("no network")
	_, err := Entry(t.Context(), "x", func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Fatalf("got error %v, want %v", err, failure)
	}
	dir, err := Entry(t.Context(), "x", func(context.Context, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("after a failure the next entry holds %v, %v, want nothing", list, err)
	}
}

func TestDir(t *testing.T) {
	t.Setenv("RAFSD_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/var/cache/someone")
	if got, err := Dir(); got != "/var/cache/someone/rafsd" || err != nil {
		t.Errorf("got %q, %v, want rafsd in the user's cache folder", got, err)
	}
}
