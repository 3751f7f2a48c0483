package image_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// slot5 is the offset of the entry of a path in the inode table of v5, record5
// that of the inode itself.
func (b *boot) slot5(path string) uint64 { return v5.SuperSize + (b.node(path)-1)*v5.TableEntrySize }

func (b *boot) record5(path string) uint64 {
	return uint64(binary.LittleEndian.Uint32(b.b[b.slot5(path):])) * v5.Align
}

// chunk5 is the offset of chunk record i of a file without xattrs.
func (b *boot) chunk5(path string, i uint64) uint64 {
	off := b.record5(path)
	in, err := v5.DecodeInode(b.b[off:])
	if err != nil || in.Flags != 0 {
		b.Fatalf("%s: %+v, %v", path, in, err)
	}
	return off + in.XattrOffset() + i*layout.ChunkRecordSize
}

func (b *boot) super5(off uint64) uint64 { return binary.LittleEndian.Uint64(b.b[off:]) }

const mixed = "/sizes/mixed-2m"

func TestV5Superblock(t *testing.T) {
	checkRules(t, "v5-zstd-blake3", []rule{
		{"magic", func(b *boot) { b.b[0] ^= 1 }, image.ErrCorrupt, "magic"},
		{"version", func(b *boot) { b.u32(4, 0x400) }, image.ErrUnsupported, "version 0x400"},
		{"superblock size", func(b *boot) { b.u32(8, 4096) }, image.ErrCorrupt, "superblock of 4096"},
		{"length", func(b *boot) { b.b = b.b[:len(b.b)-4] }, image.ErrCorrupt, "multiple of 8"},
		{"chunk size", func(b *boot) { b.u32(12, 1<<20+1) }, image.ErrCorrupt, "chunk size 0x100001"},
		{"two compressors", func(b *boot) { b.b[16] |= 1 }, image.ErrCorrupt, "compressor"},
		{"unknown flag", func(b *boot) { b.b[20] |= 1 }, image.ErrUnsupported, "unknown flags"},
		{"no inodes", func(b *boot) { b.u64(24, 0) }, image.ErrCorrupt, "0 inodes"},
		{"too many inodes", func(b *boot) { b.u64(24, 1<<40) }, image.ErrCorrupt, "inodes in a table of"},
		{"huge inode table", func(b *boot) { b.u32(56, 1<<24+1) }, image.ErrCorrupt, "limit 16777216"},
		{"inode table outside", func(b *boot) { b.u64(32, 1<<63) }, image.ErrCorrupt, "ends beyond"},
		{"inode table in superblock", func(b *boot) { b.u64(32, 4096) }, image.ErrCorrupt, "overlaps superblock"},
		{"inode table unaligned", func(b *boot) { b.u64(32, 8196) }, image.ErrCorrupt, "not aligned"},
		{"blob table over inodes", func(b *boot) { b.u64(48, v5.SuperSize) }, image.ErrCorrupt, "overlaps inode table"},
		{"extended blob table outside", func(b *boot) { b.u64(72, uint64(len(b.b))) }, image.ErrCorrupt, "ends beyond"},
		{"prefetch table outside", func(b *boot) { b.u32(60, 1<<31) }, image.ErrCorrupt, "ends beyond"},
		{"blob count", func(b *boot) { b.u32(64, 0) }, image.ErrCorrupt, "for 0 blobs"},
		{"no id", func(b *boot) { clear(b.b[b.super5(48):][:72]) }, image.ErrCorrupt, "no id"},
		{"id is a path", func(b *boot) { copy(b.b[b.super5(48)+8:], "../") }, image.ErrCorrupt, "blob 0: "},
		{"batch", func(b *boot) { b.b[b.super5(72)+4] |= 0x80 }, image.ErrUnsupported, "v5 image has features batch"},
		{"chunk count", func(b *boot) { b.u32(b.super5(72), 1) }, image.ErrCorrupt, "blob 0 has 1 chunks"},
		{"size", func(b *boot) { b.u64(b.super5(72)+16, 9) }, image.ErrCorrupt, "blob 0 has 0x9 bytes"},
		{"uncompressed size", func(b *boot) { b.u64(b.super5(72)+8, 9) }, image.ErrCorrupt, "blob 0 has 0x9 bytes"},
	})
}

func TestV5Inodes(t *testing.T) {
	const link, dir = "/links/abs", "/links"
	set32 := func(path string, at uint64, v uint32) func(b *boot) {
		return func(b *boot) { b.u32(b.record5(path)+at, v) }
	}
	checkRules(t, "v5-zstd-blake3", []rule{
		{"in superblock", func(b *boot) { b.u32(b.slot5(mixed), 8) }, image.ErrCorrupt, "lies in the superblock"},
		{"outside", func(b *boot) { b.u32(b.slot5(mixed), 1<<29) }, image.ErrCorrupt, "want 128"},
		{"another inode's record", func(b *boot) { copy(b.b[b.slot5(mixed):][:4], b.b[b.slot5(link):]) }, image.ErrCorrupt, "parent"},
		{"no links", set32(mixed, 88, 0), image.ErrCorrupt, "without links"},
		{"nanoseconds", set32(mixed, 108, 1e9), image.ErrCorrupt, "mtime with"},
		{"file type", set32(mixed, 60, 0o644), image.ErrCorrupt, "no file type"},
		{"negative size", func(b *boot) { b.u64(b.record5(mixed)+64, 1<<63) }, image.ErrCorrupt, "size 0x8000000000000000"},
		{"number of nobody", func(b *boot) { b.u64(b.record5(mixed)+40, 1<<40) }, image.ErrCorrupt, "which the image does not have"},
		{"number of another", func(b *boot) { b.u64(b.record5(mixed)+40, b.node("/xattrs/cap")) }, image.ErrCorrupt, "is not like inode"},
		{"number of a folder", func(b *boot) { b.u64(b.record5(dir)+40, 1) }, image.ErrCorrupt, "has number 1"},
		{"parent", func(b *boot) { b.u64(b.record5(mixed)+32, 1) }, image.ErrCorrupt, "has parent 1"},
		{"digest", func(b *boot) { b.b[b.record5(mixed)] ^= 1 }, image.ErrCorrupt, "has digest"},
		{"digest of a folder", func(b *boot) { b.b[b.record5(dir)] ^= 1 }, image.ErrCorrupt, "has digest"},
		{"root digest", func(b *boot) { b.b[b.record5("/")] ^= 1 }, image.ErrCorrupt, "inode 1 has digest"},
		{"link target", func(b *boot) { b.b[b.record5(link)+128+8] ^= 1 }, image.ErrCorrupt, "has digest"},
		{"link with NUL", func(b *boot) { b.b[b.record5(link)+128+8] = 0 }, image.ErrCorrupt, "NUL in a symbolic link"},
		{"empty link", func(b *boot) { b.u16(b.record5(link)+102, 0) }, image.ErrCorrupt, "target of link"},
		{"link flag", func(b *boot) { b.u64(b.record5(link)+80, 0) }, image.ErrCorrupt, "flags 0x0"},
		{"slash", func(b *boot) { b.b[b.record5(mixed)+128] = '/' }, image.ErrCorrupt, "slash"},
		{"empty name", func(b *boot) { b.u16(b.record5("/special/fifo")+100, 0) }, image.ErrCorrupt, "empty name"},
		{"long name", func(b *boot) { b.u16(b.record5("/special/fifo")+100, 256) }, image.ErrCorrupt, "longer than 255"},
		{"dot dot", func(b *boot) { copy(b.b[b.record5(link)+128:], ".."); b.u16(b.record5(link)+100, 2) }, image.ErrCorrupt, "reserved name"},
		{"order", func(b *boot) { b.b[b.record5(link)+128] = 'z' }, image.ErrCorrupt, "ascending"},
		{"children of the root", set32(dir, 92, 2), image.ErrCorrupt, "want behind it"},
		{"children outside", set32(dir, 92, 1<<31), image.ErrCorrupt, "children of folder"},
		{"too many children", set32(dir, 96, 1<<31), image.ErrCorrupt, "limit"},
		{"children of another", func(b *boot) { b.u32(b.record5(dir)+92, uint32(b.node("/links/abs"))+1) }, image.ErrCorrupt, "has parent"},
		{"prefetch", func(b *boot) {
			b.u64(40, uint64(len(b.b)))
			b.u32(60, 2)
			b.b = append(b.b, 1, 0, 0, 0, 0xff, 0xff, 0, 0)
		}, image.ErrCorrupt, "prefetch of inode 65535"},
	})
}

func TestV5Chunks(t *testing.T) {
	set32 := func(i, at uint64, v uint32) func(b *boot) {
		return func(b *boot) { b.u32(b.chunk5(mixed, i)+at, v) }
	}
	checkRules(t, "v5-zstd-blake3", []rule{
		{"count", func(b *boot) { b.u32(b.record5(mixed)+96, 1) }, image.ErrCorrupt, "its chunks end at"},
		{"huge count", func(b *boot) { b.u32(b.record5(mixed)+96, 1<<30) }, image.ErrCorrupt, "end beyond"},
		{"gap", func(b *boot) { b.u64(b.chunk5(mixed, 1)+64, 1<<20+8) }, image.ErrCorrupt, "the one before ends at"},
		{"overlap", func(b *boot) { b.u64(b.chunk5(mixed, 1)+64, 8) }, image.ErrCorrupt, "the one before ends at"},
		{"empty", set32(0, 44, 0), image.ErrCorrupt, "is empty"},
		{"beyond the end", set32(0, 44, 1<<31), image.ErrCorrupt, "+0x80000000, size"},
		{"digest", func(b *boot) { b.b[b.chunk5(mixed, 0)] ^= 1 }, image.ErrCorrupt, "has digest"},
		{"blob", set32(0, 32, 1), image.ErrCorrupt, "chunk of blob 1"},
		{"flags", set32(0, 36, 0x21), image.ErrUnsupported, "chunk flags 0x21"},
		{"encrypted", set32(0, 36, 5), image.ErrCorrupt, "names no cipher"},
		{"batch", set32(0, 36, 9), image.ErrCorrupt, "batch chunk"},
		{"compressed size", set32(0, 40, 1<<31), image.ErrCorrupt, "compressed bytes"},
		{"compressed offset", set32(0, 52, 1<<31), image.ErrCorrupt, "chunk at 0x80000000"},
		{"uncompressed offset", set32(0, 60, 1<<31), image.ErrCorrupt, "uncompressed, blob 0"},
		{"same bytes", func(b *boot) {
			copy(b.b[b.chunk5(mixed, 1)+56:][:8], b.b[b.chunk5(mixed, 0)+56:])
		}, image.ErrCorrupt, "begins inside"},
		{"same number", func(b *boot) {
			copy(b.b[b.chunk5(mixed, 1)+72:][:4], b.b[b.chunk5(mixed, 0)+72:])
		}, image.ErrCorrupt, "contradicts"},
		{"number", set32(0, 72, 1<<20), image.ErrCorrupt, "chunk number 1048576"},
	})
}

// A file that says so may have holes between chunks and behind them, and chunks
// that are holes themselves. None of the digests of the image tells of them.
func TestV5Holes(t *testing.T) {
	b := newBoot(t, "v5-zstd-blake3")
	node, off := b.node(mixed), b.record5(mixed)
	first, second := b.chunk5(mixed, 0), b.chunk5(mixed, 1)
	c0, err := layout.DecodeChunkRecord(b.b[first:])
	if err != nil || c0.UncompressedSize != 1<<20 {
		t.Fatalf("first chunk %+v, %v, want 1 MiB", c0, err)
	}
	c1, err := layout.DecodeChunkRecord(b.b[second:])
	if err != nil {
		t.Fatal(err)
	}
	const size, at = 1 << 33, 1 << 32
	b.u64(off+64, size)
	b.u64(off+80, v5.InodeHoles)
	b.u64(second+64, at)
	im, err := image.New(b.b)
	if err != nil {
		t.Fatal(err)
	}
	if err := rafstest.Exercise(im); err != nil {
		t.Error(err)
	}
	type want struct {
		hole           bool
		offset, length uint32
	}
	for _, tt := range []struct {
		off  uint64
		size uint32
		want []want
	}{
		{0, 10, []want{{false, 0, 10}}},
		{1<<20 - 1, 11, []want{{false, 1<<20 - 1, 1}, {true, 0, 10}}},
		{1 << 30, 4096, []want{{true, 0, 4096}}},
		{at - 5, 10, []want{{true, 0, 5}, {false, 0, 5}}},
		{at + 7, 1, []want{{false, 7, 1}}},
		{at + uint64(c1.UncompressedSize) - 1, 10, []want{{false, c1.UncompressedSize - 1, 1}, {true, 0, 9}}},
		{size - 1, 10, []want{{true, 0, 1}}},
		{size, 10, nil},
	} {
		segs, err := im.Segments(nil, node, tt.off, tt.size)
		if err != nil || len(segs) != len(tt.want) {
			t.Errorf("at %#x: got %d segments, %v, want %d", tt.off, len(segs), err, len(tt.want))
			continue
		}
		for i, s := range segs {
			if got := (want{s.Chunk.Blob == nil, s.Offset, s.Length}); got != tt.want[i] {
				t.Errorf("at %#x: segment %d is %+v, want %+v", tt.off, i, got, tt.want[i])
			}
		}
	}

	b.u32(second+36, c1.Flags|layout.ChunkHole)
	if im, err = image.New(b.b); err != nil {
		t.Fatal(err)
	}
	segs, err := im.Segments([]blob.Segment{}, node, at, 1)
	if err != nil || len(segs) != 1 || segs[0].Chunk.Blob != nil {
		t.Errorf("chunk that is a hole: got %+v, %v", segs, err)
	}
	if err := rafstest.Exercise(im); err != nil {
		t.Error(err)
	}
}

// Images of the first nydus releases have no extended blob table, and no chunk
// numbers.
func TestV5WithoutExtendedBlobTable(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		if c.Name != "v5-layers" {
			continue
		}
		b := newBoot(t, c.Name)
		b.u32(68, 0)
		b.u64(72, 0)
		for off := uint64(v5.SuperSize); off < uint64(len(b.b)); off += 8 {
			for i := range b.im.Blobs() {
				// A chunk record is known by its digest, which some chunk has.
				zeroIndex(b, uint32(i), off)
			}
		}
		path := filepath.Join(t.TempDir(), "image.boot")
		if err := os.WriteFile(path, b.b, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Bootstrap = path
		checkCase(t, c)
		im := open(t, path)
		for i, info := range im.Blobs() {
			was := b.im.Blobs()[i]
			if info.ChunkCount == 0 || info.ChunkCount > was.ChunkCount || info.UncompressedSize > was.UncompressedSize || info.CompressedSize != 0 {
				t.Errorf("blob %+v, with the table %+v", info, was)
			}
		}
	}
}

func zeroIndex(b *boot, blobIndex uint32, off uint64) {
	for i := range b.im.Blobs()[blobIndex].ChunkCount {
		c, ok := b.im.Chunk(blobIndex, i)
		if ok && off+layout.ChunkRecordSize <= uint64(len(b.b)) && bytes.Equal(b.b[off:off+32], c.Digest[:]) &&
			binary.LittleEndian.Uint32(b.b[off+32:]) == blobIndex {
			b.u32(off+72, 0)
		}
	}
}

// Without explicit owners everything belongs to whoever reads.
func TestOwners(t *testing.T) {
	for name, flags := range map[string]int{"v5-zstd-blake3": 16, "v6-zstd-blake3": xsb} {
		b := newBoot(t, name)
		before, err := b.im.Attr(b.node("/links/abs"))
		if err != nil || before.UID != 3 || before.GID != 4 {
			t.Fatalf("%s: %+v, %v, want owner 3:4", name, before, err)
		}
		b.b[flags] &^= byte(layout.FlagExplicitUIDGID)
		im, err := image.New(b.b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := im.Attr(b.node("/links/abs"))
		if err != nil || got.UID != uint32(os.Geteuid()) || got.GID != uint32(os.Getegid()) {
			t.Errorf("%s: owner %d:%d, %v, want %d:%d", name, got.UID, got.GID, err, os.Geteuid(), os.Getegid())
		}
	}
}

func TestHasXattrs(t *testing.T) {
	for name, want := range map[string]bool{
		"v5-zstd-blake3": true, "v6-zstd-blake3": true, "v5-layers": false, "v6-dict": false,
	} {
		if got := newBoot(t, name).im.HasXattrs(); got != want {
			t.Errorf("%s: got %t, want %t", name, got, want)
		}
	}
}
