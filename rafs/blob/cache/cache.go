// Package cache keeps verified chunks of blobs in a folder that any number of
// processes use at once.
//
// A blob has two files. <id>.<key>.data is sparse and holds chunks at their
// uncompressed offsets, so that a full one can be the device of an EROFS mount.
// <id>.<key>.map tells which chunks are there, a byte for each, written after the
// chunk itself. The key is a digest of the blob's chunk table: images that
// disagree about what a blob holds have different files and cannot harm one
// another; processes that share a file only ever write the same bytes to a place.
//
// The cache promises nothing about what it gives back: a map may be ahead of its
// data after a crash, and disks rot. Whoever reads a chunk first in a process
// checks its digest. Files are read and written, never mapped, so a file that
// shrinks is an error and not a signal. Nothing here fails for good: any error
// means that the caller goes on without the cache for that chunk.
package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/rafsd/rafsd/rafs/blob"
)

// Errors that callers tell apart.
var (
	// ErrFull means that the file system has no room left for us.
	ErrFull = errors.New("cache is full")
	// ErrReadOnly means that the folder may be read but not written.
	ErrReadOnly = errors.New("cache is read-only")
	// ErrClosed means that the blob was closed.
	ErrClosed = errors.New("cache is closed")
)

// Cache is a folder of cached blobs. Its methods are safe for concurrent use.
type Cache struct {
	folder Folder
}

// Open opens the folder dir and creates it if it is not there.
func Open(dir string) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, syscall.EROFS) {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cache folder: %w", err)
	}
	return New(diskFolder{root}), nil
}

// New is a cache over a folder of another kind than a directory, to see or to
// spoil what the cache does.
func New(f Folder) *Cache { return &Cache{folder: f} }

// Close closes the folder. Blobs that are open stay usable.
func (c *Cache) Close() error { return c.folder.Close() }

// Table is what an image says about the chunks of one blob.
type Table struct {
	Info *blob.Info
	// Count is above the largest chunk index.
	Count uint32
	// Chunk returns the chunk with an index below Count, or false if the image
	// has none with it.
	Chunk func(index uint32) (blob.Chunk, bool)
}

// Blob opens the files of a blob, creates them if need be, and resets a map that
// does not fit.
func (c *Cache) Blob(t Table) (*Blob, error) {
	if err := blob.CheckID(t.Info.ID); err != nil {
		return nil, err
	}
	want, err := t.header()
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", t.Info.ID, err)
	}
	b := &Blob{header: want}
	err = b.open(c.folder, t.Info.ID, true)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		b.readOnly = true
		err = b.open(c.folder, t.Info.ID, false)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: cache files: %w", t.Info.ID, err)
	}
	return b, nil
}

// Blob is one cached blob. Its methods are safe for concurrent use, also with
// those of other processes over the same files.
type Blob struct {
	header    header // immutable
	readOnly  bool   // immutable
	data, bit File   // immutable
}

// open opens both files and brings the map in line with the header, under a lock
// against others who do the same.
func (b *Blob) open(f Folder, id string, write bool) (err error) {
	base := fmt.Sprintf("%s.%x", id, b.header.key[:16])
	defer func() {
		if err != nil {
			_ = b.Close()
		}
	}()
	if b.bit, err = f.Open(base+".map", write); err != nil {
		return err
	}
	unlock, err := b.bit.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Under the lock: whoever resets may put another file in its place.
	if b.data, err = f.Open(base+".data", write); err != nil {
		return err
	}
	why := b.check()
	if why == nil {
		return nil
	}
	if !write {
		return why
	}
	return b.reset(f, base+".data")
}

// check says why the files cannot be used as they are.
func (b *Blob) check() error {
	size, err := b.bit.Size()
	if err != nil {
		return err
	}
	if want := b.header.mapSize(); size != want {
		return fmt.Errorf("map has %d bytes, want %d", size, want)
	}
	var buf [headerSize]byte
	if err := readFull(b.bit, buf[:], 0); err != nil {
		return err
	}
	have, err := decodeHeader(buf[:])
	if err != nil {
		return err
	}
	if have != b.header {
		return errors.New("map is of another chunk table")
	}
	return b.checkData()
}

func (b *Blob) checkData() error {
	size, err := b.data.Size()
	if err == nil && size != b.header.dataSize {
		err = fmt.Errorf("data has %d bytes, want %d", size, b.header.dataSize)
	}
	return err
}

// reset makes an empty map. Other processes may be reading chunks of the data file
// that they verified: it stays as it is, or where its size is wrong, a new one
// takes its place. Were it made long again, what was cut off would read as zeros.
func (b *Blob) reset(f Folder, data string) error {
	if err := b.bit.Truncate(0); err != nil {
		return err
	}
	if err := b.checkData(); err != nil {
		if err := errors.Join(b.data.Close(), f.Remove(data)); err != nil {
			return err
		}
		if b.data, err = f.Open(data, true); err != nil {
			return err
		}
		if err := b.data.Truncate(b.header.dataSize); err != nil {
			return err
		}
	}
	if err := b.bit.Truncate(b.header.mapSize()); err != nil {
		return err
	}
	// The header comes last: without it the map is reset again.
	return writeFull(b.bit, b.header.encode(), 0)
}

// present is the state of a chunk that was filled. Other values are absent.
const present = 1

// Present reports whether the chunk is said to be there.
func (b *Blob) Present(index uint32) bool {
	var one [1]bool
	b.PresentRange(index, one[:])
	return one[0]
}

// PresentRange tells for the chunks from first on whether they are said to be
// there, one for each element of dst.
func (b *Blob) PresentRange(first uint32, dst []bool) {
	clear(dst)
	if first >= b.header.count {
		return
	}
	state := make([]byte, min(len(dst), int(b.header.count-first)))
	if err := readFull(b.bit, state, headerSize+int64(first)); err != nil {
		return
	}
	for i, s := range state {
		dst[i] = s == present
	}
}

// Preadv fills all of dst from the data file at off, or returns an error. What
// was never filled reads as zeros, so callers ask for verified chunks only, or
// verify what they get.
func (b *Blob) Preadv(dst [][]byte, off int64) (int, error) {
	want := 0
	for _, d := range dst {
		want += len(d)
	}
	n, err := b.data.Preadv(dst, off)
	if err == nil && n < want {
		err = fmt.Errorf("cache data ends after %d of %d bytes at %d", n, want, off)
	}
	return n, err
}

// Fill stores the verified bytes of a chunk and then marks it present. After an
// error the chunk counts as absent. A data file that was cut is not filled any
// more: a write would make it long again, with zeros where others had verified.
func (b *Blob) Fill(c *blob.Chunk, data []byte) error {
	switch end := c.UncompressedOffset + uint64(c.UncompressedSize); {
	case b.readOnly:
		return ErrReadOnly
	case c.Index >= b.header.count || end > uint64(b.header.dataSize) || len(data) != int(c.UncompressedSize):
		return fmt.Errorf("chunk %d of %d, %d bytes for %d to %d of %d: does not fit",
			c.Index, b.header.count, len(data), c.UncompressedOffset, end, b.header.dataSize)
	}
	err := b.checkData()
	if err == nil {
		err = writeFull(b.data, data, int64(c.UncompressedOffset))
	}
	if err == nil {
		err = writeFull(b.bit, []byte{present}, headerSize+int64(c.Index))
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("chunk %d: %w: %w", c.Index, ErrFull, err)
	}
	return err
}

// FillGap stores bytes at an offset of the data file that belong to no chunk. Nobody
// is told of them, so they need not be verified.
func (b *Blob) FillGap(p []byte, off int64) error {
	if b.readOnly {
		return ErrReadOnly
	}
	if off < 0 || off > b.header.dataSize || int64(len(p)) > b.header.dataSize-off {
		return fmt.Errorf("%d bytes at %d of %d: do not fit", len(p), off, b.header.dataSize)
	}
	if err := b.checkData(); err != nil {
		return err
	}
	return writeFull(b.data, p, off)
}

// Drop marks a chunk absent: its bytes were found to be wrong.
func (b *Blob) Drop(c *blob.Chunk) error {
	if b.readOnly {
		return ErrReadOnly
	}
	if c.Index >= b.header.count {
		return nil
	}
	return writeFull(b.bit, []byte{0}, headerSize+int64(c.Index))
}

// Close closes the files once the reads that run have ended. Calls that come
// later fail with ErrClosed.
func (b *Blob) Close() error {
	var errs []error
	for _, f := range []File{b.data, b.bit} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func readFull(f File, p []byte, off int64) error {
	n, err := f.Preadv([][]byte{p}, off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("file ends after %d of %d bytes at %d", n, len(p), off)
	}
	return err
}

func writeFull(f File, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := f.Pwrite(p, off)
		if err != nil {
			return err
		}
		if n <= 0 {
			return fmt.Errorf("wrote %d of %d bytes at %d", n, len(p), off)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
