package v6

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// TOCEntrySize is the size of a TOCEntry on disk in bytes.
const TOCEntrySize = 128

// The bounds of a table of contents with its tar header, in bytes (nydus
// storage/src/meta/toc.rs).
const (
	MinTOCSize = 512
	MaxTOCSize = 64 << 10
)

// The sections of a blob: the names of TOC entries and of tar headers.
const (
	SectionData        = "image.blob"
	SectionMeta        = "blob.meta"
	SectionMetaHeader  = "blob.meta.header" // within blob.meta where there are only tar headers
	SectionChunkDigest = "blob.digest"
	SectionBootstrap   = "image.boot"
	SectionTOC         = "rafs.blob.toc"
)

// The flags of a TOCEntry: how the section is compressed, one bit of three.
const (
	TOCNone     uint32 = 0x1
	TOCZstd     uint32 = 0x2
	TOCLZ4Block uint32 = 0x4
)

// tocNameSize is the room for a name; "blob.meta.header" takes all of it.
const tocNameSize = 16

// TOCEntry tells where one section of a blob is.
type TOCEntry struct {
	Flags            uint32
	Name             string   // at most 16 bytes
	Digest           [32]byte // SHA-256 over the uncompressed section
	CompressedOffset uint64
	CompressedSize   uint64
	UncompressedSize uint64
}

// DecodeTOCEntry decodes the entry at the start of b.
func DecodeTOCEntry(b []byte) (TOCEntry, error) {
	if len(b) < TOCEntrySize {
		return TOCEntry{}, short("toc entry", len(b), TOCEntrySize)
	}
	le := binary.LittleEndian
	p := (*[TOCEntrySize]byte)(b)
	return TOCEntry{
		Flags:            le.Uint32(p[0:]),
		Name:             strings.TrimRight(string(p[8:8+tocNameSize]), "\x00"),
		Digest:           [32]byte(p[24:56]),
		CompressedOffset: le.Uint64(p[56:]),
		CompressedSize:   le.Uint64(p[64:]),
		UncompressedSize: le.Uint64(p[72:]),
	}, nil
}

// Append appends the entry to b. It panics if the name is too long.
func (e *TOCEntry) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, e.Flags)
	b = zeros(b, 4)
	b = appendPadded(b, e.Name, tocNameSize)
	b = append(b, e.Digest[:]...)
	b = le.AppendUint64(b, e.CompressedOffset)
	b = le.AppendUint64(b, e.CompressedSize)
	b = le.AppendUint64(b, e.UncompressedSize)
	return zeros(b, TOCEntrySize-80)
}

// DecodeTOC decodes a table of contents without its tar header.
func DecodeTOC(b []byte) ([]TOCEntry, error) {
	if len(b)%TOCEntrySize != 0 || len(b) > MaxTOCSize-TarHeaderSize {
		return nil, fmt.Errorf("v6 toc: %d bytes, want a multiple of %d up to %d", len(b), TOCEntrySize, MaxTOCSize-TarHeaderSize)
	}
	toc := make([]TOCEntry, 0, len(b)/TOCEntrySize)
	for ; len(b) > 0; b = b[TOCEntrySize:] {
		e, err := DecodeTOCEntry(b)
		if err != nil {
			return nil, err
		}
		toc = append(toc, e)
	}
	return toc, nil
}
