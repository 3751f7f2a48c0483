// Package v5 holds the on-disk structs of a RAFS v5 bootstrap.
//
// It decodes and appends one struct at a time and checks lengths only; see
// package layout for the rules. Names follow nydus
// rafs/src/metadata/layout/v5.rs.
package v5

import (
	"encoding/binary"
	"fmt"
)

// The geometry of a bootstrap.
const (
	SuperSize = 8192 // of the superblock, at the start of the file
	Magic     = 0x52414653
	Version   = 0x500
	Align     = 8 // of every table and record
	RootIndex = 1 // of the root in the inode table, and its inode number
	superUsed = 80
)

// Super is the superblock. Offsets are in bytes.
type Super struct {
	Magic               uint32
	Version             uint32
	Size                uint32 // SuperSize
	ChunkSize           uint32
	Flags               uint64 // layout.Flags
	Inodes              uint64 // hard links counted once
	InodeTableOffset    uint64
	PrefetchTableOffset uint64
	BlobTableOffset     uint64
	InodeTableEntries   uint32 // names, with the root
	PrefetchEntries     uint32
	BlobTableSize       uint32 // bytes
	ExtBlobEntries      uint32
	ExtBlobTableOffset  uint64
}

// DecodeSuper decodes the superblock at the start of b.
func DecodeSuper(b []byte) (Super, error) {
	if len(b) < SuperSize {
		return Super{}, short("superblock", len(b), SuperSize)
	}
	le := binary.LittleEndian
	p := (*[superUsed]byte)(b)
	return Super{
		Magic:               le.Uint32(p[0:]),
		Version:             le.Uint32(p[4:]),
		Size:                le.Uint32(p[8:]),
		ChunkSize:           le.Uint32(p[12:]),
		Flags:               le.Uint64(p[16:]),
		Inodes:              le.Uint64(p[24:]),
		InodeTableOffset:    le.Uint64(p[32:]),
		PrefetchTableOffset: le.Uint64(p[40:]),
		BlobTableOffset:     le.Uint64(p[48:]),
		InodeTableEntries:   le.Uint32(p[56:]),
		PrefetchEntries:     le.Uint32(p[60:]),
		BlobTableSize:       le.Uint32(p[64:]),
		ExtBlobEntries:      le.Uint32(p[68:]),
		ExtBlobTableOffset:  le.Uint64(p[72:]),
	}, nil
}

// Append appends the superblock to b.
func (s *Super) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, s.Magic)
	b = le.AppendUint32(b, s.Version)
	b = le.AppendUint32(b, s.Size)
	b = le.AppendUint32(b, s.ChunkSize)
	b = le.AppendUint64(b, s.Flags)
	b = le.AppendUint64(b, s.Inodes)
	b = le.AppendUint64(b, s.InodeTableOffset)
	b = le.AppendUint64(b, s.PrefetchTableOffset)
	b = le.AppendUint64(b, s.BlobTableOffset)
	b = le.AppendUint32(b, s.InodeTableEntries)
	b = le.AppendUint32(b, s.PrefetchEntries)
	b = le.AppendUint32(b, s.BlobTableSize)
	b = le.AppendUint32(b, s.ExtBlobEntries)
	b = le.AppendUint64(b, s.ExtBlobTableOffset)
	return zeros(b, SuperSize-superUsed)
}

// TableEntrySize is the size in bytes of an entry of the inode table (the
// offset of an inode record in units of Align) and of the prefetch table (the
// index of an inode, from 1).
const TableEntrySize = 4

// PadLen is n rounded up to a multiple of Align.
func PadLen(n uint64) uint64 { return (n + Align - 1) &^ (Align - 1) }

func short(what string, got, want int) error {
	return fmt.Errorf("v5 %s: %d bytes, want %d", what, got, want)
}

// zeros appends n zero bytes; the compiler makes no temporary slice of it.
func zeros(b []byte, n int) []byte { return append(b, make([]byte, n)...) }
