package check

import (
	"encoding/binary"
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

var le = binary.LittleEndian

// The units that blobs begin at in a flattened image, in bytes: now and before
// nydus 2.3.
const (
	mapAlign    = 512 << 10
	mapAlignOld = 2 << 20
)

// blobPlace names a blob by its number.
type blobPlace int

func (p blobPlace) String() string { return fmt.Sprintf("blob %d", int(p)) }

// checkDevices compares device slots, blob table and superblock.
func (c *v6Check) checkDevices() {
	end, blocks, none := c.src.size>>c.blockBits, uint64(0), true
	ids := make(map[string]int, len(c.blobs))
	for i := range c.blobs {
		e := &c.blobs[i]
		off := uint64(v6.DevicesOffset + i*v6.DeviceSlotSize)
		var b [v6.DeviceSlotSize]byte
		if !c.src.read(b[:], off) {
			return // said already
		}
		slot, _ := v6.DecodeDeviceSlot(b[:])
		where := blobPlace(i)
		blocks += uint64(slot.Blocks)
		if slot.ID != e.ID {
			c.fail(off, where, "device is %q, blob %q", slot.ID, e.ID)
		}
		free := e.has(loose)
		if slot.Blocks == 0 && !free {
			c.fail(off+64, where, "device has no blocks")
		}
		if uint64(slot.Blocks) != e.UncompressedSize>>c.blockBits && !free {
			c.fail(off+64, where, "device has %d blocks, uncompressed size is %d", slot.Blocks, e.UncompressedSize)
		}
		at := uint64(slot.MappedBlkAddr)
		if none = none && at == 0; none {
			// nydus-image 2.2 maps no blob at all.
			c.note(off+68, where, "not flattened")
		} else if at < end {
			c.fail(off+68, where, "flattened at block %d, what is before it ends at %d", at, end)
		} else if first := alignUp(end<<c.blockBits, mapAlign); at<<c.blockBits != first && at<<c.blockBits != alignUp(end<<c.blockBits, mapAlignOld) {
			c.note(off+68, where, "flattened at block %d, nydus has it at %d", at, first>>c.blockBits)
		}
		end = at + uint64(slot.Blocks)
		c.reserved(off+72, v6.DeviceSlotSize-72, where)
		if first, ok := ids[e.ID]; ok {
			c.fail(e.off, where, "id %q is that of blob %d", e.ID, first)
		} else {
			ids[e.ID] = i
		}
		c.checkEntry(i, e)
	}
	if blocks != uint64(c.super.Blocks) {
		c.fail(v6.SuperOffset+36, "superblock", "counts %d blocks of data, devices have %d", c.super.Blocks, blocks)
	}
	c.checkSharedFlags()
}

func alignUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

// checkSharedFlags holds what the image says of all blobs against each.
func (c *v6Check) checkSharedFlags() {
	digests, encrypted := 0, 0
	for i := range c.blobs {
		e := &c.blobs[i]
		if e.has(layout.FeatureInlinedChunkDigest) {
			digests++
		} else if c.flags&layout.FlagInlinedChunkDigest != 0 {
			c.fail(v6.ExtSuperOffset, blobPlace(i), "has no digest section, the superblock says that all have")
		}
		if e.has(layout.FeatureEncrypted) {
			encrypted++
		}
	}
	if digests > 0 && digests == len(c.blobs) && c.flags&layout.FlagInlinedChunkDigest == 0 {
		c.note(v6.ExtSuperOffset, "superblock", "does not say that all blobs have a digest section")
	}
	if encrypted == 0 && len(c.blobs) > 0 && c.flags&layout.FlagEncryptionAES128XTS != 0 {
		c.fail(v6.ExtSuperOffset, "superblock", "says that blobs are encrypted, none is")
	}
	if encrypted > 0 && c.flags&layout.FlagEncryptionNone != 0 {
		c.note(v6.ExtSuperOffset, "superblock", "says that blobs are not encrypted, %d are", encrypted)
	}
}

// checkEntry checks one entry of the blob table by itself.
func (c *v6Check) checkEntry(i int, e *v6Blob) {
	where := blobPlace(i)
	rule := func(ok bool, off uint64, format string, args ...any) {
		if !ok {
			c.fail(e.off+off, where, format, args...)
		}
	}
	if err := blob.CheckID(e.ID); err != nil {
		c.fail(e.off, where, "%v", err)
	}
	rule(e.Index == uint32(i), 64, "has index %d", e.Index)
	rule(e.ChunkSize == c.ext.ChunkSize, 68, "chunk size %#x, image %#x", e.ChunkSize, c.ext.ChunkSize)
	rule(e.ChunkCount <= blob.MaxChunks, 72, "%d chunks, limit %d", e.ChunkCount, blob.MaxChunks)
	rule(!e.has(layout.FeatureZran) || blob.Compressor(e.Compressor) == blob.CompressorGzip, 76, "%s in a blob with features %s", blob.Compressor(e.Compressor), layout.Features(e.Features))
	rule(blob.Compressor(e.Compressor).Valid(), 76, "%s", blob.Compressor(e.Compressor))
	rule(blob.Digester(e.Digester).Valid(), 80, "%s", blob.Digester(e.Digester))
	rule(e.CompressedSize <= blob.MaxCompressedSize, 88, "%#x bytes, limit %#x", e.CompressedSize, uint64(blob.MaxCompressedSize))
	rule(e.UncompressedSize <= blob.MaxUncompressedSize, 96, "%#x uncompressed bytes, limit %#x", e.UncompressedSize, uint64(blob.MaxUncompressedSize))
	rule(c.tarfs || e.UncompressedSize%v6.BlockSize == 0, 96, "%#x uncompressed bytes, want a multiple of %d", e.UncompressedSize, v6.BlockSize)
	for _, r := range featureRules(layout.Features(e.Features), c.tarfs, 6) {
		c.fail(e.off+84, where, "%s", r)
	}
	if e.has(layout.FeatureTarfs) {
		c.checkTarBlob(e, where)
	}
	c.checkCipher(e, where)
	c.checkTOCFields(e, where)
	c.checkCI(e, where)
	c.reserved(e.off+220, v6.BlobEntrySize-220, where)
}

// featureRules says what is wrong with the features of a blob.
func featureRules(f layout.Features, tarfs bool, version int) (bad []string) {
	rule := func(ok bool, format string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Sprintf(format, args...))
		}
	}
	has := func(bits layout.Features) bool { return f&bits != 0 }
	if unknown := f & layout.FeaturesIncompat &^ layout.FeaturesKnown; unknown != 0 {
		rule(false, "unknown features %#x", uint32(unknown))
	}
	const needV2 = layout.FeatureZran | layout.FeatureBatch | layout.FeatureEncrypted
	rule(!has(needV2) || has(layout.FeatureChunkInfoV2), "features %s need %s", f&needV2, layout.FeatureChunkInfoV2)
	rule(!has(layout.FeatureZran) || !has(layout.FeatureBatch|layout.FeatureEncrypted), "features %s exclude each other", f&needV2)
	rule(!has(layout.FeatureZran) || has(layout.FeatureSeparate), "feature %s needs %s", layout.FeatureZran, layout.FeatureSeparate)
	rule(!has(layout.FeatureV5NoExtBlobTable), "feature %#x, which is never on disk", uint32(layout.FeatureV5NoExtBlobTable))
	if version == 5 {
		const only6 = needV2 | layout.FeatureChunkInfoV2 | layout.FeatureSeparate | layout.FeatureTarfs | layout.FeatureInlinedChunkDigest
		rule(!has(only6), "features %s, which v5 does not have", f&only6)
		return bad
	}
	rule(tarfs == has(layout.FeatureTarfs), "features %s, superblock says tarfs: %t", f, tarfs)
	rule(has(layout.FeatureTarfs) != has(layout.FeatureAligned), "features %s: chunks are aligned in every image but tarfs", f)
	rule(!has(layout.FeatureTarfs) || has(layout.FeatureCapTarTOC), "feature %s needs %s", layout.FeatureTarfs, layout.FeatureCapTarTOC)
	return bad
}

// checkCipher: where a blob is encrypted, key and IV take the place of the digest
// and size of its metadata.
func (c *v6Check) checkCipher(e *v6Blob, where any) {
	encrypted := e.has(layout.FeatureEncrypted)
	const aes128XTS = 1 // nydus utils/src/crypt.rs
	switch {
	case encrypted && e.Cipher != aes128XTS:
		c.fail(e.off+216, where, "encrypted with cipher %d, want %d", e.Cipher, aes128XTS)
	case !encrypted && e.Cipher != 0:
		c.fail(e.off+216, where, "cipher %d, but not encrypted", e.Cipher)
	case encrypted && e.MetaDigest == [32]byte{}:
		c.fail(e.off+168, where, "encrypted without a key")
	case !encrypted && e.MetaReserved != 0:
		c.fail(e.off+208, where, "a reserved byte is not zero")
	}
	if !encrypted && !e.has(layout.FeatureSeparate) && (e.MetaDigest != [32]byte{} || e.MetaSize != 0) {
		c.fail(e.off+168, where, "metadata of %d bytes apart, digest %x: there is one object", e.MetaSize, e.MetaDigest)
	}
}

func (c *v6Check) checkTOCFields(e *v6Blob, where any) {
	if e.has(layout.FeatureHasTOC) {
		if e.TOCSize < v6.MinTOCSize || e.TOCSize > v6.MaxTOCSize || e.TOCSize%v6.TOCEntrySize != 0 {
			// A layer's own bootstrap lies in the blob before its table of contents, and
			// who merges such bootstraps may not know that either (converters give
			// nydus-image merge its digest at most).
			if e.TOCSize != 0 {
				c.fail(e.off+104, where, "table of contents of %d bytes, want a multiple of %d, %d to %d", e.TOCSize, v6.TOCEntrySize, v6.MinTOCSize, v6.MaxTOCSize)
			}
		}
		return
	}
	if e.TOCSize != 0 || e.TOCDigest != [32]byte{} {
		c.fail(e.off+104, where, "table of contents of %d bytes, digest %x, features have none", e.TOCSize, e.TOCDigest)
	}
}

// members tells whether chunks are gzip members of a stream that somebody else
// made (eStargz): how much each takes is an upper bound.
func (b *v6Blob) members() bool {
	return blob.Compressor(b.Compressor) == blob.CompressorGzip && !b.has(layout.FeatureZran|layout.FeatureSeparate)
}

// checkCI checks what the blob table says of the chunk information.
func (c *v6Check) checkCI(e *v6Blob, where any) {
	if e.has(layout.FeatureTarfs) || e.members() && e.CIUncompressedSize == 0 {
		return // has none
	}
	entry := uint64(v6.ChunkInfoV1Size)
	if e.has(layout.FeatureChunkInfoV2) {
		entry = v6.ChunkInfoV2Size
	}
	want := entry * uint64(e.ChunkCount)
	switch {
	case e.has(loose):
	case e.has(layout.FeatureBatch | layout.FeatureZran | layout.FeatureEncrypted):
		// Contexts follow the entries.
		if e.CIUncompressedSize < want {
			c.fail(e.off+128, where, "chunk information of %d bytes for %d chunks, want at least %d", e.CIUncompressedSize, e.ChunkCount, want)
		}
	case e.CIUncompressedSize != want:
		c.fail(e.off+128, where, "chunk information of %d bytes for %d chunks, want %d", e.CIUncompressedSize, e.ChunkCount, want)
	}
	if !blob.Compressor(e.CICompressor).Valid() || blob.Compressor(e.CICompressor) == blob.CompressorGzip {
		c.fail(e.off+108, where, "chunk information has %s", blob.Compressor(e.CICompressor))
	}
	if e.CICompressedSize > e.CIUncompressedSize && !e.has(layout.FeatureEncrypted) {
		c.fail(e.off+120, where, "chunk information of %d bytes takes %d", e.CIUncompressedSize, e.CICompressedSize)
	}
	if blob.Compressor(e.CICompressor) == blob.CompressorNone && e.CICompressedSize != e.CIUncompressedSize && !e.has(layout.FeatureEncrypted) {
		c.fail(e.off+120, where, "uncompressed chunk information of %d bytes takes %d", e.CIUncompressedSize, e.CICompressedSize)
	}
	c.checkCIPlace(e, where)
}

// checkCIPlace: the chunk information with its header ends a blob, unless tar
// headers tell of more.
func (c *v6Check) checkCIPlace(e *v6Blob, where any) {
	end := e.CIOffset + e.CICompressedSize + v6.MetaHeaderSize
	switch {
	case e.has(layout.FeatureSeparate|loose) || e.members():
		// Of two objects the table has the size of the data; the other one's is not known.
	case e.CIOffset > blob.MaxCompressedSize || e.CICompressedSize > blob.MaxCompressedSize:
		c.fail(e.off+112, where, "chunk information at %#x+%#x, limit %#x", e.CIOffset, e.CICompressedSize, uint64(blob.MaxCompressedSize))
	case !e.has(layout.FeatureCapTarTOC):
		// Before 2.2 nydus had the size of the data alone here.
	case end > e.CompressedSize:
		c.fail(e.off+112, where, "chunk information ends beyond the blob of %d bytes", e.CompressedSize)
	case end != e.CompressedSize && !e.has(layout.FeatureHasTarHeader|layout.FeatureInlinedFSMeta):
		c.fail(e.off+112, where, "chunk information ends at %d, the blob at %d", end, e.CompressedSize)
	}
}
