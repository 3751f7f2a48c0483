package image

import (
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

// ExtractBootstrap copies the bootstrap that lies inside a blob of size bytes to
// w, for [NewWith] with the blob's id as InlineBlobID. It reads the blob from its
// end: the table of contents if there is one, else the tar headers that follow
// each section. The bootstrap is checked against the digest in the table of
// contents, and is void if that is an error; tar headers have none. Errors wrap
// ErrNoBootstrap, ErrCorrupt or ErrUnsupported, with offsets in the blob, or are
// those of r or w.
func ExtractBootstrap(w io.Writer, r io.ReaderAt, size int64) error {
	end := uint64(max(size, 0))
	for i := 0; i < maxSections && end >= v6.TarHeaderSize; i++ {
		off := end - v6.TarHeaderSize
		b, err := readAt(r, off, v6.TarHeaderSize)
		if err != nil {
			return err
		}
		h, err := v6.DecodeTarHeader(b)
		if err != nil {
			return fmt.Errorf("%w: offset %#x: %v", ErrNoBootstrap, off, err)
		}
		if h.Size > off {
			return corrupt(off, "section %q of %d bytes, blob has %d before its header", h.Name, h.Size, off)
		}
		start := off - h.Size
		switch h.Name {
		case v6.SectionTOC:
			return bootstrapByTOC(w, r, start, h.Size)
		case v6.SectionBootstrap:
			if h.Size > MaxBootstrap {
				return unsupported(off, "bootstrap of %d bytes, limit %d", h.Size, MaxBootstrap)
			}
			return copySection(w, r, start, h.Size)
		}
		end = start
	}
	return ErrNoBootstrap
}

func bootstrapByTOC(w io.Writer, r io.ReaderAt, off, size uint64) error {
	if size > v6.MaxTOCSize {
		return corrupt(off, "table of contents of %d bytes, limit %d", size, v6.MaxTOCSize)
	}
	b, err := readAt(r, off, size)
	if err != nil {
		return err
	}
	toc, err := v6.DecodeTOC(b)
	if err != nil {
		return corrupt(off, "%v", err)
	}
	for i, e := range toc {
		if e.Name == v6.SectionBootstrap {
			return bootstrapByEntry(w, r, off+uint64(i*v6.TOCEntrySize), off, e)
		}
	}
	return fmt.Errorf("%w: table of contents has %d other sections", ErrNoBootstrap, len(toc))
}

// bootstrapByEntry copies the section of entry e, which is at off; sections end
// before limit.
func bootstrapByEntry(w io.Writer, r io.ReaderAt, off, limit uint64, e v6.TOCEntry) error {
	switch {
	case e.CompressedOffset > limit || e.CompressedSize > limit-e.CompressedOffset:
		return corrupt(off+56, "bootstrap at %#x+%#x, sections end at %#x", e.CompressedOffset, e.CompressedSize, limit)
	case e.UncompressedSize > MaxBootstrap || e.CompressedSize > MaxBootstrap:
		return unsupported(off+72, "bootstrap of %d bytes, limit %d", e.UncompressedSize, MaxBootstrap)
	}
	sum := sha256.New()
	out := &counted{w: io.MultiWriter(w, sum)}
	var err error
	switch e.Flags {
	case v6.TOCNone:
		err = copySection(out, r, e.CompressedOffset, e.CompressedSize)
	case v6.TOCZstd:
		err = unzstd(out, newSection(r, e.CompressedOffset, e.CompressedSize), e)
	default:
		return unsupported(off, "bootstrap with flags %#x", e.Flags)
	}
	if err != nil {
		return err
	}
	if out.n != e.UncompressedSize {
		return corrupt(e.CompressedOffset, "bootstrap of %d bytes, want %d", out.n, e.UncompressedSize)
	}
	if got := [sha256.Size]byte(sum.Sum(nil)); got != e.Digest {
		return corrupt(e.CompressedOffset, "bootstrap has sha256 %x, table of contents %x", got, e.Digest)
	}
	return nil
}

// counted counts what passes, and keeps the error of its writer.
type counted struct {
	w   io.Writer
	n   uint64
	err error
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	c.err = err
	return n, err
}

// unzstd decompresses at most one byte more than there should be.
func unzstd(w *counted, s *section, e v6.TOCEntry) error {
	d, err := zstd.NewReader(s, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = io.Copy(w, io.LimitReader(d, int64(e.UncompressedSize)+1))
	switch {
	case s.err != nil:
		return s.err
	case w.err != nil:
		return w.err
	case err != nil:
		return corrupt(e.CompressedOffset, "bootstrap: %v", err)
	}
	return nil
}

// section reads a part of a blob from start to end, in few large pieces, since
// each may be a request to a registry. It keeps the error of its reader.
type section struct {
	r         io.ReaderAt
	off, left uint64
	buf       []byte // of the whole
	got       []byte // what is not taken yet
	err       error
}

// sectionPiece is the size of a piece in bytes.
const sectionPiece = 4 << 20

func newSection(r io.ReaderAt, off, n uint64) *section {
	return &section{r: r, off: off, left: n, buf: make([]byte, min(n, sectionPiece))}
}

func (s *section) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(s.got) == 0 {
		if s.left == 0 {
			return 0, io.EOF
		}
		if s.fill(); s.err != nil {
			return 0, s.err
		}
	}
	n := copy(p, s.got)
	s.got = s.got[n:]
	return n, nil
}

func (s *section) fill() {
	b := s.buf[:min(uint64(len(s.buf)), s.left)]
	if _, err := io.ReadFull(io.NewSectionReader(s.r, int64(s.off), int64(len(b))), b); err != nil {
		s.err = fmt.Errorf("read %d bytes at %#x: %w", len(b), s.off, err)
		return
	}
	s.got, s.off, s.left = b, s.off+uint64(len(b)), s.left-uint64(len(b))
}

// copySection copies n bytes at off.
func copySection(w io.Writer, r io.ReaderAt, off, n uint64) error {
	s := newSection(r, off, n)
	for s.left > 0 {
		if s.fill(); s.err != nil {
			return s.err
		}
		if _, err := w.Write(s.got); err != nil {
			return err
		}
	}
	return nil
}

func readAt(r io.ReaderAt, off, n uint64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, int64(off), int64(n)), b); err != nil {
		return nil, fmt.Errorf("read %d bytes at %#x: %w", n, off, err)
	}
	return b, nil
}
