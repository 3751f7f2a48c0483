package rafstest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// DataSize is how much of a file Tree asks for at once: no multiple of a chunk,
// so that segments begin and end inside chunks.
const DataSize = 1<<20 + 12345

// Tree yields all entries of an image but the root, which a manifest lacks. Every
// answer is asked for as a guest would: names are looked up, folders are read in
// pieces, chunks are decoded and verified.
func Tree(im *image.Image, blobs Blobs) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		w := &treeWalk{im: im, blobs: blobs, yield: yield}
		w.folder("", image.Root, image.Root)
	}
}

type treeWalk struct {
	im    *image.Image
	blobs Blobs
	yield func(Entry, error) bool
}

// folder yields what is below a folder, false to stop.
func (w *treeWalk) folder(path string, node, parent uint64) bool {
	off := uint64(0)
	for {
		n := 0
		var children []image.Dirent
		err := w.im.ReadDir(node, off, func(d image.Dirent) bool {
			children = append(children, d)
			off = d.Next
			n++
			return n < 7
		})
		if err != nil {
			return w.yield(Entry{Path: path}, fmt.Errorf("readdir: %w", err))
		}
		if n == 0 {
			return true
		}
		for _, d := range children {
			if !w.dirent(path, node, parent, d) {
				return false
			}
		}
	}
}

func (w *treeWalk) dirent(path string, node, parent uint64, d image.Dirent) bool {
	name := string(d.Name)
	e := Entry{Path: path + "/" + name}
	found, err := w.im.Lookup(node, name)
	if err != nil || found != d.Node {
		return w.yield(e, fmt.Errorf("lookup: got node %d, %v, readdir has %d", found, err, d.Node))
	}
	if want, dot := map[string]uint64{".": node, "..": parent}[name]; dot {
		if d.Node != want {
			return w.yield(e, fmt.Errorf("node %d, want %d", d.Node, want))
		}
		return true
	}
	err = w.entry(&e, d)
	if !w.yield(e, err) {
		return false
	}
	if err == nil && e.IsDir() {
		return w.folder(e.Path, d.Node, node)
	}
	return true
}

func (w *treeWalk) entry(e *Entry, d image.Dirent) error {
	a, err := w.im.Attr(d.Node)
	if err != nil {
		return err
	}
	if a.Ino != d.Node || a.Mode&0o170000 != d.Type {
		return fmt.Errorf("inode %d with mode %o, readdir has node %d and type %o", a.Ino, a.Mode, d.Node, d.Type)
	}
	e.Mode, e.UID, e.GID, e.Nlink, e.Size = a.Mode, a.UID, a.GID, a.Nlink, a.Size
	e.Mtime, e.MtimeNsec, e.Rdev = a.Mtime, a.MtimeNsec, a.Rdev
	if err := w.xattrs(e, d.Node); err != nil {
		return err
	}
	switch a.Mode & 0o170000 {
	case 0o120000:
		link, err := w.im.Readlink(d.Node)
		e.Link = string(link)
		return err
	case 0o100000:
		h := sha256.New()
		if err := w.content(h, d.Node, a.Size); err != nil {
			return err
		}
		e.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	return nil
}

func (w *treeWalk) xattrs(e *Entry, node uint64) error {
	err := w.im.Xattrs(node, func(name string, value []byte) bool {
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[name] = string(value)
		return true
	})
	for name, want := range e.Xattrs {
		if got, err := w.im.Xattr(node, name); err != nil || string(got) != want {
			return fmt.Errorf("xattr %q = %x, %v, the list has %x", name, got, err, want)
		}
	}
	return err
}

// content writes the bytes of a file to h.
func (w *treeWalk) content(h io.Writer, node, size uint64) error {
	var segs []blob.Segment
	for off := uint64(0); off < size; off += DataSize {
		var err error
		segs, err = w.im.Segments(segs[:0], node, off, DataSize)
		if err != nil {
			return err
		}
		n := uint64(0)
		for i := range segs {
			p, err := w.blobs.Read(&segs[i])
			if err != nil {
				return err
			}
			h.Write(p)
			n += uint64(segs[i].Length)
		}
		if want := min(size-off, DataSize); n != want {
			return fmt.Errorf("segments at %d have %d bytes, want %d", off, n, want)
		}
	}
	return nil
}
