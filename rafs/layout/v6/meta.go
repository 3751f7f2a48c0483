package v6

import (
	"encoding/binary"
	"fmt"
)

// MetaHeaderSize is the size of a MetaHeader on disk in bytes.
const MetaHeaderSize = 4096

// MetaMagic opens and closes a MetaHeader.
const MetaMagic = 0xb10bb10b

// MetaHeader describes the chunk information of a blob; it comes right after it
// in the blob (compression context table header, nydus storage/src/meta/mod.rs).
// Entries, compressor, offset and sizes must equal those of the blob table.
type MetaHeader struct {
	Features           uint32 // layout.Features
	CICompressor       uint32
	Entries            uint32
	CIOffset           uint64
	CICompressedSize   uint64
	CIUncompressedSize uint64
	ZranOffset         uint64 // of the batch or zran contexts, from the start of the uncompressed CI
	ZranSize           uint64
	ZranCount          uint32
}

// DecodeMetaHeader decodes the header at the start of b. Both magics must be
// there.
func DecodeMetaHeader(b []byte) (MetaHeader, error) {
	if len(b) < MetaHeaderSize {
		return MetaHeader{}, short("blob meta header", len(b), MetaHeaderSize)
	}
	le := binary.LittleEndian
	p := (*[MetaHeaderSize]byte)(b)
	for _, off := range [...]int{0, MetaHeaderSize - 4} {
		if m := le.Uint32(p[off:]); m != MetaMagic {
			return MetaHeader{}, fmt.Errorf("v6 blob meta header: magic %#x at %d, want %#x", m, off, uint32(MetaMagic))
		}
	}
	return MetaHeader{
		Features:           le.Uint32(p[4:]),
		CICompressor:       le.Uint32(p[8:]),
		Entries:            le.Uint32(p[12:]),
		CIOffset:           le.Uint64(p[16:]),
		CICompressedSize:   le.Uint64(p[24:]),
		CIUncompressedSize: le.Uint64(p[32:]),
		ZranOffset:         le.Uint64(p[40:]),
		ZranSize:           le.Uint64(p[48:]),
		ZranCount:          le.Uint32(p[56:]),
	}, nil
}

// Append appends the header with its magics to b.
func (h *MetaHeader) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, MetaMagic)
	b = le.AppendUint32(b, h.Features)
	b = le.AppendUint32(b, h.CICompressor)
	b = le.AppendUint32(b, h.Entries)
	b = le.AppendUint64(b, h.CIOffset)
	b = le.AppendUint64(b, h.CICompressedSize)
	b = le.AppendUint64(b, h.CIUncompressedSize)
	b = le.AppendUint64(b, h.ZranOffset)
	b = le.AppendUint64(b, h.ZranSize)
	b = le.AppendUint32(b, h.ZranCount)
	b = zeros(b, MetaHeaderSize-64)
	return le.AppendUint32(b, MetaMagic)
}

// The sizes of the two kinds of ChunkInfo on disk, in bytes.
const (
	ChunkInfoV1Size = 16
	ChunkInfoV2Size = 24
)

// The flags of a V2 ChunkInfo.
const (
	ChunkInfoCompressed uint8 = 0x1
	ChunkInfoZran       uint8 = 0x2
	ChunkInfoBatch      uint8 = 0x4
	ChunkInfoEncrypted  uint8 = 0x8
	ChunkInfoHasCRC32   uint8 = 0x10
)

// The widths of the fields of a ChunkInfo.
const (
	chunkSizeBits  = 24
	chunkSizeMask  = 1<<chunkSizeBits - 1
	compOffMask    = 1<<40 - 1
	uncompOffMask  = 1<<44 - 1
	chunkInfoAlign = 4096
)

// ChunkInfo places one chunk, in the table that a blob carries about itself.
type ChunkInfo struct {
	UncompressedOffset uint64 // a multiple of 4096
	CompressedOffset   uint64
	UncompressedSize   uint32 // 1 to 1<<24
	CompressedSize     uint32 // V1: 1 to 1<<24; V2: 0 to 1<<24-1
	Flags              uint8  // V2 only
	Data               uint64 // V2 only: CRC32, or place in a batch or zran context
}

// IsCompressed tells whether the chunk is compressed: V1 has no bit for it and
// goes by the sizes.
func (c *ChunkInfo) IsCompressed(v2 bool) bool {
	if v2 {
		return c.Flags&ChunkInfoCompressed != 0
	}
	return c.CompressedSize != c.UncompressedSize
}

// DecodeChunkInfoV1 decodes the V1 entry at the start of b. Sizes are stored
// less one, their upper 4 bits apart from the lower 20.
func DecodeChunkInfoV1(b []byte) (ChunkInfo, error) {
	if len(b) < ChunkInfoV1Size {
		return ChunkInfo{}, short("chunk info", len(b), ChunkInfoV1Size)
	}
	u := binary.LittleEndian.Uint64(b[0:])
	c := binary.LittleEndian.Uint64(b[8:])
	return ChunkInfo{
		UncompressedOffset: u & uncompOffMask &^ (chunkInfoAlign - 1),
		UncompressedSize:   uint32(u>>44|u>>8&0xf<<20) + 1,
		CompressedOffset:   c & compOffMask,
		CompressedSize:     uint32(c>>44|c>>40&0xf<<20) + 1,
	}, nil
}

// AppendV1 appends the entry as V1 to b. The error says which field does not fit.
func (c *ChunkInfo) AppendV1(b []byte) ([]byte, error) {
	if err := c.check(1, chunkSizeMask+1); err != nil {
		return b, err
	}
	us, cs := uint64(c.UncompressedSize-1), uint64(c.CompressedSize-1)
	b = binary.LittleEndian.AppendUint64(b, us<<44|us>>20<<8|c.UncompressedOffset)
	return binary.LittleEndian.AppendUint64(b, cs<<44|cs>>20<<40|c.CompressedOffset), nil
}

// DecodeChunkInfoV2 decodes the V2 entry at the start of b.
func DecodeChunkInfoV2(b []byte) (ChunkInfo, error) {
	if len(b) < ChunkInfoV2Size {
		return ChunkInfo{}, short("chunk info", len(b), ChunkInfoV2Size)
	}
	u := binary.LittleEndian.Uint64(b[0:])
	c := binary.LittleEndian.Uint64(b[8:])
	return ChunkInfo{
		UncompressedOffset: u & 0xffff_ffff << 12,
		UncompressedSize:   uint32(u>>32&chunkSizeMask) + 1,
		Flags:              uint8(u >> 56),
		CompressedOffset:   c & compOffMask,
		CompressedSize:     uint32(c >> 40),
		Data:               binary.LittleEndian.Uint64(b[16:]),
	}, nil
}

// AppendV2 appends the entry as V2 to b. The error says which field does not fit.
func (c *ChunkInfo) AppendV2(b []byte) ([]byte, error) {
	if err := c.check(0, chunkSizeMask); err != nil {
		return b, err
	}
	u := c.UncompressedOffset>>12 | uint64(c.UncompressedSize-1)<<32 | uint64(c.Flags)<<56
	b = binary.LittleEndian.AppendUint64(b, u)
	b = binary.LittleEndian.AppendUint64(b, c.CompressedOffset|uint64(c.CompressedSize)<<40)
	return binary.LittleEndian.AppendUint64(b, c.Data), nil
}

func (c *ChunkInfo) check(minComp, maxComp uint32) error {
	switch {
	case c.UncompressedOffset&(chunkInfoAlign-1) != 0 || c.UncompressedOffset > uncompOffMask:
		return fmt.Errorf("v6 chunk info: uncompressed offset %#x", c.UncompressedOffset)
	case c.UncompressedSize == 0 || c.UncompressedSize > chunkSizeMask+1:
		return fmt.Errorf("v6 chunk info: uncompressed size %#x", c.UncompressedSize)
	case c.CompressedOffset > compOffMask:
		return fmt.Errorf("v6 chunk info: compressed offset %#x", c.CompressedOffset)
	case c.CompressedSize < minComp || c.CompressedSize > maxComp:
		return fmt.Errorf("v6 chunk info: compressed size %#x, want %#x to %#x", c.CompressedSize, minComp, maxComp)
	}
	return nil
}
