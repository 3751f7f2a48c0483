package check

import (
	"cmp"
	"slices"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// tarAddr is the address of one chunk of a file of a tarfs image, whose chunk
// table has lost all chunks but one: there are no digests to tell them apart by.
// What a chunk is, addresses say, 20 bytes each.
type tarAddr struct {
	blob, number uint32
	block, size  uint32
	place        uint32 // of the address in the bootstrap, in units of 8 bytes
}

// tarChunk checks the address of a chunk that lies in a tar.
func (f *v6File) tarChunk(off uint64, a *v6.ChunkAddr, size uint64) {
	e := &f.blobs[a.BlobIndex]
	if a.ChunkIndex >= e.ChunkCount {
		f.fail(off, f.where, "chunk %d, blob %d has %d", a.ChunkIndex, a.BlobIndex, e.ChunkCount)
	}
	start := uint64(a.BlkAddr) << f.blockBits
	if !within(start, size, e.CompressedSize, 0) {
		f.fail(off+4, f.where, "%d bytes at %#x, blob %d has %#x", size, start, a.BlobIndex, e.CompressedSize)
	}
	f.walk.tar = append(f.walk.tar, tarAddr{a.BlobIndex, a.ChunkIndex, a.BlkAddr, uint32(size), uint32(off / v6.ChunkAddrSize)})
}

// checkTarChunks checks that addresses of one chunk agree, and that chunks follow
// each other in the tar by their numbers.
func (c *v6Check) checkTarChunks() {
	tar := c.walk.tar
	slices.SortFunc(tar, func(a, b tarAddr) int {
		return cmp.Or(cmp.Compare(a.blob, b.blob), cmp.Compare(a.number, b.number), cmp.Compare(a.place, b.place))
	})
	for i := 1; i < len(tar); i++ {
		a, b := &tar[i-1], &tar[i]
		off := uint64(b.place) * v6.ChunkAddrSize
		switch {
		case a.blob != b.blob:
		case a.number == b.number:
			if a.block != b.block || a.size != b.size {
				c.fail(off, blobPlace(b.blob), "chunk %d contradicts the address at %#x", b.number, uint64(a.place)*v6.ChunkAddrSize)
			}
		case uint64(a.block)<<c.blockBits+uint64(a.size) > uint64(b.block)<<c.blockBits:
			c.fail(off+4, blobPlace(b.blob), "chunks %d and %d overlap at %#x of the tar", a.number, b.number, uint64(b.block)<<c.blockBits)
		}
	}
	c.walk.tar = nil
}

// checkTarBlob checks what the blob table says of a tar.
func (c *v6Check) checkTarBlob(e *v6Blob, where any) {
	if e.CompressedSize == 0 || e.CompressedSize != e.UncompressedSize {
		c.fail(e.off+88, where, "tar of %d bytes, %d uncompressed", e.CompressedSize, e.UncompressedSize)
	}
	const others = layout.FeatureZran | layout.FeatureSeparate | layout.FeatureBatch | layout.FeatureEncrypted | layout.FeatureExternal
	if f := layout.Features(e.Features); f&others != 0 {
		c.fail(e.off+84, where, "features %s of a tar", f)
	}
}
