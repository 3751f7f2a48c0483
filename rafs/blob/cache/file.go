package cache

import (
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Folder is what the cache needs of a directory.
type Folder interface {
	// Open opens a file, for reading only or, created if need be, for writing too.
	Open(name string, write bool) (File, error)
	// Remove takes a file's name away; who has it open keeps it.
	Remove(name string) error
	Close() error
}

// File is what the cache needs of a file. Methods other than Close are safe for
// concurrent use, also with Close.
type File interface {
	// Preadv reads into dst from off; fewer bytes only at the end of the file.
	Preadv(dst [][]byte, off int64) (int, error)
	// Pwrite writes p at off.
	Pwrite(p []byte, off int64) (int, error)
	Size() (int64, error)
	Truncate(size int64) error
	// Lock waits for a lock on the file that excludes other processes.
	Lock() (unlock func(), err error)
	Close() error
}

// diskFolder is a directory, used by its descriptor.
type diskFolder struct{ root *os.Root }

func (d diskFolder) Close() error { return d.root.Close() }

func (d diskFolder) Remove(name string) error { return d.root.Remove(name) }

func (d diskFolder) Open(name string, write bool) (File, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := d.root.OpenFile(name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	return &diskFile{file: f, fd: int(f.Fd())}, nil
}

// diskFile reads and writes by its descriptor number, because that is the way to
// preadv. It counts its users so that the number is never one of another file.
type diskFile struct {
	file *os.File // keeps fd open
	fd   int
	// users is the number of calls that run, plus closing once Close was called.
	users atomic.Int64
}

const closing = math.MinInt64 / 2

func (d *diskFile) enter() error {
	if d.users.Add(1) < 0 {
		d.leave()
		return ErrClosed
	}
	return nil
}

func (d *diskFile) leave() {
	if d.users.Add(-1) == closing {
		_ = d.file.Close()
	}
}

func (d *diskFile) Close() error {
	for {
		n := d.users.Load()
		if n < 0 {
			return nil
		}
		if d.users.CompareAndSwap(n, closing+n+1) {
			d.leave()
			return nil
		}
	}
}

// maxVectors is the most that one preadv takes (IOV_MAX).
const maxVectors = 1024

func (d *diskFile) Preadv(dst [][]byte, off int64) (total int, err error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	for len(dst) > 0 {
		some := dst[:min(len(dst), maxVectors)]
		n, err := preadv(d.fd, some, off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
		for _, s := range some {
			n -= len(s)
		}
		if n < 0 {
			return total, nil
		}
		dst = dst[len(some):]
	}
	return total, nil
}

func preadv(fd int, dst [][]byte, off int64) (n int, err error) {
	for {
		if len(dst) == 1 {
			n, err = unix.Pread(fd, dst[0], off)
		} else {
			n, err = unix.Preadv(fd, dst, off)
		}
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func (d *diskFile) Pwrite(p []byte, off int64) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	for {
		n, err := unix.Pwrite(d.fd, p, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (d *diskFile) Size() (int64, error) {
	st, err := d.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (d *diskFile) Truncate(size int64) error { return d.file.Truncate(size) }

// Lock holds no Go lock; it waits for other processes that open the same blob,
// which is a matter of microseconds.
func (d *diskFile) Lock() (unlock func(), err error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(d.fd, unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		d.leave()
		return nil, err
	}
	return func() {
		_ = unix.Flock(d.fd, unix.LOCK_UN)
		d.leave()
	}, nil
}
