package image

import (
	"io"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
)

// Bytes is the bootstrap as it was read. It must not be changed, and is gone
// with Close.
func (im *Image) Bytes() []byte {
	if im.v6 != nil {
		return im.v6.data
	}
	return im.v5.data
}

// ReadAt reads the bootstrap at off, as an io.ReaderAt does.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	data, n := region(im.Bytes()), 0
	for n < len(p) {
		im.pages.at(uint64(off) + uint64(n))
		k := copy(p[n:min(len(p), n+readPiece)], data.from(uint64(off)+uint64(n)))
		if k == 0 {
			return n, io.EOF
		}
		n += k
	}
	return n, nil
}

// readPiece is what ReadAt copies at a time, in bytes.
const readPiece = 64 << 10

// BlobChunks yields the chunks of a blob that the image knows, each once, by
// their numbers.
func (im *Image) BlobChunks(blobIndex uint32) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		if blobIndex >= uint32(len(im.chunks.records)) {
			return
		}
		for _, place := range im.chunks.records[blobIndex] {
			var c blob.Chunk
			r := im.chunks.record(place)
			im.chunks.decode(&c, &r)
			if !yield(c) {
				return
			}
		}
	}
}
