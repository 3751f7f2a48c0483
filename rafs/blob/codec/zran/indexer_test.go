package zran

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/rafsd/rafsd/rafs/blob"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// piece is a chunk that a test has announced.
type piece struct {
	Place
	out, size int // in the inflated stream
}

// index reads a stream to its end as chunks and gaps in turn, whose sizes next
// gives, and returns what the stream is and what was noted.
func index(stream io.Reader, chunkSize uint32, next func(gap bool) int) (plain []byte, all []Context, pieces []piece, err error) {
	x, err := NewIndexer(stream, func(c *Context) error {
		kept := *c
		kept.Dict = bytes.Clone(c.Dict)
		all = append(all, kept)
		return nil
	})
	if err != nil {
		return nil, nil, nil, err
	}
	for gap := true; ; gap = !gap {
		buf := make([]byte, next(gap))
		if !gap {
			if err := x.Begin(chunkSize); err != nil {
				return plain, all, pieces, err
			}
		}
		n, err := io.ReadFull(x, buf)
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		if !gap && n > 0 {
			p, err := x.End()
			if err != nil {
				return plain, all, pieces, err
			}
			pieces = append(pieces, piece{p, len(plain), n})
		}
		plain = append(plain, buf[:n]...)
		if err == io.EOF {
			return plain, all, pieces, x.Finish()
		}
		if err != nil {
			return plain, all, pieces, err
		}
	}
}

// checkIndex decodes all contexts and looks for the chunks in them.
func checkIndex(t testing.TB, stream, plain []byte, all []Context, pieces []piece) {
	t.Helper()
	outputs := make([][]byte, len(all))
	for i, c := range all {
		if c.OutLen == 0 {
			continue // its chunk had no byte
		}
		dst := make([]byte, c.OutLen)
		if err := Decode(dst, &c, stream[c.InOffset:][:c.InLen]); err != nil {
			t.Fatalf("context %d: %v", i, err)
		}
		if !bytes.Equal(dst, plain[c.OutOffset:][:c.OutLen]) {
			t.Fatalf("context %d at %d: wrong bytes", i, c.OutOffset)
		}
		outputs[i] = dst
		if i > 0 && (c.InOffset <= all[i-1].InOffset || c.InOffset+uint64(c.InLen) < all[i-1].InOffset+uint64(all[i-1].InLen)) {
			t.Errorf("context %d %d+%d goes back behind %d+%d", i, c.InOffset, c.InLen, all[i-1].InOffset, all[i-1].InLen)
		}
	}
	for i, p := range pieces {
		c := all[p.Context]
		if got := outputs[p.Context][p.Offset:][:p.size]; !bytes.Equal(got, plain[p.out:][:p.size]) {
			t.Fatalf("chunk %d of %d bytes: wrong bytes in context %d at %d", i, p.size, p.Context, p.Offset)
		}
		if p.InOffset < c.InOffset || p.InOffset+uint64(p.InLen) > c.InOffset+uint64(c.InLen) {
			t.Errorf("chunk %d %d+%d is not in context %d, %d+%d", i, p.InOffset, p.InLen, p.Context, c.InOffset, c.InLen)
		}
	}
}

func TestIndexer(t *testing.T) {
	streams := samples(t)
	for _, name := range []string{"zlib_sample.txt.gz", "zran-single-stream.tar.gz", "zran-two-streams.tar.gz", "zran-zero-file.tar.gz", "bgzip.tar.gz"} {
		streams[name] = fixture(t, "upstream/zran/"+name)
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			want := gunzip(t, stream)
			for _, size := range []int{1000, 40_000, 1 << 20} {
				rnd := rand.New(rand.NewPCG(uint64(size), 0))
				r := io.Reader(bytes.NewReader(stream))
				if size == 1000 {
					r = iotest.HalfReader(r)
				}
				got, all, pieces, err := index(r, 1<<20, func(bool) int { return 1 + rnd.IntN(size) })
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%d bytes differ from the %d of compress/gzip", len(got), len(want))
				}
				checkIndex(t, stream, want, all, pieces)
				t.Logf("%d contexts of %d chunks in %d bytes of %d", len(all), len(pieces), len(stream), len(want))
			}
		})
	}
}

func TestReader(t *testing.T) {
	streams := samples(t)
	streams["bgzip"] = fixture(t, "upstream/zran/bgzip.tar.gz")
	for name, stream := range streams {
		r, err := NewReader(iotest.HalfReader(bytes.NewReader(stream)))
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, gunzip(t, stream)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewReader(strings.NewReader("no gzip stream")); !errors.Is(err, errFormat) {
		t.Errorf("no gzip stream: got %v", err)
	}
	r, err := NewReader(bytes.NewReader(streams["level 9"][:5000]))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: got %v", err)
	}
}

// nydus-image indexed the same layer: the same contexts have to come out, but that
// it looks one symbol further at the end of a chunk.
func TestIndexerAsNydus(t *testing.T) {
	stream := fixture(t, "nydus-made/blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")
	ci, h := nydusMeta(t)
	var all []Context
	x, err := NewIndexer(bytes.NewReader(stream), func(c *Context) error {
		kept := *c
		kept.Dict = bytes.Clone(c.Dict)
		all = append(all, kept)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	places := map[Place]bool{}
	for tr := tar.NewReader(x); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for left := hdr.Size; left > 0; left -= blob.DefaultChunkSize {
			if err := x.Begin(blob.DefaultChunkSize); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, tr, min(left, blob.DefaultChunkSize)); err != nil {
				t.Fatal(err)
			}
			p, err := x.End()
			if err != nil {
				t.Fatal(err)
			}
			p.InOffset, p.InLen = 0, 0
			places[p] = true
		}
	}
	if err := x.Finish(); err != nil {
		t.Fatal(err)
	}
	if len(all) != int(h.ZranCount) {
		t.Fatalf("%d contexts, want %d", len(all), h.ZranCount)
	}
	for i, got := range all {
		want := nydusContext(t, ci, &h, uint32(i))
		if want.Bits == 0 {
			got.Byte = want.Byte
		}
		if !bytes.Equal(got.Dict, want.Dict) || got.InOffset != want.InOffset || got.OutOffset != want.OutOffset ||
			got.OutLen != want.OutLen || got.Bits != want.Bits || got.Byte != want.Byte || want.InLen-got.InLen > 6 {
			got.Dict, want.Dict = nil, nil
			t.Errorf("context %d: got %+v, want %+v", i, got, want)
		}
	}
	for i := range h.Entries {
		c, err := v6.DecodeChunkInfoV2(ci[i*v6.ChunkInfoV2Size:])
		if err != nil {
			t.Fatal(err)
		}
		unit, off := v6.ZranPlace(c.Data)
		if !places[Place{Context: unit, Offset: off}] {
			t.Errorf("chunk %d: none of ours is in context %d at %d", i, unit, off)
		}
	}
}

// A chunk that is a member of its own, as eStargz has them, does not depend on
// the members before; and its context goes on to where zlib, which sees the end of
// the member in the chunk's last byte, can stop: a byte of the next member's data.
func TestIndexerAtMembers(t *testing.T) {
	var stream []byte
	var sizes []int
	for i := range 40 {
		part := bytes.Repeat([]byte{byte(i)}, 600_000+i)
		stream = append(stream, member(t, 6, &gzip.Header{Name: "head"}, []byte(strings.Repeat("h", 512)))...)
		stream = append(stream, member(t, 6, nil, part)...)
		sizes = append(sizes, 512, len(part))
	}
	stream = append(stream, member(t, 6, nil, make([]byte, 1024))...)
	i := 0
	plain, all, pieces, err := index(bytes.NewReader(stream), 1<<20, func(bool) int {
		if i++; i <= len(sizes) {
			return sizes[i-1]
		}
		return 1025
	})
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, stream, plain, all, pieces)
	if len(all) < 10 {
		t.Fatalf("%d contexts", len(all))
	}
	for i, c := range all {
		if len(c.Dict) != 0 || c.Bits != 0 {
			t.Errorf("context %d at %d has a dictionary of %d bytes and %d bits", i, c.InOffset, len(c.Dict), c.Bits)
		}
		end := c.InOffset + uint64(c.InLen)
		if tail := stream[:end]; !bytes.HasSuffix(tail[:len(tail)-1], []byte("head\x00")) && i+1 < len(all) {
			t.Errorf("context %d ends with %q", i, tail[len(tail)-20:])
		}
	}
}

func TestIndexerRefuses(t *testing.T) {
	text := []byte(strings.Repeat("some text that is long enough. ", 1000))
	good := member(t, 6, nil, text)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		stream io.Reader
		want   error
	}{
		"empty":      {bytes.NewReader(nil), io.ErrUnexpectedEOF},
		"no gzip":    {strings.NewReader("not a gzip stream"), errFormat},
		"half":       {bytes.NewReader(good[:len(good)/2]), io.ErrUnexpectedEOF},
		"no trailer": {bytes.NewReader(good[:len(good)-4]), io.ErrUnexpectedEOF},
		"checksum":   {bytes.NewReader(append(bytes.Clone(good[:len(good)-8]), make([]byte, 8)...)), errFormat},
		"garbage":    {bytes.NewReader(append(bytes.Clone(good), "garbage behind it"...)), errFormat},
		"reader":     {io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(broken)), broken},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, _, err := index(c.stream, 1<<20, func(bool) int { return 5000 })
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// One block of more than a context can hold is refused, not indexed.
func TestIndexerBlockTooLong(t *testing.T) {
	// A block with fixed codes: a zero, then as many matches of 258 bytes one byte
	// back as give 20 MiB. Each is 8 bits, code 285, and 5 bits, distance 1.
	var b []byte
	var acc, n uint
	put := func(v, k uint) {
		for acc, n = acc|v<<n, n+k; n >= 8; acc, n = acc>>8, n-8 {
			b = append(b, byte(acc))
		}
	}
	put(0b011, 3)        // last block, fixed codes
	put(0b00001100, 8)   // literal 0: 00110000
	for range 20 << 12 { // 285: 11000101
		put(0b10100011, 8)
		put(0, 5)
	}
	stream := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, b...)
	var pieces []piece
	_, _, pieces, err := index(bytes.NewReader(stream), 1<<20, func(gap bool) int { return 1 << 20 })
	if !errors.Is(err, errSpan) || len(pieces) != 8 {
		t.Errorf("%d chunks, then %v, want 8 and %v", len(pieces), err, errSpan)
	}
}

func BenchmarkReader(b *testing.B) {
	stream := fixture(b, "upstream/zran/bgzip.tar.gz")
	stream = append(stream, fixture(b, "nydus-made/blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")...)
	size := len(gunzip(b, stream))
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"zran": NewReader, "klauspost": func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				r, err := open(bytes.NewReader(stream))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(struct{ io.Writer }{io.Discard}, r); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkIndexer(b *testing.B) {
	stream := fixture(b, "nydus-made/blobs/ebd087b364b77902750e774d5273f2990038e511302077c3c0b5930802052598")
	size := len(gunzip(b, stream))
	buf := make([]byte, blob.DefaultChunkSize)
	b.SetBytes(int64(size))
	for b.Loop() {
		x, err := NewIndexer(bytes.NewReader(stream), func(*Context) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			if err = x.Begin(blob.DefaultChunkSize); err == nil {
				if _, err = io.ReadFull(x, buf); err == nil {
					_, err = x.End()
				}
			}
		}
	}
}
