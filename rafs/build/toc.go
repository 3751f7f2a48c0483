package build

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// measure completes what the bootstrap inside a blob could not yet say of that
// blob, if path is the blob: its size, and its table of contents. Where path is a
// bootstrap, there is nothing to find out.
func measure(path string, im *image.Image, info *rafs.Info) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == im.Super().Size {
		return err
	}
	e := &info.Entry
	if layout.Features(e.Features)&layout.FeatureSeparate == 0 {
		e.CompressedSize = uint64(st.Size())
	} else {
		e.MetaSize = uint64(st.Size())
	}
	if layout.Features(e.Features)&layout.FeatureHasTOC == 0 {
		return nil
	}
	toc, err := tail(f, st.Size())
	if err != nil {
		return fmt.Errorf("table of contents: %w", err)
	}
	e.TOCSize, e.TOCDigest = uint32(len(toc)), sha256.Sum256(toc)
	return nil
}

// tail reads the table of contents at the end of a blob, with its tar header.
func tail(r io.ReaderAt, size int64) ([]byte, error) {
	b := make([]byte, v6.TarHeaderSize)
	if size < v6.TarHeaderSize {
		return nil, errors.New("blob is too short")
	}
	if _, err := r.ReadAt(b, size-v6.TarHeaderSize); err != nil {
		return nil, err
	}
	h, err := v6.DecodeTarHeader(b)
	if err != nil {
		return nil, err
	}
	if h.Name != v6.SectionTOC || h.Size > v6.MaxTOCSize-v6.TarHeaderSize || int64(h.Size) > size-v6.TarHeaderSize {
		return nil, fmt.Errorf("last section is %q of %d bytes, want %q", h.Name, h.Size, v6.SectionTOC)
	}
	b = make([]byte, h.Size+v6.TarHeaderSize)
	_, err = r.ReadAt(b, size-int64(len(b)))
	return b, err
}
