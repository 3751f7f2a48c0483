package store

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// files is a folder or an archive that holds an image.
type files interface {
	// open returns a file by its slash-separated path, from an offset on, and its
	// whole size.
	open(name string, from int64) (io.ReadCloser, int64, error)
	Close() error
}

// rootFiles is a folder that nothing in it leads out of.
type rootFiles struct{ *os.Root }

func (r rootFiles) open(name string, from int64) (io.ReadCloser, int64, error) {
	f, err := r.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: no regular file", name)
	}
	if err == nil {
		_, err = f.Seek(from, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// maxArchiveEntries bounds the entries of an archive that holds an image.
const maxArchiveEntries = 1 << 16

// tarFiles is a tar whose files are read where they lie.
type tarFiles struct {
	*os.File
	at    map[string]extent
	links map[string]string // symlinks, which old docker archives have
}

type extent struct{ off, size int64 }

func newTarFiles(ctx context.Context, file, tempDir string) (*tarFiles, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	if f, err = unpacked(ctx, f, tempDir); err != nil {
		return nil, err
	}
	t := &tarFiles{File: f, at: map[string]extent{}, links: map[string]string{}}
	if err := t.index(); err != nil {
		f.Close()
		return nil, fmt.Errorf("no tar of an image: %w", err)
	}
	return t, nil
}

// unpacked is the file itself or, where it is compressed, a file without a name
// that has what it unpacks to. It takes the file over.
func unpacked(ctx context.Context, f *os.File, tempDir string) (*os.File, error) {
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && err != io.EOF {
		return nil, errors.Join(err, f.Close())
	}
	var plain io.Reader
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		plain = z
	case magic == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		defer z.Close()
		plain = z
	default:
		return f, nil
	}
	defer f.Close()
	tmp, err := unnamed(tempDir)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(tmp, cancelled{ctx, plain}); err != nil {
		return nil, errors.Join(fmt.Errorf("unpack the archive: %w", err), tmp.Close())
	}
	return tmp, nil
}

// unnamed opens a file that nobody has to remove.
func unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "rafsd-store-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func (t *tarFiles) index() error {
	if _, err := t.Seek(0, io.SeekStart); err != nil {
		return err
	}
	entries := tar.NewReader(t.File)
	for range maxArchiveEntries {
		hdr, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			off, err := t.Seek(0, io.SeekCurrent) // the reader has taken the headers only
			if err != nil {
				return err
			}
			t.at[name] = extent{off, hdr.Size}
		case tar.TypeSymlink:
			t.links[name] = path.Join(path.Dir(name), hdr.Linkname)
		}
	}
	return fmt.Errorf("more than %d entries", maxArchiveEntries)
}

func (t *tarFiles) open(name string, from int64) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	if target, ok := t.links[name]; ok {
		name = target
	}
	e, ok := t.at[name]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w in the archive", name, os.ErrNotExist)
	}
	from = min(from, e.size)
	return io.NopCloser(io.NewSectionReader(t.File, e.off+from, e.size-from)), e.size, nil
}

// readAll reads a file of at most limit bytes.
func readAll(f files, name string, limit int64) ([]byte, error) {
	r, size, err := f.open(name, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", name, size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}
