package image

import (
	"math/bits"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
)

// featuresV6Only are those that need what a v5 bootstrap has no place for: chunk
// information, a key, an address in a tar file.
const featuresV6Only = layout.FeatureZran | layout.FeatureSeparate | layout.FeatureTarfs |
	layout.FeatureBatch | layout.FeatureEncrypted | layout.FeatureExternal

// checkBlob holds what both versions say of a blob against the limits of the
// format. The id of a blob that holds the bootstrap is replaced by inlineID.
func checkBlob(off uint64, b *blob.Info, inlineID string) error {
	f := layout.Features(b.Features)
	if bad := f & layout.FeaturesIncompat &^ layout.FeaturesKnown; bad != 0 {
		return unsupported(off, "blob %d has unknown features %#x", b.Index, uint32(bad))
	}
	if f&layout.FeatureInlinedFSMeta != 0 {
		if inlineID == "" {
			return unsupported(off, "blob %d has the bootstrap inside (%s)", b.Index, layout.FeatureInlinedFSMeta)
		}
		if f&layout.FeatureSeparate == 0 {
			b.ID = inlineID
		}
		b.MetaID = inlineID
	}
	if err := blob.CheckID(b.ID); err != nil {
		return corrupt(off, "blob %d: %v", b.Index, err)
	}
	switch {
	case !b.Compressor.Valid():
		return unsupported(off, "blob %d has %s", b.Index, b.Compressor)
	case !b.Digester.Valid():
		return unsupported(off, "blob %d has %s", b.Index, b.Digester)
	case b.ChunkCount > blob.MaxChunks:
		return corrupt(off, "blob %d has %d chunks, limit %d", b.Index, b.ChunkCount, blob.MaxChunks)
	case b.CompressedSize > blob.MaxCompressedSize:
		return corrupt(off, "blob %d has %#x bytes, limit %#x", b.Index, b.CompressedSize, uint64(blob.MaxCompressedSize))
	case b.UncompressedSize > blob.MaxUncompressedSize:
		return corrupt(off, "blob %d has %#x uncompressed bytes, limit %#x", b.Index, b.UncompressedSize, uint64(blob.MaxUncompressedSize))
	}
	return nil
}

// maxChunks bounds the chunks that all blobs of an image claim together: whoever
// opens it goes through them. At the smallest chunk size it is 256 GiB.
const maxChunks = 1 << 26

// checkBlobs refuses a blob table with an id twice, since both would have one cache
// file, and one that claims too many chunks.
func checkBlobs(off uint64, blobs []*blob.Info) error {
	seen := make(map[string]uint32, len(blobs))
	var chunks uint64
	for _, b := range blobs {
		if chunks += uint64(b.ChunkCount); chunks > maxChunks {
			return corrupt(off, "blobs 0 to %d have %d chunks, limit %d", b.Index, chunks, maxChunks)
		}
		if first, ok := seen[b.ID]; ok {
			return corrupt(off, "blobs %d and %d are both %s", first, b.Index, b.ID)
		}
		seen[b.ID] = b.Index
	}
	return nil
}

func checkChunkSize(off uint64, size uint32) error {
	if bits.OnesCount32(size) != 1 || size < blob.MinChunkSize || size > blob.MaxChunkSize {
		return corrupt(off, "chunk size %#x, want a power of two, %#x to %#x", size, blob.MinChunkSize, blob.MaxChunkSize)
	}
	return nil
}

// checkFlags refuses what this reader cannot serve and returns the algorithms.
// Each is named by exactly one bit.
func checkFlags(off uint64, f layout.Flags) (blob.Compressor, blob.Digester, error) {
	if bad := f &^ layout.FlagsKnown; bad != 0 {
		return 0, 0, unsupported(off, "unknown flags %#x", uint64(bad))
	}
	var c blob.Compressor
	switch f & layout.FlagsCompressor {
	case layout.FlagCompressorNone:
		c = blob.CompressorNone
	case layout.FlagCompressorLZ4Block:
		c = blob.CompressorLZ4Block
	case layout.FlagCompressorGzip:
		c = blob.CompressorGzip
	case layout.FlagCompressorZstd:
		c = blob.CompressorZstd
	default:
		return 0, 0, corrupt(off, "flags %#x name no compressor, or several", uint64(f))
	}
	switch f & layout.FlagsDigester {
	case layout.FlagDigesterBlake3:
		return c, blob.DigesterBlake3, nil
	case layout.FlagDigesterSHA256:
		return c, blob.DigesterSHA256, nil
	}
	return 0, 0, corrupt(off, "flags %#x name no digester, or several", uint64(f))
}
