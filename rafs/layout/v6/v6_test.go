package v6

import (
	"bytes"
	"strings"
	"testing"
)

// record is one struct of the format in a table of all of them.
type record struct {
	name string
	size int
	// check encodes, measures, decodes and compares; it returns the bytes.
	check func(t *testing.T) []byte
	// short decodes what is too short.
	short func(b []byte) error
	// again decodes any bytes; what can be decoded must survive another round.
	again func(t *testing.T, b []byte)
}

func of[T comparable](name string, size int, v T, app func(*T, []byte) []byte, dec func([]byte) (T, error)) record {
	return record{
		name: name,
		size: size,
		check: func(t *testing.T) []byte {
			b := app(&v, []byte("before"))
			b = b[len("before"):]
			got, err := dec(append(bytes.Clone(b), "after"...))
			if err != nil || got != v {
				t.Errorf("decode(encode(x)):\n got %+v, %v\nwant %+v", got, err, v)
			}
			return b
		},
		short: func(b []byte) error { _, err := dec(b); return err },
		again: func(t *testing.T, b []byte) {
			first, err := dec(b)
			if err != nil {
				return
			}
			c := first
			out := app(&c, nil)
			if second, err := dec(out); err != nil || second != first {
				t.Errorf("%s: decoded %+v from %x\nencoded %x\ndecoded %+v, %v", name, first, b, out, second, err)
			}
		},
	}
}

func chunkInfo(app func(*ChunkInfo, []byte) ([]byte, error)) func(*ChunkInfo, []byte) []byte {
	return func(c *ChunkInfo, b []byte) []byte {
		b, err := app(c, b)
		if err != nil {
			panic(err)
		}
		return b
	}
}

var records = []record{
	of("super", SuperSize, Super{
		Magic: Magic, Checksum: 1, FeatureCompat: FeatureCompatRafs, BlockBits: BlockBits, ExtSlots: 2, RootNID: 128,
		Inos: 3 << 40, BuildTime: 4 << 40, BuildTimeNsec: 5, Blocks: 6, MetaBlkAddr: 7, XattrBlkAddr: 8,
		UUID: [16]byte{9, 15: 10}, Volume: [16]byte{11, 15: 12}, FeatureIncompat: FeatureIncompat,
		Union: 13, ExtraDevices: 14, DevtSlotOff: DeviceSlotPos,
	}, (*Super).Append, DecodeSuper),
	of("extended super", ExtSuperSize, ExtSuper{
		Flags: 1 << 40, BlobTableOffset: 2 << 40, BlobTableSize: 3, ChunkSize: 4, ChunkTableOffset: 5 << 40,
		ChunkTableSize: 6 << 40, PrefetchTableOffset: 7 << 40, PrefetchTableSize: 8,
	}, (*ExtSuper).Append, DecodeExtSuper),
	of("device slot", DeviceSlotSize, DeviceSlot{ID: strings.Repeat("a", IDSize), Blocks: 1, MappedBlkAddr: 2},
		(*DeviceSlot).Append, DecodeDeviceSlot),
	of("blob entry", BlobEntrySize, BlobEntry{
		ID: "short-id", Index: 1, ChunkSize: 2, ChunkCount: 3, Compressor: 4, Digester: 5, Features: 6,
		CompressedSize: 7 << 40, UncompressedSize: 8 << 40, TOCSize: 9, CICompressor: 10, CIOffset: 11 << 40,
		CICompressedSize: 12 << 40, CIUncompressedSize: 13 << 40, TOCDigest: [32]byte{14, 31: 15},
		MetaDigest: [32]byte{16, 31: 17}, MetaSize: 18 << 40, MetaReserved: 19 << 40, Cipher: 20,
	}, (*BlobEntry).Append, DecodeBlobEntry),
	of("compact inode", CompactInodeSize, Inode{
		Layout: LayoutFlatInline, XattrICount: 1, Mode: 0o100644, Nlink: 1<<16 - 1, Size: 1<<32 - 1, U: 2, Ino: 3, UID: 1<<16 - 1, GID: 4,
	}, (*Inode).Append, DecodeInode),
	of("extended inode", ExtendedInodeSize, Inode{
		Extended: true, Layout: LayoutChunkBased, XattrICount: 1, Mode: 0o104755, Nlink: 1 << 16, Size: 1 << 40, U: 2, Ino: 3,
		UID: 1 << 16, GID: 1<<32 - 2, Mtime: -1, MtimeNsec: 999_999_999,
	}, (*Inode).Append, DecodeInode),
	of("chunk address", ChunkAddrSize, ChunkAddr{BlobIndex: 254, ChunkIndex: 0xabcdef, BlkAddr: 1<<32 - 1},
		(*ChunkAddr).Append, DecodeChunkAddr),
	of("dirent", DirentSize, Dirent{NID: 1 << 40, NameOff: 4095, Type: TypeSymlink}, (*Dirent).Append, DecodeDirent),
	of("xattr header", XattrHeaderSize, XattrHeader{NameFilter: 1 << 31, SharedCount: 255}, (*XattrHeader).Append, DecodeXattrHeader),
	of("xattr entry", XattrEntrySize, XattrEntry{NameLen: 255, NameIndex: 6, ValueSize: 1<<16 - 1}, (*XattrEntry).Append, DecodeXattrEntry),
	of("meta header", MetaHeaderSize, MetaHeader{
		Features: 1, CICompressor: 2, Entries: 3, CIOffset: 4 << 40, CICompressedSize: 5 << 40, CIUncompressedSize: 6 << 40,
		ZranOffset: 7 << 40, ZranSize: 8 << 40, ZranCount: 9,
	}, (*MetaHeader).Append, DecodeMetaHeader),
	of("chunk info v1", ChunkInfoV1Size, ChunkInfo{
		UncompressedOffset: 1<<44 - 4096, UncompressedSize: 0xabcdef, CompressedOffset: 1<<40 - 1, CompressedSize: 1 << 24,
	}, chunkInfo((*ChunkInfo).AppendV1), DecodeChunkInfoV1),
	of("chunk info v2", ChunkInfoV2Size, ChunkInfo{
		UncompressedOffset: 1<<44 - 4096, UncompressedSize: 1 << 24, CompressedOffset: 1<<40 - 1, CompressedSize: 1<<24 - 1,
		Flags: ChunkInfoCompressed | ChunkInfoHasCRC32, Data: 1<<64 - 1,
	}, chunkInfo((*ChunkInfo).AppendV2), DecodeChunkInfoV2),
	of("zran context", ZranContextSize, ZranContext{
		InOffset: 1 << 40, OutOffset: 2 << 40, DictOffset: 3 << 40, InLen: 1<<32 - 1, OutLen: 4, DictSize: MaxZranDict, CtxByte: 0xa5, CtxBits: 7,
	}, (*ZranContext).Append, DecodeZranContext),
	of("batch context", BatchContextSize, BatchContext{CompressedSize: 1<<32 - 1, UncompressedSize: 2}, (*BatchContext).Append, DecodeBatchContext),
	of("toc entry", TOCEntrySize, TOCEntry{
		Flags: TOCZstd, Name: SectionMetaHeader, Digest: [32]byte{1, 31: 2}, CompressedOffset: 3 << 40, CompressedSize: 4 << 40, UncompressedSize: 5 << 40,
	}, (*TOCEntry).Append, DecodeTOCEntry),
	of("tar header", TarHeaderSize, TarHeader{Name: SectionTOC, Size: maxTarOctal}, (*TarHeader).Append, DecodeTarHeader),
	of("tar header beyond 8 GiB", TarHeaderSize, TarHeader{Name: SectionData, Size: maxTarOctal + 1}, (*TarHeader).Append, DecodeTarHeader),
}

func TestRecords(t *testing.T) {
	for _, r := range records {
		t.Run(r.name, func(t *testing.T) {
			b := r.check(t)
			if len(b) != r.size {
				t.Errorf("encoded length %d, want %d", len(b), r.size)
			}
			if r.short(b[:len(b)-1]) == nil {
				t.Error("a record one byte short was decoded")
			}
			if r.short(nil) == nil {
				t.Error("no bytes were decoded")
			}
		})
	}
}

// The bit fields of a chunk info are too odd to trust a round trip with: these
// numbers are written out from their definition in nydus storage/src/meta/chunk_info_v1.rs.
func TestChunkInfoV1Bits(t *testing.T) {
	c := ChunkInfo{UncompressedOffset: 0x5000, UncompressedSize: 0x234_567 + 1, CompressedOffset: 0x1234, CompressedSize: 0x9ab_cde + 1}
	b, err := c.AppendV1(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{0x00, 0x52, 0, 0, 0, 0x70, 0x56, 0x34, 0x34, 0x12, 0, 0, 0, 0xe9, 0xcd, 0xab}
	if !bytes.Equal(b, want) {
		t.Errorf("got  %x\nwant %x", b, want)
	}
}

func TestChunkInfoRefuses(t *testing.T) {
	good := ChunkInfo{UncompressedOffset: 4096, UncompressedSize: 1, CompressedOffset: 1, CompressedSize: 1}
	for name, damage := range map[string]func(*ChunkInfo){
		"unaligned offset":    func(c *ChunkInfo) { c.UncompressedOffset++ },
		"offset too large":    func(c *ChunkInfo) { c.UncompressedOffset = 1 << 44 },
		"size zero":           func(c *ChunkInfo) { c.UncompressedSize = 0 },
		"size too large":      func(c *ChunkInfo) { c.UncompressedSize = 1<<24 + 1 },
		"compressed offset":   func(c *ChunkInfo) { c.CompressedOffset = 1 << 40 },
		"compressed too long": func(c *ChunkInfo) { c.CompressedSize = 1<<24 + 1 },
	} {
		c := good
		damage(&c)
		if _, err := c.AppendV1(nil); err == nil {
			t.Errorf("%s: V1 took %+v", name, c)
		}
		if _, err := c.AppendV2(nil); err == nil {
			t.Errorf("%s: V2 took %+v", name, c)
		}
	}
}

func TestTarHeaderRefuses(t *testing.T) {
	h := TarHeader{Name: SectionTOC, Size: 512}
	good := h.Append(nil)
	// Every byte counts for the checksum; raising one by one changes it by one,
	// except in the checksum's own field, where it changes what is expected.
	for i := range good {
		bad := bytes.Clone(good)
		bad[i]++
		got, err := DecodeTarHeader(bad)
		if err == nil && got != h {
			t.Errorf("byte %d raised: got %+v", i, got)
		}
	}
}

func TestXattrNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		index uint8
		rest  string
		ok    bool
	}{
		{"user.a", 1, "a", true},
		{"user.", 0, "", false},
		{"system.posix_acl_access", 2, "", true},
		{"system.posix_acl_access2", 0, "", false},
		{"system.posix_acl_default", 3, "", true},
		{"trusted.overlay.opaque", 4, "overlay.opaque", true},
		{"security.capability", 6, "capability", true},
		{"security." + strings.Repeat("x", 256), 0, "", false},
		{"btrfs.compression", 0, "", false},
	} {
		index, rest, ok := SplitXattr(tt.name)
		if index != tt.index || rest != tt.rest || ok != tt.ok {
			t.Errorf("SplitXattr(%q) = %d, %q, %v, want %d, %q, %v", tt.name, index, rest, ok, tt.index, tt.rest, tt.ok)
		}
		if !ok {
			continue
		}
		if prefix, known := XattrPrefix(index); !known || prefix+rest != tt.name {
			t.Errorf("XattrPrefix(%d) = %q, %v for %q", index, prefix, known, tt.name)
		}
	}
	for _, index := range []uint8{0, 5, 7, 255} {
		if p, ok := XattrPrefix(index); ok {
			t.Errorf("XattrPrefix(%d) = %q", index, p)
		}
	}
}

func TestFileTypes(t *testing.T) {
	for ft := TypeRegular; ft <= TypeSymlink; ft++ {
		if got := TypeOf(ft.Mode() | 0o7777); got != ft {
			t.Errorf("TypeOf(%#o) = %d, want %d", ft.Mode(), got, ft)
		}
	}
	if m := FileType(8).Mode(); m != 0 {
		t.Errorf("FileType(8).Mode() = %#o", m)
	}
	if got := TypeOf(0o644); got != TypeUnknown {
		t.Errorf("TypeOf(0644) = %d", got)
	}
}
