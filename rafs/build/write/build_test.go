package write

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/build/oldchunk"
	"github.com/rafsd/rafsd/rafs/build/oldtree"
)

var zstdBlake3 = Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd}

// built is an image in memory.
type built struct {
	plan      *Plan
	bootstrap []byte
	data      map[string][]byte // blobs by id
}

// build makes an image of layers, the way convert does, with this many workers.
func build(t testing.TB, o Options, workers int, tars ...[]byte) *built {
	t.Helper()
	pool := chunk.NewPool(workers, len(tars), int(o.ChunkSize))
	layers, infos := make([]*tree.Layer, len(tars)), make([]*BlobInfo, len(tars))
	b := &built{data: map[string][]byte{}}
	for i, data := range tars {
		var out bytes.Buffer
		w := NewBlob(&out, o.Format)
		cutter := chunk.NewCutter(context.Background(), pool, w, chunk.Options{
			Blob: uint32(i), Compressor: o.Compressor, Digester: o.Digester,
		})
		layer, err := tree.ReadLayer(context.Background(), bytes.NewReader(data), cutter, tree.Limits{})
		records, closeErr := cutter.Close()
		if err != nil || closeErr != nil {
			t.Fatalf("layer %d: %v, %v", i+1, err, closeErr)
		}
		layers[i] = layer
		if len(records) == 0 {
			continue
		}
		if infos[i], err = w.Finish(records); err != nil {
			t.Fatalf("layer %d: finish: %v", i+1, err)
		}
		b.data[infos[i].ID] = out.Bytes()
	}
	merged, err := tree.Merge(layers...)
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	if b.plan, err = New(merged, infos, o); err != nil {
		t.Fatalf("plan: %v", err)
	}
	var out bytes.Buffer
	if err := Bootstrap(&out, b.plan); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	b.bootstrap = out.Bytes()
	if got, want := int64(len(b.bootstrap)), b.plan.Size(); got != want {
		t.Fatalf("bootstrap has %d bytes, the plan says %d", got, want)
	}
	return b
}

// uncompressed decodes all chunks of a blob into the layout of a cache file.
func uncompressed(t testing.TB, info *BlobInfo, data []byte) []byte {
	t.Helper()
	out := make([]byte, info.UncompressedSize())
	for i, r := range info.Records {
		dst := out[r.UncompressedOffset:][:r.UncompressedSize]
		src := data[r.CompressedOffset:][:r.CompressedSize]
		if r.CompressedSize == r.UncompressedSize {
			copy(dst, src)
		} else if err := codec.Decode(blob.Compressor(info.entry.Compressor), dst, src); err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if got := blob.Digester(info.entry.Digester).Sum(dst); got != r.Digest {
			t.Fatalf("chunk %d: digest %v, want %v", i, got, r.Digest)
		}
	}
	return out
}

// fixtureTars reads tars made by GNU tar.
func fixtureTars(t testing.TB, names ...string) [][]byte {
	t.Helper()
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made", "tars")
	var tars [][]byte
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, data)
	}
	return tars
}

// save writes the image as nydus' tools and ours take it: a bootstrap, and a
// folder of blobs by id.
func (b *built) save(t testing.TB, dir string) (bootstrap string) {
	t.Helper()
	bootstrap = filepath.Join(dir, "image.boot")
	if err := os.WriteFile(bootstrap, b.bootstrap, 0o644); err != nil {
		t.Fatal(err)
	}
	for id, data := range b.data {
		if err := os.WriteFile(filepath.Join(dir, id), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return bootstrap
}

func sha256hex(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}
