package image_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/rafsd/rafsd/rafs/rafstest"
)

func TestBytes(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		want, err := os.ReadFile(c.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		if got := open(t, c.Bootstrap).Bytes(); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want the %d of the file", c.Name, len(got), len(want))
		}
	}
}

// The chunks of a blob are those that can be found by number, in that order.
func TestBlobChunks(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		im := open(t, c.Bootstrap)
		for _, b := range im.Blobs() {
			next, n := uint32(0), 0
			for chunk := range im.BlobChunks(b.Index) {
				found, ok := im.Chunk(b.Index, chunk.Index)
				if !ok || found != chunk || chunk.Index < next || chunk.Blob != b {
					t.Errorf("%s: got %+v, after %d, found %+v, %t", c.Name, chunk, next, found, ok)
				}
				next, n = chunk.Index+1, n+1
			}
			want := 0
			for i := range b.ChunkCount {
				if _, ok := im.Chunk(b.Index, i); ok {
					want++
				}
			}
			if n != want && b.ChunkCount > 0 {
				t.Errorf("%s: blob %d: %d chunks, want %d", c.Name, b.Index, n, want)
			}
		}
		for range im.BlobChunks(uint32(len(im.Blobs()))) {
			t.Errorf("%s: a chunk of a blob that there is not", c.Name)
		}
	}
}
