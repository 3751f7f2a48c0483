package v6

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// IDSize is the room for a blob id, padded with NUL bytes.
const IDSize = 64

// DeviceSlotSize is the size of a DeviceSlot on disk in bytes.
const DeviceSlotSize = 128

// DeviceSlot tells EROFS of one blob; slot i has device id i+1.
type DeviceSlot struct {
	ID            string // at most IDSize bytes
	Blocks        uint32 // uncompressed size in whole blocks
	MappedBlkAddr uint32 // block of the blob in a flattened image: bootstrap, then blobs
}

// DecodeDeviceSlot decodes the slot at the start of b.
func DecodeDeviceSlot(b []byte) (DeviceSlot, error) {
	if len(b) < DeviceSlotSize {
		return DeviceSlot{}, short("device slot", len(b), DeviceSlotSize)
	}
	return DeviceSlot{
		ID:            idString(b),
		Blocks:        binary.LittleEndian.Uint32(b[64:]),
		MappedBlkAddr: binary.LittleEndian.Uint32(b[68:]),
	}, nil
}

// Append appends the slot to b. It panics if the id is longer than IDSize.
func (d *DeviceSlot) Append(b []byte) []byte {
	b = appendPadded(b, d.ID, IDSize)
	b = binary.LittleEndian.AppendUint32(b, d.Blocks)
	b = binary.LittleEndian.AppendUint32(b, d.MappedBlkAddr)
	return zeros(b, DeviceSlotSize-72)
}

// BlobEntrySize is the size of a BlobEntry on disk in bytes.
const BlobEntrySize = 256

// BlobEntry is one entry of the blob table. Where a blob is encrypted, its key
// and IV take the place of MetaDigest, MetaSize and the field after them.
type BlobEntry struct {
	ID                 string // at most IDSize bytes
	Index              uint32
	ChunkSize          uint32
	ChunkCount         uint32
	Compressor         uint32
	Digester           uint32
	Features           uint32 // layout.Features
	CompressedSize     uint64 // of the whole blob object
	UncompressedSize   uint64
	TOCSize            uint32 // entries and their tar header
	CICompressor       uint32
	CIOffset           uint64
	CICompressedSize   uint64
	CIUncompressedSize uint64
	TOCDigest          [32]byte // SHA-256 over the TOC's entries and their tar header
	MetaDigest         [32]byte
	MetaSize           uint64
	MetaReserved       uint64 // the second half of the IV of an encrypted blob
	Cipher             uint32
}

// DecodeBlobEntry decodes the entry at the start of b.
func DecodeBlobEntry(b []byte) (BlobEntry, error) {
	if len(b) < BlobEntrySize {
		return BlobEntry{}, short("blob table entry", len(b), BlobEntrySize)
	}
	le := binary.LittleEndian
	p := (*[BlobEntrySize]byte)(b)
	return BlobEntry{
		ID:                 idString(b),
		Index:              le.Uint32(p[64:]),
		ChunkSize:          le.Uint32(p[68:]),
		ChunkCount:         le.Uint32(p[72:]),
		Compressor:         le.Uint32(p[76:]),
		Digester:           le.Uint32(p[80:]),
		Features:           le.Uint32(p[84:]),
		CompressedSize:     le.Uint64(p[88:]),
		UncompressedSize:   le.Uint64(p[96:]),
		TOCSize:            le.Uint32(p[104:]),
		CICompressor:       le.Uint32(p[108:]),
		CIOffset:           le.Uint64(p[112:]),
		CICompressedSize:   le.Uint64(p[120:]),
		CIUncompressedSize: le.Uint64(p[128:]),
		TOCDigest:          [32]byte(p[136:168]),
		MetaDigest:         [32]byte(p[168:200]),
		MetaSize:           le.Uint64(p[200:]),
		MetaReserved:       le.Uint64(p[208:]),
		Cipher:             le.Uint32(p[216:]),
	}, nil
}

// Append appends the entry to b. It panics if the id is longer than IDSize.
func (e *BlobEntry) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = appendPadded(b, e.ID, IDSize)
	b = le.AppendUint32(b, e.Index)
	b = le.AppendUint32(b, e.ChunkSize)
	b = le.AppendUint32(b, e.ChunkCount)
	b = le.AppendUint32(b, e.Compressor)
	b = le.AppendUint32(b, e.Digester)
	b = le.AppendUint32(b, e.Features)
	b = le.AppendUint64(b, e.CompressedSize)
	b = le.AppendUint64(b, e.UncompressedSize)
	b = le.AppendUint32(b, e.TOCSize)
	b = le.AppendUint32(b, e.CICompressor)
	b = le.AppendUint64(b, e.CIOffset)
	b = le.AppendUint64(b, e.CICompressedSize)
	b = le.AppendUint64(b, e.CIUncompressedSize)
	b = append(b, e.TOCDigest[:]...)
	b = append(b, e.MetaDigest[:]...)
	b = le.AppendUint64(b, e.MetaSize)
	b = le.AppendUint64(b, e.MetaReserved)
	b = le.AppendUint32(b, e.Cipher)
	return zeros(b, BlobEntrySize-220)
}

// idString reads an id of IDSize bytes without the padding. A NUL inside stays,
// for blob.CheckID to refuse.
func idString(b []byte) string { return strings.TrimRight(string(b[:IDSize]), "\x00") }

func appendPadded(b []byte, s string, size int) []byte {
	if len(s) > size {
		panic(fmt.Sprintf("v6: %q is longer than %d bytes", s, size))
	}
	return zeros(append(b, s...), size-len(s))
}
