package image

import (
	"bytes"
	"encoding/binary"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// node is the node id of an inode.
func (t *v6Tree) node(nid uint64) uint64 {
	if nid == t.root {
		return Root
	}
	return nid + nidBias
}

// v6Inode is an inode with its place.
type v6Inode struct {
	v6.Inode
	nid uint64
	off uint64 // in the bootstrap
}

// inode decodes the inode of a node id. The error is ErrNode.
func (t *v6Tree) inode(node uint64) (v6Inode, error) {
	nid := node - nidBias
	switch {
	case node == Root:
		nid = t.root
	case node < nidBias || nid == t.root || !t.nodes.has(nid):
		return v6Inode{}, ErrNode
	}
	off := t.meta + nid*v6.NIDUnit
	t.pages.at(off)
	in, err := v6.DecodeInode(t.data.from(off))
	if err != nil {
		return v6Inode{}, ErrNode
	}
	return v6Inode{Inode: in, nid: nid, off: off}, nil
}

func (in *v6Inode) isType(ft v6.FileType) bool { return uint32(in.Mode)&modeType == ft.Mode() }

// modeType is S_IFMT.
const modeType = 0o170000

// tail is where the bytes after the inode and its xattrs begin.
func (in *v6Inode) tail() uint64 { return in.off + uint64(in.DiskSize()) + uint64(in.XattrSize()) }

func (t *v6Tree) attr(node uint64) (Attr, error) {
	in, err := t.inode(node)
	if err != nil {
		return Attr{}, err
	}
	a := Attr{
		Ino: node, Mode: uint32(in.Mode), Nlink: in.Nlink, UID: in.UID, GID: in.GID,
		Size: in.Size, Blocks: (in.Size + 511) / 512, Mtime: in.Mtime, MtimeNsec: in.MtimeNsec,
	}
	if !in.Extended {
		a.Mtime, a.MtimeNsec = t.buildTime, t.buildTimeNsec
	}
	if in.isType(v6.TypeChar) || in.isType(v6.TypeBlock) {
		a.Rdev = in.U
	}
	if t.owner.override {
		a.UID, a.GID = t.owner.uid, t.owner.gid
	}
	return a, nil
}

// blocks is how many blocks the data of a flat inode has.
func (t *v6Tree) blocks(in *v6Inode) uint64 {
	return (in.Size + 1<<t.blockBits - 1) >> t.blockBits
}

// block returns block i of a flat inode: all of it, or up to the inode's size.
func (t *v6Tree) block(in *v6Inode, i uint64) (b []byte, off uint64, ok bool) {
	n := t.blocks(in)
	if i >= n {
		return nil, 0, false
	}
	size := min(in.Size-i<<t.blockBits, 1<<t.blockBits)
	off = (uint64(in.U) + i) << t.blockBits
	if in.Layout == v6.LayoutFlatInline && i == n-1 {
		off = in.tail()
	}
	t.pages.at(off)
	b, ok = t.data.slice(off, size)
	return b, off, ok
}

// direntCount is the number of entries in a block of a folder that has been
// checked: the first name comes right after the last entry.
func direntCount(block []byte) int {
	return int(binary.LittleEndian.Uint16(block[8:])) / v6.DirentSize
}

// direntName is the name of entry i of n. The last name ends with the block or
// at the first NUL.
func direntName(block []byte, i, n int) []byte {
	start := int(binary.LittleEndian.Uint16(block[i*v6.DirentSize+8:]))
	if i+1 < n {
		end := int(binary.LittleEndian.Uint16(block[(i+1)*v6.DirentSize+8:]))
		return block[start:end:end]
	}
	name := block[start:]
	if nul := bytes.IndexByte(name, 0); nul >= 0 {
		name = name[:nul]
	}
	return name[:len(name):len(name)]
}

// dir decodes the inode of a folder.
func (t *v6Tree) dir(node uint64) (v6Inode, error) {
	in, err := t.inode(node)
	if err != nil {
		return in, err
	}
	if !in.isType(v6.TypeDir) {
		return in, ErrNotDir
	}
	return in, nil
}

func (t *v6Tree) lookup(node uint64, name string) (uint64, error) {
	in, err := t.dir(node)
	if err != nil {
		return 0, err
	}
	// The last block whose first name is not behind name is the only one that can
	// have it.
	lo, hi := uint64(0), t.blocks(&in)
	for lo+1 < hi {
		mid := (lo + hi) / 2
		b, _, ok := t.block(&in, mid)
		if !ok {
			return 0, ErrNotFound
		}
		if string(direntName(b, 0, direntCount(b))) <= name {
			lo = mid
		} else {
			hi = mid
		}
	}
	b, _, ok := t.block(&in, lo)
	if !ok {
		return 0, ErrNotFound
	}
	n := direntCount(b)
	i, j := 0, n
	for i < j {
		mid := (i + j) / 2
		if string(direntName(b, mid, n)) < name {
			i = mid + 1
		} else {
			j = mid
		}
	}
	if i == n || string(direntName(b, i, n)) != name {
		return 0, ErrNotFound
	}
	return t.node(binary.LittleEndian.Uint64(b[i*v6.DirentSize:])), nil
}

// An offset of a v6 folder is the number of a block and of an entry in it, which
// are fewer than 4096/v6.DirentSize.
const (
	dirOffBits = 9
	dirOffMask = 1<<dirOffBits - 1
)

func (t *v6Tree) readDir(node, off uint64, yield func(Dirent) bool) error {
	in, err := t.dir(node)
	if err != nil {
		return err
	}
	i := int(off & dirOffMask)
	for block := off >> dirOffBits; ; block++ {
		b, _, ok := t.block(&in, block)
		if !ok {
			return nil
		}
		for n := direntCount(b); i < n; i++ {
			d, err := v6.DecodeDirent(b[i*v6.DirentSize:])
			if err != nil {
				return nil
			}
			if !yield(Dirent{
				Node: t.node(d.NID), Name: direntName(b, i, n), Type: d.Type.Mode(),
				Next: block<<dirOffBits | uint64(i+1),
			}) {
				return nil
			}
		}
		i = 0
	}
}

func (t *v6Tree) readlink(node uint64) ([]byte, error) {
	in, err := t.inode(node)
	if err != nil {
		return nil, err
	}
	if !in.isType(v6.TypeSymlink) {
		return nil, ErrNotSymlink
	}
	b, ok := t.target(&in)
	if !ok {
		return nil, ErrNotSymlink
	}
	return b, nil
}

// target is the data of a symbolic link. Only blocks of 512 bytes, those of
// tarfs, can be too small for it; the last may lie apart from those before it.
func (t *v6Tree) target(in *v6Inode) ([]byte, bool) {
	b, _, ok := t.block(in, 0)
	n := t.blocks(in)
	for i := uint64(1); ok && i < n; i++ {
		var more []byte
		more, _, ok = t.block(in, i)
		b = append(b, more...) // no room behind b: it is copied
	}
	if n > 1 && in.Layout == v6.LayoutFlatInline && (!ok || bytes.IndexByte(b, 0) >= 0) {
		// nydus-image writes all of such a target behind the inode, not its last part
		// alone, and over whatever is there (nydus builder/src/core/v6.rs).
		return t.data.slice(in.tail(), in.Size)
	}
	return b, ok
}

// chunkAddrs is where the chunk addresses of a regular file begin.
func (in *v6Inode) chunkAddrs() uint64 {
	return (in.tail() + v6.ChunkAddrSize - 1) &^ (v6.ChunkAddrSize - 1)
}

func (t *v6Tree) segments(dst []blob.Segment, node, off uint64, size uint32) ([]blob.Segment, error) {
	in, err := t.inode(node)
	if err != nil {
		return dst, err
	}
	if !in.isType(v6.TypeRegular) {
		return dst, ErrNotRegular
	}
	if off >= in.Size {
		return dst, nil
	}
	end := off + min(uint64(size), in.Size-off)
	for off < end {
		i := off >> t.chunkBits
		at := in.chunkAddrs() + i*v6.ChunkAddrSize
		t.pages.at(at)
		a, err := v6.DecodeChunkAddr(t.data.from(at))
		if err != nil {
			return dst, ErrNode
		}
		place, ok := t.chunks.find(a.BlobIndex, a.ChunkIndex)
		if !ok {
			return dst, ErrNode
		}
		start := i << t.chunkBits
		stop := min(end, start+1<<t.chunkBits)
		dst = append(dst, blob.Segment{Offset: uint32(off - start), Length: uint32(stop - off)})
		var r layout.ChunkRecord
		if t.pages == nil && t.chunks.sizes == nil { // said here, too, since it saves a copy of r
			r, _ = layout.DecodeChunkRecord(t.data.from(uint64(place) * recordUnit))
		} else {
			r = t.chunks.stray(place)
		}
		t.chunks.decode(&dst[len(dst)-1].Chunk, &r)
		off = stop
	}
	return dst, nil
}
