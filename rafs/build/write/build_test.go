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
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
)

var zstdBlake3 = Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd}

// flavour is how an image is made.
type flavour struct {
	Options
	plain   bool // no table of contents in the blobs
	inline  bool // the bootstrap is inside the blob, of which there is one
	packed  bool // uncompressed offsets are not aligned
	v2, crc bool
	batch   uint32
	encrypt bool
	id      string
	cache   bool // write what --blob-cache-dir has

	whiteouts tree.Whiteouts
}

// blobOptions are for blob number i. Its key is a function of that, so that the
// same input gives the same bytes.
func (f *flavour) blobOptions(i int) BlobOptions {
	o := BlobOptions{
		Format: f.Format, Version: f.Version, TOC: !f.plain && f.Version != 5, InlineMeta: f.inline, Packed: f.packed,
		V2: f.v2, Batch: f.batch > 0, ID: f.id,
	}
	if f.encrypt {
		o.Cipher = &Cipher{Key: sha256.Sum256([]byte{byte(i)}), IV: [xts.IVSize]byte{1, 2, 3, byte(i)}}
	}
	return o
}

// built is an image in memory.
type built struct {
	plan      Plan
	bootstrap []byte
	data      map[string][]byte // blobs by id
	cache     map[string][]byte // their uncompressed space, by id
	info      *BlobInfo         // of the last layer
}

// build makes an image of layers, the way convert does, with this many workers.
func build(t testing.TB, o Options, workers int, tars ...[]byte) *built {
	t.Helper()
	return buildAs(t, flavour{Options: o}, workers, tars...)
}

// sparse is a file in memory that is written anywhere.
type sparse []byte

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*s) {
		*s = append(*s, make([]byte, need-len(*s))...)
	}
	return copy((*s)[off:], p), nil
}

// rawLayer is a layer that has been read.
type rawLayer struct {
	layer    *tree.Layer
	table    *chunk.Table
	contexts Contexts
	blob     *Blob
	out      bytes.Buffer
	cache    sparse
}

func readLayer(t testing.TB, f *flavour, pool *chunk.Pool, i int, data []byte) *rawLayer {
	t.Helper()
	l := &rawLayer{}
	o := f.blobOptions(i)
	var err error
	if l.blob, err = NewBlob(&l.out, o); err != nil {
		t.Fatalf("blob: %v", err)
	}
	co := chunk.Options{
		Blob: uint32(i), Compressor: f.Compressor, Digester: f.Digester, Packed: f.packed, BatchSize: f.batch, CRC: f.crc, Cipher: l.blob.key,
		TempDir: t.TempDir(),
	}
	if f.cache {
		co.CacheOut = &l.cache
	}
	cutter, err := chunk.NewCutter(context.Background(), pool, l.blob, co)
	if err != nil {
		t.Fatalf("cutter: %v", err)
	}
	l.layer, err = tree.ReadTar(context.Background(), bytes.NewReader(data), cutter, tree.ReadOptions{TempDir: t.TempDir(), Whiteouts: f.whiteouts})
	table, batches, closeErr := cutter.Close()
	if err != nil || closeErr != nil {
		t.Fatalf("layer %d: %v, %v", i+1, err, closeErr)
	}
	l.table = table
	if f.batch > 0 {
		l.contexts = BatchContexts(batches)
	}
	t.Cleanup(func() { table.Close() })
	return l
}

// buildAs makes an image of a flavour.
func buildAs(t testing.TB, f flavour, workers int, tars ...[]byte) *built {
	t.Helper()
	f.TempDir = t.TempDir()
	pool := chunk.NewPool(workers, len(tars), int(f.ChunkSize))
	layers, infos := make([]*tree.Layer, len(tars)), make([]*BlobInfo, len(tars))
	raws := make([]*rawLayer, len(tars))
	b := &built{data: map[string][]byte{}, cache: map[string][]byte{}}
	for i, data := range tars {
		raws[i] = readLayer(t, &f, pool, i, data)
		layers[i] = raws[i].layer
	}
	merged, err := tree.Merge(context.Background(), t.TempDir(), layers...)
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	t.Cleanup(func() { merged.Close() })
	for i, l := range raws {
		c := Contents{Table: l.table, Contexts: l.contexts}
		if f.inline {
			c.Bootstrap = func(w io.Writer, info *BlobInfo) error {
				b.write(t, merged, []*BlobInfo{info}, f.Options)
				_, err := w.Write(b.bootstrap)
				return err
			}
		}
		if l.table.Len() == 0 && !f.inline {
			continue
		}
		if infos[i], err = l.blob.Finish(c); err != nil {
			t.Fatalf("layer %d: finish: %v", i+1, err)
		}
		b.data[infos[i].Object.ID] = l.out.Bytes()
		if infos[i].ID != infos[i].Object.ID {
			b.data[infos[i].ID] = l.out.Bytes()
		}
		b.cache[infos[i].ID], b.info = l.cache, infos[i]
	}
	if !f.inline {
		b.write(t, merged, infos, f.Options)
	}
	return b
}

// write plans and writes the bootstrap.
func (b *built) write(t testing.TB, merged *tree.Tree, infos []*BlobInfo, o Options) {
	t.Helper()
	plan, err := New(merged, infos, o)
	if err != nil {
		t.Fatalf("plan: %v", err)
	}
	b.plan = plan
	t.Cleanup(func() { plan.Close() })
	var out bytes.Buffer
	if err := Bootstrap(&out, b.plan); err != nil {
		t.Fatalf("bootstrap: %v", err)
	}
	b.bootstrap = out.Bytes()
	if got, want := int64(len(b.bootstrap)), b.plan.Size(); got != want {
		t.Fatalf("bootstrap has %d bytes, the plan says %d", got, want)
	}
}

// uncompressed decodes all chunks of a blob into the layout of a cache file.
func uncompressed(t testing.TB, info *BlobInfo, data []byte) []byte {
	t.Helper()
	out := make([]byte, info.UncompressedSize())
	units := map[uint32][]byte{}
	for r, err := range info.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		dst := out[r.UncompressedOffset:][:r.UncompressedSize]
		if r.Flags&layout.ChunkBatch == 0 {
			decode(t, info, dst, data[r.CompressedOffset:][:r.CompressedSize], r.Flags&layout.ChunkCompressed != 0)
		} else {
			if units[r.Unit] == nil {
				b := info.Contexts.(BatchContexts)[r.Unit]
				units[r.Unit] = make([]byte, b.UncompressedSize)
				decode(t, info, units[r.Unit], data[r.CompressedOffset:][:b.CompressedSize], b.CompressedSize != b.UncompressedSize)
			}
			copy(dst, units[r.Unit][r.UnitOffset:])
		}
		if got := blob.Digester(info.Entry.Digester).Sum(dst); got != r.Digest {
			t.Fatalf("chunk at %#x: digest %v, want %v", r.UncompressedOffset, got, r.Digest)
		}
	}
	return out
}

func decode(t testing.TB, info *BlobInfo, dst, src []byte, compressed bool) {
	t.Helper()
	if info.Entry.Cipher != 0 {
		var err error
		if src, err = keyOf(t, &info.Entry).Decrypt(nil, src); err != nil {
			t.Fatal(err)
		}
	}
	if !compressed || info.Entry.Cipher != 0 && len(dst) < xts.IVSize {
		copy(dst, src) // which may be padded
		return
	}
	if err := codec.Decode(blob.Compressor(info.Entry.Compressor), dst, src); err != nil {
		t.Fatal(err)
	}
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
