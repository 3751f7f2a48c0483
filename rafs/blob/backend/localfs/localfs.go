// Package localfs reads blobs from files of local folders, each named by its
// blob id, or from one given file.
//
// The operator who names the folders is trusted, ids are not: they are checked,
// and files are opened relative to the folder's descriptor, never through a
// link that leaves it.
package localfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// Backend is a set of folders, or one file. It implements backend.Backend.
type Backend struct {
	roots []*os.Root // immutable; searched in order
	file  string     // immutable; the one file for every id, if not empty

	mu      sync.Mutex
	closed  bool
	readers map[string]*reader
}

// New is a backend over dir and then over alt, in this order. The folders have
// to exist.
func New(dir string, alt ...string) (*Backend, error) {
	b := &Backend{readers: map[string]*reader{}}
	for _, d := range append([]string{dir}, alt...) {
		root, err := os.OpenRoot(d)
		if err != nil {
			_ = b.Close()
			return nil, fmt.Errorf("blob folder: %w", err)
		}
		b.roots = append(b.roots, root)
	}
	return b, nil
}

// NewFile is a backend that has the file at path as every blob (nydus' blob_file).
func NewFile(path string) *Backend {
	return &Backend{file: path, readers: map[string]*reader{}}
}

// Open implements backend.Backend.
func (b *Backend) Open(id string) (backend.Reader, error) {
	if err := blob.CheckID(id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("blob %s: %w", id, backend.ErrClosed)
	}
	r, ok := b.readers[id]
	if !ok {
		r = &reader{b: b, id: id}
		b.readers[id] = r
	}
	return r, nil
}

// Close implements backend.Backend.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	var errs []error
	for _, r := range b.readers {
		errs = append(errs, r.close())
	}
	for _, root := range b.roots {
		errs = append(errs, root.Close())
	}
	return errors.Join(errs...)
}

// open finds the file of an id. A pipe or a device with that name must neither
// block nor be read.
func (b *Backend) open(id string) (*os.File, error) {
	if b.file != "" {
		return regular(os.OpenFile(b.file, os.O_RDONLY|syscall.O_NONBLOCK, 0))
	}
	for _, root := range b.roots {
		f, err := regular(root.OpenFile(id, os.O_RDONLY|syscall.O_NONBLOCK, 0))
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, fmt.Errorf("in %d folders: %w", len(b.roots), fs.ErrNotExist)
}

func regular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %v is no regular file", fs.ErrPermission, st.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// reader opens its file at the first use and keeps it open.
type reader struct {
	b  *Backend
	id string

	mu     sync.Mutex
	file   *os.File
	closed bool
}

// Size implements backend.Reader.
func (r *reader) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f, err := r.open()
	if err != nil {
		return 0, r.fail(err)
	}
	st, err := f.Stat()
	if err != nil {
		return 0, r.fail(err)
	}
	return st.Size(), nil
}

// ReadRange implements backend.Reader.
func (r *reader) ReadRange(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 {
		return fmt.Errorf("blob %s: %w: offset %d", r.id, backend.ErrRange, off)
	}
	f, err := r.open()
	if err != nil {
		return r.fail(err)
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("blob %s: %w: %d bytes at %d, file ends at %d", r.id, backend.ErrRange, len(p), off, off+int64(n))
	}
	return r.fail(err)
}

func (r *reader) open() (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, os.ErrClosed
	}
	if r.file != nil {
		return r.file, nil
	}
	f, err := r.b.open(r.id)
	r.file = f
	return f, err
}

func (r *reader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// fail sorts an error of the file system into those of package backend.
func (r *reader) fail(err error) error {
	kind := backend.ErrUnavailable
	switch {
	case errors.Is(err, os.ErrClosed):
		kind = backend.ErrClosed
	case errors.Is(err, fs.ErrNotExist):
		kind = backend.ErrNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.EXDEV), errEscapes(err):
		kind = backend.ErrDenied
	}
	return fmt.Errorf("blob %s: %w: %w", r.id, kind, err)
}

// errEscapes reports a link that leaves the folder, an error of os.Root that has
// no exported value.
func errEscapes(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && pe.Err.Error() == "path escapes from parent"
}
