package v6

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzRecords holds every struct of the format against its own encoder.
func FuzzRecords(f *testing.F) {
	for i, r := range records {
		f.Add(uint8(i), r.check(&testing.T{}))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		records[int(which)%len(records)].again(t, b)
	})
}

// FuzzBlobMeta decodes a blob's chunk information and its header and wants the
// same bytes back, save those that have no meaning.
func FuzzBlobMeta(f *testing.F) {
	info := ChunkInfo{UncompressedOffset: 0x5000, UncompressedSize: 1 << 20, CompressedOffset: 77, CompressedSize: 1 << 19}
	v1, _ := info.AppendV1(nil)
	v2, _ := info.AppendV2(nil)
	header := MetaHeader{Entries: 1, CIOffset: 1 << 20, CICompressedSize: 16, CIUncompressedSize: 16}
	f.Add(header.Append(v1))
	f.Add(header.Append(v2))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= ChunkInfoV1Size {
			c, err := DecodeChunkInfoV1(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.AppendV1(nil)
			want := bytes.Clone(b[:ChunkInfoV1Size])
			want[0] = 0 // the low 8 bits mean nothing
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("V1 %+v: encoded %x, %v, want %x", c, got, err, want)
			}
			if c.UncompressedOffset+uint64(c.UncompressedSize) > 1<<44+1<<24 || c.CompressedOffset+uint64(c.CompressedSize) > 1<<40+1<<24 {
				t.Errorf("V1 out of bounds: %+v", c)
			}
		}
		if len(b) >= ChunkInfoV2Size {
			c, err := DecodeChunkInfoV2(b)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := c.AppendV2(nil); err != nil || !bytes.Equal(got, b[:ChunkInfoV2Size]) {
				t.Errorf("V2 %+v: encoded %x, %v, want %x", c, got, err, b[:ChunkInfoV2Size])
			}
		}
		if len(b) < MetaHeaderSize {
			return
		}
		b = b[len(b)-MetaHeaderSize:]
		h, err := DecodeMetaHeader(b)
		if err != nil {
			return
		}
		want := bytes.Clone(b)
		clear(want[60 : MetaHeaderSize-4])
		if got := h.Append(nil); !bytes.Equal(got, want) {
			t.Errorf("header %+v: encoded %x, want %x", h, got[:64], want[:64])
		}
	})
}

// FuzzTOC decodes a table of contents and wants the same bytes back, save those
// that have no meaning.
func FuzzTOC(f *testing.F) {
	var toc []byte
	for i, name := range []string{SectionData, SectionMeta, SectionMetaHeader, SectionChunkDigest, SectionBootstrap} {
		e := TOCEntry{Flags: TOCZstd, Name: name, Digest: [32]byte{byte(i)}, CompressedOffset: uint64(i) << 20, CompressedSize: 1 << 20, UncompressedSize: 1 << 21}
		toc = e.Append(toc)
	}
	f.Add(toc)
	f.Add(toc[:TOCEntrySize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := DecodeTOC(b)
		if err != nil {
			return
		}
		if len(entries)*TOCEntrySize != len(b) {
			t.Fatalf("%d entries of %d bytes", len(entries), len(b))
		}
		for i, e := range entries {
			want := bytes.Clone(b[i*TOCEntrySize:][:TOCEntrySize])
			clear(want[4:8])
			clear(want[80:])
			if got := e.Append(nil); !bytes.Equal(got, want) {
				t.Errorf("entry %d %+v: encoded %x, want %x", i, e, got, want)
			}
		}
	})
}

// FuzzTarTrailer decodes a tar header. A writer may spell numbers in several
// ways, so it is the second round that must give the same bytes.
func FuzzTarTrailer(f *testing.F) {
	for _, h := range []TarHeader{{SectionTOC, 640}, {SectionData, 0}, {SectionBootstrap, 1 << 40}, {"", 1<<63 - 1}} {
		f.Add(h.Append(nil), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend && len(b) >= TarHeaderSize {
			// Most damage ends at the checksum; this is what lies behind it.
			b = bytes.Clone(b)
			p := (*[TarHeaderSize]byte)(b)
			binary.BigEndian.PutUint64(p[tarSumAt:], 0)
			sum := tarSum(p)
			for i := 6; i >= 0; i-- {
				p[tarSumAt+i] = '0' + byte(sum&7)
				sum >>= 3
			}
		}
		h, err := DecodeTarHeader(b)
		if err != nil {
			return
		}
		if h.Size > 1<<63-1 || len(h.Name) > tarNameSize || bytes.IndexByte([]byte(h.Name), 0) >= 0 {
			t.Fatalf("out of bounds: %+v", h)
		}
		first := h.Append(nil)
		again, err := DecodeTarHeader(first)
		if err != nil || again != h || !bytes.Equal(again.Append(nil), first) {
			t.Errorf("%+v: encoded %x, decoded %+v, %v", h, first, again, err)
		}
	})
}
