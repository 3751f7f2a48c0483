package v6

import "encoding/binary"

// The sizes of the records behind the chunk information of a blob, in bytes.
const (
	ZranContextSize  = 40
	BatchContextSize = 40
)

// MaxZranDict bounds the dictionary of a ZranContext in bytes: what deflate can
// look back.
const MaxZranDict = 32 << 10

// ZranContext says how to inflate one stretch of a gzip stream without what
// comes before it (nydus storage/src/meta/zran.rs). The records follow the chunk
// information, and their dictionaries follow the last record.
type ZranContext struct {
	InOffset   uint64 // of the first whole byte in the blob
	OutOffset  uint64 // of the output in the inflated stream
	DictOffset uint64 // from the end of the last record
	InLen      uint32 // bytes from InOffset
	OutLen     uint32
	DictSize   uint32 // at most MaxZranDict
	CtxByte    uint8  // the byte before InOffset, if CtxBits is not zero
	CtxBits    uint8  // how many of its upper bits belong to this context; at most 7
}

// DecodeZranContext decodes the record at the start of b.
func DecodeZranContext(b []byte) (ZranContext, error) {
	if len(b) < ZranContextSize {
		return ZranContext{}, short("zran context", len(b), ZranContextSize)
	}
	le := binary.LittleEndian
	p := (*[ZranContextSize]byte)(b)
	return ZranContext{
		InOffset:   le.Uint64(p[0:]),
		OutOffset:  le.Uint64(p[8:]),
		DictOffset: le.Uint64(p[16:]),
		InLen:      le.Uint32(p[24:]),
		OutLen:     le.Uint32(p[28:]),
		DictSize:   le.Uint32(p[32:]),
		CtxByte:    p[36],
		CtxBits:    p[37],
	}, nil
}

// Append appends the record to b.
func (c *ZranContext) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, c.InOffset)
	b = le.AppendUint64(b, c.OutOffset)
	b = le.AppendUint64(b, c.DictOffset)
	b = le.AppendUint32(b, c.InLen)
	b = le.AppendUint32(b, c.OutLen)
	b = le.AppendUint32(b, c.DictSize)
	return append(b, c.CtxByte, c.CtxBits, 0, 0)
}

// ZranPlace is where a chunk lies in the output of a ZranContext: the Data of
// its ChunkInfo, as it is for a BatchContext.
func ZranPlace(data uint64) (context, offset uint32) {
	return uint32(data >> 32), uint32(data)
}

// ZranData is the inverse of ZranPlace.
func ZranData(context, offset uint32) uint64 {
	return uint64(context)<<32 | uint64(offset)
}

// BatchContext sizes one batch, several small chunks that are compressed as one
// (nydus storage/src/meta/batch.rs). Where it lies, its chunks say.
type BatchContext struct {
	CompressedSize   uint32
	UncompressedSize uint32
}

// DecodeBatchContext decodes the record at the start of b.
func DecodeBatchContext(b []byte) (BatchContext, error) {
	if len(b) < BatchContextSize {
		return BatchContext{}, short("batch context", len(b), BatchContextSize)
	}
	p := (*[BatchContextSize]byte)(b)
	return BatchContext{
		CompressedSize:   binary.LittleEndian.Uint32(p[0:]),
		UncompressedSize: binary.LittleEndian.Uint32(p[4:]),
	}, nil
}

// Append appends the record to b.
func (c *BatchContext) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, c.CompressedSize)
	b = binary.LittleEndian.AppendUint32(b, c.UncompressedSize)
	return zeros(b, BatchContextSize-8)
}
