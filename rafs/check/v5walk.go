package check

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v5Walk goes through the inode table. Children come behind their folder in it,
// so that one pass sees every folder before its children and finds whatever no
// folder leads to.
type v5Walk struct {
	whole  bool   // no record was out of reach
	child  bitset // indices that belong to a folder
	first  bitset // indices that are their own inode number
	digest hash.Hash
	// links has the inode number of each name of an inode that may have several.
	links     []uint32
	hasXattrs bool
}

// v5Inode is an inode with its place.
type v5Inode struct {
	v5.Inode
	c     *v5Check
	index uint64
	off   uint64
}

func (in *v5Inode) fileType() v6.FileType { return v6.TypeOf(in.Mode) }
func (in *v5Inode) isDir() bool           { return in.fileType() == v6.TypeDir }

func newHash(d blob.Digester) hash.Hash {
	if d == blob.DigesterSHA256 {
		return sha256.New()
	}
	return blake3.New()
}

func (c *v5Check) walkTable() {
	w := &c.walk
	w.whole = c.entries > 0
	w.child, w.first = newBitset(c.entries+1), newBitset(c.entries+1)
	w.digest = newHash(digesterOf(c.flags))
	c.chunks.init(c)
	if c.entries > 0 {
		w.child.add(v5.RootIndex)
	}
	for index := uint64(1); index <= c.entries && !c.done(); index++ {
		in, ok := c.inode(index, true)
		if !ok {
			w.whole = false
			continue
		}
		if !w.child.has(index) {
			c.fail(in.off, inodeWhere(index), "belongs to no folder")
			w.whole = false
		}
		c.checkInode(&in)
	}
}

// inode reads the record at a position of the inode table, false if it cannot.
func (c *v5Check) inode(index uint64, say bool) (v5Inode, bool) {
	in := v5Inode{c: c, index: index}
	if index == 0 || index > c.entries {
		return in, false
	}
	slot := c.super.InodeTableOffset + (index-1)*v5.TableEntrySize
	var b [v5.InodeSize]byte
	c.src.read(b[:v5.TableEntrySize], slot)
	in.off = uint64(binary.LittleEndian.Uint32(b[:])) * v5.Align
	if in.off < v5.SuperSize || !c.src.read(b[:], in.off) {
		if say {
			c.fail(slot, inodeWhere(index), "at %#x, bootstrap has %d bytes, the first %d the superblock's", in.off, c.src.size, v5.SuperSize)
		}
		return in, false
	}
	in.Inode, _ = v5.DecodeInode(b[:])
	return in, true
}

// name reads the name of an inode.
func (c *v5Check) name(in *v5Inode) []byte {
	b := make([]byte, min(in.NameSize, maxName+1))
	c.src.read(b, in.off+v5.InodeSize)
	return b
}

// String is the path of the inode.
func (in *v5Inode) String() string {
	c := in.c
	var parts []string
	at := *in
	for depth := 0; at.index != v5.RootIndex; depth++ {
		parts = append(parts, quoted(c.name(&at)))
		up, ok := c.inode(at.Parent, false)
		if !ok || up.index >= at.index || depth == maxPathDepth {
			return inodeWhere(in.index)
		}
		at = up
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// children checks the folder's children as such. Names must ascend, which also
// keeps them from being there twice; the folder's digest is over theirs.
func (c *v5Check) children(in *v5Inode) {
	first, n := uint64(in.ChildIndex), uint64(in.ChildCount)
	c.walk.digest.Reset()
	switch {
	case n == 0:
		c.checkDigest(in)
		return
	case n > maxEntries:
		c.fail(in.off+96, in, "%d entries, limit %d", n, maxEntries)
	case first <= in.index:
		c.fail(in.off+92, in, "children begin at %d, want behind %d", first, in.index)
	case first+n-1 > c.entries:
		c.fail(in.off+92, in, "children are %d to %d, table has %d", first, first+n-1, c.entries)
	default:
		c.eachChild(in)
		return
	}
	c.walk.whole = false
}

func (c *v5Check) eachChild(in *v5Inode) {
	var last []byte
	folders, size, readable := uint32(0), uint64(0), true
	for i := range uint64(in.ChildCount) {
		index := uint64(in.ChildIndex) + i
		if c.walk.child.has(index) {
			c.fail(in.off+92, in, "inode %d has several parents", index)
			c.walk.whole = false
			return // its children are somebody else's
		}
		c.walk.child.add(index)
		child, ok := c.inode(index, false)
		if !ok {
			readable = false
			continue // said when its turn comes
		}
		if child.Parent != in.index {
			c.fail(child.off+32, inodeWhere(index), "has parent %d, is a child of %d", child.Parent, in.index)
		}
		name := c.name(&child)
		if i > 0 && last != nil && bytes.Compare(last, name) >= 0 {
			c.fail(child.off+v5.InodeSize, &child, "comes after %q, want names to rise", last)
		}
		last = name
		size += uint64(len(name)) + 8
		if child.isDir() {
			folders++
		}
		c.walk.digest.Write(child.Digest[:])
	}
	if !readable {
		return
	}
	c.checkDigest(in)
	if want := 2 + folders; in.Nlink != want {
		c.fail(in.off+88, in, "link count %d, has %d folders in it, want %d", in.Nlink, folders, want)
	}
	if want := alignUp(size, 4096); in.Size != want {
		c.note(in.off+64, in, "size %d, nydus has %d for such names", in.Size, want)
	}
}

// checkDigest holds the digest of an inode against what was written to the hash:
// the target of a link, the digests of chunks or of children.
func (c *v5Check) checkDigest(in *v5Inode) {
	if sum := c.walk.digest.Sum(nil); !bytes.Equal(sum, in.Digest[:]) {
		c.fail(in.off, in, "digest %x, content has %x", in.Digest, sum)
	}
}

// checkLinks compares link counts with names, and further names with the inode
// that they are names of.
func (c *v5Check) checkLinks() {
	if !c.walk.whole {
		return
	}
	links := c.walk.links
	slices.Sort(links)
	for i := 0; i < len(links) && !c.done(); {
		ino, n := links[i], uint32(0)
		for ; i < len(links) && links[i] == ino; i++ {
			n++
		}
		in, ok := c.inode(uint64(ino), false)
		if !ok || !c.walk.first.has(uint64(ino)) {
			continue // said already
		}
		if in.Nlink != n {
			c.fail(in.off+88, &in, "link count %d, has %d names", in.Nlink, n)
		}
	}
}
