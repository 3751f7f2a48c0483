package check

import (
	"cmp"
	"slices"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
)

// v5Chunks has the place of each chunk record, in units of 8 bytes, by blob: 4
// bytes a record. Files have a record for each of their chunks, so that a chunk
// that is used twice has two, which must agree.
type v5Chunks struct {
	places [][]uint32
}

func (x *v5Chunks) init(c *v5Check) { x.places = make([][]uint32, len(c.blobs)) }

// file checks that the chunks of a regular file follow each other and end with
// the file. Only a file that says so may have holes.
func (c *v5Check) file(in *v5Inode, records uint64) {
	holes, end := in.Flags&v5.InodeHoles != 0, uint64(0)
	c.walk.digest.Reset()
	for i := range uint64(in.ChildCount) {
		if i%4096 == 0 && c.done() {
			return
		}
		off := records + i*layout.ChunkRecordSize
		var buf [layout.ChunkRecordSize]byte
		c.src.read(buf[:], off)
		r, _ := layout.DecodeChunkRecord(buf[:])
		c.walk.digest.Write(r.Digest[:])
		where := in
		switch {
		case r.FileOffset < end || r.FileOffset > end && !holes:
			c.fail(off+recordFileOffsetAt, where, "chunk %d at %#x of the file, the one before ends at %#x", i, r.FileOffset, end)
		case r.FileOffset > in.Size || uint64(r.UncompressedSize) > in.Size-r.FileOffset:
			c.fail(off+recordFileOffsetAt, where, "chunk %d at %#x+%#x of the file, size %#x", i, r.FileOffset, r.UncompressedSize, in.Size)
		}
		if next := r.FileOffset + uint64(r.UncompressedSize); next >= r.FileOffset {
			end = next
		}
		if r.Flags&layout.ChunkHole != 0 {
			c.note(off+recordFlagsAt, where, "chunk %d is a hole", i)
			continue
		}
		if r.BlobIndex >= uint32(len(c.blobs)) {
			c.fail(off+recordBlobAt, where, "chunk %d in blob %d, there are %d", i, r.BlobIndex, len(c.blobs))
			continue
		}
		c.recordRules(off, where, &r, c.blobs[r.BlobIndex].rules)
		c.chunks.places[r.BlobIndex] = append(c.chunks.places[r.BlobIndex], uint32(off/v5.Align))
	}
	if end < in.Size && !holes {
		c.fail(in.off+64, in, "size %#x, chunks end at %#x", in.Size, end)
	}
	c.checkDigest(in)
}

func (c *v5Check) record(place uint32) (r layout.ChunkRecord) {
	var buf [layout.ChunkRecordSize]byte
	c.src.read(buf[:], uint64(place)*v5.Align)
	r, _ = layout.DecodeChunkRecord(buf[:])
	return r
}

// key is what the chunks of a blob are ordered by: their number, or where an
// image has none, their place in the blob.
func (c *v5Check) key(blobIndex int, r *layout.ChunkRecord) uint64 {
	if c.blobs[blobIndex].rules.anyNumber {
		return r.CompressedOffset
	}
	return uint64(r.Index)
}

// checkChunks checks that records of one chunk agree, that chunks share no bytes,
// and that each blob is used.
func (c *v5Check) checkChunks() {
	for b := range c.blobs {
		if len(c.chunks.places[b]) == 0 && c.walk.whole {
			c.fail(c.blobs[b].off, blobPlace(b), "no file uses any of it")
		}
	}
	seqs := make([]sequence, len(c.blobs))
	for i := range seqs {
		seqs[i] = sequence{checker: c.checker, blob: i, rules: c.blobs[i].rules}
	}
	c.eachRecord(func(b int, off uint64, r *layout.ChunkRecord, again bool) bool {
		s := &seqs[b]
		if !again {
			s.next(off, r)
			return true
		}
		a, z := s.last, *r
		a.FileOffset, z.FileOffset = 0, 0
		if s.rules.anyNumber {
			a.Index, z.Index = 0, 0
		}
		if a != z {
			c.fail(off, blobPlace(b), "chunk %d contradicts the record at %#x", r.Index, s.lastOff)
		}
		return true
	})
}

// eachRecord yields the records of all blobs by blob and ascending key; again
// tells that a record has the key of the one before.
func (c *v5Check) eachRecord(yield func(b int, off uint64, r *layout.ChunkRecord, again bool) bool) {
	for b, places := range c.chunks.places {
		c.sortPlaces(b, places)
		last, some := uint64(0), false
		for _, p := range places {
			r := c.record(p)
			key := c.key(b, &r)
			if c.done() || !yield(b, uint64(p)*v5.Align, &r, some && key == last) {
				return
			}
			last, some = key, true
		}
	}
}

// sortPlaces orders the places of a blob's records by key, then by place. Keys
// are read once: they are sorted along with the places, packed into one number.
func (c *v5Check) sortPlaces(b int, places []uint32) {
	if c.blobs[b].rules.anyNumber {
		slices.SortFunc(places, func(x, y uint32) int {
			rx, ry := c.record(x), c.record(y)
			return cmp.Or(cmp.Compare(rx.CompressedOffset, ry.CompressedOffset), cmp.Compare(x, y))
		})
		return
	}
	keys := make([]uint64, len(places))
	for i, p := range places {
		r := c.record(p)
		keys[i] = uint64(r.Index)<<32 | uint64(p)
	}
	if slices.IsSorted(keys) {
		return
	}
	slices.Sort(keys)
	for i, k := range keys {
		places[i] = uint32(k)
	}
}
