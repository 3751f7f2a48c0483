package image

import (
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
