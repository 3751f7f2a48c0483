package image

import (
	"encoding/binary"
	"sort"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v5Inode is an inode with its place.
type v5Inode struct {
	v5.Inode
	off uint64 // of the record
}

// slot is the offset of the record at a position of the inode table, 0 if there
// is no such position. Entries count multiples of 8.
func (t *v5Tree) slot(index uint64) uint64 {
	if index == 0 || index > t.entries {
		return 0
	}
	off := t.table + (index-1)*v5.TableEntrySize
	t.pages.at(off)
	b, ok := t.data.slice(off, v5.TableEntrySize)
	if !ok {
		return 0
	}
	return uint64(binary.LittleEndian.Uint32(b)) * v5.Align
}

// at decodes the record at a position of the inode table.
func (t *v5Tree) at(index uint64) (v5Inode, error) {
	in := v5Inode{off: t.slot(index)}
	t.pages.at(in.off)
	var err error
	in.Inode, err = v5.DecodeInode(t.data.from(in.off))
	return in, err
}

// inode decodes the inode of a node id. The error is ErrNode.
func (t *v5Tree) inode(node uint64) (v5Inode, error) {
	if !t.nodes.has(node) {
		return v5Inode{}, ErrNode
	}
	in, err := t.at(node)
	if err != nil {
		return in, ErrNode
	}
	return in, nil
}

func (in *v5Inode) isType(ft v6.FileType) bool { return in.Mode&modeType == ft.Mode() }

// name is the name in the record at off, which has been checked.
func (t *v5Tree) name(off uint64) []byte {
	t.pages.at(off)
	size, ok := t.data.slice(off+100, 2)
	if !ok {
		return nil
	}
	name, _ := t.data.slice(off+v5.InodeSize, uint64(binary.LittleEndian.Uint16(size)))
	return name
}

// ino is the inode number in the record at off: the node id of the entry.
func (t *v5Tree) ino(off uint64) uint64 {
	b, ok := t.data.slice(off+40, 8)
	if !ok {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

func (t *v5Tree) attr(node uint64) (Attr, error) {
	in, err := t.inode(node)
	if err != nil {
		return Attr{}, err
	}
	a := Attr{
		Ino: node, Mode: in.Mode, Nlink: in.Nlink, UID: in.UID, GID: in.GID,
		Size: in.Size, Blocks: in.Blocks, Mtime: in.Mtime, MtimeNsec: in.MtimeNsec,
	}
	if in.isType(v6.TypeChar) || in.isType(v6.TypeBlock) {
		a.Rdev = in.Rdev
	}
	if t.owner.override {
		a.UID, a.GID = t.owner.uid, t.owner.gid
	}
	return a, nil
}

// dir decodes the inode of a folder.
func (t *v5Tree) dir(node uint64) (v5Inode, error) {
	in, err := t.inode(node)
	if err != nil {
		return in, err
	}
	if !in.isType(v6.TypeDir) {
		return in, ErrNotDir
	}
	return in, nil
}

// parent is the node id of "..".
func (in *v5Inode) parent() uint64 {
	if in.Ino == v5.RootIndex {
		return Root
	}
	return in.Parent
}

func (t *v5Tree) lookup(node uint64, name string) (uint64, error) {
	in, err := t.dir(node)
	if err != nil {
		return 0, err
	}
	switch name {
	case ".":
		return node, nil
	case "..":
		return in.parent(), nil
	}
	i, j := uint64(0), uint64(in.ChildCount)
	for i < j {
		mid := (i + j) / 2
		if string(t.name(t.slot(uint64(in.ChildIndex)+mid))) < name {
			i = mid + 1
		} else {
			j = mid
		}
	}
	if i == uint64(in.ChildCount) {
		return 0, ErrNotFound
	}
	off := t.slot(uint64(in.ChildIndex) + i)
	if string(t.name(off)) != name {
		return 0, ErrNotFound
	}
	return t.ino(off), nil
}

var dotName, dotDotName = []byte("."), []byte("..")

// readDir counts entries: "." and "..", which v5 does not store, then the
// children.
func (t *v5Tree) readDir(node, off uint64, yield func(Dirent) bool) error {
	in, err := t.dir(node)
	if err != nil {
		return err
	}
	for ; off < uint64(in.ChildCount)+2; off++ {
		d := Dirent{Node: node, Name: dotName, Type: v6.TypeDir.Mode(), Next: off + 1}
		switch off {
		case 0:
		case 1:
			d.Node, d.Name = in.parent(), dotDotName
		default:
			rec := t.slot(uint64(in.ChildIndex) + off - 2)
			mode, ok := t.data.slice(rec+60, 4)
			if !ok {
				return nil
			}
			d.Node, d.Name = t.ino(rec), t.name(rec)
			d.Type = binary.LittleEndian.Uint32(mode) & modeType
		}
		if !yield(d) {
			return nil
		}
	}
	return nil
}

func (t *v5Tree) readlink(node uint64) ([]byte, error) {
	in, err := t.inode(node)
	if err != nil {
		return nil, err
	}
	if !in.isType(v6.TypeSymlink) {
		return nil, ErrNotSymlink
	}
	b, ok := t.data.slice(in.off+v5.InodeSize+v5.PadLen(uint64(in.NameSize)), uint64(in.SymlinkSize))
	if !ok {
		return nil, ErrNotSymlink
	}
	return b, nil
}

// chunkRecords is where the chunk records of a regular file are.
func (t *v5Tree) chunkRecords(in *v5Inode) uint64 {
	off := in.off + in.XattrOffset()
	if in.Flags&v5.InodeXattr != 0 {
		if b, ok := t.data.slice(off, v5.XattrTableHeaderSize); ok {
			off += v5.XattrTableHeaderSize + v5.PadLen(binary.LittleEndian.Uint64(b))
		}
	}
	return off
}

// segments goes through the chunk records from the first that ends behind off.
// What lies between chunks, or behind the last, is a hole.
func (t *v5Tree) segments(dst []blob.Segment, node, off uint64, size uint32) ([]blob.Segment, error) {
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
	recs := t.chunkRecords(&in)
	for i := t.firstChunk(&in, recs, off); off < end; i++ {
		next := end
		if i < uint64(in.ChildCount) {
			at := recs + i*layout.ChunkRecordSize
			t.pages.at(at)
			r, err := layout.DecodeChunkRecord(t.data.from(at))
			if err != nil {
				return dst, ErrNode
			}
			if r.FileOffset <= off {
				stop := min(end, r.FileOffset+uint64(r.UncompressedSize))
				dst = append(dst, blob.Segment{Offset: uint32(off - r.FileOffset), Length: uint32(stop - off)})
				if r.Flags&layout.ChunkHole == 0 {
					t.chunks.decode(&dst[len(dst)-1].Chunk, &r)
				}
				off = stop
				continue
			}
			// The chunk is looked at again after the hole before it.
			next = min(end, r.FileOffset)
			i--
		}
		dst = append(dst, blob.Segment{Length: uint32(next - off)})
		off = next
	}
	return dst, nil
}

// firstChunk is the number of the first chunk record that ends behind off. As
// long as there are no holes it is off divided by the chunk size.
func (t *v5Tree) firstChunk(in *v5Inode, recs, off uint64) uint64 {
	ends := func(i uint64) uint64 {
		b, ok := t.data.slice(recs+i*layout.ChunkRecordSize, layout.ChunkRecordSize)
		if !ok {
			return 0
		}
		return binary.LittleEndian.Uint64(b[64:]) + uint64(binary.LittleEndian.Uint32(b[44:]))
	}
	n := uint64(in.ChildCount)
	if i := off / t.chunkSize; i < n && ends(i) > off && (i == 0 || ends(i-1) <= off) {
		return i
	}
	return uint64(sort.Search(int(n), func(i int) bool { return ends(uint64(i)) > off }))
}
