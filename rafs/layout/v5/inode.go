package v5

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// InodeSize is the size of an Inode on disk in bytes, without what follows it.
const InodeSize = 128

// The flags of an Inode.
const (
	InodeSymlink  uint64 = 0x1
	InodeHardlink uint64 = 0x2
	InodeXattr    uint64 = 0x4 // an xattr table follows name and target
	InodeHoles    uint64 = 0x8 // some ranges of the file have no chunk
)

// Inode is the fixed part of an inode record. After it come the name and the
// target of a symbolic link, each padded to Align, the xattr table if
// InodeXattr is set, and for a regular file one layout.ChunkRecord a chunk.
type Inode struct {
	Digest      [32]byte
	Parent      uint64 // inode number; 0 for the root
	Ino         uint64 // of a hard link: that of the link that comes first
	UID         uint32
	GID         uint32
	ProjID      uint32
	Mode        uint32 // st_mode with its type
	Size        uint64
	Blocks      uint64 // of 512 bytes
	Flags       uint64
	Nlink       uint32
	ChildIndex  uint32 // of a folder: index of the first child
	ChildCount  uint32 // of a folder: children; of a regular file: chunks
	NameSize    uint16
	SymlinkSize uint16
	Rdev        uint32
	MtimeNsec   uint32
	Mtime       int64
}

// DecodeInode decodes the inode at the start of b.
func DecodeInode(b []byte) (Inode, error) {
	if len(b) < InodeSize {
		return Inode{}, short("inode", len(b), InodeSize)
	}
	le := binary.LittleEndian
	p := (*[InodeSize]byte)(b)
	return Inode{
		Digest:      [32]byte(p[0:32]),
		Parent:      le.Uint64(p[32:]),
		Ino:         le.Uint64(p[40:]),
		UID:         le.Uint32(p[48:]),
		GID:         le.Uint32(p[52:]),
		ProjID:      le.Uint32(p[56:]),
		Mode:        le.Uint32(p[60:]),
		Size:        le.Uint64(p[64:]),
		Blocks:      le.Uint64(p[72:]),
		Flags:       le.Uint64(p[80:]),
		Nlink:       le.Uint32(p[88:]),
		ChildIndex:  le.Uint32(p[92:]),
		ChildCount:  le.Uint32(p[96:]),
		NameSize:    le.Uint16(p[100:]),
		SymlinkSize: le.Uint16(p[102:]),
		Rdev:        le.Uint32(p[104:]),
		MtimeNsec:   le.Uint32(p[108:]),
		Mtime:       int64(le.Uint64(p[112:])),
	}, nil
}

// Append appends the inode to b.
func (i *Inode) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, i.Digest[:]...)
	b = le.AppendUint64(b, i.Parent)
	b = le.AppendUint64(b, i.Ino)
	b = le.AppendUint32(b, i.UID)
	b = le.AppendUint32(b, i.GID)
	b = le.AppendUint32(b, i.ProjID)
	b = le.AppendUint32(b, i.Mode)
	b = le.AppendUint64(b, i.Size)
	b = le.AppendUint64(b, i.Blocks)
	b = le.AppendUint64(b, i.Flags)
	b = le.AppendUint32(b, i.Nlink)
	b = le.AppendUint32(b, i.ChildIndex)
	b = le.AppendUint32(b, i.ChildCount)
	b = le.AppendUint16(b, i.NameSize)
	b = le.AppendUint16(b, i.SymlinkSize)
	b = le.AppendUint32(b, i.Rdev)
	b = le.AppendUint32(b, i.MtimeNsec)
	b = le.AppendUint64(b, uint64(i.Mtime))
	return zeros(b, 8)
}

// XattrOffset is where the xattr table starts, or would start, from the start
// of the record, in bytes.
func (i *Inode) XattrOffset() uint64 {
	n := InodeSize + PadLen(uint64(i.NameSize))
	if i.Flags&InodeSymlink != 0 {
		n += PadLen(uint64(i.SymlinkSize))
	}
	return n
}

// XattrTableHeaderSize is the size in bytes of the number at the start of an
// xattr table: the size of the pairs after it, without the padding of the table.
const XattrTableHeaderSize = 8

// XattrPairHeaderSize is the size in bytes of the number at the start of a
// pair: the size of name, NUL and value.
const XattrPairHeaderSize = 4

// DecodeXattrPair decodes the pair at the start of b. Name and value alias b; n
// is how many bytes the pair takes with its header. Pairs are not padded.
func DecodeXattrPair(b []byte) (name, value []byte, n int, err error) {
	if len(b) < XattrPairHeaderSize {
		return nil, nil, 0, short("xattr pair", len(b), XattrPairHeaderSize)
	}
	size := uint64(binary.LittleEndian.Uint32(b))
	b = b[XattrPairHeaderSize:]
	if size > uint64(len(b)) {
		return nil, nil, 0, fmt.Errorf("v5 xattr pair: size %d, %d bytes left", size, len(b))
	}
	name, value, ok := bytes.Cut(b[:size:size], []byte{0})
	if !ok {
		return nil, nil, 0, fmt.Errorf("v5 xattr pair: no NUL in %d bytes", size)
	}
	return name, value, XattrPairHeaderSize + int(size), nil
}

// AppendXattrPair appends a pair to b.
func AppendXattrPair(b []byte, name string, value []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)+1+len(value)))
	b = append(append(b, name...), 0)
	return append(b, value...)
}
