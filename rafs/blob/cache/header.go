package cache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/rafsd/rafsd/rafs/blob"
)

const (
	// headerSize is a page, so that the states behind it are aligned.
	headerSize = 4096
	magic      = "rafsdmap"
	version    = 1
	// blockSize is what the data file is rounded up to, for EROFS.
	blockSize = 4096
)

// header is the first page of a map file, little-endian:
//
//	 0   8  magic
//	 8   4  version
//	12   4  number of chunks; so many states follow the page
//	16   8  size of the data file in bytes
//	24  32  key: digest of the chunk table
//	56      zero
type header struct {
	count    uint32
	dataSize int64
	key      [32]byte
}

func (h header) mapSize() int64 { return headerSize + int64(h.count) }

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], h.count)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.dataSize))
	copy(b[24:], h.key[:])
	return b
}

func decodeHeader(b []byte) (header, error) {
	var h header
	if len(b) != headerSize || string(b[:8]) != magic {
		return h, errors.New("map has no header")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return h, fmt.Errorf("map version %d, want %d", v, version)
	}
	size := binary.LittleEndian.Uint64(b[16:])
	h.count = binary.LittleEndian.Uint32(b[12:])
	copy(h.key[:], b[24:])
	if h.count > blob.MaxChunks || size > blob.MaxUncompressedSize {
		return h, fmt.Errorf("map of %d chunks and %d bytes, limits %d and %d",
			h.count, size, blob.MaxChunks, int64(blob.MaxUncompressedSize))
	}
	h.dataSize = int64(size)
	for i, c := range b[56:] {
		if c != 0 {
			return h, fmt.Errorf("map header: byte %#02x at %d, want 0", c, 56+i)
		}
	}
	return h, nil
}

// header checks that the table's chunks fit a file without overlapping, and
// digests everything that decides which bytes are right in which place.
func (t Table) header() (header, error) {
	if t.Count > blob.MaxChunks {
		return header{}, fmt.Errorf("%d chunks, limit %d", t.Count, blob.MaxChunks)
	}
	h := blake3.New()
	var rec [48]byte
	binary.LittleEndian.PutUint32(rec[0:], uint32(t.Info.Digester))
	binary.LittleEndian.PutUint32(rec[4:], t.Count)
	_, _ = h.Write(rec[:])
	var end uint64
	ordered := true
	for i := range t.Count {
		c, ok := t.Chunk(i)
		if !ok {
			continue
		}
		s, err := place(&c)
		if err != nil {
			return header{}, fmt.Errorf("chunk %d: %w", i, err)
		}
		binary.LittleEndian.PutUint32(rec[0:], i)
		binary.LittleEndian.PutUint32(rec[4:], c.UncompressedSize)
		binary.LittleEndian.PutUint64(rec[8:], s.start)
		copy(rec[16:], c.Digest[:])
		_, _ = h.Write(rec[:])
		ordered = ordered && s.start >= end
		end = max(end, s.end)
	}
	if !ordered {
		if err := t.disjoint(); err != nil {
			return header{}, err
		}
	}
	end = min(max(end, t.Info.UncompressedSize), blob.MaxUncompressedSize)
	out := header{count: t.Count, dataSize: int64((end + blockSize - 1) &^ (blockSize - 1))}
	copy(out.key[:], h.Sum(nil))
	return out, nil
}

// span is the place of a chunk in the data file.
type span struct{ start, end uint64 }

func place(c *blob.Chunk) (span, error) {
	s := span{c.UncompressedOffset, c.UncompressedOffset + uint64(c.UncompressedSize)}
	if c.UncompressedSize > blob.MaxChunkSize || s.start > blob.MaxUncompressedSize || s.end > blob.MaxUncompressedSize {
		return s, fmt.Errorf("%d bytes at %d, limits %d and %d",
			c.UncompressedSize, s.start, blob.MaxChunkSize, int64(blob.MaxUncompressedSize))
	}
	return s, nil
}

// disjoint refuses chunks that share a place: filling one would change the other
// after it was verified. Chunks in ascending order, the usual case, do not get here.
func (t Table) disjoint() error {
	var spans []span
	for i := range t.Count {
		if c, ok := t.Chunk(i); ok && c.UncompressedSize > 0 {
			s, _ := place(&c)
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(spans); i++ {
		if spans[i].start < spans[i-1].end {
			return fmt.Errorf("chunks overlap at %d in the uncompressed space", spans[i].start)
		}
	}
	return nil
}
