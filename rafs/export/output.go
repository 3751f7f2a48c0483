package export

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// output is a file that nobody sees before it is complete: it has no name until
// then, so that nothing is left of it, whatever ends the process. It is used by one
// goroutine.
type output struct {
	*os.File
	path  string // the name that it gets
	named string // the name that it has; empty for none
}

// create starts a file that is to replace what is at path.
func create(path string) (*output, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is a %s, want a regular file or none", path, fi.Mode().Type())
	}
	o, err := createNameless(path)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return createHidden(path)
	}
	return o, err
}

func createNameless(path string) (*output, error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("new file in %s: %w", filepath.Dir(path), err)
	}
	return &output{File: os.NewFile(uintptr(fd), path), path: path}, nil
}

// createHidden is for file systems without nameless files. There a kill leaves
// the file with its hidden name.
func createHidden(path string) (o *output, err error) {
	o = &output{path: path}
	o.named = o.hidden()
	if err := os.Remove(o.named); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if o.File, err = os.OpenFile(o.named, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return nil, err
	}
	return o, nil
}

// hidden is a name beside that of the file, of this process alone.
func (o *output) hidden() string {
	return filepath.Join(filepath.Dir(o.path), fmt.Sprintf(".%s.%d.part", filepath.Base(o.path), os.Getpid()))
}

// commit gives the file its name, in one step, once its bytes are on the disk.
func (o *output) commit() error {
	if err := o.Sync(); err != nil {
		return err
	}
	if o.named == "" {
		name := o.hidden()
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		o.named = name
	}
	if err := os.Rename(o.named, o.path); err != nil {
		return err
	}
	o.named = ""
	return o.abort()
}

// abort closes the file and, without commit before, leaves nothing of it.
func (o *output) abort() error {
	err := o.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if o.named != "" {
		err = errors.Join(err, os.Remove(o.named))
		o.named = ""
	}
	return err
}
