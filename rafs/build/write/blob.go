// Package write emits RAFS v6: data blobs, and the bootstrap that describes the
// tree over them.
//
// A blob is written as a stream, chunk data first and its tables after it. A
// bootstrap is planned first, which is pure computation of offsets and numbers,
// and then emitted from start to end. Both are functions of their input alone.
//
// The package trusts the tree and the records it is given: they were made by
// rafs/build/tree and rafs/build/chunk, which refuse what the format cannot
// hold. It does no I/O but on the writers it is handed.
package write

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/build/oldchunk"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// BlobFeatures are the features of the blobs that this package writes: what
// nydus-image writes with --features blob-toc. The digest section lets nydusd
// verify chunks, which it cannot without.
const BlobFeatures = layout.FeatureAligned | layout.FeatureInlinedChunkDigest |
	layout.FeatureHasTarHeader | layout.FeatureHasTOC | layout.FeatureCapTarTOC

// Format holds the choices of an image that every blob and the bootstrap share.
type Format struct {
	ChunkSize  uint32 // bytes; a power of two from blob.MinChunkSize to blob.MaxChunkSize
	Compressor blob.Compressor
	Digester   blob.Digester
}

// Check refuses a format that the image cannot have.
func (f Format) Check() error {
	switch {
	case f.ChunkSize < blob.MinChunkSize || f.ChunkSize > blob.MaxChunkSize || f.ChunkSize&(f.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size %d: want a power of two from %d to %d", f.ChunkSize, blob.MinChunkSize, blob.MaxChunkSize)
	case f.Compressor != blob.CompressorNone && f.Compressor != blob.CompressorLZ4Block && f.Compressor != blob.CompressorZstd:
		return fmt.Errorf("compressor %v: want none, lz4_block or zstd", f.Compressor)
	case !f.Digester.Valid():
		return fmt.Errorf("digester %v: want blake3 or sha256", f.Digester)
	}
	return nil
}

// BlobInfo describes a finished blob.
type BlobInfo struct {
	// ID is the hex SHA-256 of the blob, as a registry names it.
	ID string
	// Size is the size of the blob in bytes.
	Size int64
	// Records are the blob's chunks, by index.
	Records []chunk.Record
	// Meta is the blob's chunk information in the form in which a node keeps it
	// (nydus' BLOB.blob.meta): uncompressed, padded to blocks, then its header.
	Meta []byte

	entry v6.BlobEntry // all but ID and index
}

// UncompressedSize is the size of the blob's uncompressed space in bytes.
func (b *BlobInfo) UncompressedSize() uint64 { return b.entry.UncompressedSize }

// Blob writes one blob. The chunk data is written to it first; Finish then
// appends the tables. The first error of the writer beneath is kept.
type Blob struct {
	w      io.Writer
	sum    hash.Hash // of everything so far
	size   uint64
	format Format
	err    error
}

// NewBlob starts a blob on w.
func NewBlob(w io.Writer, format Format) *Blob {
	return &Blob{w: w, sum: sha256.New(), format: format}
}

// Write appends to the section at the end of the blob.
func (b *Blob) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.w.Write(p)
	b.sum.Write(p[:n])
	b.size += uint64(n)
	b.err = err
	return n, err
}

// Finish writes the tables of a blob whose chunks are written. A blob without a
// chunk must not be finished: no image can refer to it.
func (b *Blob) Finish(records []chunk.Record) (*BlobInfo, error) {
	if len(records) == 0 {
		return nil, fmt.Errorf("blob without a chunk")
	}
	last := records[len(records)-1]
	info := &BlobInfo{Records: records, entry: v6.BlobEntry{
		ChunkSize:        b.format.ChunkSize,
		ChunkCount:       uint32(len(records)),
		Compressor:       uint32(b.format.Compressor),
		Digester:         uint32(b.format.Digester),
		Features:         uint32(BlobFeatures),
		UncompressedSize: alignBlock(last.UncompressedOffset + uint64(last.UncompressedSize)),
	}}
	toc := []v6.TOCEntry{b.finishData(&info.entry)}
	meta, err := b.finishMeta(info)
	if err != nil {
		return nil, err
	}
	toc = append(append(toc, meta...), b.finishDigests(records))
	b.finishTOC(&info.entry, toc)
	if b.err != nil {
		return nil, b.err
	}
	info.entry.CompressedSize = b.size
	info.Size = int64(b.size)
	info.ID = hex.EncodeToString(b.sum.Sum(nil))
	return info, nil
}

// finishData ends the data section. Its digest in the TOC covers the tar header
// too, as nydus has it: it is the digest of the blob up to there.
func (b *Blob) finishData(e *v6.BlobEntry) v6.TOCEntry {
	size := b.size
	b.header(v6.SectionData, size)
	return v6.TOCEntry{
		Flags: v6.TOCNone, Name: v6.SectionData, Digest: [32]byte(b.sum.Sum(nil)),
		CompressedSize: size, UncompressedSize: e.UncompressedSize,
	}
}

// finishMeta writes the chunk information and its header, one tar section for
// both and two entries in the TOC.
func (b *Blob) finishMeta(info *BlobInfo) ([]v6.TOCEntry, error) {
	plain := make([]byte, 0, len(info.Records)*v6.ChunkInfoV1Size)
	for i, r := range info.Records {
		ci := v6.ChunkInfo{
			UncompressedOffset: r.UncompressedOffset, UncompressedSize: r.UncompressedSize,
			CompressedOffset: r.CompressedOffset, CompressedSize: r.CompressedSize,
		}
		var err error
		if plain, err = ci.AppendV1(plain); err != nil {
			return nil, fmt.Errorf("chunk %d: %w", i, err)
		}
	}
	// Not with lz4_block, which the TOC's readers cannot extract.
	stored, flags := plain, v6.TOCNone
	compressor := blob.CompressorNone
	if b.format.Compressor == blob.CompressorZstd && len(plain) <= blob.MaxChunkSize {
		out, compressed, err := codec.Encode(blob.CompressorZstd, nil, plain)
		if err != nil {
			return nil, fmt.Errorf("chunk information: %w", err)
		}
		if compressed {
			stored, flags, compressor = out, v6.TOCZstd, blob.CompressorZstd
		}
	}
	e := &info.entry
	e.CICompressor, e.CIOffset = uint32(compressor), b.size
	e.CICompressedSize, e.CIUncompressedSize = uint64(len(stored)), uint64(len(plain))
	h := v6.MetaHeader{
		Features: e.Features, CICompressor: e.CICompressor, Entries: e.ChunkCount, CIOffset: e.CIOffset,
		CICompressedSize: e.CICompressedSize, CIUncompressedSize: e.CIUncompressedSize,
	}
	header := h.Append(nil)
	b.Write(stored)
	b.Write(header)
	b.header(v6.SectionMeta, e.CICompressedSize+v6.MetaHeaderSize)

	info.Meta = append(append(make([]byte, 0, alignBlock(e.CIUncompressedSize)+v6.MetaHeaderSize), plain...),
		make([]byte, alignBlock(e.CIUncompressedSize)-e.CIUncompressedSize)...)
	info.Meta = append(info.Meta, header...)
	return []v6.TOCEntry{
		{Flags: flags, Name: v6.SectionMeta, Digest: sha256.Sum256(plain),
			CompressedOffset: e.CIOffset, CompressedSize: e.CICompressedSize, UncompressedSize: e.CIUncompressedSize},
		{Flags: v6.TOCNone, Name: v6.SectionMetaHeader, Digest: sha256.Sum256(header),
			CompressedOffset: e.CIOffset + e.CICompressedSize, CompressedSize: v6.MetaHeaderSize, UncompressedSize: v6.MetaHeaderSize},
	}, nil
}

func (b *Blob) finishDigests(records []chunk.Record) v6.TOCEntry {
	digests := make([]byte, 0, len(records)*len(blob.Digest{}))
	for i := range records {
		digests = append(digests, records[i].Digest[:]...)
	}
	e := v6.TOCEntry{
		Flags: v6.TOCNone, Name: v6.SectionChunkDigest, Digest: sha256.Sum256(digests),
		CompressedOffset: b.size, CompressedSize: uint64(len(digests)), UncompressedSize: uint64(len(digests)),
	}
	b.Write(digests)
	b.header(v6.SectionChunkDigest, uint64(len(digests)))
	return e
}

func (b *Blob) finishTOC(e *v6.BlobEntry, entries []v6.TOCEntry) {
	var toc []byte
	for i := range entries {
		toc = entries[i].Append(toc)
	}
	h := v6.TarHeader{Name: v6.SectionTOC, Size: uint64(len(toc))}
	toc = h.Append(toc)
	b.Write(toc)
	e.TOCSize, e.TOCDigest = uint32(len(toc)), sha256.Sum256(toc)
}

func (b *Blob) header(name string, size uint64) {
	h := v6.TarHeader{Name: name, Size: size}
	b.Write(h.Append(nil))
}

func alignBlock(n uint64) uint64 { return (n + v6.BlockSize - 1) &^ (v6.BlockSize - 1) }
