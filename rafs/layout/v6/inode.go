package v6

import (
	"encoding/binary"
	"fmt"
)

// The sizes of the two kinds of inode on disk, in bytes.
const (
	CompactInodeSize  = 32
	ExtendedInodeSize = 64
)

// InodeLayout tells where the data of an inode lies.
type InodeLayout uint8

// The layouts of RAFS. EROFS has two more, for compressed data.
const (
	LayoutFlatPlain  InodeLayout = 0 // whole blocks at U
	LayoutFlatInline InodeLayout = 2 // whole blocks at U, the tail after the inode and its xattrs
	LayoutChunkBased InodeLayout = 4 // an array of ChunkAddr after the inode and its xattrs
)

// The chunk format, which U holds where the layout is LayoutChunkBased.
const (
	ChunkFormatBits    = 0x1f // log2 of the chunk size, less the block bits
	ChunkFormatIndexes = 0x20 // the array is made of ChunkAddr, not of block addresses
)

// Inode is an inode, compact or extended. The fields that a compact one lacks
// are zero.
type Inode struct {
	Extended    bool
	Layout      InodeLayout
	XattrICount uint16 // see XattrSize
	Mode        uint16 // st_mode with its type
	Nlink       uint32 // 16 bits if compact
	Size        uint64 // 32 bits if compact
	U           uint32 // block address, device number or chunk format
	Ino         uint32 // the builder's number; the nid is what identifies an inode
	UID         uint32 // 16 bits if compact
	GID         uint32 // 16 bits if compact
	Mtime       int64  // seconds; not if compact
	MtimeNsec   uint32 // not if compact
}

// DiskSize is the size of the inode on disk in bytes, without what follows it.
func (i *Inode) DiskSize() int {
	if i.Extended {
		return ExtendedInodeSize
	}
	return CompactInodeSize
}

// XattrSize is the size in bytes of the xattrs between the inode and its data.
func (i *Inode) XattrSize() int {
	if i.XattrICount == 0 {
		return 0
	}
	return XattrHeaderSize + 4*(int(i.XattrICount)-1)
}

// DecodeInode decodes the inode at the start of b.
func DecodeInode(b []byte) (Inode, error) {
	if len(b) < CompactInodeSize {
		return Inode{}, short("inode", len(b), CompactInodeSize)
	}
	le := binary.LittleEndian
	format := le.Uint16(b)
	if format&^0xf != 0 {
		return Inode{}, fmt.Errorf("v6 inode: format %#x has unknown bits", format)
	}
	layout := InodeLayout(format >> 1)
	if format&1 == 0 {
		p := (*[CompactInodeSize]byte)(b)
		return Inode{
			Layout:      layout,
			XattrICount: le.Uint16(p[2:]),
			Mode:        le.Uint16(p[4:]),
			Nlink:       uint32(le.Uint16(p[6:])),
			Size:        uint64(le.Uint32(p[8:])),
			U:           le.Uint32(p[16:]),
			Ino:         le.Uint32(p[20:]),
			UID:         uint32(le.Uint16(p[24:])),
			GID:         uint32(le.Uint16(p[26:])),
		}, nil
	}
	if len(b) < ExtendedInodeSize {
		return Inode{}, short("extended inode", len(b), ExtendedInodeSize)
	}
	p := (*[ExtendedInodeSize]byte)(b)
	return Inode{
		Extended:    true,
		Layout:      layout,
		XattrICount: le.Uint16(p[2:]),
		Mode:        le.Uint16(p[4:]),
		Size:        le.Uint64(p[8:]),
		U:           le.Uint32(p[16:]),
		Ino:         le.Uint32(p[20:]),
		UID:         le.Uint32(p[24:]),
		GID:         le.Uint32(p[28:]),
		Mtime:       int64(le.Uint64(p[32:])),
		MtimeNsec:   le.Uint32(p[40:]),
		Nlink:       le.Uint32(p[44:]),
	}, nil
}

// Append appends the inode to b. A compact one keeps the low bits of what has
// fewer bits there.
func (i *Inode) Append(b []byte) []byte {
	le := binary.LittleEndian
	format := uint16(i.Layout) << 1
	if !i.Extended {
		b = le.AppendUint16(b, format)
		b = le.AppendUint16(b, i.XattrICount)
		b = le.AppendUint16(b, i.Mode)
		b = le.AppendUint16(b, uint16(i.Nlink))
		b = le.AppendUint32(b, uint32(i.Size))
		b = zeros(b, 4)
		b = le.AppendUint32(b, i.U)
		b = le.AppendUint32(b, i.Ino)
		b = le.AppendUint16(b, uint16(i.UID))
		b = le.AppendUint16(b, uint16(i.GID))
		return zeros(b, 4)
	}
	b = le.AppendUint16(b, format|1)
	b = le.AppendUint16(b, i.XattrICount)
	b = le.AppendUint16(b, i.Mode)
	b = zeros(b, 2)
	b = le.AppendUint64(b, i.Size)
	b = le.AppendUint32(b, i.U)
	b = le.AppendUint32(b, i.Ino)
	b = le.AppendUint32(b, i.UID)
	b = le.AppendUint32(b, i.GID)
	b = le.AppendUint64(b, uint64(i.Mtime))
	b = le.AppendUint32(b, i.MtimeNsec)
	b = le.AppendUint32(b, i.Nlink)
	return zeros(b, 16)
}

// ChunkAddrSize is the size of a ChunkAddr on disk in bytes.
const ChunkAddrSize = 8

// ChunkAddr says where one chunk of a file is. EROFS reads the device id and
// the block; the rest of the number is RAFS' own.
type ChunkAddr struct {
	BlobIndex  uint32 // 0 to 254; the device id on disk is one more, 0 meaning a hole
	ChunkIndex uint32 // of the chunk in its blob; 24 bits
	BlkAddr    uint32 // uncompressed offset of the chunk in blocks
}

// DecodeChunkAddr decodes the address at the start of b.
func DecodeChunkAddr(b []byte) (ChunkAddr, error) {
	if len(b) < ChunkAddrSize {
		return ChunkAddr{}, short("chunk address", len(b), ChunkAddrSize)
	}
	lo := binary.LittleEndian.Uint16(b[0:])
	hi := binary.LittleEndian.Uint16(b[2:])
	device := uint32(hi & 0xff)
	if device == 0 {
		return ChunkAddr{}, fmt.Errorf("v6 chunk address: device id 0")
	}
	return ChunkAddr{
		BlobIndex:  device - 1,
		ChunkIndex: uint32(lo) | uint32(hi>>8)<<16,
		BlkAddr:    binary.LittleEndian.Uint32(b[4:]),
	}, nil
}

// Append appends the address to b. It keeps the low 24 bits of ChunkIndex.
func (a *ChunkAddr) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(a.ChunkIndex))
	b = le.AppendUint16(b, uint16(a.BlobIndex+1)&0xff|uint16(a.ChunkIndex>>16)<<8)
	return le.AppendUint32(b, a.BlkAddr)
}
