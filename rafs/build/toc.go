package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rafsd/rafsd/rafs/blob/backend"
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
	return measureObject(f, st.Size(), info)
}

// measureIn is measure for a blob in a backend, if its bootstrap, which was taken out
// of it, says that it has one.
func measureIn(ctx context.Context, b backend.Backend, id string, features layout.Features, info *rafs.Info) error {
	if features&layout.FeatureInlinedFSMeta == 0 {
		return nil
	}
	r, err := b.Open(id)
	if err != nil {
		return err
	}
	size, err := r.Size(ctx)
	if err != nil {
		return fmt.Errorf("blob %s: %w", id, err)
	}
	return measureObject(rangeReader{ctx, r}, size, info)
}

// rangeReader is an io.ReaderAt of a blob in a backend.
type rangeReader struct {
	ctx context.Context
	backend.Reader
}

func (r rangeReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ReadRange(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func measureObject(f io.ReaderAt, size int64, info *rafs.Info) error {
	e := &info.Entry
	if layout.Features(e.Features)&layout.FeatureSeparate == 0 {
		e.CompressedSize = uint64(size)
	} else {
		e.MetaSize = uint64(size)
	}
	if layout.Features(e.Features)&layout.FeatureHasTOC == 0 {
		return nil
	}
	toc, err := tail(f, size)
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
