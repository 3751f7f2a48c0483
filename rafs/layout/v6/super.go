// Package v6 holds the on-disk structs of RAFS v6, which is EROFS with an extra
// superblock, and of the data blobs that go with it: chunk information, table of
// contents, tar headers.
//
// It decodes and appends one struct at a time and checks lengths only; see
// package layout for the rules. Names follow the EROFS and nydus sources.
package v6

import (
	"encoding/binary"
	"fmt"
)

// The geometry of a bootstrap (nydus rafs/src/metadata/layout/v6.rs).
const (
	BlockSize = 4096 // of every image but tarfs, which has 512

	SuperOffset    = 1024 // EROFS superblock
	SuperSize      = 128
	ExtSuperOffset = SuperOffset + SuperSize
	ExtSuperSize   = 256
	DevicesOffset  = ExtSuperOffset + ExtSuperSize // device slots

	Magic         = 0xE0F5E1E2
	BlockBits     = 12 // log2 of BlockSize
	TarfsBits     = 9
	DeviceSlotPos = DevicesOffset / DeviceSlotSize // devt_slotoff: 11
	NIDUnit       = 32                             // bytes; a nid counts these from the meta area

	// FeatureCompatRafs marks a superblock that has an extended one after it.
	FeatureCompatRafs = 0x4000_0000
	// FeatureCompatChecksum would make the checksum field count; RAFS never sets it.
	FeatureCompatChecksum = 0x1
	// FeatureIncompat is what every RAFS image has: chunked files (4) and a device table (8).
	FeatureIncompat = 0x4 | 0x8
)

// Super is the EROFS superblock, at SuperOffset.
type Super struct {
	Magic           uint32
	Checksum        uint32
	FeatureCompat   uint32
	BlockBits       uint8
	ExtSlots        uint8
	RootNID         uint16
	Inos            uint64
	BuildTime       uint64 // seconds; the mtime of compact inodes
	BuildTimeNsec   uint32
	Blocks          uint32 // data blocks of all devices
	MetaBlkAddr     uint32 // block where nids are counted from
	XattrBlkAddr    uint32 // block where shared xattrs are counted from
	UUID            [16]byte
	Volume          [16]byte
	FeatureIncompat uint32
	Union           uint16
	ExtraDevices    uint16
	DevtSlotOff     uint16 // in units of DeviceSlotSize
}

// DecodeSuper decodes the superblock at the start of b.
func DecodeSuper(b []byte) (Super, error) {
	if len(b) < SuperSize {
		return Super{}, short("superblock", len(b), SuperSize)
	}
	le := binary.LittleEndian
	p := (*[SuperSize]byte)(b)
	return Super{
		Magic:           le.Uint32(p[0:]),
		Checksum:        le.Uint32(p[4:]),
		FeatureCompat:   le.Uint32(p[8:]),
		BlockBits:       p[12],
		ExtSlots:        p[13],
		RootNID:         le.Uint16(p[14:]),
		Inos:            le.Uint64(p[16:]),
		BuildTime:       le.Uint64(p[24:]),
		BuildTimeNsec:   le.Uint32(p[32:]),
		Blocks:          le.Uint32(p[36:]),
		MetaBlkAddr:     le.Uint32(p[40:]),
		XattrBlkAddr:    le.Uint32(p[44:]),
		UUID:            [16]byte(p[48:64]),
		Volume:          [16]byte(p[64:80]),
		FeatureIncompat: le.Uint32(p[80:]),
		Union:           le.Uint16(p[84:]),
		ExtraDevices:    le.Uint16(p[86:]),
		DevtSlotOff:     le.Uint16(p[88:]),
	}, nil
}

// Append appends the superblock to b.
func (s *Super) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, s.Magic)
	b = le.AppendUint32(b, s.Checksum)
	b = le.AppendUint32(b, s.FeatureCompat)
	b = append(b, s.BlockBits, s.ExtSlots)
	b = le.AppendUint16(b, s.RootNID)
	b = le.AppendUint64(b, s.Inos)
	b = le.AppendUint64(b, s.BuildTime)
	b = le.AppendUint32(b, s.BuildTimeNsec)
	b = le.AppendUint32(b, s.Blocks)
	b = le.AppendUint32(b, s.MetaBlkAddr)
	b = le.AppendUint32(b, s.XattrBlkAddr)
	b = append(b, s.UUID[:]...)
	b = append(b, s.Volume[:]...)
	b = le.AppendUint32(b, s.FeatureIncompat)
	b = le.AppendUint16(b, s.Union)
	b = le.AppendUint16(b, s.ExtraDevices)
	b = le.AppendUint16(b, s.DevtSlotOff)
	return zeros(b, SuperSize-90)
}

// ExtSuper is the superblock that RAFS adds, at ExtSuperOffset. Offsets and
// sizes are in bytes.
type ExtSuper struct {
	Flags               uint64 // layout.Flags
	BlobTableOffset     uint64
	BlobTableSize       uint32
	ChunkSize           uint32
	ChunkTableOffset    uint64
	ChunkTableSize      uint64
	PrefetchTableOffset uint64
	PrefetchTableSize   uint32
}

// DecodeExtSuper decodes the extended superblock at the start of b.
func DecodeExtSuper(b []byte) (ExtSuper, error) {
	if len(b) < ExtSuperSize {
		return ExtSuper{}, short("extended superblock", len(b), ExtSuperSize)
	}
	le := binary.LittleEndian
	p := (*[ExtSuperSize]byte)(b)
	return ExtSuper{
		Flags:               le.Uint64(p[0:]),
		BlobTableOffset:     le.Uint64(p[8:]),
		BlobTableSize:       le.Uint32(p[16:]),
		ChunkSize:           le.Uint32(p[20:]),
		ChunkTableOffset:    le.Uint64(p[24:]),
		ChunkTableSize:      le.Uint64(p[32:]),
		PrefetchTableOffset: le.Uint64(p[40:]),
		PrefetchTableSize:   le.Uint32(p[48:]),
	}, nil
}

// Append appends the extended superblock to b.
func (s *ExtSuper) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.Flags)
	b = le.AppendUint64(b, s.BlobTableOffset)
	b = le.AppendUint32(b, s.BlobTableSize)
	b = le.AppendUint32(b, s.ChunkSize)
	b = le.AppendUint64(b, s.ChunkTableOffset)
	b = le.AppendUint64(b, s.ChunkTableSize)
	b = le.AppendUint64(b, s.PrefetchTableOffset)
	b = le.AppendUint32(b, s.PrefetchTableSize)
	return zeros(b, ExtSuperSize-52)
}

func short(what string, got, want int) error {
	return fmt.Errorf("v6 %s: %d bytes, want %d", what, got, want)
}

// zeros appends n zero bytes; the compiler makes no temporary slice of it.
func zeros(b []byte, n int) []byte { return append(b, make([]byte, n)...) }
