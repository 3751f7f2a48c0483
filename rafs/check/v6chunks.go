package check

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

func (c *v6Check) rules(i int) *blobRules {
	e := &c.blobs[i]
	r := &blobRules{
		features: layout.Features(e.Features), compressor: blob.Compressor(e.Compressor), chunkSize: c.ext.ChunkSize,
		chunkCount: e.ChunkCount, compressedSize: e.CompressedSize, uncompressedSize: e.UncompressedSize,
		alignment: v6.BlockSize, noDigest: c.tarfs,
	}
	r.members = e.members()
	if !e.has(layout.FeatureSeparate|layout.FeatureTarfs|loose) && !r.members {
		r.dataEnd = e.CIOffset
		if e.has(layout.FeatureHasTarHeader) && e.CIOffset >= v6.TarHeaderSize {
			r.dataEnd -= v6.TarHeaderSize
		}
	}
	if e.has(loose) {
		r.anyNumber, r.uncompressedSize = true, 0
	}
	r.noDigest = r.noDigest || e.has(layout.FeatureExternal)
	if c.tarfs {
		r.alignment = 1
	}
	return r
}

// scanChunks yields the records of the chunk table in its order.
func (c *v6Check) scanChunks(yield func(i, off uint64, r *layout.ChunkRecord) bool) {
	start, n := c.ext.ChunkTableOffset, c.ext.ChunkTableSize/layout.ChunkRecordSize
	in := bufio.NewReaderSize(io.NewSectionReader(c.src.r, int64(start), int64(n*layout.ChunkRecordSize)), pageSize)
	var buf [layout.ChunkRecordSize]byte
	var r layout.ChunkRecord // one for all: yield may keep a copy only
	for i := range n {
		if i%4096 == 0 && c.done() {
			return
		}
		if _, err := io.ReadFull(in, buf[:]); err != nil {
			c.src.err = fmt.Errorf("bootstrap: %w", err)
			return
		}
		r, _ = layout.DecodeChunkRecord(buf[:])
		if !yield(i, start+i*layout.ChunkRecordSize, &r) {
			return
		}
	}
}

// readChunks checks the records of the chunk table one by one, and their order,
// and indexes them.
func (c *v6Check) readChunks() {
	if c.chunks == nil || c.ext.ChunkTableSize == 0 {
		return
	}
	counts := make([]int, len(c.blobs))
	c.scanChunks(func(_, _ uint64, r *layout.ChunkRecord) bool {
		if r.BlobIndex < uint32(len(counts)) {
			counts[r.BlobIndex]++
		}
		return true
	})
	rules := make([]*blobRules, len(c.blobs))
	for i, n := range counts {
		c.chunks.sets[i] = chunkSet{numbers: make([]uint32, 0, n), words: make([]uint64, 0, n)}
		rules[i] = c.rules(i)
	}
	var last layout.ChunkRecord
	where := &tablePlace{}
	c.scanChunks(func(i, off uint64, r *layout.ChunkRecord) bool {
		where.i, where.off = i, off
		if i > 0 && !recordsAscend(&last, r, rules) {
			c.fail(off, where, "comes after %x of blob %d, want digests, then blobs to rise", last.Digest, last.BlobIndex)
		}
		last = *r
		if r.BlobIndex >= uint32(len(rules)) {
			c.fail(off+recordBlobAt, where, "blob %d, there are %d", r.BlobIndex, len(rules))
			return true
		}
		if r.Flags&layout.ChunkHole != 0 {
			c.fail(off+recordFlagsAt, where, "a hole, which v6 does not have")
		}
		c.recordRules(off, where, r, rules[r.BlobIndex])
		s := &c.chunks.sets[r.BlobIndex]
		s.numbers = append(s.numbers, r.Index)
		s.words = append(s.words, chunkWord(min(r.UncompressedOffset>>c.blockBits, 1<<32-1), r.UncompressedSize))
		return true
	})
	c.chunks.order(func(b int, number uint32) {
		if !c.tarfs {
			c.fail(c.ext.ChunkTableOffset, blobPlace(b), "chunk %d has several records", number)
		}
	})
}

// recordsAscend tells whether b may follow a: by digest, then by blob. External
// blobs have a record for each chunk number as well.
func recordsAscend(a, b *layout.ChunkRecord, rules []*blobRules) bool {
	if order := bytes.Compare(a.Digest[:], b.Digest[:]); order != 0 {
		return order < 0
	}
	if a.BlobIndex != b.BlobIndex {
		return a.BlobIndex < b.BlobIndex
	}
	return b.BlobIndex < uint32(len(rules)) && rules[b.BlobIndex].has(layout.FeatureExternal) && a.Index < b.Index
}

// gatherMin and gatherMax bound how many records are held at once, to see them by
// ascending number: 1 to 11 MB. In the table they lie by digest.
const (
	gatherMin = 16 << 10
	gatherMax = 128 << 10
)

// eachRecord yields the records of all blobs by blob and ascending number, each
// number once.
func (c *v6Check) eachRecord(yield func(b int, off uint64, used bool, r *layout.ChunkRecord) bool) {
	n := c.chunks.len()
	room := min(n, max(gatherMin, min(gatherMax, n/32)))
	records, offs := make([]layout.ChunkRecord, room), make([]uint64, room)
	for first := 0; first < n; first += room {
		clear(offs)
		c.scanChunks(func(_, off uint64, r *layout.ChunkRecord) bool {
			at, ok := c.chunks.find(r.BlobIndex, r.Index)
			if !ok {
				return true
			}
			p := c.chunks.sets[r.BlobIndex].base + at - first
			if p >= 0 && p < room && offs[p] == 0 {
				records[p], offs[p] = *r, off
			}
			return true
		})
		for p := range min(room, n-first) {
			if c.done() || offs[p] != 0 && !yield(int(records[p].BlobIndex), offs[p], c.chunks.used.has(uint64(first+p)), &records[p]) {
				return
			}
		}
	}
}

// checkChunks checks that chunks share no bytes and that each is used.
func (c *v6Check) checkChunks() {
	if c.chunks == nil {
		return
	}
	seqs := make([]sequence, len(c.blobs))
	for i := range seqs {
		seqs[i] = sequence{checker: c.checker, blob: i, rules: c.rules(i)}
	}
	// Without the tree, or where addresses are those of a tar, nobody knows.
	judge := c.walk.ran && c.walk.whole && !c.tarfs
	c.eachRecord(func(b int, off uint64, used bool, r *layout.ChunkRecord) bool {
		seqs[b].next(off, r)
		if judge && !used {
			c.fail(off, &tablePlace{(off - c.ext.ChunkTableOffset) / layout.ChunkRecordSize, off}, "no file uses chunk %d of blob %d", r.Index, b)
		}
		return true
	})
	for i := range c.blobs {
		if judge && c.chunks.sets[i].inUse == 0 && !c.blobs[i].has(loose) {
			c.fail(c.blobs[i].off, blobPlace(i), "no file uses any of it")
		}
	}
}
