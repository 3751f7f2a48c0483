package check

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// step is how much of a file is looked at at once, in bytes.
const step = 64 << 20

// data looks at the chunks of a file.
func (c *checker) data(node, size uint64, name string) error {
	var segs []blob.Segment
	var last blob.Segment
	v6 := c.im.Super().Version == 6
	for off := uint64(0); off < size; off += step {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		var err error
		if segs, err = c.im.Segments(segs[:0], node, off, step); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, s := range segs {
			if s.Chunk.Blob == nil {
				continue
			}
			c.use[s.Chunk.Blob.Index][s.Chunk.Index] = true
			if v6 && last.Chunk.Blob != nil && last.Chunk.Blob != s.Chunk.Blob &&
				last.Chunk.UncompressedOffset+uint64(last.Chunk.UncompressedSize) == s.Chunk.UncompressedOffset {
				c.fail(name, "chunk at %#x of blob %d follows one of blob %d without a gap in the block numbers, which Linux joins into one read",
					s.Chunk.UncompressedOffset, s.Chunk.Blob.Index, last.Chunk.Blob.Index)
			}
			last = s
		}
	}
	return nil
}

// v6 looks at the tables of a v6 bootstrap, which rafs/image has found to lie
// within the file.
func (c *checker) v6(f *os.File) error {
	size := uint64(c.im.Super().Size)
	if size%v6.BlockSize != 0 {
		c.fail("bootstrap", "%d bytes, want a multiple of %d", size, v6.BlockSize)
	}
	head := make([]byte, v6.SuperSize+v6.ExtSuperSize)
	if _, err := f.ReadAt(head, v6.SuperOffset); err != nil {
		return err
	}
	super, err := v6.DecodeSuper(head)
	if err != nil {
		return err
	}
	ext, err := v6.DecodeExtSuper(head[v6.SuperSize:])
	if err != nil {
		return err
	}
	if super.Inos < c.im.Super().Inodes {
		c.fail("superblock", "counts %d inodes, there are %d", super.Inos, c.im.Super().Inodes)
	}
	if err := c.devices(f, &super, &ext, size); err != nil {
		return err
	}
	return c.chunkTable(f, &ext)
}

// devices compares device slots, blob table and superblock.
func (c *checker) devices(f *os.File, super *v6.Super, ext *v6.ExtSuper, size uint64) error {
	n := int(super.ExtraDevices)
	slots, entries := make([]byte, n*v6.DeviceSlotSize), make([]byte, n*v6.BlobEntrySize)
	if _, err := f.ReadAt(slots, v6.DevicesOffset); err != nil {
		return err
	}
	if _, err := f.ReadAt(entries, int64(ext.BlobTableOffset)); err != nil {
		return err
	}
	end, blocks := size/v6.BlockSize, uint64(0)
	digests := layout.Flags(ext.Flags)&layout.FlagInlinedChunkDigest != 0
	for i := range n {
		slot, err := v6.DecodeDeviceSlot(slots[i*v6.DeviceSlotSize:])
		if err != nil {
			return err
		}
		e, err := v6.DecodeBlobEntry(entries[i*v6.BlobEntrySize:])
		if err != nil {
			return err
		}
		where := fmt.Sprintf("blob %d", i)
		blocks += uint64(slot.Blocks)
		if uint64(slot.Blocks) != e.UncompressedSize/v6.BlockSize {
			c.fail(where, "device has %d blocks, uncompressed size is %d", slot.Blocks, e.UncompressedSize)
		}
		if uint64(slot.MappedBlkAddr) < end {
			c.fail(where, "flattened at block %d, what is before it ends at %d", slot.MappedBlkAddr, end)
		}
		end = uint64(slot.MappedBlkAddr) + uint64(slot.Blocks)
		if digests && layout.Features(e.Features)&layout.FeatureInlinedChunkDigest == 0 {
			c.fail(where, "has no digest section, the superblock says that all have")
		}
		c.chunkInfo(where, &e)
	}
	if blocks != uint64(super.Blocks) {
		c.fail("superblock", "counts %d blocks of data, devices have %d", super.Blocks, blocks)
	}
	return nil
}

// chunkInfo checks what the blob table says of the chunk information.
func (c *checker) chunkInfo(where string, e *v6.BlobEntry) {
	entry := uint64(v6.ChunkInfoV1Size)
	features := layout.Features(e.Features)
	if features&layout.FeatureChunkInfoV2 != 0 {
		entry = v6.ChunkInfoV2Size
	}
	if features&(layout.FeatureBatch|layout.FeatureZran|layout.FeatureEncrypted|layout.FeatureChunkDictGenerated|layout.FeatureTarfs) != 0 {
		return // more than the entries, or none
	}
	if want := entry * uint64(e.ChunkCount); e.CIUncompressedSize != want {
		c.fail(where, "chunk information of %d bytes for %d chunks, want %d", e.CIUncompressedSize, e.ChunkCount, want)
	}
	if e.CICompressedSize > e.CIUncompressedSize {
		c.fail(where, "chunk information of %d bytes takes %d", e.CIUncompressedSize, e.CICompressedSize)
	}
	if end, ok := sum(e.CIOffset, e.CICompressedSize, v6.MetaHeaderSize); !ok || end > e.CompressedSize {
		c.fail(where, "chunk information ends beyond the blob of %d bytes", e.CompressedSize)
	}
}

func sum(parts ...uint64) (total uint64, ok bool) {
	for _, p := range parts {
		if p > math.MaxUint64-total {
			return 0, false
		}
		total += p
	}
	return total, true
}

// chunkTable checks the order of the records, that each is used, and that chunks
// share no byte of their blob.
func (c *checker) chunkTable(f *os.File, ext *v6.ExtSuper) error {
	n := ext.ChunkTableSize / layout.ChunkRecordSize
	r := bufio.NewReaderSize(io.NewSectionReader(f, int64(ext.ChunkTableOffset), int64(ext.ChunkTableSize)), 1<<20)
	places := make([][]place, len(c.use))
	var last layout.ChunkRecord
	for i := range n {
		var buf [layout.ChunkRecordSize]byte
		if _, err := io.ReadFull(r, buf[:]); err != nil {
			return err
		}
		rec, err := layout.DecodeChunkRecord(buf[:])
		if err != nil {
			return err
		}
		where := fmt.Sprintf("chunk record %d at %#x", i, ext.ChunkTableOffset+i*layout.ChunkRecordSize)
		if order := bytes.Compare(last.Digest[:], rec.Digest[:]); i > 0 && (order > 0 || order == 0 && last.BlobIndex >= rec.BlobIndex) {
			c.fail(where, "comes after %x of blob %d, want digests, then blobs to rise", last.Digest, last.BlobIndex)
		}
		if int(rec.BlobIndex) >= len(c.use) {
			return fmt.Errorf("%s: blob %d, there are %d", where, rec.BlobIndex, len(c.use))
		}
		if !c.use[rec.BlobIndex][rec.Index] {
			c.fail(where, "no file uses chunk %d of blob %d", rec.Index, rec.BlobIndex)
		}
		places[rec.BlobIndex] = append(places[rec.BlobIndex], place{rec.Index, rec.CompressedOffset, rec.CompressedSize, rec.UncompressedOffset, rec.UncompressedSize, rec.Flags})
		last = rec
	}
	for i, p := range places {
		if len(p) == 0 {
			c.fail(fmt.Sprintf("blob %d", i), "no file uses any of it")
		}
		c.overlaps(i, p)
	}
	return nil
}

// place is where a chunk lies.
type place struct {
	index            uint32
	compressed       uint64
	compressedSize   uint32
	uncompressed     uint64
	uncompressedSize uint32
	flags            uint32
}

func (c *checker) overlaps(blobIndex int, places []place) {
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.uncompressed, b.uncompressed) })
	for i := 1; i < len(places); i++ {
		a, b := places[i-1], places[i]
		where := fmt.Sprintf("blob %d", blobIndex)
		if a.uncompressed+uint64(a.uncompressedSize) > b.uncompressed {
			c.fail(where, "chunks %d and %d overlap at %#x of the uncompressed space", a.index, b.index, b.uncompressed)
		}
		// Chunks of a batch share their place in the blob.
		if (a.flags|b.flags)&layout.ChunkBatch == 0 && a.index < b.index && a.compressed+uint64(a.compressedSize) > b.compressed {
			c.fail(where, "chunks %d and %d overlap at %#x of the blob", a.index, b.index, b.compressed)
		}
	}
}
