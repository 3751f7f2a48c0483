// Package folder reads a folder of this machine as one layer of an image.
//
// It walks by descriptors: a name is looked up in its own folder and never
// followed, so that nothing leads out of the folder, whoever changes it
// meanwhile. The order is that of the names by bytes, files before sub-folders,
// and the same for the same folder on any file system; names are sorted in
// pieces, however many a folder has.
//
// It trusts the kernel and nothing in the folder. A file that changes while it
// is read, or that cannot be read, is an error with its name: there is no layer
// with half of it. It never writes and never runs anything.
package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// ErrChanged means that a file was not the same from the first look at it to the
// last.
var ErrChanged = errors.New("changed while it was read")

// Files takes the contents of files, in the order in which they are to lie in
// the blob. A *chunk.Cutter is one.
type Files interface {
	File(r io.Reader, size int64, add func(chunk.Ref) error) error
}

// Options say how a folder is read.
type Options struct {
	// TempDir takes what does not fit into memory.
	TempDir string
	// Limits of the layer.
	Limits tree.Limits
	// Whiteouts say how the folder writes down that a lower layer loses an entry.
	Whiteouts tree.Whiteouts
	// NoOwner gives everything to uid and gid 0 (nydus-image --repeatable).
	NoOwner bool
	// First lists absolute paths, files or whole folders, whose files come before
	// all others, in this order. What does not exist is ignored.
	First []string
	// At is where the folder is in the layer, a clean path without slashes around.
	// Unless it is the root, the folder hides what lower layers have there. First
	// and Skip are about paths in the layer, too.
	At string
	// Name, if not empty, is the one entry of the folder that is read. At is its path
	// in the layer, which ends in Name.
	Name string
	// Partial, if not nil, is called for each path of an upper folder of an overlay
	// whose name or data lies in a lower one, and the path is passed over, with all
	// below it. Without it, such a path is refused.
	Partial func(path string)
	// Skip, if not nil, tells of paths that are passed over, with all below them.
	Skip func(path string) bool
	// FirstDone is called, if not nil, when the files of First have been cut.
	FirstDone func()
}

// Read reads the folder at dir. Its root has the modification time 0, as
// nydus-image has it: it is when the folder was put together that the time of a
// root tells, and no two builds would be the same.
func Read(ctx context.Context, dir string, files Files, o Options) (*tree.Layer, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("folder %q: %w", dir, err)
	}
	defer unix.Close(fd)
	b, err := tree.NewBuilder(tree.BuilderOptions{TempDir: o.TempDir, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	w := &walker{ctx: ctx, opts: o, builder: b, files: files, links: map[inodeKey]*link{}}
	for _, p := range o.First {
		w.first = append(w.first, strings.Trim(path.Clean("/"+p), "/"))
	}
	for i := range w.first {
		if err := w.pattern(fd, i); err != nil {
			return nil, fmt.Errorf("folder %q: %w", dir, err)
		}
	}
	if o.FirstDone != nil {
		o.FirstDone()
	}
	w.second = true
	if err := w.root(fd); err != nil {
		return nil, fmt.Errorf("folder %q: %w", dir, err)
	}
	return b.Layer()
}

// walker is one run of Read. The files of First are added in a pass of their
// own, all else in the second.
type walker struct {
	ctx     context.Context
	opts    Options
	builder *tree.Builder
	files   Files

	first  []string // without slashes around; "" is the root
	second bool

	links  map[inodeKey]*link
	serial uint64
	bytes  int64

	buf  []byte // of listers
	held int    // names of sub-folders that wait in all folders above
}

// maxHeld bounds held. A folder with more sub-folders is listed again for them.
const maxHeld = 4096

type inodeKey struct{ dev, ino uint64 }

// maxDepth bounds the folders that are open at a time. A layer has its own limit.
const maxDepth = 4096

// link is an inode with several names, kept until all of them were seen.
type link struct {
	number uint64
	left   uint64
}

// pattern adds the files below the i-th path of First, as far as no earlier one
// covers them.
func (w *walker) pattern(root, i int) error {
	if w.covered(w.first[i], i) {
		return nil
	}
	if w.first[i] == "" {
		return w.folder(root, "", 0)
	}
	parts := strings.Split(w.first[i], "/")
	fd, err := unix.Dup(root)
	if err != nil {
		return err
	}
	defer func() { unix.Close(fd) }()
	for n, part := range parts[:len(parts)-1] {
		next, err := openFolder(fd, part)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%q: %w", strings.Join(parts[:n+1], "/"), err)
		}
		unix.Close(fd)
		fd = next
	}
	name := parts[len(parts)-1]
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
		return nil
	}
	return w.name(fd, strings.Join(parts[:len(parts)-1], "/"), listed{name, unix.DT_UNKNOWN}, len(parts)-1)
}

// covered tells whether a path lies below one of the first n of First.
func (w *walker) covered(p string, n int) bool {
	return slices.ContainsFunc(w.first[:n], func(f string) bool {
		return f == "" || p == f || strings.HasPrefix(p, f) && p[len(f)] == '/'
	})
}

func (w *walker) root(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if w.opts.Name != "" {
		return w.name(fd, path.Dir(w.opts.At), listed{w.opts.Name, unix.DT_UNKNOWN}, 0)
	}
	e := w.entry(w.opts.At, &st)
	if w.opts.At == "" {
		e.Mtime, e.MtimeNsec = 0, 0
	}
	if err := w.addFolder(fd, e); err != nil {
		return err
	}
	if w.opts.At != "" {
		if err := w.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: e.Path, Name: e.Path}, nil); err != nil {
			return err
		}
	}
	return w.folder(fd, w.opts.At, 0)
}

// folder adds what is in the folder at fd: its files, then its sub-folders.
func (w *walker) folder(fd int, rel string, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	if depth > maxDepth {
		return fmt.Errorf("%q: more than %d folders deep", rel, maxDepth)
	}
	if w.buf == nil {
		w.buf = make([]byte, listSize)
	}
	l := lister{fd: fd, buf: w.buf, room: maxHeld - w.held}
	if err := w.names(&l, rel, depth); err != nil {
		return err
	}
	if l.overflow {
		return w.names(&lister{fd: fd, buf: w.buf, folders: true}, rel, depth)
	}
	w.held += len(l.subs)
	defer func() { w.held -= len(l.subs) }()
	for _, sub := range l.subs {
		if err := w.name(fd, rel, sub, depth); err != nil {
			return err
		}
	}
	return nil
}

// names adds what a lister yields.
func (w *walker) names(l *lister, rel string, depth int) error {
	for {
		names, err := l.next()
		if err != nil {
			return fmt.Errorf("%q: list: %w", rel, err)
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := w.name(l.fd, rel, name, depth); err != nil {
				return err
			}
		}
	}
}

// name adds one entry of the folder at dir.
func (w *walker) name(dir int, rel string, n listed, depth int) error {
	full := path.Join(rel, n.name)
	if w.opts.Skip != nil && w.opts.Skip(full) {
		return nil
	}
	var st unix.Stat_t
	if n.kind == unix.DT_REG { // which need not be opened in every case
		st.Mode, st.Size = unix.S_IFREG, -1
		if done, err := w.settle(dir, rel, n.name, full, &st); done || err != nil {
			return err
		}
	}
	fd, err := look(dir, n, &st)
	if err != nil {
		return fmt.Errorf("%q: %w", full, err)
	}
	if fd >= 0 {
		defer unix.Close(fd)
	}
	mode := st.Mode & unix.S_IFMT
	if mode == unix.S_IFDIR {
		return w.subfolder(fd, full, &st, depth)
	}
	if done, err := w.settle(dir, rel, n.name, full, &st); done || err != nil {
		return err
	}
	e := w.entry(full, &st)
	switch mode {
	case unix.S_IFREG:
		err = w.file(fd, e, &st)
	case unix.S_IFLNK:
		err = w.symlink(dir, n.name, e, &st)
	default:
		err = w.other(dir, n.name, e, &st)
	}
	return w.passOver(full, err)
}

// settle deals with what this pass has no contents of, and tells whether that is
// all. A size that is not known is -1.
func (w *walker) settle(dir int, rel, name, full string, st *unix.Stat_t) (bool, error) {
	file := st.Mode&unix.S_IFMT == unix.S_IFREG
	switch {
	case !w.second && !file: // has no data
		return true, nil
	case w.second && file && w.covered(full, len(w.first)): // the first pass has added it
		return true, nil
	}
	return w.whiteout(dir, rel, name, st)
}

// look tells what a name is, and opens a file or a folder; of anything else fd is
// -1.
func look(dir int, n listed, st *unix.Stat_t) (fd int, err error) {
	fd = -1
	switch n.kind {
	case unix.DT_REG:
		fd, err = openFile(dir, n.name)
	case unix.DT_DIR:
		fd, err = openFolder(dir, n.name)
	}
	if fd < 0 || err != nil { // the listing does not tell, or no longer tells the truth
		if err := unix.Fstatat(dir, n.name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return -1, err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			fd, err = openFile(dir, n.name)
		case unix.S_IFDIR:
			fd, err = openFolder(dir, n.name)
		default:
			return -1, nil
		}
		if err != nil {
			return -1, fmt.Errorf("open: %w", err)
		}
	}
	if err := unix.Fstat(fd, st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (w *walker) subfolder(fd int, full string, st *unix.Stat_t, depth int) error {
	if w.second {
		if err := w.addFolder(fd, w.entry(full, st)); err != nil {
			return w.passOver(full, err)
		}
	}
	return w.folder(fd, full, depth+1)
}

// entry makes an entry of what stat says.
func (w *walker) entry(full string, st *unix.Stat_t) *tree.Entry {
	e := &tree.Entry{Kind: tree.KindNode, Path: full, Attr: tree.Attr{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec),
	}}
	if w.opts.NoOwner {
		e.UID, e.GID = 0, 0
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = uint32(st.Rdev) // the low half is the kernel's 32-bit form
	case unix.S_IFLNK:
		e.Mode = unix.S_IFLNK | 0o777
	}
	return e
}

// inode returns the number by which the names of one inode are known, and
// whether this is the first of them; 0 for an inode with one name.
func (w *walker) inode(st *unix.Stat_t) (number uint64, first bool) {
	if st.Nlink < 2 {
		return 0, true
	}
	key := inodeKey{uint64(st.Dev), st.Ino}
	l := w.links[key]
	if first = l == nil; first {
		w.serial++
		l = &link{number: w.serial, left: uint64(st.Nlink)}
		w.links[key] = l
	}
	if l.left--; l.left == 0 {
		delete(w.links, key)
	}
	return l.number, first
}

func (w *walker) symlink(dir int, name string, e *tree.Entry, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return err
	}
	e.Target, e.Size = string(buf[:n]), uint64(n)
	return w.other(dir, name, e, st)
}

// other adds what has no data.
func (w *walker) other(dir int, name string, e *tree.Entry, st *unix.Stat_t) error {
	if _, err := w.xattrs(e, nameXattrs(dir, name)); err != nil {
		return err
	}
	e.Inode, _ = w.inode(st)
	return w.builder.Add(e, nil)
}

func openFolder(dir int, name string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
}

// openFile does not wait: what was a file at the last look may be a fifo now.
func openFile(dir int, name string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
}

// retry repeats a call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
