package targz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), "nydus-made", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// zip makes a gzip stream, of members of size bytes each if that is not 0.
func zip(t testing.TB, level, size int, data []byte) []byte {
	t.Helper()
	if size == 0 {
		size = len(data)
	}
	var b bytes.Buffer
	for first := true; first || len(data) > 0; first = false {
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		n := min(size, len(data))
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	return b.Bytes()
}

func read(t testing.TB, r io.Reader, o Options) *Layer {
	t.Helper()
	o.TempDir = t.TempDir()
	l, err := Read(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// save writes the image of one layer to a folder and returns its bootstrap.
func save(t testing.TB, dir string, stream []byte, l *Layer, o write.BlobOptions) string {
	t.Helper()
	if o.ChunkSize == 0 {
		o.ChunkSize = blob.DefaultChunkSize
	}
	o.Compressor, o.Digester, o.Separate, o.Zran = blob.CompressorGzip, blob.DigesterSHA256, true, l.Contexts != nil
	var meta bytes.Buffer
	b, err := write.NewBlob(&meta, o)
	if err != nil {
		t.Fatal(err)
	}
	contents := write.Contents{Table: l.Table, Data: write.Object{ID: l.ID, Size: l.Size}}
	if l.Contexts != nil {
		contents.Contexts = l.Contexts
	}
	info, err := b.Finish(contents)
	if err != nil {
		t.Fatal(err)
	}
	merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
	l.Tree = nil
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	plan, err := write.New(merged, []*write.BlobInfo{info}, write.Options{Format: o.Format, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var boot bytes.Buffer
	if err := plan.Write(&boot); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.boot")
	for name, data := range map[string][]byte{path: boot.Bytes(), filepath.Join(dir, info.Object.ID): meta.Bytes(), filepath.Join(dir, l.ID): stream} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestImages(t *testing.T) {
	plain := fixture(t, "tars/tarable.tar")
	want := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made/trees/tarable.ndjson"))
	for _, c := range []struct {
		name   string
		stream []byte
		o      write.BlobOptions
	}{
		{"best", zip(t, gzip.BestCompression, 0, plain), write.BlobOptions{}},
		{"fast-toc", zip(t, gzip.BestSpeed, 0, plain), write.BlobOptions{TOC: true}},
		{"stored-64k", zip(t, gzip.NoCompression, 0, plain), write.BlobOptions{Format: write.Format{ChunkSize: 64 << 10}}},
		{"huffman-4k-toc", zip(t, gzip.HuffmanOnly, 0, plain), write.BlobOptions{Format: write.Format{ChunkSize: 4096}, TOC: true}},
		{"members-toc", zip(t, gzip.DefaultCompression, 1_000_000, plain), write.BlobOptions{TOC: true}},
		{"small-members-16m", zip(t, gzip.DefaultCompression, 700, plain), write.BlobOptions{Format: write.Format{ChunkSize: 16 << 20}}},
		{"tar", plain, write.BlobOptions{}},
		{"tar-64k-toc", plain, write.BlobOptions{Format: write.Format{ChunkSize: 64 << 10}, TOC: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := read(t, iotest.HalfReader(bytes.NewReader(c.stream)), Options{ChunkSize: c.o.ChunkSize})
			if sum := fmt.Sprintf("%x", sha256.Sum256(c.stream)); l.ID != sum || l.Size != int64(len(c.stream)) {
				t.Errorf("layer %s of %d bytes, want %s of %d", l.ID, l.Size, sum, len(c.stream))
			}
			dir := t.TempDir()
			path := save(t, dir, c.stream, l, c.o)
			report, err := check.File(t.Context(), path, check.Options{Blobs: check.Folder(dir), Data: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Err(); err != nil {
				t.Error(err)
			}
			im, err := image.Open(path, image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			rafstest.Compare(t, want, rafstest.Tree(im, rafstest.Blobs{dir}))
		})
	}
}

// nydus-image made a blob of the same layer: but for what it knows of compressed
// sizes, the chunk information has to be the same.
func TestChunksAsNydus(t *testing.T) {
	stream := fixture(t, "blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")
	l := read(t, bytes.NewReader(stream), Options{})
	dir := t.TempDir()
	save(t, dir, stream, l, write.BlobOptions{})
	theirs, err := image.Open(filepath.Join(testenv.Fixtures(t), "nydus-made/images/v6-targz-ref/image.boot"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	b := theirs.Blobs()[0]
	if l.Table.Len() != b.ChunkCount || l.Size != int64(b.CompressedSize) || l.ID != b.ID {
		t.Fatalf("%d chunks, %d bytes, id %s; want %+v", l.Table.Len(), l.Size, l.ID, b)
	}
	var contexts bytes.Buffer
	if n, err := l.Contexts.WriteTo(&contexts); err != nil || uint64(n) != l.Contexts.Size() {
		t.Fatalf("%d bytes, %v, want %d", n, err, l.Contexts.Size())
	}
	i := uint32(0)
	for r, err := range l.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		rec, ok := theirs.ChunkRecord(0, i)
		if !ok || rec.Digest != r.Digest || rec.UncompressedOffset != r.UncompressedOffset || rec.UncompressedSize != r.UncompressedSize ||
			rec.CompressedOffset-r.CompressedOffset+8 > 16 || rec.CompressedSize-r.CompressedSize+8 > 16 {
			t.Errorf("chunk %d: got %+v, want %+v", i, r, rec)
		}
		i++
	}
}

// verify looks for each chunk of a layer in what its context inflates to.
func verify(t testing.TB, stream []byte, l *Layer) {
	t.Helper()
	var b bytes.Buffer
	if _, err := l.Contexts.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	dicts := b.Bytes()[l.Contexts.Count()*v6.ZranContextSize:]
	outputs := make([][]byte, l.Contexts.Count())
	for i := range outputs {
		c, err := v6.DecodeZranContext(b.Bytes()[i*v6.ZranContextSize:])
		if err != nil {
			t.Fatal(err)
		}
		outputs[i] = make([]byte, c.OutLen)
		z := zran.Context{InOffset: c.InOffset, InLen: c.InLen, OutLen: c.OutLen, Byte: c.CtxByte, Bits: c.CtxBits, Dict: dicts[c.DictOffset:][:c.DictSize]}
		if err := zran.Decode(outputs[i], &z, stream[c.InOffset:][:c.InLen]); err != nil {
			t.Fatal(err)
		}
	}
	i := 0
	for r, err := range l.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(outputs[r.Unit][r.UnitOffset:][:r.UncompressedSize]); got != r.Digest {
			t.Errorf("chunk %d %+v: digest %x", i, r, got)
		}
		i++
	}
}

type entry struct {
	hdr  tar.Header
	data string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.hdr.Size, e.hdr.Mode = int64(len(e.data)), 0o644
		if err := w.WriteHeader(&e.hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Chunks that the dictionary has are not the layer's, and those that are there
// twice are there once.
func TestDictionary(t *testing.T) {
	known, twice := strings.Repeat("known", 1000), strings.Repeat("twice", 1000)
	stream := zip(t, 6, 0, makeTar(t, entry{tar.Header{Name: "known"}, known}, entry{tar.Header{Name: "a"}, twice},
		entry{tar.Header{Name: "b"}, twice}, entry{tar.Header{Name: "c"}, "third"}))
	dict := chunk.NewIndex(t.TempDir())
	defer dict.Close()
	theirs := chunk.Ref{Blob: 1, Index: 77}
	if err := dict.Add(blob.DigesterSHA256.Sum([]byte(known)), uint32(len(known)), theirs); err != nil {
		t.Fatal(err)
	}
	l := read(t, bytes.NewReader(stream), Options{Blob: 3, Dict: dict})
	verify(t, stream, l)
	if l.Table.Len() != 2 {
		t.Errorf("%d chunks, want 2", l.Table.Len())
	}
	merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
	l.Tree = nil
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for name, want := range map[string]chunk.Ref{"known": theirs, "a": {Blob: 3, Index: 0}, "b": {Blob: 3, Index: 0}, "c": {Blob: 3, Index: 1}} {
		n, ok, err := merged.Lookup(name)
		if err != nil || !ok {
			t.Fatalf("%s: %t, %v", name, ok, err)
		}
		for got, err := range merged.Refs(&n) {
			if err != nil || got != want {
				t.Errorf("%s: chunk %v, %v, want %v", name, got, err, want)
			}
		}
	}
}

func TestSkip(t *testing.T) {
	stream := zip(t, 6, 0, makeTar(t, entry{tar.Header{Name: "gone"}, "content"}, entry{tar.Header{Name: "./gone"}, "again"}, entry{tar.Header{Name: "kept"}, "other"}))
	l := read(t, bytes.NewReader(stream), Options{Skip: func(p string) bool { return p == "gone" }})
	verify(t, stream, l)
	if l.Tree.Entries != 1 || l.Table.Len() != 1 {
		t.Errorf("%d entries, %d chunks, want 1 and 1", l.Tree.Entries, l.Table.Len())
	}
}

// sparseTar is a tar whose one file has holes (GNU format 1.0): 4 KiB of data at 1 MiB.
func sparseTar(t testing.TB) []byte {
	t.Helper()
	var m bytes.Buffer
	fmt.Fprintf(&m, "1\n1048576\n4096\n")
	m.Write(make([]byte, 512-m.Len()))
	m.WriteString(strings.Repeat("d", 4096))
	// The tar writer refuses these records: they go into a plain file first, which is
	// then made a header.
	records := ""
	for _, kv := range [][2]string{{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", "sparse"}, {"GNU.sparse.realsize", "1052672"}} {
		n := len(kv[0]) + len(kv[1]) + 3
		for size := n + 1; ; size++ {
			if line := fmt.Sprintf("%d %s=%s\n", size, kv[0], kv[1]); len(line) == size {
				records += line
				break
			}
		}
	}
	out := makeTar(t, entry{tar.Header{Name: "PaxHeaders/sparse", Typeflag: tar.TypeReg}, records}, entry{tar.Header{Name: "GNUSparseFile/sparse"}, m.String()})
	out[156] = 'x'
	sum := 0
	copy(out[148:156], "        ")
	for _, c := range out[:512] {
		sum += int(c)
	}
	copy(out[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return out
}

func TestRefuses(t *testing.T) {
	good := makeTar(t, entry{tar.Header{Name: "file"}, strings.Repeat("some content. ", 10000)})
	zipped := zip(t, 6, 0, good)
	broken := errors.New("broken")
	damaged := bytes.Clone(zipped)
	damaged[len(damaged)-6] ^= 1
	read := func(ctx context.Context, r io.Reader) (io.Closer, error) {
		return Read(ctx, r, Options{TempDir: t.TempDir()})
	}
	treetest.Refuses(t, read, zipped, map[string]treetest.Bad{
		"sparse":          {R: bytes.NewReader(zip(t, 6, 0, sparseTar(t))), Want: `entry "sparse": sparse file`},
		"plain sparse":    {R: bytes.NewReader(sparseTar(t)), Want: `entry "sparse": sparse file`},
		"zstd":            {R: strings.NewReader("\x28\xb5\x2f\xfd etc."), Want: "compressed by zstd"},
		"checksum":        {R: bytes.NewReader(damaged), Want: "CRC-32"},
		"half":            {R: bytes.NewReader(zipped[:len(zipped)/2]), Want: `entry "file": `},
		"half, plain":     {R: bytes.NewReader(good[:len(good)/2]), Want: `entry "file": unexpected EOF`},
		"no trailer":      {R: bytes.NewReader(zipped[:len(zipped)-8]), Want: "gzip trailer ends"},
		"garbage":         {R: io.MultiReader(bytes.NewReader(zipped), strings.NewReader("garbage, not a member")), Want: "gzip header"},
		"reader":          {R: io.MultiReader(bytes.NewReader(zipped[:100]), iotest.ErrReader(broken)), Want: "broken"},
		"reader at start": {R: iotest.ErrReader(broken), Want: "broken"},
		"name":            {R: bytes.NewReader(zip(t, 6, 0, makeTar(t, entry{tar.Header{Name: "../x"}, "x"}))), Want: `entry "../x"`},
	})
}

// A layer of nothing has nothing, and an end of an archive that is padded is read
// to its end.
func TestEmpty(t *testing.T) {
	empty := makeTar(t)
	for name, stream := range map[string][]byte{
		"no entries": zip(t, 6, 0, empty), "padded": zip(t, 6, 0, append(empty, make([]byte, 100_000)...)), "tar": append(empty, make([]byte, 9000)...),
		"no bytes": nil,
	} {
		t.Run(name, func(t *testing.T) {
			l := read(t, bytes.NewReader(stream), Options{})
			if l.Size != int64(len(stream)) || l.Table.Len() != 0 || l.Tree.Entries != 0 {
				t.Errorf("%d bytes, %d chunks, %d entries; want %d, 0, 0", l.Size, l.Table.Len(), l.Tree.Entries, len(stream))
			}
		})
	}
}

// However the layer arrives, the same comes of it.
func TestSameBytes(t *testing.T) {
	stream := zip(t, gzip.DefaultCompression, 3_000_000, fixture(t, "tars/tarable.tar"))
	var first [32]byte
	for i, r := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream))} {
		l := read(t, r, Options{})
		sum := sha256.New()
		if _, err := l.Contexts.WriteTo(sum); err != nil {
			t.Fatal(err)
		}
		for rec, err := range l.Table.All() {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(sum, rec)
		}
		if got := [32]byte(sum.Sum(nil)); i == 0 {
			first = got
		} else if got != first {
			t.Errorf("reader %d: other chunks or contexts than reader 0", i)
		}
	}
}

// pipe streams a gzip of a tar with one file of noise, which is never stored.
func pipe(t testing.TB, size int64) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		z, err := gzip.NewWriterLevel(w, gzip.NoCompression)
		if err != nil {
			panic(err) // the level is a constant
		}
		a := tar.NewWriter(z)
		err = a.WriteHeader(&tar.Header{Name: "noise", Mode: 0o644, Size: size})
		if err == nil {
			_, err = io.CopyN(a, rand.NewChaCha8([32]byte{}), size)
		}
		w.CloseWithError(errors.Join(err, a.Close(), z.Close()))
	}()
	return r
}

// What is kept of a layer is not in memory: its dictionaries alone would be more
// than all that is allowed.
func TestMemory(t *testing.T) {
	const size, allowed = 192 << 20, 2 << 20
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	l := read(t, pipe(t, size), Options{})
	if l.Contexts.Size() < 2*allowed {
		t.Fatalf("contexts of %d bytes show nothing", l.Contexts.Size())
	}
	if after := heap(); after > before+allowed {
		t.Errorf("%d bytes more than before, want at most %d", after-before, allowed)
	}
	runtime.KeepAlive(l)
}

// FuzzRead reads any tar, plain and compressed: the same trees and chunks come of
// it, and chunks of the latter are where they are said to be.
func FuzzRead(f *testing.F) {
	f.Add(makeTar(f, entry{tar.Header{Name: "a"}, strings.Repeat("content ", 2000)}, entry{tar.Header{Name: "b/c"}, "x"}), uint16(1000), int8(6))
	f.Add(sparseTar(f), uint16(0), int8(1))
	f.Add([]byte("no tar"), uint16(0), int8(0))
	f.Fuzz(func(t *testing.T, data []byte, size uint16, level int8) {
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) || len(data) > 1<<16 {
			return
		}
		stream := zip(t, int(uint8(level)%10), max(int(size), 512)*int(size&1), data)
		o := Options{ChunkSize: 4096, TempDir: t.TempDir()}
		want, wantErr := Read(t.Context(), bytes.NewReader(data), o)
		got, err := Read(t.Context(), bytes.NewReader(stream), o)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("compressed: %v, plain: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		defer want.Close()
		defer got.Close()
		if got.Table.Len() != want.Table.Len() || got.Tree.Entries != want.Tree.Entries {
			t.Fatalf("compressed: %d chunks, %d entries, plain: %d, %d", got.Table.Len(), got.Tree.Entries, want.Table.Len(), want.Tree.Entries)
		}
		for i := range want.Table.Len() {
			r, err := want.Table.Record(i)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(data[r.CompressedOffset:][:r.CompressedSize]); sum != r.Digest || r.CompressedSize != r.UncompressedSize {
				t.Errorf("plain: chunk %d %+v, digest %x", i, r, sum)
			}
			if c, err := got.Table.Record(i); err != nil || c.Digest != r.Digest || c.UncompressedOffset != r.UncompressedOffset {
				t.Errorf("compressed: chunk %d %+v, %v, plain: %+v", i, c, err, r)
			}
		}
		verify(t, stream, got)
	})
}
