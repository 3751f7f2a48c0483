package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

// A disk that is full leaves what was under the name before, or nothing.
func TestWriteJSONFileWhole(t *testing.T) {
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	small, large := []byte("{}"), []byte(strings.Repeat("x", 64<<10))
	path := filepath.Join(dir, "out.json")
	if err := writeJSONFile(path, large); err == nil || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Fatalf("got %v, want a full disk", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if err := writeJSONFile(path, small); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("out.json", link); err != nil {
		t.Fatal(err)
	}
	if err := writeJSONFile(link, large); err == nil {
		t.Fatal("a full disk takes it")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "{}" {
		t.Errorf("got %q, %v, want what was there", got, err)
	}
	if err := writeJSONFile(link, []byte("[]")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "[]" {
		t.Errorf("through a symlink: got %q, %v", got, err)
	}
	if err := writeJSONFile("/dev/null", large); err != nil {
		t.Errorf("a device: %v", err)
	}
}
