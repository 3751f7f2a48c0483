package treetest_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
)

// Wherever the disk with temporary files is full, the error says so and what to do.
func TestFullDisk(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.LeakCheck(t)
	failed, done := 0, false
	for kib := 16; !done; kib *= 2 {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
			t.Fatal(err)
		}
		_, err := makeImage(dir, 1000, io.Discard, io.Discard,
			treetest.Shape{Seed: 1, Entries: 3000, Bytes: 1 << 20}, treetest.Shape{Seed: 2, Entries: 2000, Bytes: 1 << 20})
		// All files are closed, or this would be busy.
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("%d KiB: umount: %v", kib, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		switch done = err == nil; {
		case done:
		case !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "--work-dir"):
			t.Fatalf("%d KiB: got %v, want %v and what to do", kib, err, syscall.ENOSPC)
		default:
			failed++
		}
	}
	if failed < 4 {
		t.Errorf("%d sizes were too small, want several places to fail at", failed)
	}
}
