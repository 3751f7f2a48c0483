package check

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

const (
	inodeFlagsKnown = v5.InodeSymlink | v5.InodeHardlink | v5.InodeXattr | v5.InodeHoles
	// maxXattrBytes bounds the xattrs of one inode as rafs/image does.
	maxXattrBytes = 1 << 20
	maxXattrValue = 64 << 10
)

// checkInode checks a record with all that follows it, and what a folder says of
// its children.
func (c *v5Check) checkInode(in *v5Inode) {
	fail := func(off uint64, format string, args ...any) { c.fail(in.off+off, in, format, args...) }
	c.report.Names++
	if in.index == v5.RootIndex {
		c.report.Names--
		c.checkRoot(in)
	} else {
		c.checkName(in)
	}
	if in.MtimeNsec >= nsecs {
		fail(108, "mtime with %d ns", in.MtimeNsec)
	}
	if in.Nlink == 0 {
		fail(88, "no links")
	}
	if in.Flags&^inodeFlagsKnown != 0 {
		fail(80, "unknown flags %#x", in.Flags)
	}
	if in.ProjID != 0 {
		c.note(in.off+56, in, "project %d", in.ProjID)
	}
	if in.Size > maxFileSize {
		fail(64, "size %#x", in.Size)
		return
	}
	if (in.fileType() == v6.TypeSymlink) != (in.Flags&v5.InodeSymlink != 0) {
		fail(80, "mode %#o, flags %#x", in.Mode, in.Flags)
	}
	if in.Flags&v5.InodeSymlink == 0 && in.SymlinkSize != 0 {
		fail(102, "target of %d bytes, but no link", in.SymlinkSize)
	}
	c.reserved(in.off+120, 8, in)
	c.checkNumber(in)
	xattrs := c.checkXattrs(in)
	c.checkBlocks(in, xattrs)
	c.checkType(in, xattrs)
}

func (c *v5Check) checkRoot(in *v5Inode) {
	if !in.isDir() || in.Ino != v5.RootIndex || in.Parent != 0 {
		c.fail(in.off+32, "/", "root has mode %#o, number %d, parent %d, want a folder, %d and 0", in.Mode, in.Ino, in.Parent, v5.RootIndex)
	}
	if name := c.name(in); string(name) != "/" {
		c.note(in.off+v5.InodeSize, "/", "root has the name %q", name)
	}
}

func (c *v5Check) checkName(in *v5Inode) {
	name := c.name(in)
	bad := badName(name)
	if s := string(name); s == "." || s == ".." {
		bad = "reserved name"
	}
	if bad != "" {
		c.fail(in.off+v5.InodeSize, in, "%s", bad)
	}
}

// checkNumber: the number of an inode is its index, that of a further name of a
// hard link the index of the first.
func (c *v5Check) checkNumber(in *v5Inode) {
	if in.Ino == in.index {
		c.walk.first.add(in.index)
		c.report.Inodes++
		if !in.isDir() && in.Nlink != 1 {
			c.walk.links = append(c.walk.links, uint32(in.index))
		}
		return
	}
	if in.isDir() {
		c.fail(in.off+40, in, "folder has number %d, want %d", in.Ino, in.index)
		return
	}
	first, ok := c.inode(in.Ino, false)
	switch {
	case !ok || first.Ino != in.Ino:
		c.fail(in.off+40, in, "number %d, which the image does not have", in.Ino)
	case first.Mode != in.Mode || first.Size != in.Size || first.Digest != in.Digest || first.Nlink != in.Nlink:
		c.fail(in.off+40, in, "not like inode %d, of which it is a name: mode %#o and %#o, size %d and %d, links %d and %d",
			in.Ino, in.Mode, first.Mode, in.Size, first.Size, in.Nlink, first.Nlink)
	}
	c.walk.links = append(c.walk.links, uint32(min(in.Ino, 1<<32-1)))
}

// checkBlocks checks the size in units of 512 bytes, which counts xattrs as well.
func (c *v5Check) checkBlocks(in *v5Inode, xattrs uint64) {
	if want := (in.Size + v5.PadLen(xattrs) + 511) / 512; in.Blocks != want {
		c.note(in.off+72, in, "%d blocks, nydus has %d for size %d and xattrs of %d bytes", in.Blocks, want, in.Size, xattrs)
	}
}

// checkXattrs checks the xattr table and returns its size without padding.
func (c *v5Check) checkXattrs(in *v5Inode) uint64 {
	if in.Flags&v5.InodeXattr == 0 {
		return 0
	}
	c.walk.hasXattrs = true
	if c.flags&layout.FlagHasXattr == 0 {
		c.fail(in.off+80, in, "has xattrs, the superblock says that nothing has")
	}
	off := in.off + in.XattrOffset()
	var b [v5.XattrTableHeaderSize]byte
	if !c.src.read(b[:], off) {
		return 0 // said with the rest of the record
	}
	size := binary.LittleEndian.Uint64(b[:])
	if !c.takeXattrs(off, min(size, maxXattrBytes), in) {
		return 0
	}
	pairs := make([]byte, min(size, maxXattrBytes))
	if size > maxXattrBytes || !c.src.read(pairs, off+v5.XattrTableHeaderSize) {
		c.fail(off, in, "xattrs of %d bytes, limit %d", size, maxXattrBytes)
		return 0
	}
	if at, ok := c.src.zero(off+v5.XattrTableHeaderSize+size, v5.PadLen(size)-size); !ok {
		c.fail(at, in, "padding of xattrs is not zero")
	}
	off += v5.XattrTableHeaderSize
	seen := map[string]bool{}
	for len(pairs) > 0 {
		name, value, n, err := v5.DecodeXattrPair(pairs)
		if err != nil {
			c.fail(off, in, "%v", err)
			break
		}
		if bad := badPair(string(name), value); bad != "" {
			c.fail(off, in, "xattr %q: %s", name, bad)
		}
		if seen[string(name)] {
			c.fail(off, in, "xattr %q twice", name)
		}
		seen[string(name)] = true
		pairs, off = pairs[n:], off+uint64(n)
	}
	return size
}

// xattrPrefixes are the names that nydus takes: whole, or with something after
// the dot.
var xattrPrefixes = []string{"user.", "security.", "trusted.", "system.posix_acl_access", "system.posix_acl_default"}

func badPair(name string, value []byte) string {
	switch {
	case len(name) == 0 || len(name) > maxName:
		return fmt.Sprintf("name of %d bytes, want 1 to %d", len(name), maxName)
	case len(value) > maxXattrValue:
		return fmt.Sprintf("value of %d bytes, limit %d", len(value), maxXattrValue)
	}
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok && strings.HasSuffix(p, ".") == (rest != "") {
			return ""
		}
	}
	return "no such name"
}

// checkType checks what depends on the type, and claims the record.
func (c *v5Check) checkType(in *v5Inode, xattrs uint64) {
	size := in.XattrOffset()
	if in.Flags&v5.InodeXattr != 0 {
		size += v5.XattrTableHeaderSize + v5.PadLen(xattrs)
	}
	chunks := in.off + size
	if in.fileType() == v6.TypeRegular {
		size += uint64(in.ChildCount) * layout.ChunkRecordSize
	}
	if size > c.src.size || in.off > c.src.size-size {
		c.fail(in.off, in, "record of %d bytes ends beyond the bootstrap of %d", size, c.src.size)
		c.walk.whole = false
		return
	}
	if at, ok := c.claims.take(in.off, size); !ok {
		c.fail(in.off, in, "record of %d bytes overlaps another part at %#x", size, at)
		c.walk.whole = false
		return
	}
	c.padded(in, v5.InodeSize, uint64(in.NameSize))
	switch in.fileType() {
	case v6.TypeDir:
		c.children(in)
	case v6.TypeRegular:
		c.file(in, chunks)
	case v6.TypeSymlink:
		c.symlink(in)
	case v6.TypeUnknown:
		c.fail(in.off+60, in, "mode %#o of no file type", in.Mode)
	default:
		c.special(in)
	}
}

// padded checks the padding of n bytes in a record.
func (c *v5Check) padded(in *v5Inode, at, n uint64) {
	if bad, ok := c.src.zero(in.off+at+n, v5.PadLen(n)-n); !ok {
		c.fail(bad, in, "padding is not zero")
	}
}

func (c *v5Check) special(in *v5Inode) {
	if in.Size != 0 || in.ChildCount != 0 {
		c.fail(in.off+64, in, "size %d and %d children of mode %#o, want none", in.Size, in.ChildCount, in.Mode)
	}
	c.walk.digest.Reset()
	c.checkDigest(in)
}

func (c *v5Check) symlink(in *v5Inode) {
	at := v5.InodeSize + v5.PadLen(uint64(in.NameSize))
	if in.SymlinkSize == 0 || in.SymlinkSize > maxSymlink || uint64(in.SymlinkSize) != in.Size {
		c.fail(in.off+102, in, "target of %d bytes, size %d, want 1 to %d", in.SymlinkSize, in.Size, maxSymlink)
	}
	target := make([]byte, in.SymlinkSize)
	c.src.read(target, in.off+at)
	if i := bytes.IndexByte(target, 0); i >= 0 {
		c.fail(in.off+at+uint64(i), in, "NUL in a symbolic link")
	}
	c.padded(in, at, uint64(in.SymlinkSize))
	c.walk.digest.Reset()
	c.walk.digest.Write(target)
	c.checkDigest(in)
}
