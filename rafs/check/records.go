package check

import (
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// blobRules is what chunk records are held against: one blob as its tables
// describe it, in either version.
type blobRules struct {
	features         layout.Features
	compressor       blob.Compressor
	chunkSize        uint32
	chunkCount       uint32
	compressedSize   uint64 // 0: not known
	uncompressedSize uint64 // 0: not known
	dataEnd          uint64 // where data ends in the blob; 0: not known
	anyNumber        bool   // nobody says how many chunks there are
	alignment        uint64 // of uncompressed offsets
	noDigest         bool
	members          bool // gzip members, whose sizes are upper bounds
}

// batched tells whether a chunk is part of a batch: the chunk table of nydus does
// not flag it.
func (b *blobRules) batched(r *layout.ChunkRecord) bool {
	return r.Flags&layout.ChunkBatch != 0 || b.has(layout.FeatureBatch) && r.CompressedSize == 0
}

func (b *blobRules) has(f layout.Features) bool { return b.features&f != 0 }

// loose are the features of blobs whose numbers in the blob table are not those of
// the chunks that the image uses: dictionaries keep some chunks of a blob, and the
// blob of a list of files to prefetch is entered before it is written (nydus
// builder/src/chunkdict_generator.rs, optimize_prefetch.rs).
const loose = layout.FeatureChunkDictGenerated | layout.FeatureSeparatePrefetch

// within tells whether size bytes at off end within total, or within limit where
// total is 0: not known.
func within(off, size, total, limit uint64) bool {
	if total == 0 {
		total = limit
	}
	return off <= total && size <= total-off
}

// Offsets of the fields of a layout.ChunkRecord.
const (
	recordBlobAt           = 32
	recordFlagsAt          = 36
	recordSizeAt           = 40
	recordPlainSizeAt      = 44
	recordOffsetAt         = 48
	recordPlainOffsetAt    = 56
	recordFileOffsetAt     = 64
	recordIndexAt          = 72
	recordCRCAt            = 76
	recordFlagsKnown       = layout.ChunkCompressed | layout.ChunkHole | layout.ChunkEncrypted | layout.ChunkBatch | layout.ChunkHasCRC32
	maxCompressedChunkSize = blob.MaxChunkSize + v6.BlockSize // of batches, with what encryption adds
)

// recordRules checks a chunk record, at off, against its blob. There are millions
// of them: what is right must cost no memory.
func (c *checker) recordRules(off uint64, where any, r *layout.ChunkRecord, b *blobRules) {
	fail := func(at uint64, format string, args ...any) { c.fail(off+at, where, format, args...) }
	if r.Flags&^recordFlagsKnown != 0 {
		fail(recordFlagsAt, "unknown flags %#x", r.Flags)
	}
	if r.Digest == [32]byte{} && !b.noDigest {
		fail(0, "no digest")
	}
	if r.Index >= b.chunkCount && !b.anyNumber || r.Index >= blob.MaxChunks {
		fail(recordIndexAt, "number %d, blob %d has %d chunks, limit %d", r.Index, r.BlobIndex, b.chunkCount, blob.MaxChunks)
	}
	if r.UncompressedSize == 0 || r.UncompressedSize > b.chunkSize {
		fail(recordPlainSizeAt, "%d bytes, want 1 to %d", r.UncompressedSize, b.chunkSize)
	}
	if (r.Flags&layout.ChunkEncrypted != 0) != b.has(layout.FeatureEncrypted) || r.Flags&layout.ChunkBatch != 0 && !b.has(layout.FeatureBatch) {
		fail(recordFlagsAt, "flags %#x in a blob with features %s", r.Flags, b.features)
	}
	if r.Flags&layout.ChunkCompressed != 0 && b.compressor == blob.CompressorNone {
		fail(recordFlagsAt, "compressed chunk in blob %d, which names no compressor", r.BlobIndex)
	}
	if (r.Flags&layout.ChunkHasCRC32 != 0) != (r.CRC32 != 0) && !b.has(layout.FeatureTarfs) {
		fail(recordCRCAt, "CRC %#x, flags %#x", r.CRC32, r.Flags)
	}
	c.recordSize(off+recordSizeAt, where, r, b)
	// In tarfs one record stands for all: there are no digests to tell them apart by.
	if !b.has(layout.FeatureTarfs) {
		c.recordPlace(off, where, r, b)
	}
}

// recordSize checks what a chunk takes in the blob.
func (c *checker) recordSize(at uint64, where any, r *layout.ChunkRecord, b *blobRules) {
	if b.batched(r) {
		if r.CompressedSize != 0 {
			c.fail(at, where, "batch chunk takes %d bytes, want 0", r.CompressedSize)
		}
		return
	}
	if b.has(layout.FeatureZran) {
		return // a range of a stream, which may be empty
	}
	if r.CompressedSize == 0 || r.CompressedSize > maxCompressedChunkSize && !b.members {
		c.fail(at, where, "takes %d bytes, want 1 to %d", r.CompressedSize, maxCompressedChunkSize)
	}
	stored := r.UncompressedSize
	if r.Flags&layout.ChunkEncrypted != 0 {
		stored = uint32(xts.Size(int(stored)))
	}
	switch compressed := r.Flags&layout.ChunkCompressed != 0; {
	case !compressed && r.CompressedSize != stored:
		c.fail(at, where, "%d uncompressed bytes take %d", r.UncompressedSize, r.CompressedSize)
	case compressed && !b.members && r.CompressedSize >= stored:
		// Where nothing else tells a compressed chunk, its size does.
		c.fail(at, where, "%d bytes compressed to %d", r.UncompressedSize, r.CompressedSize)
	}
}

// recordPlace checks that a chunk lies inside its blob.
func (c *checker) recordPlace(off uint64, where any, r *layout.ChunkRecord, b *blobRules) {
	if !within(r.CompressedOffset, uint64(r.CompressedSize), b.compressedSize, blob.MaxCompressedSize) {
		c.fail(off+recordOffsetAt, where, "at %#x+%#x, blob %d has %#x bytes", r.CompressedOffset, r.CompressedSize, r.BlobIndex, b.compressedSize)
	}
	if b.dataEnd != 0 && !within(r.CompressedOffset, uint64(r.CompressedSize), b.dataEnd, 0) {
		c.fail(off+recordOffsetAt, where, "at %#x+%#x, data of blob %d ends at %#x", r.CompressedOffset, r.CompressedSize, r.BlobIndex, b.dataEnd)
	}
	if !within(r.UncompressedOffset, uint64(r.UncompressedSize), b.uncompressedSize, blob.MaxUncompressedSize) {
		c.fail(off+recordPlainOffsetAt, where, "at %#x+%#x uncompressed, blob %d has %#x bytes", r.UncompressedOffset, r.UncompressedSize, r.BlobIndex, b.uncompressedSize)
	}
	if r.UncompressedOffset%b.alignment != 0 {
		c.fail(off+recordPlainOffsetAt, where, "at %#x uncompressed, want a multiple of %d", r.UncompressedOffset, b.alignment)
	}
}

// sequence checks the records of one blob by ascending number: neither in the
// blob nor in its uncompressed space may two share bytes.
type sequence struct {
	*checker
	blob      int
	rules     *blobRules
	last      layout.ChunkRecord
	lastOff   uint64
	some      bool
	end       uint64 // in the uncompressed space
	packedEnd uint64 // in the blob
}

func (s *sequence) next(off uint64, r *layout.ChunkRecord) {
	if s.rules.has(layout.FeatureTarfs) {
		return
	}
	where := blobPlace(s.blob)
	if s.some && r.UncompressedOffset < s.end {
		s.fail(off+recordPlainOffsetAt, where, "chunks %d and %d overlap at %#x of the uncompressed space", s.last.Index, r.Index, r.UncompressedOffset)
	}
	s.end = max(s.end, r.UncompressedOffset+uint64(r.UncompressedSize))
	switch {
	case s.rules.batched(r):
		// Where a batch lies its chunks need not say, nor how much it takes.
	case s.rules.has(layout.FeatureZran):
		if r.CompressedOffset < s.packedEnd {
			s.fail(off+recordOffsetAt, where, "chunk %d begins at %#x of the blob, the one before it at %#x", r.Index, r.CompressedOffset, s.packedEnd)
		}
		s.packedEnd = max(s.packedEnd, r.CompressedOffset)
	default:
		if s.some && r.CompressedOffset < s.packedEnd {
			s.fail(off+recordOffsetAt, where, "chunks %d and %d overlap at %#x of the blob", s.last.Index, r.Index, r.CompressedOffset)
		}
		s.packedEnd = max(s.packedEnd, r.CompressedOffset+uint64(r.CompressedSize))
	}
	s.last, s.lastOff, s.some = *r, off, true
}

// tablePlace names a record of the chunk table.
type tablePlace struct{ i, off uint64 }

func (p *tablePlace) String() string { return fmt.Sprintf("chunk record %d at %#x", p.i, p.off) }
