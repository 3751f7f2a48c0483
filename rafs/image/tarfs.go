package image

import (
	"cmp"
	"encoding/hex"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// tarChunks gathers the chunks of an image whose blobs are plain tar files. Its
// chunk table has no digests and so has lost all chunks but one a blob (records
// of equal digests are written once): what a chunk is, the address in its file
// says, and how long, the size of the file.
type tarChunks struct {
	blobs []*blob.Info
	refs  [][]tarRef // by blob
}

// tarRef is one chunk of a file.
type tarRef struct {
	index uint32
	place uint32 // of the address in the bootstrap, in recordUnits
	size  uint32
}

func newTarChunks(blobs []*blob.Info) *tarChunks {
	return &tarChunks{blobs: blobs, refs: make([][]tarRef, len(blobs))}
}

// add takes the address at off for size bytes.
func (t *tarChunks) add(off uint64, a v6.ChunkAddr, size uint32) error {
	if a.BlobIndex >= uint32(len(t.blobs)) {
		return corrupt(off, "chunk of blob %d, image has %d", a.BlobIndex, len(t.blobs))
	}
	b := t.blobs[a.BlobIndex]
	at := uint64(a.BlkAddr) << v6.TarfsBits
	switch {
	case a.ChunkIndex >= b.ChunkCount:
		return corrupt(off, "chunk number %d, blob %d has %d chunks", a.ChunkIndex, b.Index, b.ChunkCount)
	case at > b.CompressedSize || uint64(size) > b.CompressedSize-at:
		return corrupt(off, "chunk at %#x+%#x, blob %d has %#x bytes", at, size, b.Index, b.CompressedSize)
	}
	t.refs[b.Index] = append(t.refs[b.Index], tarRef{a.ChunkIndex, uint32(off / recordUnit), size})
	return nil
}

// tarTable makes a chunk table of what files say.
func (o *v6Open) tarTable(tar *tarChunks) error {
	t := &chunkTable{
		data: o.data, pages: o.im.pages, blobs: o.im.blobs,
		records: make([][]uint32, len(o.im.blobs)), sizes: make([][]uint32, len(o.im.blobs)), gapless: make([]bool, len(o.im.blobs)),
	}
	for i, refs := range tar.refs {
		slices.SortFunc(refs, func(a, b tarRef) int {
			return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.place, b.place))
		})
		for _, r := range refs {
			n := len(t.records[i])
			if n == 0 || t.chunkIndex(t.records[i][n-1]) != r.index {
				t.records[i], t.sizes[i] = append(t.records[i], r.place), append(t.sizes[i], r.size)
				continue
			}
			first, _ := v6.DecodeChunkAddr(o.data.from(uint64(t.records[i][n-1]) * recordUnit))
			again, _ := v6.DecodeChunkAddr(o.data.from(uint64(r.place) * recordUnit))
			if first.BlkAddr != again.BlkAddr || t.sizes[i][n-1] != r.size {
				return corrupt(uint64(r.place)*recordUnit, "chunk %d of blob %d contradicts the address at %#x",
					r.index, i, uint64(t.records[i][n-1])*recordUnit)
			}
		}
		tar.refs[i] = nil
		if err := t.disjoint(i); err != nil {
			return err
		}
	}
	o.im.chunks, o.tree.chunks = t, t
	return nil
}

// tarRecord is what the chunk table would say of the chunk at position pos of a
// blob, its digest aside.
func (t *chunkTable) tarRecord(a v6.ChunkAddr, pos int) layout.ChunkRecord {
	size, at := t.sizes[a.BlobIndex][pos], uint64(a.BlkAddr)<<v6.TarfsBits
	return layout.ChunkRecord{
		BlobIndex: a.BlobIndex, Index: a.ChunkIndex,
		CompressedSize: size, UncompressedSize: size, CompressedOffset: at, UncompressedOffset: at,
	}
}

// checkTarBlob refuses what is no plain tar file that its own id verifies.
func checkTarBlob(off uint64, b *blob.Info) error {
	if _, err := hex.DecodeString(b.ID); err != nil || len(b.ID) != 64 {
		return unsupported(off, "blob %d of a tarfs image is named %q: without a SHA-256 nothing tells its bytes from others", b.Index, b.ID)
	}
	switch f := layout.Features(b.Features); {
	case f&(layout.FeatureAligned|featuresV6Only&^layout.FeatureTarfs) != 0 || f&layout.FeatureTarfs == 0:
		return corrupt(off, "blob %d of a tarfs image has features %s", b.Index, f)
	case b.Cipher != blob.CipherNone:
		return unsupported(off, "blob %d of a tarfs image is encrypted", b.Index)
	case b.CompressedSize == 0 || b.UncompressedSize != b.CompressedSize:
		return corrupt(off, "blob %d of a tarfs image has %d bytes, %d uncompressed", b.Index, b.CompressedSize, b.UncompressedSize)
	}
	return nil
}
