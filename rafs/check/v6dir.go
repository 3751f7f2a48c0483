package check

import (
	"bytes"
	"fmt"
	"path"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v6Dir is the check of one folder's entries.
type v6Dir struct {
	*v6Check
	in      *v6Inode
	self    v6Folder
	last    []byte // the name before, in buf
	buf     [maxName]byte
	first   bool
	entries int
	dots    int
	names   uint64
	folders uint32
	whole   bool // all entries could be read
	place   v6Place
	block   []byte // one block of entries
}

// v6Place names a folder, or an entry of it. It is one for all entries, to cost
// nothing where nothing is wrong.
type v6Place struct {
	d    *v6Dir
	name []byte
	path string
}

// where is the path of an entry, or of the folder for no name.
func (d *v6Dir) where(name []byte) *v6Place {
	d.place.d, d.place.name = d, name
	return &d.place
}

func (p *v6Place) String() string {
	if p.path == "" {
		p.path = p.d.walk.paths.of(p.d.self)
	}
	if p.name == nil {
		return p.path
	}
	return path.Join(p.path, quoted(p.name))
}

func (d *v6Dir) run() {
	d.whole, d.first = true, true
	blocks := (d.in.Size + d.blockSize - 1) >> d.blockBits
	d.block = room(d.block, int(d.blockSize))
	buf := d.block
	for i := range blocks {
		if d.done() {
			return
		}
		off, n := d.blockOf(d.in, i)
		if !d.src.read(buf[:n], off) {
			d.whole, d.walk.whole = false, false
			return // said when the inode was checked
		}
		if !d.checkBlock(buf[:n], off, i == blocks-1) {
			d.whole, d.walk.whole = false, false
		}
		if d.entries > maxEntries {
			d.fail(d.in.off, d.where(nil), "more than %d entries", maxEntries)
			d.walk.whole = false
			return
		}
		if d.report.Names+d.names > maxInodes {
			d.fail(d.in.off, d.where(nil), "more than %d names", maxInodes)
			d.walk.whole, d.walk.folders = false, nil
			return
		}
	}
	if d.dots != 2 && d.whole {
		d.fail(d.in.off, d.where(nil), "folder lacks \".\" or \"..\"")
	}
}

// blockOf is the range of block i of a folder or link.
func (c *v6Check) blockOf(in *v6Inode, i uint64) (off, n uint64) {
	n = min(in.Size-i<<c.blockBits, c.blockSize)
	if in.Layout == v6.LayoutFlatInline && (i+1)<<c.blockBits >= in.Size {
		return in.tail(), n
	}
	return (uint64(in.U) + i) << c.blockBits, n
}

// checkBlock checks one block of entries. It is false if the block could not be
// taken apart.
func (d *v6Dir) checkBlock(b []byte, off uint64, last bool) bool {
	n, ok := d.nameOffs(b, off)
	for j := range n {
		ent, _ := v6.DecodeDirent(b[j*v6.DirentSize:])
		at := off + uint64(j*v6.DirentSize)
		name := direntName(b, j, n)
		d.entries++
		if bad := badName(name); bad != "" {
			d.fail(off+uint64(ent.NameOff), d.where(name), "%s", bad)
		}
		if !d.first && bytes.Compare(d.last, name) >= 0 {
			d.fail(at, d.where(name), "comes after %q, want names to rise", d.last)
		}
		d.last, d.first = append(d.buf[:0], name[:min(len(name), maxName)]...), false
		if b[j*v6.DirentSize+11] != 0 {
			d.fail(at+11, d.where(name), "a reserved byte is not zero")
		}
		d.entry(at, &ent, name)
	}
	if n > 0 && ok {
		d.checkEnd(b, off, n, last)
	}
	return ok
}

// checkEnd checks what follows the last name of a block: zeros, and nothing in
// the last block, whose length is the folder's size.
func (d *v6Dir) checkEnd(b []byte, off uint64, n int, last bool) {
	ent, _ := v6.DecodeDirent(b[(n-1)*v6.DirentSize:])
	end := int(ent.NameOff) + len(direntName(b, n-1, n))
	for i := end; i < len(b); i++ {
		if b[i] != 0 {
			d.fail(off+uint64(i), d.where(nil), "byte %#x behind the last name of a block", b[i])
			return
		}
	}
	if last && end < len(b) {
		d.fail(d.in.off+8, d.where(nil), "size %d, the last name ends at %d", d.in.Size, d.in.Size-uint64(len(b)-end))
	}
}

// nameOffs checks that entries and names of a block lie inside it, one after the
// other, and tells how many entries can be read.
func (d *v6Dir) nameOffs(b []byte, off uint64) (int, bool) {
	ent, err := v6.DecodeDirent(b)
	if err != nil {
		d.fail(off, d.where(nil), "%v", err)
		return 0, false
	}
	first := int(ent.NameOff)
	if first%v6.DirentSize != 0 || first == 0 || first >= len(b) {
		d.fail(off+8, d.where(nil), "first name at %d, block has %d bytes", first, len(b))
		return 0, false
	}
	n := first / v6.DirentSize
	for j, pos := 1, first; j < n; j++ {
		ent, _ := v6.DecodeDirent(b[j*v6.DirentSize:])
		if int(ent.NameOff) <= pos || int(ent.NameOff) >= len(b) {
			d.fail(off+uint64(j*v6.DirentSize)+8, d.where(nil), "name at %d after %d, block has %d bytes", ent.NameOff, pos, len(b))
			return 0, false
		}
		pos = int(ent.NameOff)
	}
	return n, true
}

// direntName is the name of entry i of n. The last name ends with the block or at
// the first NUL.
func direntName(b []byte, i, n int) []byte {
	start := int(le.Uint16(b[i*v6.DirentSize+8:]))
	if i+1 < n {
		return b[start:le.Uint16(b[(i+1)*v6.DirentSize+8:])]
	}
	name := b[start:]
	if nul := bytes.IndexByte(name, 0); nul >= 0 {
		name = name[:nul]
	}
	return name
}

// badName says what is wrong with a name, "" if nothing.
func badName(name []byte) string {
	switch {
	case len(name) == 0:
		return "empty name"
	case len(name) > maxName:
		return fmt.Sprintf("name of %d bytes, limit %d", len(name), maxName)
	case bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0:
		return "name with a slash or NUL"
	}
	return ""
}

// entry checks one entry against the inode that it names.
func (d *v6Dir) entry(at uint64, ent *v6.Dirent, name []byte) {
	switch string(name) {
	case ".":
		d.dot(at, ent, name, uint64(d.self.nid))
		return
	case "..":
		d.dot(at, ent, name, uint64(d.self.parent))
		return
	}
	d.names++
	known := d.walk.nodes.has(ent.NID)
	in, ok := d.visit(at, d.where(name), ent.NID)
	if !ok {
		d.walk.whole = false
		return
	}
	if ent.Type == v6.TypeUnknown || v6.TypeOf(uint32(in.Mode)) != ent.Type {
		d.fail(at+10, d.where(name), "entry has type %d, its inode mode %#o", ent.Type, in.Mode)
	}
	switch {
	case !in.isDir():
		if in.Nlink != 1 || known {
			d.walk.links = append(d.walk.links, uint32(in.nid))
		}
		if known && in.Nlink == 1 {
			d.fail(in.off+nlinkAt(&in), d.where(name), "link count 1, has several names")
		}
	case known:
		d.fail(at, d.where(name), "folder nid %d has several parents", ent.NID)
	default:
		d.folders++
		d.walk.folders = append(d.walk.folders, v6Folder{uint32(ent.NID), d.self.nid})
	}
}

func (d *v6Dir) dot(at uint64, ent *v6.Dirent, name []byte, want uint64) {
	d.dots++
	if ent.NID != want || ent.Type != v6.TypeDir {
		d.fail(at, d.where(nil), "%q is nid %d, type %d, want nid %d, type %d", name, ent.NID, ent.Type, want, v6.TypeDir)
	}
}
