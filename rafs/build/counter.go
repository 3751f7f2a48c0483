package build

import (
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/folder"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
)

// counter stands between a source and its cutter, and between the cutter and its
// dictionary. It counts the chunks that the first files of the source have made,
// and takes care that no file goes from one blob to another without a gap in the
// block numbers.
//
// Linux' EROFS would then read on in the wrong device: iomap joins reads whose
// sectors follow each other and does not compare devices ("erofs: prevent
// buffered read bio merges across device chunks", June 2026). A chunk of the
// dictionary that would do so is stored again.
type counter struct {
	files   folder.Files
	own     uint32 // number of the blob
	aligned bool
	dict    *chunk.Index // or nil
	foreign *rafs.Blobs

	seen *watched // what was read, or nil

	next   uint32 // number of the blob's next chunk, and
	offset uint64 // where it will be in the uncompressed space
	first  uint32

	starts []uint32  // of the blob's chunks, in blocks; kept only with a dictionary
	last   chunk.Ref // of the file that is being cut
	end    uint64    // where that ends in its blob's uncompressed space; 0 if there is none
	size   uint32    // of the chunk that was asked for last
}

// File is the way of a source to the cutter.
func (c *counter) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	c.end = 0
	if c.seen != nil && c.seen.tell != nil {
		c.seen.r, r = r, c.seen
	}
	return c.files.File(r, size, func(ref chunk.Ref) error {
		if ref.Blob == c.own && ref.Index == c.next {
			c.next++
			if c.dict != nil {
				c.starts = append(c.starts, uint32(c.offset/chunk.Align))
				c.offset += uint64(c.size)
				if c.aligned {
					c.offset = (c.offset + chunk.Align - 1) &^ (chunk.Align - 1)
				}
			}
		}
		if c.dict == nil {
			return add(ref)
		}
		start, err := c.start(ref)
		if err != nil {
			return err
		}
		c.last, c.end = ref, start+uint64(c.size)
		return add(ref)
	})
}

// start is where a chunk begins in its blob's uncompressed space.
func (c *counter) start(ref chunk.Ref) (uint64, error) {
	if ref.Blob == c.own {
		return uint64(c.starts[ref.Index]) * chunk.Align, nil
	}
	_, records := c.foreign.Info(ref.Blob)
	r, err := records.Record(ref.Index)
	return r.UncompressedOffset, err
}

// Lookup is the way of the cutter to the dictionary.
func (c *counter) Lookup(digest blob.Digest, size uint32) (chunk.Ref, bool, error) {
	c.size = size
	ref, ok, err := c.dict.Lookup(digest, size)
	if err != nil || !ok || !c.aligned {
		return ref, ok, err
	}
	start, err := c.start(ref)
	if err != nil {
		return ref, false, err
	}
	follows := c.end != 0 && c.last.Blob != ref.Blob && start == c.end
	// The next chunk may be one that is new.
	followed := start+uint64(size) == c.offset
	return ref, !follows && !followed, nil
}

func (c *counter) firstDone() { c.first = c.next }
