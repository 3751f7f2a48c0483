package build

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// output is a file that is being written. It has no name until it is whole,
// unless it is a pipe or a device, which has had one before.
type output struct {
	*os.File
	dir    string
	path   string // empty: to be named when it is published
	direct bool
	temp   string // its name meanwhile, where files without one cannot be made

	syncing chan error // receives once startSync is through; nil without it
}

// newOutput starts a file that will be named path.
func newOutput(path string) (*output, error) {
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%s: is a folder, want a file", path)
	case err == nil && !st.Mode().IsRegular():
		// Opening a fifo waits for its reader.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		return &output{File: f, path: path, direct: true}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	o, err := newOutputIn(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	o.path = path
	return o, nil
}

// newOutputIn starts a file in a folder, whose name is not known yet.
func newOutputIn(dir string) (*output, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err == nil {
		return &output{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(no name yet)")), dir: dir}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, &fs.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	temp := filepath.Join(dir, tempName())
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	return &output{File: f, dir: dir, temp: temp}, nil
}

func tempName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return ".rafsd-" + hex.EncodeToString(b[:]) + ".tmp"
}

// proc is a path by which the file can be opened again while it has no name.
func (o *output) proc() string { return "/proc/self/fd/" + strconv.Itoa(int(o.Fd())) }

// startSync begins to put on the disk what was written through out, which is all.
// publish waits for the end; meanwhile there is the bootstrap to make. A fifo gets
// the rest later, when nothing is left to fail.
func (o *output) startSync(out *bufio.Writer) error {
	if o == nil || o.direct {
		return nil
	}
	if err := out.Flush(); err != nil {
		return err
	}
	o.syncing = make(chan error, 1)
	go func() { o.syncing <- o.Sync() }()
	return nil
}

func (o *output) sync() error {
	if o.syncing == nil {
		return o.Sync()
	}
	err := <-o.syncing
	o.syncing = nil
	return err
}

// publish gives the file its name, once its bytes are on the disk, and closes
// it. What had the name before is replaced.
func (o *output) publish() error {
	if o.direct {
		return o.Close()
	}
	if err := o.sync(); err != nil {
		return err
	}
	if o.temp == "" {
		temp := filepath.Join(o.dir, tempName())
		if err := unix.Linkat(unix.AT_FDCWD, o.proc(), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &fs.PathError{Op: "name", Path: temp, Err: err}
		}
		o.temp = temp
	}
	if err := os.Rename(o.temp, o.path); err != nil {
		return err
	}
	o.temp = ""
	return errors.Join(o.Close(), syncDir(o.dir))
}

// publishAs is publish for a file that newOutputIn has started.
func (o *output) publishAs(name string) error {
	o.path = filepath.Join(o.dir, name)
	return o.publish()
}

// discard drops the file if it was not published.
func (o *output) discard() {
	if o == nil {
		return
	}
	if o.syncing != nil {
		o.sync()
	}
	o.Close()
	if o.temp != "" {
		os.Remove(o.temp)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Not every file system can sync a folder.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
