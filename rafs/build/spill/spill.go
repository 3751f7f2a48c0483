// Package spill holds data that is too much for memory in unnamed files: a
// sorter of records, arrays of records of one size, and logs that only grow.
//
// Each of them takes a budget of memory in bytes and stays within it, whatever
// it is given, apart from a few bytes an open file; what is small never becomes
// a file. Files have no names, so nothing of them is left when the process ends,
// however it ends. They are read and written, never mapped: mapped pages count as
// memory of the process.
//
// The package trusts what it wrote itself a moment ago, since nobody else can
// open the files. It knows nothing of images. Nothing here is for several
// goroutines at once, except that cursors of one Run may move side by side.
package spill

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Error is a failure of the folder that holds temporary files.
type Error struct {
	Dir string
	Err error
}

func (e *Error) Error() string {
	if errors.Is(e.Err, syscall.ENOSPC) || errors.Is(e.Err, syscall.EDQUOT) {
		return fmt.Sprintf("temporary file in %s: %v (make room there, or name another folder with --work-dir)", e.Dir, e.Err)
	}
	return fmt.Sprintf("temporary file in %s: %v (--work-dir names another folder)", e.Dir, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// errClosed is what a use after Close gets.
var errClosed = errors.New("used after it was closed")

// file is an unnamed file that comes to be with the first write.
type file struct {
	dir    string // "" is os.TempDir
	f      *os.File
	size   int64 // end of what was written
	closed bool
}

func (f *file) fail(err error) error {
	if err == nil {
		return nil
	}
	dir := f.dir
	if dir == "" {
		dir = os.TempDir()
	}
	return &Error{dir, err}
}

func (f *file) open() error {
	if f.closed {
		return f.fail(errClosed)
	}
	if f.f != nil {
		return nil
	}
	t, err := os.CreateTemp(f.dir, "rafsd-*")
	if err != nil {
		return f.fail(err)
	}
	if err := os.Remove(t.Name()); err != nil {
		return f.fail(errors.Join(err, t.Close()))
	}
	f.f = t
	return nil
}

func (f *file) writeAt(p []byte, off int64) error {
	if err := f.open(); err != nil {
		return err
	}
	if _, err := f.f.WriteAt(p, off); err != nil {
		return f.fail(err)
	}
	f.size = max(f.size, off+int64(len(p)))
	return nil
}

// readAt reads at an offset; what was never written is zeros.
func (f *file) readAt(p []byte, off int64) error {
	if f.closed {
		return f.fail(errClosed)
	}
	n := 0
	if f.f != nil && off < f.size {
		var err error
		if n, err = f.f.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return f.fail(err)
		}
	}
	clear(p[n:])
	return nil
}

func (f *file) close() error {
	f.closed = true
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	return f.fail(err)
}
