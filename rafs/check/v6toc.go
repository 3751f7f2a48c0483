package check

import (
	"crypto/sha256"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// section is one part of a blob: what lies before its tar header.
type section struct {
	name      string
	off, size uint64
}

// maxSections bounds the sections of a blob: there are five names.
const maxSections = 8

// sections finds the sections of a blob from its end, the last first.
func (o *object) sections() []section {
	var out []section
	var b [v6.TarHeaderSize]byte
	for end := uint64(o.Size()); end >= v6.TarHeaderSize && len(out) < maxSections; {
		at := end - v6.TarHeaderSize
		if !o.bytes(b[:], at) {
			return out
		}
		h, err := v6.DecodeTarHeader(b[:])
		if err != nil {
			o.c.fail(at, o, "%v", err)
			return out
		}
		if h.Size > at {
			o.c.fail(at+124, o, "section %q of %d bytes, %d are before its header", h.Name, h.Size, at)
			return out
		}
		out = append(out, section{h.Name, at - h.Size, h.Size})
		end = at - h.Size
	}
	return out
}

// checkSections checks tar headers and the table of contents.
func (o *v6Object) checkSections() {
	e := o.entry
	if !e.has(layout.FeatureHasTarHeader | layout.FeatureHasTOC) {
		if e.has(layout.FeatureInlinedChunkDigest) {
			o.fail(e.off+84, blobPlace(o.i), "digests of chunks, but no table of contents")
		}
		return
	}
	parts := o.meta.sections()
	byName := map[string]section{}
	for i, s := range parts {
		if _, ok := byName[s.name]; ok {
			o.fail(s.off+s.size, o.meta, "section %q twice", s.name)
		}
		byName[s.name] = s
		if i == len(parts)-1 && s.off != 0 {
			o.fail(s.off, o.meta, "%d bytes before the first section", s.off)
		}
	}
	if s, ok := byName[v6.SectionMeta]; !ok || s.off != e.CIOffset || s.size != e.CICompressedSize+v6.MetaHeaderSize {
		o.fail(e.off+112, blobPlace(o.i), "chunk information is %d bytes at %#x, section %q %d at %#x", e.CICompressedSize+v6.MetaHeaderSize, e.CIOffset, v6.SectionMeta, s.size, s.off)
	}
	if s, ok := byName[v6.SectionChunkDigest]; ok {
		if s.size != uint64(e.ChunkCount)*32 {
			o.fail(s.off+s.size, o.meta, "digests of %d bytes for %d chunks", s.size, e.ChunkCount)
		} else {
			o.digests = s.off
		}
	} else if e.has(layout.FeatureInlinedChunkDigest) {
		o.fail(e.off+84, blobPlace(o.i), "has no digests of chunks, features %s", layout.Features(e.Features))
	}
	if e.has(layout.FeatureHasTOC) {
		o.checkTOC(parts, byName)
	}
}

// checkTOC checks the table of contents at the end of a blob against the
// bootstrap, the tar headers and the bytes of the sections.
func (o *v6Object) checkTOC(parts []section, byName map[string]section) {
	e := o.entry
	if len(parts) == 0 || parts[0].name != v6.SectionTOC || parts[0].size > v6.MaxTOCSize {
		o.fail(uint64(o.meta.Size()), o.meta, "no table of contents at the end")
		return
	}
	s := parts[0]
	raw := make([]byte, s.size+v6.TarHeaderSize)
	if !o.meta.bytes(raw, s.off) {
		return
	}
	if sum := sha256.Sum256(raw); e.TOCDigest != [32]byte{} && (sum != e.TOCDigest || uint64(len(raw)) != uint64(e.TOCSize)) {
		o.fail(s.off, o.meta, "table of contents has %d bytes with sha256 %x, the bootstrap says %d with %x", len(raw), sum, e.TOCSize, e.TOCDigest)
	}
	toc, err := v6.DecodeTOC(raw[:s.size])
	if err != nil {
		o.fail(s.off, o.meta, "%v", err)
		return
	}
	for i := range toc {
		o.checkTOCEntry(s.off+uint64(i)*v6.TOCEntrySize, &toc[i], byName)
	}
}

func (o *v6Object) checkTOCEntry(at uint64, t *v6.TOCEntry, byName map[string]section) {
	s, ok := byName[t.Name]
	switch t.Name {
	case v6.SectionMeta:
		s.size -= min(s.size, v6.MetaHeaderSize)
	case v6.SectionMetaHeader:
		s, ok = byName[v6.SectionMeta]
		if s.size >= v6.MetaHeaderSize {
			s.off, s.size = s.off+s.size-v6.MetaHeaderSize, v6.MetaHeaderSize
		}
	}
	if !ok {
		o.fail(at, o.meta, "table of contents has section %q, which the blob does not have", t.Name)
		return
	}
	if t.CompressedSize != s.size || t.CompressedOffset != s.off {
		// Before 2.3 nydus-image wrote a size where the offset of the data belongs.
		if t.Name == v6.SectionData && t.CompressedSize == s.size {
			o.note(at+56, o.meta, "data at %#x by the table of contents, it is at %#x", t.CompressedOffset, s.off)
		} else {
			o.fail(at+56, o.meta, "section %q has %d bytes at %#x by the table of contents, by its header %d at %#x", t.Name, t.CompressedSize, t.CompressedOffset, s.size, s.off)
			return
		}
	}
	// The digest of the data is over its tar header as well, and takes reading it.
	if t.Name == v6.SectionData || o.key != nil {
		return
	}
	o.checkTOCDigest(at, t)
}

// checkTOCDigest compares the digest of a section, which is over what it
// decompresses to.
func (o *v6Object) checkTOCDigest(at uint64, t *v6.TOCEntry) {
	in := io.Reader(io.NewSectionReader(&stopper{o.meta}, int64(t.CompressedOffset), int64(t.CompressedSize)))
	switch t.Flags {
	case v6.TOCNone:
	case v6.TOCZstd:
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			o.err = err
			return
		}
		defer d.Close()
		in = d
	case v6.TOCLZ4Block:
		return // read as chunk information, where it can be
	default:
		o.fail(at, o.meta, "section %q has flags %#x", t.Name, t.Flags)
		return
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(in, int64(min(t.UncompressedSize, 1<<40))+1))
	switch {
	case err != nil:
		o.fail(t.CompressedOffset, o.meta, "section %q: %v", t.Name, err)
	case uint64(n) != t.UncompressedSize:
		o.fail(at+72, o.meta, "section %q has %d bytes, the table of contents says %d", t.Name, n, t.UncompressedSize)
	default:
		if sum := [32]byte(h.Sum(nil)); sum != t.Digest {
			o.fail(t.CompressedOffset, o.meta, "section %q has sha256 %x, the table of contents says %x", t.Name, sum, t.Digest)
		}
	}
}
