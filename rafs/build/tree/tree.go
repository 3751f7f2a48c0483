// Package tree turns the layers of an image into one file tree.
//
// Each layer is made on its own, in any order and at the same time as others: a
// Builder takes its entries one by one, ReadTar takes them from a tar whose files
// go to a cutter while the tar passes by. Merge then applies the layers from the
// lowest to the highest: whiteouts, opaque folders, hard links into lower layers.
//
// What a layer has is never in memory as a whole. Entries are sorted by path and
// arrival in a file; what an unpacker would have done one entry after the other
// is then decided in one pass over the sorted entries, with no more memory than
// the folders above the current path. Layers are merged in a second such pass.
//
// Entries are a stranger's. Names that try to leave the tree, writes through
// symlinks, and numbers that the image format cannot hold are refused with the
// entry's name; entries, depth and the bytes of names and attributes are bounded
// by Limits. Nothing is ever written to a file system but unnamed files.
package tree

import (
	"errors"
	"iter"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
)

// The file types of Attr.Mode, as in st_mode.
const (
	TypeMask   uint32 = 0o170000
	TypeSocket uint32 = 0o140000
	TypeLink   uint32 = 0o120000
	TypeFile   uint32 = 0o100000
	TypeBlock  uint32 = 0o060000
	TypeDir    uint32 = 0o040000
	TypeChar   uint32 = 0o020000
	TypeFifo   uint32 = 0o010000
)

// Attr are the attributes of an inode.
type Attr struct {
	Mode      uint32 // st_mode: type and permissions
	UID, GID  uint32
	Rdev      uint32 // as Linux encodes it in 32 bits; devices only
	MtimeNsec uint32
	Mtime     int64  // seconds since 1970
	Size      uint64 // bytes of a regular file or of a symlink's target; 0 of a folder
}

// Type returns the file type bits of the mode.
func (a *Attr) Type() uint32 { return a.Mode & TypeMask }

// IsDir reports whether the mode is that of a folder.
func (a *Attr) IsDir() bool { return a.Type() == TypeDir }

// Xattr is an extended attribute by its whole name.
type Xattr struct {
	Name  string
	Value string
}

// ID numbers the names of a tree in pre-order, the names of a folder in the order
// of their bytes.
type ID uint32

// Root is the root of every tree.
const Root ID = 0

// Node is a name in a tree, and its inode.
type Node struct {
	Attr
	ID     ID
	Parent ID // Root's is Root
	// Inode is the first node of the same inode: ID itself, unless the node is a
	// further name of it.
	Inode  ID
	Name   string // "" of the root
	Target string // of a symlink
	Xattrs []Xattr
	Chunks chunk.List // of a regular file; Tree.Refs lists them
}

// Tree is a merged file tree. It is used by one goroutine at a time.
type Tree struct {
	nodes  *spill.Array // of nodeRecord
	names  *spill.Log   // names and symlink targets
	layers []*Layer     // which hold xattrs and refs
	n      int
	hints  map[ID]hint // of Lookup, by folder
}

// Len is the number of nodes.
func (t *Tree) Len() int { return t.n }

// Node returns a node.
func (t *Tree) Node(id ID) (Node, error) {
	var n Node
	_, err := t.read(id, &n)
	return n, err
}

// read reads a node and returns the id of what comes after all that is below it.
func (t *Tree) read(id ID, n *Node) (end ID, err error) {
	r, err := t.record(id)
	if err != nil {
		return 0, err
	}
	*n = Node{Attr: r.attr, ID: id, Parent: ID(r.parent), Inode: ID(r.inode), Chunks: r.chunks}
	if n.Name, err = t.text(r.name, int(r.nameLen)); err != nil {
		return 0, err
	}
	if n.Target, err = t.text(r.target, int(r.targetLen)); err != nil {
		return 0, err
	}
	if r.xattrLen > 0 {
		n.Xattrs, err = t.layers[r.layer].readXattrs(r.xattr, int(r.xattrLen))
	}
	return ID(r.end), err
}

func (t *Tree) record(id ID) (r nodeRecord, err error) {
	var b [nodeRecordSize]byte
	if err = t.nodes.Get(int64(id), b[:]); err == nil {
		r.decode(&b)
	}
	return r, err
}

func (t *Tree) text(off int64, n int) (string, error) {
	if n == 0 {
		return "", nil
	}
	var short [64]byte // as most names are
	b := short[:]
	if n > len(b) {
		b = make([]byte, n)
	}
	err := t.names.Read(b[:n], off)
	return string(b[:n]), err
}

// Children lists a folder by name. A node is valid until the next one. An error
// is the last thing it yields.
func (t *Tree) Children(dir ID) iter.Seq2[*Node, error] {
	return func(yield func(*Node, error) bool) {
		r, err := t.record(dir)
		if err != nil {
			yield(nil, err)
			return
		}
		var n Node
		for id := dir + 1; id < ID(r.end); {
			end, err := t.read(id, &n)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(&n, nil) {
				return
			}
			id = end
		}
	}
}

// Lookup finds a node by its path, following nothing. Leading and trailing
// slashes mean nothing; "" is the root. Paths that are asked for in the order of
// their bytes take one walk over a folder, not one each.
func (t *Tree) Lookup(path string) (Node, bool, error) {
	n, err := t.Node(Root)
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part == "" || err != nil {
			continue
		}
		var ok bool
		if n, ok, err = t.child(n.ID, part); !ok {
			return Node{}, false, err
		}
	}
	return n, err == nil, err
}

// hint is where the last lookup in a folder ended: the names before id are less
// than name.
type hint struct {
	name string
	id   ID
}

// maxHints bounds the folders whose hints are kept.
const maxHints = 256

// child finds a name in a folder.
func (t *Tree) child(dir ID, name string) (n Node, ok bool, err error) {
	r, err := t.record(dir)
	if err != nil {
		return n, false, err
	}
	id := dir + 1
	if h, known := t.hints[dir]; known && h.name <= name {
		id = h.id
	}
	for id < ID(r.end) {
		end, err := t.read(id, &n)
		if err != nil {
			return n, false, err
		}
		if n.Name >= name {
			break
		}
		id = end
	}
	if t.hints == nil || len(t.hints) == maxHints {
		t.hints = map[ID]hint{}
	}
	t.hints[dir] = hint{name, id}
	return n, id < ID(r.end) && n.Name == name, nil
}

// Refs lists the chunks of a file, in order. An error is the last thing it
// yields.
func (t *Tree) Refs(n *Node) iter.Seq2[chunk.Ref, error] {
	return func(yield func(chunk.Ref, error) bool) {
		if n.Chunks.Count == 0 {
			return
		}
		if n.Chunks.Count == 1 {
			yield(n.Chunks.First, nil)
			return
		}
		t.layers[n.Chunks.Log].readRefs(n.Chunks, yield)
	}
}

// Close drops the tree. It may be called again.
func (t *Tree) Close() error {
	errs := []error{t.nodes.Close(), t.names.Close()}
	for _, l := range t.layers {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
