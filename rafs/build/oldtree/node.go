// Package tree turns the layers of an OCI image into one file tree.
//
// Each layer is read on its own from a tar stream, in any order and at the same
// time as others; the contents of files go to a cutter while the tar passes by
// and are never kept. Merge then applies the layers from the lowest to the
// highest: whiteouts, opaque folders, hard links into lower layers.
//
// A tar is a stranger's. Names that try to leave the tree, writes through
// symlinks, and numbers that the image format cannot hold are refused with the
// entry's name; entries, depth and the memory that names and attributes take are
// bounded by Limits. Nothing is ever written to a file system.
package tree

import (
	"maps"
	"slices"

	"github.com/rafsd/rafsd/rafs/build/oldchunk"
)

// The file types of Node.Mode, as in st_mode.
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

// Xattr is an extended attribute by its whole name.
type Xattr struct {
	Name  string
	Value string
}

// Node is an inode. Hard links are one Node under several names.
type Node struct {
	Mode      uint32 // st_mode: type and permissions
	UID, GID  uint32
	Rdev      uint32 // as Linux encodes it in 32 bits; devices only
	MtimeNsec uint32
	Mtime     int64       // seconds since 1970
	Size      uint64      // bytes of a regular file or of a symlink's target
	Target    string      // of a symlink
	Xattrs    []Xattr     // sorted by name
	Chunks    []chunk.Ref // of a regular file, in order

	*folder // of a folder
}

// folder is what a Node has if it is a folder.
type folder struct {
	children map[string]*Node

	// implicit: no entry of the layer describes the folder, one below it does.
	implicit bool
	// opaque: what lower layers have in the folder does not show.
	opaque bool
	// whiteouts are the names that lower layers lose here.
	whiteouts map[string]struct{}
}

// Type returns the file type bits of the mode.
func (n *Node) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether n is a folder.
func (n *Node) IsDir() bool { return n.folder != nil }

// Len returns the number of entries of a folder, 0 for what is none.
func (n *Node) Len() int {
	if n.folder == nil {
		return 0
	}
	return len(n.children)
}

// Child returns an entry of a folder, or nil.
func (n *Node) Child(name string) *Node {
	if n.folder == nil {
		return nil
	}
	return n.children[name]
}

// Names returns the names in a folder, sorted by their bytes.
func (n *Node) Names() []string {
	if n.folder == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(n.children))
}

// Tree is a merged file tree.
type Tree struct {
	Root *Node
}

func newFolder(implicit bool) *Node {
	return &Node{
		Mode:   TypeDir | 0o755,
		folder: &folder{children: map[string]*Node{}, implicit: implicit},
	}
}

// setAttr takes over everything of from that is neither data nor an entry.
func (n *Node) setAttr(from *Node) {
	n.Mode, n.UID, n.GID = from.Mode, from.UID, from.GID
	n.Mtime, n.MtimeNsec = from.Mtime, from.MtimeNsec
	n.Xattrs = from.Xattrs
}
