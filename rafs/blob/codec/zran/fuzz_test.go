package zran

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// oracle inflates src as Decode has to, by means of the standard library, and
// returns how much of dst it could fill. It takes no bits of a byte before src.
func oracle(dst, src, dict []byte) int {
	in := bytes.NewReader(src)
	n, ended := readUp(dst, flate.NewReaderDict(in, dict))
	for ended && n < len(dst) {
		if k, err := in.Seek(trailerSize, io.SeekCurrent); err != nil || k > int64(len(src)) {
			return n
		}
		// The gzip reader takes the header and nothing of what follows; checksums of
		// members are not for Decode to check.
		if _, err := gzip.NewReader(in); err != nil {
			return n
		}
		var k int
		k, ended = readUp(dst[n:], flate.NewReader(in))
		n += k
	}
	return n
}

// readUp reads into dst and tells whether r has ended as it should.
func readUp(dst []byte, r io.Reader) (n int, ended bool) {
	for n < len(dst) {
		k, err := r.Read(dst[n:])
		n += k
		if err != nil {
			return n, err == io.EOF
		}
	}
	return n, false
}

// FuzzDecode inflates any input with any dictionary, as the standard library does.
func FuzzDecode(f *testing.F) {
	text := []byte(strings.Repeat("a text that repeats. ", 40))
	for _, level := range []int{0, 1, 6, -2} {
		s := member(f, level, nil, text, text[:7], nil)
		f.Add(s[headerSize:], []byte(nil), uint32(len(text)))
		f.Add(append(s[headerSize:], s...), []byte(nil), uint32(2*len(text)))
	}
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, 9, text)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		f.Fatal(err)
	}
	w.Close()
	f.Add(b.Bytes(), text, uint32(len(text)))
	f.Fuzz(func(t *testing.T, src, dict []byte, size uint32) {
		size %= 1 << 18
		if len(src) > 512 && bytes.Contains(src, []byte{0x1f, 0x8b}) {
			return // the standard library bounds a member's name by that, zlib and we do not
		}
		dict = dict[:min(len(dict), v6.MaxZranDict)]
		want, got := make([]byte, size), make([]byte, size)
		n := oracle(want, src, dict)
		err := Decode(got, &Context{InLen: uint32(len(src)), OutLen: size, Dict: dict}, src)
		switch {
		case err == nil && (n < len(want) || !bytes.Equal(got, want)):
			t.Errorf("inflated %d bytes, want %d: %x, want %x", len(got), n, got, want[:n])
		case err != nil && n == len(want) && !stricter(err):
			t.Errorf("want %d bytes, got %v", n, err)
		}
	})
}

// stricter tells of errors that the standard library does not see and zlib does: a
// block with no code for its end, and flags of a gzip header that nobody knows.
func stricter(err error) bool {
	return strings.Contains(err.Error(), "no code for the end of the block") || strings.Contains(err.Error(), "flags 0x")
}

// mended makes a gzip stream of two members, each of them the deflate data at the
// start of raw, and what it inflates to. ok is false if the standard library
// does not inflate raw: then the stream is not one either.
func mended(raw []byte) (stream, plain []byte, ok bool) {
	in := bytes.NewReader(raw)
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(in), 1<<18))
	if err == nil && len(out) < 1<<18 {
		raw, ok = raw[:len(raw)-in.Len()], true
	}
	for range 2 {
		stream = append(stream, 0x1f, 0x8b, methodFlate, 0, 0, 0, 0, 0, 0, 255)
		stream = append(stream, raw...)
		stream = binary.LittleEndian.AppendUint32(stream, crc32.ChecksumIEEE(out))
		stream = binary.LittleEndian.AppendUint32(stream, uint32(len(out)))
		plain = append(plain, out...)
	}
	return stream, plain, ok
}

// rawSeeds are deflate data, each with some of what encoders make.
func rawSeeds(f *testing.F, add func(raw []byte)) {
	text := []byte(strings.Repeat("a text that repeats. ", 40))
	for _, level := range []int{0, 1, 6, -2} {
		add(member(f, level, nil, text, text[:7], nil, text[5:100], text)[headerSize:])
		add(member(f, level, nil, bytes.Repeat(text, 4))[headerSize:])
	}
}

// FuzzBoundaries wants of each stream that the standard library inflates that it
// can be inflated from every one of its blocks too.
func FuzzBoundaries(f *testing.F) {
	rawSeeds(f, func(raw []byte) { f.Add(raw) })
	f.Fuzz(func(t *testing.T, raw []byte) {
		stream, plain, ok := mended(raw)
		if !ok {
			return
		}
		all := boundaries(t, stream, plain)
		for i, c := range all[:min(len(all), 100)] {
			dst := make([]byte, c.OutLen)
			if err := Decode(dst, &c, stream[c.InOffset:]); err != nil {
				t.Fatalf("context %d: %v", i, err)
			}
			if !bytes.Equal(dst, plain[c.OutOffset:]) {
				t.Fatalf("context %d at %d: wrong bytes", i, c.OutOffset)
			}
		}
	})
}

// FuzzIndexer indexes any stream as chunks of any size. What comes out is what the
// standard library inflates, and every chunk is where the index says.
func FuzzIndexer(f *testing.F) {
	rawSeeds(f, func(raw []byte) { f.Add(raw, uint16(100)) })
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		stream, want, ok := mended(raw)
		// Many contexts, which small streams do not have otherwise.
		got, all, pieces, err := index(bytes.NewReader(stream), spanOut-2000, func(bool) int { return 1 + int(size) })
		if (err == nil) != ok {
			t.Fatalf("got %v, the standard library inflates it: %t", err, ok)
		}
		if !ok {
			return
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, want %d", len(got), len(want))
		}
		checkIndex(t, stream, want, all, pieces)
	})
}

// A dictionary is what a match may look back at, and nothing before it.
func TestDecodeWithDictionary(t *testing.T) {
	dict := bytes.Repeat([]byte("0123456789abcdef"), v6.MaxZranDict/16)
	text := append(bytes.Clone(dict[:4000]), "something new"...)
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, 9, dict)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	w.Close()
	c := Context{InLen: uint32(b.Len()), OutLen: uint32(len(text)), Dict: dict}
	got := make([]byte, len(text))
	if err := Decode(got, &c, b.Bytes()); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("got %.20q, %v", got, err)
	}
	c.Dict = dict[len(dict)-10:]
	if err := Decode(got, &c, b.Bytes()); err == nil || !strings.Contains(err.Error(), "distance") {
		t.Errorf("a dictionary that is too short: got %v", err)
	}
}
