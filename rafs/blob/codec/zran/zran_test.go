package zran

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// gunzip is the other implementation that the tests of this package hold ours to.
func gunzip(t testing.TB, stream []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// boundaries inflates a stream and returns a context for each of its blocks, which
// goes on to the end of the stream.
func boundaries(t testing.TB, stream, plain []byte) []Context {
	t.Helper()
	z := new(inflater)
	z.in.reset(nil, stream)
	if err := z.readHeader(); err != nil {
		t.Fatal(err)
	}
	o := &output{buf: make([]byte, len(plain))}
	var all []Context
	note := func() {
		last, bits := z.in.pending()
		in := z.in.bytePos()
		dict := o.buf[max(o.start, o.w-v6.MaxZranDict):o.w]
		all = append(all, Context{
			InOffset: uint64(in), OutOffset: uint64(o.w), InLen: uint32(len(stream) - int(in)), OutLen: uint32(len(plain) - o.w),
			Byte: last, Bits: bits, Dict: dict,
		})
	}
	note()
	for {
		ev, err := z.run(o, len(o.buf)+1)
		if err != nil {
			t.Fatal(err)
		}
		if ev == eventBlock {
			note()
			continue
		}
		if _, err := z.readTrailer(); err != nil {
			t.Fatal(err)
		}
		if err := z.readHeader(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		o.start = o.w
		note()
	}
	if !bytes.Equal(o.buf[:o.w], plain) {
		t.Fatal("inflated bytes differ from those of compress/gzip")
	}
	return all
}

// samples are streams of every kind of block, of members, and with every field
// that the header of a member can have.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	var words bytes.Buffer
	for words.Len() < 900_000 {
		fmt.Fprintf(&words, "line %d of %x\n", rnd.IntN(1000), rnd.IntN(1<<20))
	}
	all := map[string][]byte{}
	for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression, gzip.HuffmanOnly} {
		all[fmt.Sprintf("level %d", level)] = member(t, level, nil, words.Bytes(), noise, words.Bytes()[:100], make([]byte, 3<<20))
	}
	header := &gzip.Header{Name: "name", Comment: "comment", Extra: []byte("xx\x04\x00data")}
	two := append(member(t, 6, header, words.Bytes()[:70_000]), member(t, 9, nil)...)
	all["members"] = append(two, member(t, 1, header, noise[:70_000], words.Bytes()[:1000])...)
	return all
}

// member makes a gzip member of parts, each of which ends at a block boundary.
func member(t testing.TB, level int, h *gzip.Header, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if h != nil {
		w.Header = *h
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Every block boundary of every stream is a context, and gives the bytes that
// inflating from the start gives.
func TestDecodeFromEveryBoundary(t *testing.T) {
	streams := samples(t)
	for _, name := range []string{"zlib_sample.txt.gz", "zran-single-stream.tar.gz", "zran-two-streams.tar.gz", "zran-zero-file.tar.gz", "bgzip.tar.gz"} {
		streams[name] = fixture(t, "upstream/zran/"+name)
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			plain := gunzip(t, stream)
			all := boundaries(t, stream, plain)
			for i, c := range all {
				// To the end of the next block and some way into it.
				c.OutLen = uint32(min(len(plain)-int(c.OutOffset), 100_000+i))
				dst := bytes.Repeat([]byte{0x5a}, int(c.OutLen))
				if err := Decode(dst, &c, stream[c.InOffset:]); err != nil {
					t.Fatalf("context %d: %v", i, err)
				}
				if !bytes.Equal(dst, plain[c.OutOffset:][:c.OutLen]) {
					t.Fatalf("context %d at %d: wrong bytes", i, c.OutOffset)
				}
			}
			t.Logf("%d contexts, %d bytes of %d", len(all), len(stream), len(plain))
		})
	}
}

// nydusMeta is the chunk information of fixture v6-targz-ref.
func nydusMeta(t testing.TB) (ci []byte, h v6.MetaHeader) {
	t.Helper()
	b := fixture(t, "nydus-made/blobs/33e9b73491eecd22ec4771e1965d24635d8e5e26d4422144ee590bde3ee2ab4b")
	boot := fixture(t, "nydus-made/images/v6-targz-ref/image.boot")
	super, err := v6.DecodeExtSuper(boot[v6.ExtSuperOffset:])
	if err != nil {
		t.Fatal(err)
	}
	e, err := v6.DecodeBlobEntry(boot[super.BlobTableOffset:])
	if err != nil {
		t.Fatal(err)
	}
	if h, err = v6.DecodeMetaHeader(b[e.CIOffset+e.CICompressedSize:]); err != nil {
		t.Fatal(err)
	}
	ci = b[e.CIOffset:][:e.CICompressedSize]
	if blob.Compressor(e.CICompressor) == blob.CompressorZstd {
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if ci, err = d.DecodeAll(ci, nil); err != nil {
			t.Fatal(err)
		}
	}
	return ci, h
}

func nydusContext(t testing.TB, ci []byte, h *v6.MetaHeader, i uint32) Context {
	t.Helper()
	c, err := v6.DecodeZranContext(ci[h.ZranOffset+uint64(i)*v6.ZranContextSize:])
	if err != nil {
		t.Fatal(err)
	}
	dicts := ci[h.ZranOffset+uint64(h.ZranCount)*v6.ZranContextSize:]
	return Context{
		InOffset: c.InOffset, OutOffset: c.OutOffset, InLen: c.InLen, OutLen: c.OutLen, Byte: c.CtxByte, Bits: c.CtxBits,
		Dict: dicts[c.DictOffset:][:c.DictSize],
	}
}

// The contexts of an image that nydus-image made.
func TestDecodeNydusImage(t *testing.T) {
	stream := fixture(t, "nydus-made/blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")
	plain := gunzip(t, stream)
	ci, h := nydusMeta(t)
	if h.ZranCount == 0 || h.Entries == 0 {
		t.Fatalf("header %+v", h)
	}
	outputs := make([][]byte, h.ZranCount)
	for i := range h.ZranCount {
		c := nydusContext(t, ci, &h, i)
		dst := make([]byte, c.OutLen)
		if err := Decode(dst, &c, stream[c.InOffset:][:c.InLen]); err != nil {
			t.Fatalf("context %d: %v", i, err)
		}
		if !bytes.Equal(dst, plain[c.OutOffset:][:c.OutLen]) {
			t.Errorf("context %d: wrong bytes", i)
		}
		outputs[i] = dst
	}
	boot := fixture(t, "nydus-made/images/v6-targz-ref/image.boot")
	super, err := v6.DecodeExtSuper(boot[v6.ExtSuperOffset:])
	if err != nil || super.ChunkTableSize != uint64(h.Entries)*layout.ChunkRecordSize {
		t.Fatalf("%+v, %v, want %d chunks", super, err, h.Entries)
	}
	digests := map[uint32][32]byte{}
	for b := boot[super.ChunkTableOffset:][:super.ChunkTableSize]; len(b) > 0; b = b[layout.ChunkRecordSize:] {
		c, err := layout.DecodeChunkRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		digests[c.Index] = c.Digest
	}
	for i := range h.Entries {
		c, err := v6.DecodeChunkInfoV2(ci[i*v6.ChunkInfoV2Size:])
		if err != nil {
			t.Fatal(err)
		}
		unit, off := v6.ZranPlace(c.Data)
		sum := sha256.Sum256(outputs[unit][off:][:c.UncompressedSize])
		if sum != digests[i] {
			t.Errorf("chunk %d: digest %x, want %x", i, sum, digests[i])
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	text := []byte(strings.Repeat("some text that is long enough. ", 1000))
	stream := append(member(t, 6, nil, text), member(t, 6, nil, text)...)
	good := Context{InOffset: 10, InLen: uint32(len(stream) - 10), OutLen: uint32(2 * len(text))}
	src := stream[10:]
	if err := Decode(make([]byte, good.OutLen), &good, src); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(c *Context, dst, src *[]byte){
		"bits":            func(c *Context, _, _ *[]byte) { c.Bits = 8 },
		"short output":    func(_ *Context, dst, _ *[]byte) { *dst = (*dst)[1:] },
		"short input":     func(_ *Context, _, src *[]byte) { *src = (*src)[1:] },
		"long dictionary": func(c *Context, _, _ *[]byte) { c.Dict = make([]byte, v6.MaxZranDict+1) },
		"too much output": func(c *Context, dst, _ *[]byte) { c.OutLen++; *dst = make([]byte, c.OutLen) },
		"span":            func(c *Context, dst, _ *[]byte) { c.OutLen = MaxSpan + 1; *dst = make([]byte, c.OutLen) },
		"no input":        func(c *Context, _, src *[]byte) { c.InLen, *src = 0, nil },
		"input ends":      func(c *Context, _, src *[]byte) { c.InLen /= 2; *src = (*src)[:c.InLen] },
		"block type":      func(_ *Context, _, src *[]byte) { *src = append([]byte{7}, (*src)[1:]...) },
		"member's magic":  func(_ *Context, _, src *[]byte) { (*src)[bytes.Index(*src, []byte{0x1f, 0x8b})]++ },
	} {
		t.Run(name, func(t *testing.T) {
			c, dst, in := good, make([]byte, good.OutLen), bytes.Clone(src)
			damage(&c, &dst, &in)
			if err := Decode(dst, &c, in); !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("got %v, want %v", err, blob.ErrCorrupt)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestDecodeMember(t *testing.T) {
	text := []byte(strings.Repeat("some text that is long enough. ", 1000))
	src := append(member(t, 6, &gzip.Header{Name: "name"}, text), "what follows"...)
	for _, size := range []int{0, 1, 1000, len(text)} {
		dst := make([]byte, size)
		if err := DecodeMember(dst, src); err != nil || !bytes.Equal(dst, text[:size]) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	for name, c := range map[string]struct {
		size int
		src  []byte
	}{
		"beyond the member": {len(text) + 1, src},
		"beyond the limit":  {MaxSpan + 1, src},
		"no member":         {5, text},
		"half a member":     {len(text), src[:60]},
		"nothing":           {1, nil},
	} {
		if err := DecodeMember(make([]byte, c.size), c.src); !errors.Is(err, blob.ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// BenchmarkDecode has another implementation, which goes from the start only,
// beside ours.
func BenchmarkDecode(b *testing.B) {
	stream := fixture(b, "nydus-made/blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")
	ci, h := nydusMeta(b)
	c := nydusContext(b, ci, &h, 0)
	src, dst := stream[c.InOffset:][:c.InLen], make([]byte, c.OutLen)
	b.Run("zran", func(b *testing.B) {
		b.SetBytes(int64(len(dst)))
		for b.Loop() {
			if err := Decode(dst, &c, src); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("klauspost", func(b *testing.B) {
		in := bytes.NewReader(nil)
		r := flate.NewReader(in)
		b.SetBytes(int64(len(dst)))
		for b.Loop() {
			in.Reset(src)
			if err := r.(flate.Resetter).Reset(in, nil); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(r, dst); err != nil {
				b.Fatal(err)
			}
		}
	})
}
