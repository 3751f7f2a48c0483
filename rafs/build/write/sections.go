package write

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// maxLZ4Info bounds the chunk information that is compressed with lz4_block,
// which knows no streams, in bytes.
const maxLZ4Info = 4 << 20

// headers tells whether a tar header follows each section.
func (b *Blob) headers() bool { return b.opts.TOC || b.opts.InlineMeta }

// header ends a section of size bytes, where sections have headers.
func (b *Blob) header(name string, size uint64) {
	if b.headers() {
		h := v6.TarHeader{Name: name, Size: size}
		b.Write(h.Append(nil))
	}
}

// note adds a section to the table of contents.
func (b *Blob) note(e v6.TOCEntry) { b.toc = append(b.toc, e) }

// finishData ends the data section. Its digest in the TOC covers the tar header
// too, as nydus has it: it is the digest of the blob up to there.
func (b *Blob) finishData(info *BlobInfo) {
	if b.opts.Separate {
		return
	}
	size := b.size
	b.header(v6.SectionData, size)
	b.note(v6.TOCEntry{
		Flags: v6.TOCNone, Name: v6.SectionData, Digest: [32]byte(b.sum.Sum(nil)),
		CompressedSize: size, UncompressedSize: info.Entry.UncompressedSize,
	})
	info.Entry.CompressedSize = b.size
}

// finishTables writes the chunk information and its header, one tar section for
// both and two entries in the TOC, and the digests of the chunks.
func (b *Blob) finishTables(info *BlobInfo) error {
	if b.opts.Version == 5 {
		return nil
	}
	e := &info.Entry
	e.CIOffset, e.CIUncompressedSize = b.size, info.ciSize()
	plain, err := b.writeCI(info)
	if err != nil {
		return fmt.Errorf("chunk information: %w", err)
	}
	header := info.metaHeader()
	stored := header
	if b.key != nil {
		stored = b.key.Encrypt(nil, header)
	}
	b.Write(stored)
	b.header(v6.SectionMeta, b.size-e.CIOffset)
	b.note(v6.TOCEntry{Flags: tocFlags[blob.Compressor(e.CICompressor)], Name: v6.SectionMeta, Digest: plain,
		CompressedOffset: e.CIOffset, CompressedSize: e.CICompressedSize, UncompressedSize: e.CIUncompressedSize})
	b.note(v6.TOCEntry{Flags: v6.TOCNone, Name: v6.SectionMetaHeader, Digest: sha256.Sum256(header),
		CompressedOffset: e.CIOffset + e.CICompressedSize, CompressedSize: v6.MetaHeaderSize, UncompressedSize: v6.MetaHeaderSize})
	if b.opts.TOC {
		err = b.writeDigests(info.Table)
	}
	if !b.opts.Separate {
		e.CompressedSize = b.size
	}
	return err
}

var tocFlags = map[blob.Compressor]uint32{blob.CompressorNone: v6.TOCNone, blob.CompressorZstd: v6.TOCZstd}

// writeCI writes the chunk information, compressed where that makes it smaller
// (nydus builder/src/core/blob.rs, dump_meta_data), and returns the SHA-256 of
// it as it was before.
func (b *Blob) writeCI(info *BlobInfo) ([32]byte, error) {
	e := &info.Entry
	plain := sha256.New()
	c := b.ciCompressor(e.CIUncompressedSize)
	if b.key != nil || c == blob.CompressorLZ4Block {
		// A cipher and lz4_block take all at once.
		var buf bytes.Buffer
		if err := b.encodeCI(io.MultiWriter(&buf, plain), info, blob.CompressorNone); err != nil {
			return [32]byte{}, err
		}
		err := b.writeWholeCI(e, c, buf.Bytes())
		return [32]byte(plain.Sum(nil)), err
	}
	// How large the result is decides whether it is used: it is made twice.
	var size counter
	if err := b.encodeCI(plain, info, blob.CompressorNone); err != nil {
		return [32]byte{}, err
	}
	if c != blob.CompressorNone {
		if err := b.encodeCI(&size, info, c); err != nil {
			return [32]byte{}, err
		}
		if uint64(size) >= e.CIUncompressedSize {
			c = blob.CompressorNone
		}
	}
	e.CICompressor = uint32(c)
	err := b.encodeCI(b, info, c)
	e.CICompressedSize = b.size - e.CIOffset
	return [32]byte(plain.Sum(nil)), err
}

// ciCompressor is how to compress that many bytes of chunk information. Readers
// of the TOC cannot extract what is compressed with lz4_block.
func (b *Blob) ciCompressor(size uint64) blob.Compressor {
	switch {
	case b.opts.Separate:
		return blob.CompressorZstd
	case b.opts.Compressor == blob.CompressorLZ4Block && (b.opts.TOC || size > maxLZ4Info):
		return blob.CompressorNone
	}
	return b.opts.Compressor
}

func (b *Blob) encodeCI(w io.Writer, info *BlobInfo, c blob.Compressor) error {
	if c != blob.CompressorZstd {
		return info.writeCI(w)
	}
	return zstdStream(w, int64(info.Entry.CIUncompressedSize), info.writeCI)
}

// writeWholeCI writes chunk information that is in memory.
func (b *Blob) writeWholeCI(e *v6.BlobEntry, c blob.Compressor, plain []byte) error {
	var out []byte
	switch c {
	case blob.CompressorZstd:
		var buf bytes.Buffer
		if err := zstdStream(&buf, int64(len(plain)), func(w io.Writer) error { _, err := w.Write(plain); return err }); err != nil {
			return err
		}
		out = buf.Bytes()
	case blob.CompressorLZ4Block:
		var err error
		if out, _, err = codec.Encode(c, nil, plain); err != nil {
			return err
		}
	}
	if len(out) == 0 || len(out) >= len(plain) {
		c, out = blob.CompressorNone, plain
	}
	if b.key != nil {
		out = b.key.Encrypt(out[:0], out)
	}
	e.CICompressor, e.CICompressedSize = uint32(c), uint64(len(out))
	_, err := b.Write(out)
	return err
}

// writeDigests writes the section of the chunks' digests.
func (b *Blob) writeDigests(t Table) error {
	start, sum := b.size, sha256.New()
	w := newPieces(io.MultiWriter(b, sum))
	for r, err := range t.All() {
		if err != nil {
			return fmt.Errorf("chunk digests: %w", err)
		}
		w.put(r.Digest[:])
	}
	if err := w.flush(); err != nil {
		return fmt.Errorf("chunk digests: %w", err)
	}
	size := b.size - start
	b.header(v6.SectionChunkDigest, size)
	b.note(v6.TOCEntry{Flags: v6.TOCNone, Name: v6.SectionChunkDigest, Digest: [32]byte(sum.Sum(nil)),
		CompressedOffset: start, CompressedSize: size, UncompressedSize: size})
	return nil
}

// finishBootstrap writes a bootstrap into the blob: compressed where a TOC says
// so, plain where readers know it by its tar header only.
func (b *Blob) finishBootstrap(info *BlobInfo, bootstrap func(io.Writer, *BlobInfo) error) error {
	self := *info
	if self.ID == "" {
		self.ID = UnknownID
	}
	about := &self
	if info.Entry.ChunkCount == 0 {
		about = nil
	}
	start, sum, plain := b.size, sha256.New(), counter(0)
	emit := func(w io.Writer) error { return bootstrap(io.MultiWriter(w, sum, &plain), about) }
	flags := v6.TOCNone
	var err error
	if b.opts.TOC {
		flags, err = v6.TOCZstd, zstdStream(b, -1, emit)
	} else {
		err = emit(b)
	}
	if err != nil {
		return err
	}
	size := b.size - start
	b.header(v6.SectionBootstrap, size)
	b.note(v6.TOCEntry{Flags: flags, Name: v6.SectionBootstrap, Digest: [32]byte(sum.Sum(nil)),
		CompressedOffset: start, CompressedSize: size, UncompressedSize: uint64(plain)})
	return nil
}

func (b *Blob) finishTOC(info *BlobInfo) {
	var toc []byte
	for i := range b.toc {
		toc = b.toc[i].Append(toc)
	}
	h := v6.TarHeader{Name: v6.SectionTOC, Size: uint64(len(toc))}
	toc = h.Append(toc)
	b.Write(toc)
	info.Entry.TOCSize, info.Entry.TOCDigest = uint32(len(toc)), sha256.Sum256(toc)
}

// writeCI writes the chunk information as it is before compression.
func (b *BlobInfo) writeCI(w io.Writer) error {
	p := newPieces(w)
	i := 0
	for r, err := range b.Table.All() {
		if err == nil {
			p.buf, err = b.appendCI(p.buf, &r)
			p.put(nil)
		}
		if err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		i++
	}
	if err := p.flush(); err != nil {
		return err
	}
	if b.Contexts == nil {
		return nil
	}
	n, err := b.Contexts.WriteTo(w)
	if err == nil && uint64(n) != b.Contexts.Size() {
		err = fmt.Errorf("%d bytes of contexts written, %d announced", n, b.Contexts.Size())
	}
	return err
}

// appendCI appends the entry of one chunk. A checksum and a place in a context
// exclude each other, and 0 is no checksum (nydus storage/src/meta/chunk_info_v2.rs).
func (b *BlobInfo) appendCI(to []byte, r *chunk.Record) ([]byte, error) {
	ci := v6.ChunkInfo{
		UncompressedOffset: r.UncompressedOffset, UncompressedSize: r.UncompressedSize,
		CompressedOffset: r.CompressedOffset, CompressedSize: r.CompressedSize,
	}
	if !b.has(layout.FeatureChunkInfoV2) {
		return ci.AppendV1(to)
	}
	if r.CompressedSize == blob.MaxChunkSize {
		return to, fmt.Errorf("%d bytes that do not compress: batches, encryption and checksums need a chunk size of at most %d", r.CompressedSize, blob.MaxChunkSize/2)
	}
	if r.Flags&layout.ChunkCompressed != 0 {
		ci.Flags |= v6.ChunkInfoCompressed
	}
	if r.Flags&layout.ChunkEncrypted != 0 {
		ci.Flags |= v6.ChunkInfoEncrypted
	}
	switch {
	case b.has(layout.FeatureZran):
		ci.Flags |= v6.ChunkInfoZran
		ci.Data = v6.ZranData(r.Unit, r.UnitOffset)
	case r.Flags&layout.ChunkBatch != 0:
		ci.Flags |= v6.ChunkInfoBatch
		ci.Data = v6.ZranData(r.Unit, r.UnitOffset)
	case r.Flags&layout.ChunkHasCRC32 != 0 && r.CRC32 != 0:
		ci.Flags |= v6.ChunkInfoHasCRC32
		ci.Data = uint64(r.CRC32)
	}
	return ci.AppendV2(to)
}
