package layout

import (
	"encoding/binary"
	"fmt"
)

// ChunkRecordSize is the size of a ChunkRecord on disk in bytes.
const ChunkRecordSize = 80

// The flags of a ChunkRecord (BlobChunkFlags, nydus storage/src/device.rs).
const (
	ChunkCompressed uint32 = 0x1
	ChunkHole       uint32 = 0x2 // no data: reads as zeros; nydus-image never writes it
	ChunkEncrypted  uint32 = 0x4
	ChunkBatch      uint32 = 0x8
	ChunkHasCRC32   uint32 = 0x10
)

// ChunkRecord describes one chunk (RafsV5ChunkInfo, nydus
// rafs/src/metadata/layout/v5.rs). In v5 it follows the inode, one record a
// chunk of the file; in v6 it is an element of the chunk table, one record a
// distinct chunk, and FileOffset means nothing.
type ChunkRecord struct {
	Digest             [32]byte
	BlobIndex          uint32
	Flags              uint32
	CompressedSize     uint32
	UncompressedSize   uint32
	CompressedOffset   uint64 // in the blob object
	UncompressedOffset uint64 // in the blob's uncompressed space
	FileOffset         uint64
	Index              uint32 // of the chunk in its blob, from 0
	CRC32              uint32 // Castagnoli, over the uncompressed bytes; 0 if not known
}

// DecodeChunkRecord decodes the record at the start of b.
func DecodeChunkRecord(b []byte) (ChunkRecord, error) {
	if len(b) < ChunkRecordSize {
		return ChunkRecord{}, fmt.Errorf("chunk record: %d bytes, want %d", len(b), ChunkRecordSize)
	}
	p := (*[ChunkRecordSize]byte)(b)
	return ChunkRecord{
		Digest:             [32]byte(p[0:32]),
		BlobIndex:          binary.LittleEndian.Uint32(p[32:]),
		Flags:              binary.LittleEndian.Uint32(p[36:]),
		CompressedSize:     binary.LittleEndian.Uint32(p[40:]),
		UncompressedSize:   binary.LittleEndian.Uint32(p[44:]),
		CompressedOffset:   binary.LittleEndian.Uint64(p[48:]),
		UncompressedOffset: binary.LittleEndian.Uint64(p[56:]),
		FileOffset:         binary.LittleEndian.Uint64(p[64:]),
		Index:              binary.LittleEndian.Uint32(p[72:]),
		CRC32:              binary.LittleEndian.Uint32(p[76:]),
	}, nil
}

// Append appends the record to b.
func (c *ChunkRecord) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, c.Digest[:]...)
	b = le.AppendUint32(b, c.BlobIndex)
	b = le.AppendUint32(b, c.Flags)
	b = le.AppendUint32(b, c.CompressedSize)
	b = le.AppendUint32(b, c.UncompressedSize)
	b = le.AppendUint64(b, c.CompressedOffset)
	b = le.AppendUint64(b, c.UncompressedOffset)
	b = le.AppendUint64(b, c.FileOffset)
	b = le.AppendUint32(b, c.Index)
	return le.AppendUint32(b, c.CRC32)
}
