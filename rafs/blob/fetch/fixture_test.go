package fetch_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	rafs "github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

var _ fetch.Catalog = (*rafs.Image)(nil)

// Every chunk of images that nydus-image made comes out with its digest, through
// reads and through a prefetch, and the second process
// needs no blob.
func TestImagesOfNydus(t *testing.T) {
	made := filepath.Join(testenv.Fixtures(t), "nydus-made")
	blobs, err := localfs.New(filepath.Join(made, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	defer blobs.Close()
	none, err := localfs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	for _, c := range rafstest.Nydus(t) {
		t.Run(c.Name, func(t *testing.T) {
			im, err := rafs.Open(c.Bootstrap, rafs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			chunks := chunksOf(im)
			if len(chunks) == 0 {
				t.Fatal("the image has no chunks")
			}
			store, err := cache.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			open := func(o fetch.Options) *fetch.Engine {
				o.Blobs, o.Catalog = im.Blobs(), im
				e, err := fetch.New(o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { e.Close() })
				return e
			}
			readChunks(t, open(fetch.Options{Backend: blobs}), c.Blobs, chunks)
			if err := open(fetch.Options{Backend: blobs, Cache: store}).Prefetch(t.Context(), slices.Values(chunks)); err != nil {
				t.Errorf("prefetch: %v", err)
			}
			e := open(fetch.Options{Backend: none, Cache: store})
			readChunks(t, e, c.Blobs, chunks)
			if s := e.Stats(); s.Misses != 0 || s.FirstUses != uint64(len(chunks)) {
				t.Errorf("second process: %d misses, %d chunks out of the cache, want 0 and %d", s.Misses, s.FirstUses, len(chunks))
			}
		})
	}
}

// chunksOf lists all chunks of an image.
func chunksOf(im *rafs.Image) []blob.Chunk {
	var chunks []blob.Chunk
	for _, b := range im.Blobs() {
		for i := range b.ChunkCount {
			if c, ok := im.Chunk(b.Index, i); ok {
				chunks = append(chunks, c)
			}
		}
	}
	return chunks
}

func readChunks(t *testing.T, e *fetch.Engine, blobs rafstest.Blobs, chunks []blob.Chunk) {
	t.Helper()
	for i := range chunks {
		c := &chunks[i]
		got := bytes.Repeat([]byte{0xa5}, int(c.UncompressedSize))
		seg := blob.Segment{Chunk: *c, Length: c.UncompressedSize}
		if _, err := e.Read(t.Context(), []blob.Segment{seg}, [][]byte{got}); err != nil {
			t.Errorf("blob %d, chunk %d: %v", c.Blob.Index, c.Index, err)
			continue
		}
		if c.Digest != (blob.Digest{}) {
			if c.Blob.Digester.Sum(got) != c.Digest {
				t.Errorf("blob %d, chunk %d: wrong bytes", c.Blob.Index, c.Index)
			}
		} else if want, err := blobs.Read(&seg); err != nil || !bytes.Equal(got, want) {
			t.Errorf("blob %d, chunk %d: wrong bytes, %v", c.Blob.Index, c.Index, err)
		}
	}
}
