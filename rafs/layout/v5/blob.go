package v5

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// BlobEntry is one entry of the blob table. It has no fixed size: two numbers,
// the id, and a NUL before the next entry.
type BlobEntry struct {
	PrefetchOffset uint32
	PrefetchSize   uint32
	ID             string
}

const blobEntryHeader = 8

// DecodeBlobTable decodes the whole blob table. What is left at its end and no
// longer than the two numbers is padding.
func DecodeBlobTable(b []byte) ([]BlobEntry, error) {
	var out []BlobEntry
	for len(b) > blobEntryHeader {
		id, rest, _ := bytes.Cut(b[blobEntryHeader:], []byte{0})
		if len(id) == 0 {
			return nil, fmt.Errorf("v5 blob table: entry %d has no id", len(out))
		}
		out = append(out, BlobEntry{
			PrefetchOffset: binary.LittleEndian.Uint32(b[0:]),
			PrefetchSize:   binary.LittleEndian.Uint32(b[4:]),
			ID:             string(id),
		})
		b = rest
	}
	return out, nil
}

// AppendBlobTable appends the table with its padding to b.
func AppendBlobTable(b []byte, entries []BlobEntry) []byte {
	start := len(b)
	for i, e := range entries {
		if i > 0 {
			b = append(b, 0)
		}
		b = binary.LittleEndian.AppendUint32(b, e.PrefetchOffset)
		b = binary.LittleEndian.AppendUint32(b, e.PrefetchSize)
		b = append(b, e.ID...)
	}
	n := uint64(len(b) - start)
	return zeros(b, int(PadLen(n)-n))
}

// ExtBlobEntrySize is the size of an ExtBlobEntry on disk in bytes.
const ExtBlobEntrySize = 64

// ExtBlobEntry is one entry of the extended blob table, which old images lack.
type ExtBlobEntry struct {
	ChunkCount       uint32
	Features         uint32 // layout.Features
	UncompressedSize uint64 // of the cache file
	CompressedSize   uint64 // of the blob object
}

// DecodeExtBlobEntry decodes the entry at the start of b.
func DecodeExtBlobEntry(b []byte) (ExtBlobEntry, error) {
	if len(b) < ExtBlobEntrySize {
		return ExtBlobEntry{}, short("extended blob table entry", len(b), ExtBlobEntrySize)
	}
	return ExtBlobEntry{
		ChunkCount:       binary.LittleEndian.Uint32(b[0:]),
		Features:         binary.LittleEndian.Uint32(b[4:]),
		UncompressedSize: binary.LittleEndian.Uint64(b[8:]),
		CompressedSize:   binary.LittleEndian.Uint64(b[16:]),
	}, nil
}

// Append appends the entry to b.
func (e *ExtBlobEntry) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, e.ChunkCount)
	b = le.AppendUint32(b, e.Features)
	b = le.AppendUint64(b, e.UncompressedSize)
	b = le.AppendUint64(b, e.CompressedSize)
	return zeros(b, ExtBlobEntrySize-24)
}
