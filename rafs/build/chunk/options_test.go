package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
)

// manyFiles are small and large files, some of them twice.
func manyFiles() (files [][]byte) {
	for i := range 300 {
		n := 1 + i*37%3000
		if i%50 == 7 {
			n = 2*size + i
		}
		if i%70 == 8 {
			n = size - i
		}
		files = append(files, random(uint64(i%260), n))
	}
	return files
}

func key(t testing.TB) *xts.Key {
	t.Helper()
	var k [xts.KeySize]byte
	for i := range k {
		k[i] = byte(i)
	}
	c, err := xts.NewKey(k, [xts.IVSize]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unpack decodes a chunk as a reader would that knows the tables alone.
func unpack(t testing.TB, o Options, r Record, batches []Batch, data []byte) []byte {
	t.Helper()
	n, stored := r.UncompressedSize, r.CompressedSize
	if r.Flags&layout.ChunkBatch != 0 {
		n, stored = batches[r.Unit].UncompressedSize, batches[r.Unit].CompressedSize
	}
	src := bytes.Clone(data[r.CompressedOffset:][:stored])
	if r.Flags&layout.ChunkEncrypted != 0 {
		var err error
		if src, err = o.Cipher.Decrypt(nil, src); err != nil {
			t.Fatal(err)
		}
		if stored == 18 && n < 16 && r.Flags&layout.ChunkCompressed == 0 {
			src = src[:n]
		}
	}
	out := src
	if r.Flags&layout.ChunkCompressed != 0 && len(src) != int(n) {
		out = make([]byte, n)
		if err := codec.Decode(o.Compressor, out, src); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
	}
	if r.Flags&layout.ChunkBatch != 0 {
		out = out[r.UnitOffset:][:r.UncompressedSize]
	}
	return out
}

// sparse is an io.WriterAt in memory.
type sparse struct{ data []byte }

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(s.data) {
		s.data = append(s.data, make([]byte, n-len(s.data))...)
	}
	return copy(s.data[off:], p), nil
}

// Whatever the options, files come back, the uncompressed space is without holes,
// the cache file has it, and the bytes are the same with any number of workers.
func TestEveryOption(t *testing.T) {
	files := manyFiles()
	for _, compressor := range []blob.Compressor{blob.CompressorNone, blob.CompressorLZ4Block, blob.CompressorZstd} {
		for mask := range 16 {
			o := Options{Blob: 1, Compressor: compressor, Digester: blob.Digester(mask & 1), CRC: mask&1 != 0, Packed: mask&2 != 0}
			if mask&4 != 0 {
				o.BatchSize = 4096
			}
			if mask&8 != 0 {
				o.Cipher = key(t)
			}
			t.Run(fmt.Sprintf("%v-packed=%t-batch=%d-encrypted=%t", compressor, o.Packed, o.BatchSize, o.Cipher != nil), func(t *testing.T) {
				tryOptions(t, o, files)
			})
		}
	}
}

func tryOptions(t *testing.T, o Options, files [][]byte) {
	t.Helper()
	var cache sparse
	o.CacheOut = &cache
	refs, records, batches, data := cutWith(t, 3, o, files...)
	next := uint64(0)
	for i, r := range records {
		if r.UncompressedOffset != next {
			t.Fatalf("chunk %d at %#x of the uncompressed space, want %#x", i, r.UncompressedOffset, next)
		}
		if next += uint64(r.UncompressedSize); !o.Packed {
			next = (next + Align - 1) / Align * Align
		}
		plain := unpack(t, o, r, batches, data)
		if got := o.Digester.Sum(plain); got != r.Digest {
			t.Fatalf("chunk %d: digest %v, want %v", i, got, r.Digest)
		}
		if !bytes.Equal(plain, cache.data[r.UncompressedOffset:][:len(plain)]) {
			t.Errorf("chunk %d: other bytes in the cache file", i)
		}
		crc, want := r.Flags&layout.ChunkHasCRC32 != 0, o.CRC && r.Flags&layout.ChunkBatch == 0
		if sum := crc32.Checksum(plain, crc32.MakeTable(crc32.Castagnoli)); crc != want || crc && r.CRC32 != sum {
			t.Errorf("chunk %d: checksum %#x (%t), want %#x (%t)", i, r.CRC32, crc, sum, want)
		}
		if got, want := r.Flags&layout.ChunkEncrypted != 0, o.Cipher != nil; got != want {
			t.Errorf("chunk %d: encrypted %t, want %t", i, got, want)
		}
		if got, want := r.Flags&layout.ChunkBatch != 0, r.UncompressedSize < o.BatchSize/2; got && !want {
			t.Errorf("chunk %d of %d bytes is in a batch", i, r.UncompressedSize)
		}
	}
	for i, f := range files {
		var got []byte
		for _, ref := range refs[i] {
			got = append(got, unpack(t, o, records[ref.Index], batches, data)...)
		}
		if !bytes.Equal(got, f) {
			t.Errorf("file %d of %d bytes came back as other %d bytes", i, len(f), len(got))
		}
	}
	_, records1, batches1, data1 := cutWith(t, 1, o, files...)
	if !bytes.Equal(data1, data) || !cmp.Equal(records1, records) || !cmp.Equal(batches1, batches) {
		t.Error("another blob with one worker than with three")
	}
	if (len(batches) > 0) != (o.BatchSize > 0) {
		t.Errorf("%d batches with a batch size of %d", len(batches), o.BatchSize)
	}
}

// The rule of batches, as nydus' builder has it: below half of the batch size, of
// one chunk; a batch stays below its size, and another chunk ends it.
func TestBatches(t *testing.T) {
	o := Options{Compressor: blob.CompressorNone, BatchSize: 4096}
	file := func(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }
	_, records, batches, data := cutWith(t, 2, o,
		file('a', 2047), file('b', 2000), // together one below 4096
		file('c', 49),                  // would make it 4096
		file('a', 2047), file('c', 49), // known
		file('d', 2048),                             // half: alone, ends the batch of c
		file('e', 1),                                // a batch of its own
		file('f', 2*size),                           // ends it; its second half is its first
		file('g', size+1),                           // the tail of a long file is no small file
		file('h', 9), file('d', 2048), file('i', 9), // what is known ends nothing
	)
	type place struct {
		c                byte
		unit, at, offset uint32
	}
	var got []place
	for _, r := range records {
		c := data[r.CompressedOffset+uint64(r.UnitOffset)]
		if r.Flags&layout.ChunkBatch == 0 {
			got = append(got, place{c, 99, uint32(r.CompressedOffset), r.CompressedSize})
		} else {
			got = append(got, place{c, r.Unit, uint32(r.CompressedOffset), r.UnitOffset})
		}
	}
	end := uint32(4047 + 49 + 2048 + 1 + size + size + 1)
	want := []place{
		{'a', 0, 0, 0}, {'b', 0, 0, 2047}, {'c', 1, 4047, 0}, {'d', 99, 4096, 2048}, {'e', 2, 6144, 0},
		{'f', 99, 6145, size}, {'g', 99, 6145 + size, size}, {'g', 99, 6145 + 2*size, 1},
		{'h', 3, end, 0}, {'i', 3, end, 9},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
		t.Errorf("chunks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Batch{{4047, 4047}, {49, 49}, {1, 1}, {18, 18}}, batches); diff != "" {
		t.Errorf("batches (-want +got):\n%s", diff)
	}
}

func TestDictionary(t *testing.T) {
	known, other := random(1, 500), random(2, 500)
	dict := NewIndex(t.TempDir())
	defer dict.Close()
	for i, f := range [][]byte{known, known, random(3, 20)} { // the first stays
		if err := dict.Add(blob.DigesterBlake3.Sum(f), uint32(len(f)), Ref{7, uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	refs, records, _, _ := cutWith(t, 1, Options{Blob: 1, Dict: dict, BatchSize: 4096}, known, other, known, other)
	if diff := cmp.Diff([][]Ref{{{7, 0}}, {{1, 0}}, {{7, 0}}, {{1, 0}}}, refs); diff != "" || len(records) != 1 {
		t.Errorf("%d records, refs (-want +got):\n%s", len(records), diff)
	}
	if ref, ok, err := dict.Lookup(blob.DigesterBlake3.Sum(known), 501); ok || err != nil {
		t.Errorf("another size: got %v, %t, %v", ref, ok, err)
	}
}

// An index finds what was added and nothing else, far beyond what is in memory.
func TestIndex(t *testing.T) {
	const n = 400_000
	index := NewIndex(t.TempDir())
	defer index.Close()
	digest := func(i int) blob.Digest { return blob.DigesterSHA256.Sum(fmt.Append(nil, i)) }
	for i := range n {
		if err := index.Add(digest(i), uint32(i), Ref{uint32(i % 5), uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if index.Len() != n {
		t.Errorf("%d chunks, want %d", index.Len(), n)
	}
	for i := 0; i < 2*n; i += 7 {
		ref, ok, err := index.Lookup(digest(i), uint32(i))
		if err != nil || ok != (i < n) || ok && ref != (Ref{uint32(i % 5), uint32(i)}) {
			t.Fatalf("chunk %d of %d: got %v, %t, %v", i, n, ref, ok, err)
		}
	}
	// Digests that differ only where neither the slot nor the fingerprint looks.
	var a, b blob.Digest
	b[31] = 1
	if err := errors.Join(index.Add(a, 1, Ref{1, 1}), index.Add(b, 1, Ref{2, 2})); err != nil {
		t.Fatal(err)
	}
	if ref, ok, err := index.Lookup(b, 1); !ok || err != nil || ref != (Ref{2, 2}) {
		t.Errorf("digest that is like another: got %v, %t, %v", ref, ok, err)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	pool := NewPool(1, 1, size)
	for _, o := range []Options{{ChunkSize: 2 * size}, {BatchSize: 2 * size}, {ChunkSize: 4096, BatchSize: 8192}} {
		if _, err := NewCutter(context.Background(), pool, io.Discard, o); err == nil {
			t.Errorf("%+v: got no error", o)
		}
	}
}

// What encryption pads may be no shorter for having been compressed. A reader tells
// such a chunk by its size alone.
func TestSmallChunksEncrypted(t *testing.T) {
	var files [][]byte
	for n := 1; n < 40; n++ {
		files = append(files, bytes.Repeat([]byte{byte(n)}, n))
	}
	for _, compressor := range []blob.Compressor{blob.CompressorNone, blob.CompressorLZ4Block, blob.CompressorZstd} {
		o := Options{Compressor: compressor, Cipher: key(t)}
		_, records, batches, data := cutWith(t, 1, o, files...)
		for i, r := range records {
			plain := uint32(xts.Size(int(r.UncompressedSize)))
			if packed := r.Flags&layout.ChunkCompressed != 0; packed && r.CompressedSize >= plain || !packed && r.CompressedSize != plain {
				t.Errorf("%v: %d bytes take %d, compressed: %t; as they are %d", compressor, r.UncompressedSize, r.CompressedSize, packed, plain)
			}
			if r.CompressedSize == plain {
				if got := unpack(t, o, r, batches, data); !bytes.Equal(got, files[i]) {
					t.Errorf("%v: %d bytes came back as %x", compressor, len(files[i]), got)
				}
			}
		}
	}
}
