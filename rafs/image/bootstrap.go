package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// ErrNoBootstrap means that a blob has no bootstrap inside, or is no RAFS blob.
var ErrNoBootstrap = errors.New("no bootstrap inside the blob")

// maxSections bounds the sections of a blob: there are five names.
const maxSections = 8

// maxZstdWindow bounds the memory that decompressing a bootstrap takes besides
// its output; the default level of nydus-image needs 2 MiB.
const maxZstdWindow = 8 << 20

// FindBootstrap returns the bootstrap that lies inside a blob of size bytes, for
// [NewWith] with the blob's id as InlineBlobID. It reads the blob from its end:
// the table of contents if there is one, else the tar headers that follow each
// section. The bootstrap is checked against the digest in the table of contents;
// tar headers have none. Errors wrap ErrNoBootstrap, ErrCorrupt or
// ErrUnsupported, with offsets in the blob, or are those of r.
func FindBootstrap(r io.ReaderAt, size int64) ([]byte, error) {
	end := uint64(max(size, 0))
	for i := 0; i < maxSections && end >= v6.TarHeaderSize; i++ {
		off := end - v6.TarHeaderSize
		b, err := readAt(r, off, v6.TarHeaderSize)
		if err != nil {
			return nil, err
		}
		h, err := v6.DecodeTarHeader(b)
		if err != nil {
			return nil, fmt.Errorf("%w: offset %#x: %v", ErrNoBootstrap, off, err)
		}
		if h.Size > off {
			return nil, corrupt(off, "section %q of %d bytes, blob has %d before its header", h.Name, h.Size, off)
		}
		start := off - h.Size
		switch h.Name {
		case v6.SectionTOC:
			return bootstrapByTOC(r, start, h.Size)
		case v6.SectionBootstrap:
			if h.Size > MaxBootstrap {
				return nil, unsupported(off, "bootstrap of %d bytes, limit %d", h.Size, MaxBootstrap)
			}
			return readAt(r, start, h.Size)
		}
		end = start
	}
	return nil, ErrNoBootstrap
}

func bootstrapByTOC(r io.ReaderAt, off, size uint64) ([]byte, error) {
	if size > v6.MaxTOCSize {
		return nil, corrupt(off, "table of contents of %d bytes, limit %d", size, v6.MaxTOCSize)
	}
	b, err := readAt(r, off, size)
	if err != nil {
		return nil, err
	}
	toc, err := v6.DecodeTOC(b)
	if err != nil {
		return nil, corrupt(off, "%v", err)
	}
	for i, e := range toc {
		if e.Name == v6.SectionBootstrap {
			return bootstrapByEntry(r, off+uint64(i*v6.TOCEntrySize), off, e)
		}
	}
	return nil, fmt.Errorf("%w: table of contents has %d other sections", ErrNoBootstrap, len(toc))
}

// bootstrapByEntry reads the section of entry e, which is at off; sections end
// before limit.
func bootstrapByEntry(r io.ReaderAt, off, limit uint64, e v6.TOCEntry) ([]byte, error) {
	switch {
	case e.CompressedOffset > limit || e.CompressedSize > limit-e.CompressedOffset:
		return nil, corrupt(off+56, "bootstrap at %#x+%#x, sections end at %#x", e.CompressedOffset, e.CompressedSize, limit)
	case e.UncompressedSize > MaxBootstrap || e.CompressedSize > MaxBootstrap:
		return nil, unsupported(off+72, "bootstrap of %d bytes, limit %d", e.UncompressedSize, MaxBootstrap)
	}
	data, err := readAt(r, e.CompressedOffset, e.CompressedSize)
	if err != nil {
		return nil, err
	}
	switch e.Flags {
	case v6.TOCNone:
	case v6.TOCZstd:
		if data, err = unzstd(data, e.UncompressedSize); err != nil {
			return nil, corrupt(e.CompressedOffset, "bootstrap: %v", err)
		}
	default:
		return nil, unsupported(off, "bootstrap with flags %#x", e.Flags)
	}
	if uint64(len(data)) != e.UncompressedSize {
		return nil, corrupt(e.CompressedOffset, "bootstrap of %d bytes, want %d", len(data), e.UncompressedSize)
	}
	if sum := sha256.Sum256(data); sum != e.Digest {
		return nil, corrupt(e.CompressedOffset, "bootstrap has sha256 %x, table of contents %x", sum, e.Digest)
	}
	return data, nil
}

// unzstd decompresses at most one byte more than size.
func unzstd(data []byte, size uint64) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(io.LimitReader(d, int64(size)+1))
}

func readAt(r io.ReaderAt, off, n uint64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(off), int64(n)), b); err != nil {
		return nil, fmt.Errorf("read %d bytes at %#x: %w", n, off, err)
	}
	return b, nil
}
