package export

import (
	"context"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// maxPath bounds a path in bytes. Linux takes 4096, a tar reader 1 MiB.
const maxPath = 64 << 10

// entry is one name of an image. It is good until the walk goes on.
type entry struct {
	path []byte // "a/b"; empty for the root
	node uint64
	attr image.Attr
	// first is, for a further name of a hard link, the path of its first name.
	first string
}

func (e *entry) kind() uint32 { return e.attr.Mode & unix.S_IFMT }

// hasData tells whether the entry is what an inode's bytes go with.
func (e *entry) hasData() bool {
	return e.kind() == unix.S_IFREG && e.first == "" && e.attr.Size > 0
}

// walk is a way through the names of an image.
type walk struct {
	im     *image.Image
	path   []byte
	levels []level
	// firsts has the place of the first name of each inode with several links.
	firsts map[uint64]place
	// dirs are the folders that a place is in.
	dirs []folder
}

// level is a folder that the walk is in.
type level struct {
	node uint64
	at   uint64 // offset of the entry that the walk is at
	next uint64 // and of the one that comes next
	path int    // length of its path
	dir  int    // its number in dirs, -1 as long as it has none
}

type folder struct {
	node uint64
	path string
}

// place says where a name is: the folder and the entry's offset there.
type place struct {
	dir int
	off uint64
}

// entries yields the root and then all names, a folder before what it has and
// the names of a folder by their bytes. An error is the last that is yielded.
func entries(ctx context.Context, im *image.Image) iter.Seq2[*entry, error] {
	return func(yield func(*entry, error) bool) {
		w := &walk{im: im, firsts: map[uint64]place{}}
		for node, more := image.Root, true; more; {
			e, err := w.enter(node)
			if err == nil {
				if !yield(e, nil) {
					return
				}
				err = ctx.Err()
			}
			if err == nil {
				node, more, err = w.next()
			}
			if err != nil {
				yield(nil, fmt.Errorf("%q: %w", w.path, err))
				return
			}
		}
	}
}

// enter looks at the inode of the name that the walk has come to.
func (w *walk) enter(node uint64) (*entry, error) {
	a, err := w.im.Attr(node)
	if err != nil {
		return nil, err
	}
	e := &entry{path: w.path, node: node, attr: a}
	switch {
	case e.kind() == unix.S_IFDIR:
		w.levels = append(w.levels, level{node: node, path: len(w.path), dir: -1})
	case a.Nlink > 1 && len(w.levels) > 0:
		return e, w.link(e)
	}
	return e, nil
}

// link finds out whether an inode has had a name before.
func (w *walk) link(e *entry) error {
	if first, ok := w.firsts[e.node]; ok {
		return w.name(e, first)
	}
	l := &w.levels[len(w.levels)-1]
	if l.dir < 0 {
		l.dir = len(w.dirs)
		w.dirs = append(w.dirs, folder{l.node, string(w.path[:l.path])})
	}
	w.firsts[e.node] = place{l.dir, l.at}
	return nil
}

// name sets e.first to the path of the name at a place.
func (w *walk) name(e *entry, at place) error {
	dir := w.dirs[at.dir]
	found := false
	err := w.im.ReadDir(dir.node, at.off, func(d image.Dirent) bool {
		found = d.Node == e.node
		e.first = join(dir.path, d.Name)
		return false
	})
	if err == nil && !found {
		err = fmt.Errorf("inode %d: its name in inode %d is gone: %w", e.node, dir.node, image.ErrCorrupt)
	}
	return err
}

// next goes on to the next name, false when there is none.
func (w *walk) next() (node uint64, more bool, err error) {
	for len(w.levels) > 0 {
		l := &w.levels[len(w.levels)-1]
		var d image.Dirent
		found := false
		err := w.im.ReadDir(l.node, l.next, func(x image.Dirent) bool {
			d, found = x, true
			return false
		})
		if err != nil {
			return 0, false, err
		}
		if !found {
			w.levels = w.levels[:len(w.levels)-1]
			continue
		}
		l.at, l.next = l.next, d.Next
		if string(d.Name) == "." || string(d.Name) == ".." {
			continue
		}
		w.path = w.path[:l.path]
		if l.path > 0 {
			w.path = append(w.path, '/')
		}
		w.path = append(w.path, d.Name...)
		if len(w.path) > maxPath {
			return 0, false, fmt.Errorf("path of more than %d bytes", maxPath)
		}
		return d.Node, true, nil
	}
	return 0, false, nil
}

func join(dir string, name []byte) string {
	if dir == "" {
		return string(name)
	}
	return dir + "/" + string(name)
}

// segments yields what the entries that have data are made of, in the order in
// which entries yields them.
func segments(ctx context.Context, im *image.Image) iter.Seq2[blob.Segment, error] {
	return func(yield func(blob.Segment, error) bool) {
		var scratch []blob.Segment
		for e, err := range entries(ctx, im) {
			if err != nil {
				yield(blob.Segment{}, err)
				return
			}
			if e.hasData() && !yieldFile(im, e.node, e.attr.Size, &scratch, yield) {
				return
			}
		}
	}
}
