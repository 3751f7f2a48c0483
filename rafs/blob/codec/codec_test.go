package codec_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
)

var compressors = []blob.Compressor{blob.CompressorNone, blob.CompressorLZ4Block, blob.CompressorZstd}

// sample gives n bytes that compress about three to one.
func sample(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte('a' + r.IntN(6))
	}
	return p
}

func random(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestRoundTrip(t *testing.T) {
	for _, c := range compressors {
		for _, src := range [][]byte{
			{}, {7}, bytes.Repeat([]byte{0}, 4096), sample(1, 1), sample(100, 2), sample(4096, 3),
			sample(1<<20, 4), random(4096, 5), random(100_000, 6), make([]byte, blob.MaxChunkSize),
		} {
			out, compressed, err := codec.Encode(c, nil, src)
			if err != nil {
				t.Fatalf("%v: encode %d bytes: %v", c, len(src), err)
			}
			if compressed != (len(out) < len(src)) {
				t.Errorf("%v: %d bytes from %d: compressed = %v", c, len(out), len(src), compressed)
			}
			how := c
			if !compressed {
				how = blob.CompressorNone
			}
			got := make([]byte, len(src))
			if err := codec.Decode(how, got, out); err != nil {
				t.Fatalf("%v: decode %d bytes: %v", c, len(src), err)
			}
			if !bytes.Equal(got, src) {
				t.Errorf("%v: %d bytes came back different", c, len(src))
			}
		}
	}
}

func TestEncodeIsRepeatableAndUsesDst(t *testing.T) {
	src := sample(1<<20, 9)
	for _, c := range compressors[1:] {
		first, _, err := codec.Encode(c, nil, src)
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]byte, 0, 2<<20)
		second, _, err := codec.Encode(c, dst, src)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Errorf("%v: two encodings of one chunk differ", c)
		}
		if &second[0] != &dst[:1][0] {
			t.Errorf("%v: dst has room and was not used", c)
		}
	}
}

func TestDecodeRefusesWrongSizes(t *testing.T) {
	src := sample(10_000, 11)
	for _, c := range compressors {
		enc, compressed, err := codec.Encode(c, nil, src)
		if err != nil {
			t.Fatal(err)
		}
		if compressed == (c == blob.CompressorNone) {
			t.Fatalf("%v: compressed = %v", c, compressed)
		}
		for _, n := range []int{0, 1, len(src) - 1, len(src) + 1, 2 * len(src)} {
			// The guard behind dst must stay as it is.
			buf := bytes.Repeat([]byte{0xa5}, n+256)
			err := codec.Decode(c, buf[:n:n], enc)
			if !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("%v: decode %d bytes into %d: %v, want ErrCorrupt", c, len(src), n, err)
			}
			if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xa5}, 256)) {
				t.Errorf("%v: decode %d bytes into %d wrote past the end", c, len(src), n)
			}
		}
		for _, cut := range []int{0, 1, len(enc) / 2, len(enc) - 1} {
			if err := codec.Decode(c, make([]byte, len(src)), enc[:cut]); !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("%v: decode of %d of %d bytes: %v, want ErrCorrupt", c, cut, len(enc), err)
			}
		}
	}
}

func TestDecodeRefusesLargeWindow(t *testing.T) {
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	var frame bytes.Buffer
	w.Reset(&frame)
	// Written in parts, so that the frame does not know its size and names the window.
	for range 40 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	err = codec.Decode(blob.CompressorZstd, make([]byte, 1<<20), frame.Bytes())
	if !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("frame with a window of 64 MiB: %v, want ErrCorrupt", err)
	}
}

func TestUnsupportedAndTooLarge(t *testing.T) {
	if err := codec.Decode(99, make([]byte, 1), []byte{1}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("decode %v: %v, want ErrUnsupported", blob.Compressor(99), err)
	}
	for _, c := range []blob.Compressor{blob.CompressorGzip, 99} {
		if _, _, err := codec.Encode(c, nil, []byte{1}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("encode %v: %v, want ErrUnsupported", c, err)
		}
	}
	big := make([]byte, blob.MaxChunkSize+1)
	if err := codec.Decode(blob.CompressorNone, big, big); !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("decode %d bytes: %v, want ErrCorrupt", len(big), err)
	}
	if _, _, err := codec.Encode(blob.CompressorZstd, nil, big); err == nil {
		t.Errorf("encode %d bytes: no error", len(big))
	}
}

// gz is a gzip stream of one member.
func gz(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGzip(t *testing.T) {
	src := sample(10_000, 12)
	enc := gz(t, src)
	for name, in := range map[string][]byte{
		"exact": enc, "another member behind": append(bytes.Clone(enc), gz(t, src)...), "zeros behind": append(bytes.Clone(enc), 0, 0, 0),
		"longer": gz(t, append(bytes.Clone(src), "more"...)),
	} {
		got := make([]byte, len(src))
		if err := codec.Decode(blob.CompressorGzip, got, in); err != nil || !bytes.Equal(got, src) {
			t.Errorf("%s: %v, %d bytes", name, err, len(got))
		}
	}
	for name, in := range map[string][]byte{
		"nothing": nil, "no gzip": src, "shorter": gz(t, src[:9_999]), "cut": enc[:len(enc)/2], "damaged": append(bytes.Clone(enc[:12]), 0xff, 0xff, 0xff),
		"the rest in another member": append(gz(t, src[:5000]), gz(t, src[5000:])...),
	} {
		if err := codec.Decode(blob.CompressorGzip, make([]byte, len(src)), in); !errors.Is(err, blob.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint32(blob.CompressorGzip), uint32(3000), gz(f, sample(3000, 1)))
	for _, c := range compressors {
		enc, _, err := codec.Encode(c, nil, sample(3000, 1))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint32(c), uint32(3000), enc)
		f.Add(uint32(c), uint32(2999), enc)
	}
	f.Fuzz(func(t *testing.T, c, size uint32, src []byte) {
		n := int(size % (1 << 17))
		buf := bytes.Repeat([]byte{0xa5}, n+64)
		err := codec.Decode(blob.Compressor(c), buf[:n:n], src)
		if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xa5}, 64)) {
			t.Fatalf("compressor %d wrote past %d bytes", c, n)
		}
		if err != nil {
			return
		}
		// What decodes must decode to the same bytes again, whatever lay in dst.
		again := bytes.Repeat([]byte{0x5a}, n)
		if err := codec.Decode(blob.Compressor(c), again, src); err != nil || !bytes.Equal(again, buf[:n]) {
			t.Fatalf("compressor %d: second decode differs: %v", c, err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add(uint32(1), []byte("hello hello hello hello"))
	f.Add(uint32(3), sample(5000, 3))
	f.Fuzz(func(t *testing.T, n uint32, src []byte) {
		c := compressors[n%3]
		enc, compressed, err := codec.Encode(c, nil, src)
		if err != nil {
			t.Fatal(err)
		}
		if !compressed {
			c = blob.CompressorNone
		} else if len(enc) >= len(src) {
			t.Fatalf("%v: compressed %d bytes to %d", c, len(src), len(enc))
		}
		got := make([]byte, len(src))
		if err := codec.Decode(c, got, enc); err != nil || !bytes.Equal(got, src) {
			t.Fatalf("%v: %d bytes: %v", c, len(src), err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	src := sample(1<<20, 4)
	for _, c := range compressors {
		enc, _, err := codec.Encode(c, nil, src)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.String(), func(b *testing.B) {
			dst := make([]byte, len(src))
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for b.Loop() {
				if err := codec.Decode(c, dst, enc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
