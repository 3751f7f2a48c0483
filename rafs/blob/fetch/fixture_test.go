package fetch_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	rafs "github.com/rafsd/rafsd/rafs/image"
)

var _ fetch.Catalog = (*rafs.Image)(nil)

// Every chunk of images that nydus-image made comes out with its digest, through
// reads and through a prefetch, and the second process needs no blob.
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
	for _, name := range []string{
		"v6-none-blake3", "v6-none-sha256", "v6-lz4_block-blake3", "v6-zstd-blake3", "v6-chunk-4k", "v6-chunk-16m",
		"v6-layers", "v6-parent", "v6-blob-toc", "v5-none-sha256", "v5-zstd-blake3", "v5-lz4_block-sha256",
		"v5-chunk-16m", "v5-layers", "v5-aligned",
	} {
		t.Run(name, func(t *testing.T) {
			boot, err := os.ReadFile(filepath.Join(made, "images", name, "image.boot"))
			if err != nil {
				t.Fatal(err)
			}
			im, err := rafs.New(boot)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			var chunks []blob.Chunk
			for _, b := range im.Blobs() {
				for i := range b.ChunkCount {
					if c, ok := im.Chunk(b.Index, i); ok {
						chunks = append(chunks, c)
					}
				}
			}
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
			readChunks(t, open(fetch.Options{Backend: blobs}), chunks)
			if err := open(fetch.Options{Backend: blobs, Cache: store}).Prefetch(t.Context(), slices.Values(chunks)); err != nil {
				t.Errorf("prefetch: %v", err)
			}
			readChunks(t, open(fetch.Options{Backend: none, Cache: store}), chunks)
		})
	}
}

func readChunks(t *testing.T, e *fetch.Engine, chunks []blob.Chunk) {
	t.Helper()
	for i := range chunks {
		c := &chunks[i]
		got := bytes.Repeat([]byte{0xa5}, int(c.UncompressedSize))
		seg := blob.Segment{Chunk: *c, Length: c.UncompressedSize}
		if _, err := e.Read(t.Context(), []blob.Segment{seg}, [][]byte{got}); err != nil {
			t.Errorf("blob %d, chunk %d: %v", c.Blob.Index, c.Index, err)
		} else if c.Blob.Digester.Sum(got) != c.Digest {
			t.Errorf("blob %d, chunk %d: wrong bytes", c.Blob.Index, c.Index)
		}
	}
}
