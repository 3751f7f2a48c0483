package check

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Blob is one blob object.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64 // in bytes
}

// Blobs opens the blobs of an image by their ids, which are plain names.
type Blobs interface {
	Open(ctx context.Context, id string) (Blob, error)
}

// Folder is blobs in files of one folder, named by their ids.
type Folder string

type fileBlob struct {
	*os.File
	size int64
}

func (b *fileBlob) Size() int64 { return b.size }

// Open opens the file of a blob.
func (f Folder) Open(_ context.Context, id string) (Blob, error) {
	file, err := os.Open(filepath.Join(string(f), id))
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &fileBlob{file, st.Size()}, nil
}

// readerBlob is a blob that somebody else has opened.
type readerBlob struct {
	io.ReaderAt
	size int64
}

func (b *readerBlob) Size() int64  { return b.size }
func (b *readerBlob) Close() error { return nil }

// object is a blob object with its place in violations.
type object struct {
	Blob
	c    *checker
	name string
}

func (o *object) String() string { return o.name }

// open opens a blob, nil with a violation if there is none. What is wrong with it
// later is said with offsets in it.
func (c *checker) open(where any, id string) *object {
	if blob.CheckID(id) != nil {
		return nil // said already
	}
	b, err := c.opts.Blobs.Open(c.ctx, id)
	if err != nil {
		c.fail(0, where, "cannot be opened: %v", err)
		return nil
	}
	return &object{Blob: b, c: c, name: "object " + id}
}

// bytes reads n bytes, false with a violation if they are not there.
func (o *object) bytes(p []byte, off uint64) bool {
	if off > uint64(o.Size()) || uint64(len(p)) > uint64(o.Size())-off {
		o.c.fail(off, o, "%d bytes end beyond the object of %d", len(p), o.Size())
		return false
	}
	if _, err := o.ReadAt(p, int64(off)); err != nil && err != io.EOF {
		o.c.err = fmt.Errorf("%s: %w", o.name, err)
		return false
	}
	return true
}

// checkID compares the id with the SHA-256 of the object. Images that nydus-image
// gave a table of contents have one over all but the digests in it, and a layer of
// theirs that holds its bootstrap one over the rest.
func (o *object) checkID(id string, odd bool) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(&stopper{o}, 0, o.Size())); err != nil {
		if o.c.err == nil {
			o.c.err = fmt.Errorf("%s: %w", o.name, err)
		}
		return
	}
	switch sum := hex.EncodeToString(h.Sum(nil)); {
	case sum == id:
	case odd:
		o.c.note(0, o, "the object has sha256 %s", sum)
	case len(id) == len(sum):
		o.c.fail(0, o, "the object has sha256 %s", sum)
	default:
		o.c.note(0, o, "the id is no digest")
	}
}

// stopper stops reading when the caller gives up.
type stopper struct{ o *object }

func (s *stopper) ReadAt(p []byte, off int64) (int, error) {
	if err := s.o.c.ctx.Err(); err != nil {
		return 0, err
	}
	return s.o.ReadAt(p, off)
}

// blobID is the id of a blob, which the bootstrap inside it does not know.
func (c *checker) blobID(f layout.Features, id string) string {
	if f&layout.FeatureInlinedFSMeta != 0 && f&layout.FeatureSeparate == 0 && c.opts.InlineBlobID != "" {
		return c.opts.InlineBlobID
	}
	return id
}

// holdsItself tells whether a blob is the one that its bootstrap was found in. Its
// features say so, or before nydus 2.2 nothing did.
func holdsItself(f layout.Features, blobs int) bool {
	return f&layout.FeatureInlinedFSMeta != 0 || f&layout.FeatureCapTarTOC == 0 && blobs == 1
}

// checkBlobs holds the blobs of a v5 image against its tables. Nothing but the
// data is in them.
func (c *v5Check) checkBlobs() {
	if c.opts.Blobs == nil {
		return
	}
	objects := make([]*object, len(c.blobs))
	datas := make([]*chunkData, len(c.blobs))
	for i := range c.blobs {
		b := &c.blobs[i]
		self := c.inside && holdsItself(layout.Features(b.Features), len(c.blobs))
		o := &object{Blob: c.whole, c: c.checker, name: "the blob"}
		if !self {
			o = c.open(blobPlace(i), c.blobID(layout.Features(b.Features), b.ID))
		}
		if o == nil {
			continue
		}
		defer o.Close()
		objects[i] = o
		if b.CompressedSize != 0 && layout.Features(b.Features)&layout.FeatureCapTarTOC != 0 && uint64(o.Size()) != b.CompressedSize && !self &&
			layout.Features(b.Features)&layout.FeatureInlinedFSMeta == 0 {
			c.fail(b.off+16, blobPlace(i), "%d bytes, the object has %d", b.CompressedSize, o.Size())
		}
		if c.opts.Data {
			if !self {
				o.checkID(c.blobID(layout.Features(b.Features), b.ID), layout.Features(b.Features)&layout.FeatureInlinedFSMeta != 0)
			}
			datas[i] = newChunkData(o, b.rules.compressor, digesterOf(c.flags))
		}
	}
	if !c.opts.Data {
		return
	}
	c.eachRecord(func(b int, off uint64, r *layout.ChunkRecord, again bool) bool {
		if d := datas[b]; d != nil && !again {
			d.check(r, nil)
		}
		return true
	})
}
