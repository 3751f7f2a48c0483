package check

import (
	"fmt"
	"slices"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Limits of the walk: what rafs/image takes.
const (
	maxInodes   = 1 << 24
	maxEntries  = 10_000_000
	maxSymlink  = 4095
	maxName     = v6.MaxNameLen
	maxFileSize = 1<<63 - 1
)

// v6Walk visits every inode that the root leads to, once.
type v6Walk struct {
	ran   bool // there was a root to begin with
	whole bool // no part of the tree was out of reach
	meta  uint64
	slots uint64 // how many nids there is room for
	nodes bitset // nids seen
	// broken has the nids of folders whose entries cannot be read.
	broken bitset
	// folders are checked themselves, their entries not yet.
	folders []v6Folder
	// links has a nid for each name of an inode that may have several.
	links     []uint32
	tar       []tarAddr // tarfs only
	hasXattrs bool
	paths     v6Paths

	// Used again for each folder and inode, since there are so many.
	dir    v6Dir
	xattrs v6Xattrs
}

type v6Folder struct{ nid, parent uint32 }

// v6Inode is an inode with its place.
type v6Inode struct {
	v6.Inode
	nid uint64
	off uint64
}

func (in *v6Inode) isDir() bool { return v6.TypeOf(uint32(in.Mode)) == v6.TypeDir }

// tail is where the bytes after the inode and its xattrs begin.
func (in *v6Inode) tail() uint64 { return in.off + uint64(in.DiskSize()) + uint64(in.XattrSize()) }

func (c *v6Check) walkTree() {
	w := &c.walk
	w.meta = uint64(c.super.MetaBlkAddr) << c.blockBits
	if w.meta >= c.src.size {
		return // said already
	}
	w.slots = min((c.src.size-w.meta)/v6.NIDUnit, 1<<32)
	w.nodes, w.broken = newBitset(w.slots), newBitset(w.slots)
	w.paths.c = c
	w.ran, w.whole = true, true
	root, ok := c.visit(v6.SuperOffset+14, "/", uint64(c.super.RootNID))
	if !ok {
		w.whole = false
		return
	}
	if !root.isDir() {
		c.fail(root.off+4, "/", "mode %#o, want a folder", root.Mode)
		w.whole = false
		return
	}
	w.folders = append(w.folders, v6Folder{uint32(root.nid), uint32(root.nid)})
	for len(w.folders) > 0 && !c.done() {
		f := w.folders[len(w.folders)-1]
		w.folders = w.folders[:len(w.folders)-1]
		c.folder(f)
	}
	c.checkLinks()
	c.checkTarChunks()
	if c.flags&layout.FlagHasXattr != 0 && !w.hasXattrs && w.whole {
		c.note(v6.ExtSuperOffset, "superblock", "says that there are xattrs, no inode has any")
	}
}

// inode decodes the inode of a nid.
func (c *v6Check) inode(nid uint64) (v6Inode, error) {
	in := v6Inode{nid: nid, off: c.walk.meta + nid*v6.NIDUnit}
	var b [v6.ExtendedInodeSize]byte
	n := uint64(len(b))
	if in.off+n > c.src.size {
		n = v6.CompactInodeSize
	}
	if !c.src.read(b[:n], in.off) {
		return in, fmt.Errorf("ends beyond the bootstrap of %d bytes", c.src.size)
	}
	var err error
	in.Inode, err = v6.DecodeInode(b[:n])
	return in, err
}

// visit decodes an inode and, the first time, checks all of it but the entries of
// a folder. from is the offset of what names the inode. It is false for an inode
// that cannot be read.
func (c *v6Check) visit(from uint64, where any, nid uint64) (v6Inode, bool) {
	if nid >= c.walk.slots {
		c.fail(from, where, "nid %d, bootstrap has room for %d", nid, c.walk.slots)
		return v6Inode{}, false
	}
	in, err := c.inode(nid)
	if err != nil {
		c.fail(in.off, where, "inode: %v", err)
		return in, false
	}
	if c.walk.nodes.has(nid) {
		return in, true
	}
	c.walk.nodes.add(nid)
	c.report.Inodes++
	c.checkInode(&in, where)
	return in, true
}

// folder checks the entries of a folder and the inodes that they name. Names must
// ascend through all blocks, which also keeps them from being there twice.
func (c *v6Check) folder(f v6Folder) {
	in, err := c.inode(uint64(f.nid))
	if err != nil || c.walk.broken.has(in.nid) {
		return // said already
	}
	d := &c.walk.dir
	*d = v6Dir{v6Check: c, in: &in, self: f, block: d.block}
	d.run()
	if c.done() {
		return
	}
	if want := uint64(2 + d.folders); uint64(in.Nlink) != want && d.whole {
		c.fail(in.off+nlinkAt(&in), d.where(nil), "link count %d, has %d folders in it, want %d", in.Nlink, d.folders, want)
	}
	c.report.Names += d.names
}

// nlinkAt is where an inode's link count is.
func nlinkAt(in *v6Inode) uint64 {
	if in.Extended {
		return 44
	}
	return 6
}

// checkLinks compares link counts with names.
func (c *v6Check) checkLinks() {
	if !c.walk.whole || c.done() {
		return
	}
	links := c.walk.links
	slices.Sort(links)
	for i := 0; i < len(links); {
		nid, n := links[i], 0
		for ; i < len(links) && links[i] == nid; i++ {
			n++
		}
		in, err := c.inode(uint64(nid))
		if err == nil && uint64(in.Nlink) != uint64(n) {
			c.fail(in.off+nlinkAt(&in), fmt.Sprintf("inode of nid %d", nid), "link count %d, has %d names", in.Nlink, n)
		}
	}
}
