package image

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// recordUnit is what offsets of chunk records are counted in: records lie at
// multiples of 8, and a bootstrap of 2 GiB has less than 1<<32 of them.
const recordUnit = 8

// Offsets of fields in a layout.ChunkRecord that are read alone.
const (
	recordBlobAt   = 32
	recordFlagsAt  = 36
	recordOffsetAt = 48
	recordIndexAt  = 72
)

// chunkTable finds chunk records by blob and number. In v6 they are the chunk
// table of the bootstrap, in v5 those of all files.
type chunkTable struct {
	data  region
	pages *pages
	blobs []*blob.Info
	// records has, for each blob, the place of one record a chunk in recordUnits,
	// by ascending chunk number.
	records [][]uint32
	// gapless tells of each blob that record i is that of chunk i.
	gapless []bool
	// renumbered tells that the image does not number its chunks (v5 without an
	// extended blob table): the number of a chunk is its position in records,
	// which then goes by the offset in the blob.
	renumbered bool
	// sizes is nil but for tarfs (see tarChunks): there records has the places of
	// chunk addresses, not of chunk records, and sizes how long these chunks are.
	sizes [][]uint32
}

// newChunkTable checks the records at these places against the blob table, and
// that no two chunks of a blob claim the same number or the same bytes of its
// uncompressed space. A record may be there several times if it says the same.
func newChunkTable(im *Image, data region, places []uint32, renumber bool) (*chunkTable, error) {
	blobs := im.blobs
	t := &chunkTable{data: data, pages: im.pages, blobs: blobs, records: make([][]uint32, len(blobs)), gapless: make([]bool, len(blobs)), renumbered: renumber}
	counts := make([]int, len(blobs))
	for _, p := range places {
		i, err := t.check(uint64(p) * recordUnit)
		if err != nil {
			return nil, err
		}
		counts[i]++
	}
	for i, n := range counts {
		t.records[i] = make([]uint32, 0, n)
	}
	for _, p := range places {
		i := t.field(p, recordBlobAt)
		t.records[i] = append(t.records[i], p)
	}
	for i := range t.records {
		t.measure(i)
		if err := t.order(i); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// loose are blobs whose numbers in the blob table are not those of the chunks
// that the image uses: dictionaries count what they kept of a blob, and number
// that anew (nydus builder/src/chunkdict_generator.rs), and the blob of a list of
// files to prefetch is entered before it is written
// (builder/src/optimize_prefetch.rs).
const loose = layout.FeatureChunkDictGenerated | layout.FeatureSeparatePrefetch

func isLoose(b *blob.Info) bool { return layout.Features(b.Features)&loose != 0 }

// measure finds out how many chunks and bytes a loose blob has, as far as the
// image uses it.
func (t *chunkTable) measure(blobIndex int) {
	b := t.blobs[blobIndex]
	if !isLoose(b) {
		return
	}
	for _, p := range t.records[blobIndex] {
		r := t.record(p)
		b.ChunkCount = max(b.ChunkCount, r.Index+1)
		b.UncompressedSize = max(b.UncompressedSize, r.UncompressedOffset+uint64(r.UncompressedSize))
	}
}

// shared tells whether a chunk lies in a unit with others. A batch has chunks of
// their own beside those that share, which have no compressed size (nydus
// builder/src/core/node.rs); in a gzip stream nothing is on its own.
func shared(b *blob.Info, r *layout.ChunkRecord) bool {
	f := layout.Features(b.Features)
	return f&layout.FeatureZran != 0 || f&layout.FeatureBatch != 0 && r.CompressedSize == 0
}

func (t *chunkTable) field(place uint32, at uint64) uint32 {
	t.pages.at(uint64(place) * recordUnit)
	return binary.LittleEndian.Uint32(t.data[uint64(place)*recordUnit+at:])
}

// check holds one record against its blob and returns the blob's index.
func (t *chunkTable) check(off uint64) (uint32, error) {
	t.pages.at(off)
	r, err := layout.DecodeChunkRecord(t.data.from(off))
	if err != nil {
		return 0, corrupt(off, "%v", err)
	}
	if r.BlobIndex >= uint32(len(t.blobs)) {
		return 0, corrupt(off, "chunk of blob %d, image has %d", r.BlobIndex, len(t.blobs))
	}
	b := t.blobs[r.BlobIndex]
	const known = layout.ChunkCompressed | layout.ChunkEncrypted | layout.ChunkBatch | layout.ChunkHasCRC32
	space := b.UncompressedSize
	if isLoose(b) {
		space = 0
	}
	switch {
	case r.Flags&^known != 0:
		return 0, unsupported(off, "chunk flags %#x", r.Flags)
	case r.Digest == [32]byte{} && layout.Features(b.Features)&layout.FeatureExternal == 0:
		return 0, corrupt(off, "chunk %d of blob %d has no digest", r.Index, b.Index)
	case r.Index >= blob.MaxChunks || !t.renumbered && !isLoose(b) && r.Index >= b.ChunkCount:
		return 0, corrupt(off, "chunk number %d, blob %d has %d chunks", r.Index, b.Index, b.ChunkCount)
	case r.UncompressedSize == 0 || r.UncompressedSize > b.ChunkSize:
		return 0, corrupt(off, "chunk of %d bytes, chunk size %d", r.UncompressedSize, b.ChunkSize)
	case !inside(r.UncompressedOffset, r.UncompressedSize, space, blob.MaxUncompressedSize):
		return 0, corrupt(off, "chunk at %#x+%#x uncompressed, blob %d has %#x bytes", r.UncompressedOffset, r.UncompressedSize, b.Index, b.UncompressedSize)
	case r.Flags&layout.ChunkEncrypted != 0 && b.Cipher == blob.CipherNone:
		return 0, corrupt(off, "encrypted chunk in blob %d, which names no cipher", b.Index)
	}
	if shared(b, &r) {
		return r.BlobIndex, nil
	}
	return r.BlobIndex, checkPlace(off, b, &r)
}

// checkPlace holds what the record of a chunk that shares with no other says of
// the blob object against that.
func checkPlace(off uint64, b *blob.Info, r *layout.ChunkRecord) error {
	switch {
	case r.Flags&layout.ChunkBatch != 0 && layout.Features(b.Features)&layout.FeatureBatch == 0:
		return corrupt(off, "batch chunk in blob %d, which has features %s", b.Index, layout.Features(b.Features))
	case r.CompressedSize == 0 || r.CompressedSize > blob.MaxChunkSize:
		return corrupt(off, "chunk of %d compressed bytes, limit %d", r.CompressedSize, blob.MaxChunkSize)
	case r.Flags&layout.ChunkCompressed == 0 && r.CompressedSize != storedSize(r):
		return corrupt(off, "uncompressed chunk of %d bytes takes %d", r.UncompressedSize, r.CompressedSize)
	case r.Flags&layout.ChunkCompressed != 0 && b.Compressor == blob.CompressorNone:
		return corrupt(off, "compressed chunk in blob %d, which names no compressor", b.Index)
	case !inside(r.CompressedOffset, r.CompressedSize, b.CompressedSize, blob.MaxCompressedSize):
		return corrupt(off, "chunk at %#x+%#x, blob %d has %#x bytes", r.CompressedOffset, r.CompressedSize, b.Index, b.CompressedSize)
	}
	return nil
}

// storedSize is how many bytes of the blob an uncompressed chunk takes: encryption
// pads what is shorter than a block (rafs/blob/codec/xts).
func storedSize(r *layout.ChunkRecord) uint32 {
	const block, padded = 16, 18
	if r.Flags&layout.ChunkEncrypted != 0 && r.UncompressedSize < block {
		return padded
	}
	return r.UncompressedSize
}

// inside tells whether size bytes at off end within total, or within limit where
// total is 0: not known.
func inside(off uint64, size uint32, total, limit uint64) bool {
	if total == 0 {
		total = limit
	}
	return off <= total && uint64(size) <= total-off
}

// order brings the records of one blob into the order of their keys, one a key,
// and refuses chunks that share bytes of the uncompressed space: in a cache file
// they would overwrite each other.
func (t *chunkTable) order(blobIndex int) error {
	places, err := t.distinct(blobIndex)
	if err != nil {
		return err
	}
	t.records[blobIndex] = slices.Clip(places)
	n := len(places)
	t.gapless[blobIndex] = n == 0 || t.renumbered || t.chunkIndex(places[n-1]) == uint32(n-1)
	return t.disjoint(blobIndex)
}

// disjoint refuses chunks of a blob that are not one behind the other.
func (t *chunkTable) disjoint(blobIndex int) error {
	end := uint64(0)
	for _, p := range t.records[blobIndex] {
		r := t.record(p)
		if r.UncompressedOffset < end {
			return corrupt(uint64(p)*recordUnit, "chunk %d of blob %d at %#x begins inside the chunk before it", r.Index, blobIndex, r.UncompressedOffset)
		}
		end = r.UncompressedOffset + uint64(r.UncompressedSize)
	}
	return nil
}

// key is what the chunks of a blob are ordered by.
func (t *chunkTable) key(place uint32) uint64 {
	if t.renumbered {
		t.pages.at(uint64(place) * recordUnit)
		return binary.LittleEndian.Uint64(t.data[uint64(place)*recordUnit+recordOffsetAt:])
	}
	return uint64(t.chunkIndex(place))
}

// chunkIndex is the number of the chunk at a place.
func (t *chunkTable) chunkIndex(place uint32) uint32 {
	if t.sizes != nil {
		return t.addr(place).ChunkIndex
	}
	return t.field(place, recordIndexAt)
}

// addr decodes the chunk address at a place of tarfs.
func (t *chunkTable) addr(place uint32) v6.ChunkAddr {
	t.pages.at(uint64(place) * recordUnit)
	a, _ := v6.DecodeChunkAddr(t.data.from(uint64(place) * recordUnit))
	return a
}

// sparse is how many times more chunks than records a blob must have before its
// records are sorted rather than put into a slot each.
const sparse = 4

// distinct returns the places of a blob's records by ascending key, one a key.
func (t *chunkTable) distinct(blobIndex int) ([]uint32, error) {
	places := t.records[blobIndex]
	count := t.blobs[blobIndex].ChunkCount
	if !t.renumbered && uint64(count) <= sparse*uint64(len(places)) {
		slots := make([]uint32, count) // no record is at place 0
		for _, p := range places {
			slot := &slots[t.key(p)]
			if *slot != 0 {
				if err := t.same(*slot, p); err != nil {
					return nil, err
				}
			}
			*slot = p
		}
		return slices.DeleteFunc(slots, func(p uint32) bool { return p == 0 }), nil
	}
	slices.SortFunc(places, func(a, b uint32) int { return cmp.Compare(t.key(a), t.key(b)) })
	kept := places[:0]
	for _, p := range places {
		if n := len(kept); n > 0 && t.key(kept[n-1]) == t.key(p) {
			if err := t.same(kept[n-1], p); err != nil {
				return nil, err
			}
			continue
		}
		kept = append(kept, p)
	}
	return kept, nil
}

// same refuses two records of one chunk that contradict. Where a file has the
// chunk is not a property of the chunk, nor is its number where there are none.
func (t *chunkTable) same(a, b uint32) error {
	x, y := t.record(a), t.record(b)
	x.FileOffset, y.FileOffset = 0, 0
	if t.renumbered {
		x.Index, y.Index = 0, 0
	}
	if x != y {
		return corrupt(uint64(b)*recordUnit, "chunk %d of blob %d contradicts the record at %#x", y.Index, y.BlobIndex, uint64(a)*recordUnit)
	}
	return nil
}

// record decodes a record whose place has been checked.
func (t *chunkTable) record(place uint32) layout.ChunkRecord {
	if t.sizes != nil {
		a := t.addr(place)
		return t.tarRecord(a, t.search(a.BlobIndex, uint64(a.ChunkIndex)))
	}
	t.pages.at(uint64(place) * recordUnit)
	r, _ := layout.DecodeChunkRecord(t.data.from(uint64(place) * recordUnit))
	return r
}

// stray is record for who asks for any chunk next.
func (t *chunkTable) stray(place uint32) layout.ChunkRecord {
	if t.pages == nil || t.sizes != nil {
		return t.record(place)
	}
	var b [layout.ChunkRecordSize]byte
	t.pages.read(b[:], uint64(place)*recordUnit)
	r, _ := layout.DecodeChunkRecord(b[:])
	return r
}

// find returns the place of the record of a chunk.
func (t *chunkTable) find(blobIndex, chunkIndex uint32) (uint32, bool) {
	if blobIndex >= uint32(len(t.records)) {
		return 0, false
	}
	places := t.records[blobIndex]
	if t.gapless[blobIndex] {
		if chunkIndex >= uint32(len(places)) {
			return 0, false
		}
		return places[chunkIndex], true
	}
	// Numbers ascend, so that a chunk is never behind its number.
	n := min(int(chunkIndex)+1, len(places))
	i := sort.Search(n, func(i int) bool { return t.chunkIndex(places[i]) >= chunkIndex })
	if i == n || t.chunkIndex(places[i]) != chunkIndex {
		return 0, false
	}
	return places[i], true
}

// number is the number of a chunk: that of its record, or where there are none,
// its position.
func (t *chunkTable) number(r *layout.ChunkRecord) uint32 {
	if !t.renumbered {
		return r.Index
	}
	return uint32(t.search(r.BlobIndex, r.CompressedOffset))
}

// position is where in t.records[its blob] the chunk of a record is.
func (t *chunkTable) position(place uint32) uint64 {
	if t.sizes != nil {
		a := t.addr(place)
		return uint64(t.search(a.BlobIndex, uint64(a.ChunkIndex)))
	}
	return uint64(t.search(t.field(place, recordBlobAt), t.key(place)))
}

func (t *chunkTable) search(blobIndex uint32, key uint64) int {
	places := t.records[blobIndex]
	return sort.Search(len(places), func(i int) bool { return t.key(places[i]) >= key })
}

// decode sets c to the chunk of a record that has been checked.
func (t *chunkTable) decode(c *blob.Chunk, r *layout.ChunkRecord) {
	c.Blob = t.blobs[r.BlobIndex]
	c.Index = t.number(r)
	c.Compressed = r.Flags&layout.ChunkCompressed != 0
	c.Encrypted = r.Flags&layout.ChunkEncrypted != 0
	if c.Shared = shared(c.Blob, r); !c.Shared {
		c.CompressedOffset = r.CompressedOffset
		c.CompressedSize = r.CompressedSize
	}
	c.UncompressedOffset = r.UncompressedOffset
	c.UncompressedSize = r.UncompressedSize
	c.Digest = r.Digest
}

func (t *chunkTable) chunk(blobIndex, chunkIndex uint32) (blob.Chunk, bool) {
	place, ok := t.find(blobIndex, chunkIndex)
	if !ok {
		return blob.Chunk{}, false
	}
	var c blob.Chunk
	r := t.stray(place)
	t.decode(&c, &r)
	return c, true
}
