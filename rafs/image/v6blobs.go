package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// entryInfo is a blob as the blob table and the device table have it.
func entryInfo(e *v6.BlobEntry, slot *v6.DeviceSlot) *blob.Info {
	b := &blob.Info{
		Index: e.Index, ID: e.ID, MetaID: e.ID, Features: e.Features,
		Compressor: blob.Compressor(e.Compressor), Digester: blob.Digester(e.Digester),
		ChunkSize: e.ChunkSize, ChunkCount: e.ChunkCount, ListedChunks: e.ChunkCount,
		CompressedSize: e.CompressedSize, UncompressedSize: e.UncompressedSize,
		Cipher:    blob.Cipher(e.Cipher),
		ChunkInfo: blob.Section{Compressor: blob.Compressor(e.CICompressor), Offset: e.CIOffset, CompressedSize: e.CICompressedSize, UncompressedSize: e.CIUncompressedSize},
		TOCDigest: e.TOCDigest, TOCSize: e.TOCSize, MappedBlock: slot.MappedBlkAddr,
	}
	switch {
	case b.Cipher != blob.CipherNone:
		// The key takes the place of what is about another object.
		b.Key.XTS = e.MetaDigest
		binary.LittleEndian.PutUint64(b.Key.IV[:8], e.MetaSize)
		binary.LittleEndian.PutUint64(b.Key.IV[8:], e.MetaReserved)
	case layout.Features(e.Features)&layout.FeatureSeparate != 0:
		b.MetaID, b.MetaSize = "", e.MetaSize
		if e.MetaDigest != [32]byte{} {
			b.MetaID = hex.EncodeToString(e.MetaDigest[:])
		}
	}
	return b
}

// checkFeatures refuses features of a v6 blob that contradict each other or the
// image, and those that nothing can be served of.
func (o *v6Open) checkFeatures(off uint64, b *blob.Info, e *v6.BlobEntry) error {
	f := layout.Features(b.Features)
	const units = layout.FeatureBatch | layout.FeatureZran
	switch {
	case !b.Cipher.Valid():
		return unsupported(off+216, "blob %d has cipher %d", b.Index, e.Cipher)
	case f&layout.FeatureEncrypted != 0 && b.Cipher == blob.CipherNone:
		return corrupt(off+216, "blob %d has features %s and no cipher", b.Index, f)
	case b.Cipher != blob.CipherNone && bytes.Equal(b.Key.XTS[:16], b.Key.XTS[16:]):
		return corrupt(off+168, "blob %d has a key of two equal halves", b.Index)
	case b.Cipher != blob.CipherNone && f&layout.FeatureSeparate != 0:
		return unsupported(off+216, "blob %d is encrypted, and its metadata is another object", b.Index)
	case f&(units|layout.FeatureEncrypted) != 0 && f&layout.FeatureChunkInfoV2 == 0:
		return corrupt(off+84, "blob %d has features %s without %s", b.Index, f, layout.FeatureChunkInfoV2)
	case f&units == units:
		return corrupt(off+84, "blob %d has features %s", b.Index, f)
	case f&layout.FeatureExternal != 0 && !o.opts.External:
		return unsupported(off+84, "blob %d has features %s: its data lies in another backend, and its chunks have no digests to verify it by", b.Index, layout.FeatureExternal)
	case o.tarfs():
		return checkTarBlob(off, b)
	case f&layout.FeatureTarfs != 0:
		return corrupt(off+84, "blob %d has features %s in an image that is no tarfs", b.Index, f)
	case f&layout.FeatureAligned == 0:
		return unsupported(off+84, "blob %d without aligned chunks", b.Index)
	}
	return nil
}
