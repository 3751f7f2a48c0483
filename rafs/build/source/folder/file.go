package folder

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// defaultData is what the files of a layer have at most, in bytes, unless its
// limits say otherwise. The builder would say so too, but only when they are cut.
const defaultData = 4 << 40

// file adds a regular file. Of an inode with several names the contents are cut
// once.
func (w *walker) file(fd int, e *tree.Entry, st *unix.Stat_t) error {
	e.Size = uint64(st.Size)
	if _, err := w.xattrs(e, fdXattrs(fd)); err != nil {
		return err
	}
	number, first := w.inode(st)
	e.Inode = number
	if !first {
		e.Size = 0 // the first name has told it
	}
	if e.Size == 0 {
		return w.builder.Add(e, nil)
	}
	limit := w.opts.Limits.Data
	if limit == 0 {
		limit = defaultData
	}
	if st.Size > limit-w.bytes {
		return &tree.EntryError{Name: e.Path, Reason: fmt.Sprintf("%d bytes after %d make more than %d in one layer", st.Size, w.bytes, limit)}
	}
	w.bytes += st.Size
	return w.cut(fd, e, st)
}

// cut adds an entry with its contents. The refs go straight from the cutter to
// the builder, since a file may have any number of them.
func (w *walker) cut(fd int, e *tree.Entry, st *unix.Stat_t) error {
	r := &reader{fd: fd, size: st.Size, sparse: st.Blocks*512 < st.Size}
	var cutErr error
	err := w.builder.Add(e, func(yield func(chunk.Ref) bool) {
		cutErr = w.files.File(r, st.Size, func(ref chunk.Ref) error {
			if !yield(ref) {
				return errStopped
			}
			return nil
		})
	})
	if cutErr != nil && !errors.Is(cutErr, errStopped) {
		return cutErr
	}
	if err != nil {
		return err
	}
	return unchanged(fd, st)
}

// errStopped ends the cutting of a file whose entry is refused.
var errStopped = errors.New("stopped")

// unchanged tells whether an open file is what stat said of it.
func unchanged(fd int, want *unix.Stat_t) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Dev != want.Dev || st.Ino != want.Ino:
		return fmt.Errorf("%w: was replaced", ErrChanged)
	case st.Size != want.Size:
		return fmt.Errorf("%w: %d bytes, then %d", ErrChanged, want.Size, st.Size)
	case st.Mode != want.Mode || st.Mtim != want.Mtim || st.Ctim != want.Ctim:
		return fmt.Errorf("%w: was written to or got other attributes", ErrChanged)
	}
	return nil
}

// reader reads a file from start to end. Holes are not asked of the file system:
// they are zeros.
type reader struct {
	fd        int
	off, size int64
	sparse    bool

	until int64 // where the hole or the data at off ends, as far as it is known
	hole  bool
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.size {
		return 0, io.EOF
	}
	if r.off >= r.until {
		if err := r.look(); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), r.until-r.off)]
	if r.hole {
		clear(p)
		r.off += int64(len(p))
		return len(p), nil
	}
	n, err := retry(func() (int, error) { return unix.Pread(r.fd, p, r.off) })
	if err != nil {
		return 0, fmt.Errorf("read at %d: %w", r.off, err)
	}
	if n == 0 && len(p) > 0 {
		return 0, fmt.Errorf("%w: %d bytes, then %d", ErrChanged, r.size, r.off)
	}
	r.off += int64(n)
	return n, nil
}

// look finds out how far the hole or the data at off goes.
func (r *reader) look() error {
	r.hole, r.until = false, r.size
	if !r.sparse {
		return nil
	}
	data, err := unix.Seek(r.fd, r.off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data up to the end
		r.hole = true
		return nil
	case err != nil: // not every file system can tell
		r.sparse = false
		return nil
	case data > r.off:
		r.hole, r.until = true, min(data, r.size)
		return nil
	}
	hole, err := unix.Seek(r.fd, r.off, unix.SEEK_HOLE)
	if err != nil || hole <= r.off {
		r.sparse = false
		return nil
	}
	r.until = min(hole, r.size)
	return nil
}
