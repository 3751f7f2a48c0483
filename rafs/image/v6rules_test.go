package image_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// boot is a bootstrap to be damaged at places that are found by name.
type boot struct {
	testing.TB
	b  []byte
	im *image.Image // of the bytes before the damage
}

func newBoot(t testing.TB, name string) *boot {
	b := core(t, name)
	im, err := image.New(bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return &boot{t, b, im}
}

func (b *boot) u16(off uint64, v uint16) { binary.LittleEndian.PutUint16(b.b[off:], v) }
func (b *boot) u32(off uint64, v uint32) { binary.LittleEndian.PutUint32(b.b[off:], v) }
func (b *boot) u64(off uint64, v uint64) { binary.LittleEndian.PutUint64(b.b[off:], v) }

func (b *boot) node(path string) uint64 {
	b.Helper()
	node := image.Root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part == "" {
			continue
		}
		var err error
		if node, err = b.im.Lookup(node, part); err != nil {
			b.Fatalf("%s: %v", path, err)
		}
	}
	return node
}

func (b *boot) nid(path string) uint64 {
	if node := b.node(path); node != image.Root {
		return node - 2
	}
	return uint64(binary.LittleEndian.Uint16(b.b[v6.SuperOffset+14:]))
}

// inode is the offset of a v6 inode.
func (b *boot) inode(path string) uint64 {
	b.Helper()
	meta := uint64(binary.LittleEndian.Uint32(b.b[v6.SuperOffset+40:])) * v6.BlockSize
	return meta + b.nid(path)*v6.NIDUnit
}

// data is the offset of the last block of a v6 folder or link, or of the chunk
// addresses of a file.
func (b *boot) data(path string) uint64 {
	b.Helper()
	off := b.inode(path)
	in, err := v6.DecodeInode(b.b[off:])
	if err != nil {
		b.Fatal(err)
	}
	tail := off + uint64(in.DiskSize()+in.XattrSize())
	switch in.Layout {
	case v6.LayoutFlatPlain:
		return uint64(in.U)*v6.BlockSize + (in.Size-1)/v6.BlockSize*v6.BlockSize
	case v6.LayoutChunkBased:
		return (tail + 7) &^ 7
	}
	return tail
}

// dirent is the offset of an entry of a v6 folder with one block, and of its name.
func (b *boot) dirent(dir, name string) (entry, nameOff uint64) {
	b.Helper()
	start := b.data(dir)
	block := b.b[start:]
	n := int(binary.LittleEndian.Uint16(block[8:])) / v6.DirentSize
	for i := range n {
		d, err := v6.DecodeDirent(block[i*v6.DirentSize:])
		if err != nil {
			b.Fatal(err)
		}
		end := int(d.NameOff) + len(name)
		if i+1 < n {
			end = int(binary.LittleEndian.Uint16(block[(i+1)*v6.DirentSize+8:]))
		}
		if string(block[d.NameOff:end]) == name {
			return start + uint64(i*v6.DirentSize), start + uint64(d.NameOff)
		}
	}
	b.Fatalf("no %q in %s", name, dir)
	return 0, 0
}

// ext is a number of the extended superblock.
func (b *boot) ext(off uint64) uint64 { return binary.LittleEndian.Uint64(b.b[v6.ExtSuperOffset+off:]) }

// record is the offset of the record of a chunk of the first blob.
func (b *boot) record(chunkIndex uint32) uint64 {
	b.Helper()
	for off := b.chunkTable(); off < b.chunkTable()+b.ext(32); off += layout.ChunkRecordSize {
		if binary.LittleEndian.Uint32(b.b[off+72:]) == chunkIndex && binary.LittleEndian.Uint32(b.b[off+32:]) == 0 {
			return off
		}
	}
	b.Fatalf("no record of chunk %d", chunkIndex)
	return 0
}

func (b *boot) blobTable() uint64  { return b.ext(8) }
func (b *boot) chunkTable() uint64 { return b.ext(24) }

// rule is damage and what must be said of it.
type rule struct {
	name   string
	damage func(b *boot)
	err    error
	says   string
}

func checkRules(t *testing.T, img string, rules []rule) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			b := newBoot(t, img)
			r.damage(b)
			_, err := image.New(b.b)
			if !errors.Is(err, r.err) || err == nil || !strings.Contains(err.Error(), r.says) || !strings.Contains(err.Error(), "offset 0x") {
				t.Errorf("got %v\nwant %v with an offset and %q", err, r.err, r.says)
			}
		})
	}
}

const (
	sb  = v6.SuperOffset
	xsb = v6.ExtSuperOffset
	dev = v6.DevicesOffset
)

func TestV6Superblock(t *testing.T) {
	checkRules(t, "v6-zstd-blake3", []rule{
		{"magic", func(b *boot) { b.b[sb] ^= 1 }, image.ErrCorrupt, "magic"},
		{"checksum", func(b *boot) { b.u32(sb+4, 1) }, image.ErrUnsupported, "checksum"},
		{"checksum bit", func(b *boot) { b.b[sb+8] |= 1 }, image.ErrUnsupported, "checksum"},
		{"plain EROFS", func(b *boot) { b.u32(sb+8, 0) }, image.ErrUnsupported, "plain EROFS"},
		{"tarfs blocks", func(b *boot) { b.b[sb+12] = 9 }, image.ErrUnsupported, "blocks of 512"},
		{"block bits", func(b *boot) { b.b[sb+12] = 16 }, image.ErrUnsupported, "block bits 16"},
		{"extension slots", func(b *boot) { b.b[sb+13] = 1 }, image.ErrUnsupported, "extension slots"},
		{"no inodes", func(b *boot) { b.u64(sb+16, 0) }, image.ErrCorrupt, "no inodes"},
		{"build time", func(b *boot) { b.u32(sb+32, 1e9) }, image.ErrCorrupt, "1000000000 ns"},
		{"meta area", func(b *boot) { b.u32(sb+40, uint32(len(b.b)/4096)) }, image.ErrCorrupt, "inodes in block"},
		{"incompatible feature", func(b *boot) { b.b[sb+80] |= 1 }, image.ErrUnsupported, "incompatible features 0xd"},
		{"device count", func(b *boot) { b.u16(sb+86, 2) }, image.ErrCorrupt, "for 2 devices"},
		{"device slots", func(b *boot) { b.u16(sb+88, 12) }, image.ErrCorrupt, "device table in slot 12"},
		{"root nid", func(b *boot) { b.u16(sb+14, 1<<16-1) }, image.ErrCorrupt, "nid 65535"},
		{"root is a file", func(b *boot) { b.u16(sb+14, uint16(b.nid("/links/abs"))) }, image.ErrCorrupt, "root has mode"},
		{"two compressors", func(b *boot) { b.b[xsb] |= 1 }, image.ErrCorrupt, "compressor"},
		{"no compressor", func(b *boot) { b.b[xsb] &^= 0x80 }, image.ErrCorrupt, "compressor"},
		{"two digesters", func(b *boot) { b.b[xsb] |= 0xc }, image.ErrCorrupt, "digester"},
		{"unknown flag", func(b *boot) { b.b[xsb+4] = 1 }, image.ErrUnsupported, "unknown flags 0x100000000"},
		{"tarfs", func(b *boot) { b.b[xsb+1] |= 2 }, image.ErrUnsupported, "tarfs"},
		{"chunk size zero", func(b *boot) { b.u32(xsb+20, 0) }, image.ErrCorrupt, "chunk size 0x0"},
		{"chunk size odd", func(b *boot) { b.u32(xsb+20, 3<<20) }, image.ErrCorrupt, "chunk size 0x300000"},
		{"chunk size small", func(b *boot) { b.u32(xsb+20, 2048) }, image.ErrCorrupt, "chunk size 0x800"},
		{"chunk size large", func(b *boot) { b.u32(xsb+20, 32<<20) }, image.ErrCorrupt, "chunk size 0x2000000"},
		{"blob table odd", func(b *boot) { b.u32(xsb+16, 257) }, image.ErrCorrupt, "blob table of 257"},
		{"blob table outside", func(b *boot) { b.u64(xsb+8, uint64(len(b.b))) }, image.ErrCorrupt, "ends beyond"},
		{"blob table overflows", func(b *boot) { b.u64(xsb+8, 1<<64-8) }, image.ErrCorrupt, "ends beyond"},
		{"blob table over devices", func(b *boot) { b.u64(xsb+8, dev) }, image.ErrCorrupt, "overlaps device table"},
		{"chunk table odd", func(b *boot) { b.u64(xsb+32, 81) }, image.ErrCorrupt, "chunk table of 81"},
		{"chunk table unaligned", func(b *boot) { b.u64(xsb+24, b.chunkTable()-4) }, image.ErrCorrupt, "not aligned"},
		{"chunk table huge", func(b *boot) { b.u64(xsb+32, 80<<50) }, image.ErrCorrupt, "ends beyond"},
		{"chunk table over blobs", func(b *boot) { b.u64(xsb+24, b.blobTable()) }, image.ErrCorrupt, "overlaps blob table"},
		{"prefetch table odd", func(b *boot) { b.u32(xsb+48, 3) }, image.ErrCorrupt, "prefetch table of 3"},
	})
}

func TestV6Blobs(t *testing.T) {
	feature := func(f layout.Features) func(b *boot) {
		return func(b *boot) {
			at := b.blobTable() + 84
			b.u32(at, binary.LittleEndian.Uint32(b.b[at:])|uint32(f))
		}
	}
	checkRules(t, "v6-zstd-blake3", []rule{
		{"batch", feature(layout.FeatureBatch), image.ErrCorrupt, "without chunk-info-v2"},
		{"batch and zran", feature(layout.FeatureBatch | layout.FeatureZran | layout.FeatureChunkInfoV2), image.ErrCorrupt, "batch"},
		{"encrypted", feature(layout.FeatureEncrypted), image.ErrCorrupt, "no cipher"},
		{"external", feature(layout.FeatureExternal), image.ErrUnsupported, "another backend"},
		{"tarfs", feature(layout.FeatureTarfs), image.ErrCorrupt, "no tarfs"},
		{"inlined bootstrap", feature(layout.FeatureInlinedFSMeta), image.ErrUnsupported, "inlined-meta"},
		{"unknown feature", feature(0x1000), image.ErrUnsupported, "unknown features 0x1000"},
		{"not aligned", func(b *boot) { b.b[b.blobTable()+84] &^= 1 }, image.ErrUnsupported, "aligned"},
		{"index", func(b *boot) { b.u32(b.blobTable()+64, 1) }, image.ErrCorrupt, "blob 0 has index 1"},
		{"chunk size", func(b *boot) { b.u32(b.blobTable()+68, 4096) }, image.ErrCorrupt, "chunk size 0x1000"},
		{"too many chunks", func(b *boot) { b.u32(b.blobTable()+72, 1<<24+1) }, image.ErrCorrupt, "16777217 chunks"},
		{"too few chunks", func(b *boot) { b.u32(b.blobTable()+72, 1) }, image.ErrCorrupt, "blob 0 has 1 chunks"},
		{"compressor", func(b *boot) { b.u32(b.blobTable()+76, 4) }, image.ErrUnsupported, "compressor(4)"},
		{"no compressor", func(b *boot) { b.u32(b.blobTable()+76, 0) }, image.ErrCorrupt, "names no compressor"},
		{"digester", func(b *boot) { b.u32(b.blobTable()+80, 2) }, image.ErrUnsupported, "digester(2)"},
		{"size", func(b *boot) { b.u64(b.blobTable()+88, 1<<40+1) }, image.ErrCorrupt, "0x10000000001 bytes"},
		{"size too small", func(b *boot) { b.u64(b.blobTable()+88, 10) }, image.ErrCorrupt, "blob 0 has 0xa bytes"},
		{"uncompressed size", func(b *boot) { b.u64(b.blobTable()+96, 1<<44+1) }, image.ErrCorrupt, "uncompressed bytes"},
		{"uncompressed size too small", func(b *boot) { b.u64(b.blobTable()+96, 4096) }, image.ErrCorrupt, "blob 0 has 0x1000 bytes"},
		{"key", func(b *boot) { b.u32(b.blobTable()+216, 1) }, image.ErrCorrupt, "equal halves"},
		{"cipher", func(b *boot) { b.u32(b.blobTable()+216, 2) }, image.ErrUnsupported, "cipher 2"},
		{"id of device", func(b *boot) { b.b[dev] ^= 1 }, image.ErrCorrupt, "device 0 is"},
		{"device without blocks", func(b *boot) { b.u32(dev+64, 0) }, image.ErrCorrupt, "no blocks"},
		{"id is a path", func(b *boot) {
			copy(b.b[dev:], "../../")
			copy(b.b[b.blobTable():], "../../")
		}, image.ErrCorrupt, "blob 0: "},
	})
	checkRules(t, "v6-layers", []rule{
		{"id twice", func(b *boot) {
			copy(b.b[dev+128:][:64], b.b[dev:])
			copy(b.b[b.blobTable()+256:][:64], b.b[b.blobTable():])
		}, image.ErrCorrupt, "blobs 0 and 1 are both"},
	})
}

func TestV6Chunks(t *testing.T) {
	const file = "/sizes/mixed-2m"
	checkRules(t, "v6-zstd-blake3", []rule{
		{"digest", func(b *boot) { clear(b.b[b.chunkTable():][:32]) }, image.ErrCorrupt, "no digest"},
		{"blob", func(b *boot) { b.u32(b.chunkTable()+32, 1) }, image.ErrCorrupt, "chunk of blob 1"},
		{"batch", func(b *boot) { b.b[b.chunkTable()+36] |= 8 }, image.ErrCorrupt, "batch chunk"},
		{"encrypted", func(b *boot) { b.b[b.chunkTable()+36] |= 4 }, image.ErrCorrupt, "names no cipher"},
		{"hole", func(b *boot) { b.b[b.chunkTable()+36] |= 2 }, image.ErrUnsupported, "chunk flags"},
		{"no compressed bytes", func(b *boot) { b.u32(b.chunkTable()+40, 0) }, image.ErrCorrupt, "0 compressed bytes"},
		{"too many compressed bytes", func(b *boot) { b.u32(b.chunkTable()+40, 16<<20+1) }, image.ErrCorrupt, "compressed bytes"},
		{"no bytes", func(b *boot) { b.u32(b.chunkTable()+44, 0) }, image.ErrCorrupt, "chunk of 0 bytes"},
		{"longer than a chunk", func(b *boot) { b.u32(b.chunkTable()+44, 1<<20+1) }, image.ErrCorrupt, "chunk of 1048577 bytes"},
		{"raw size", func(b *boot) {
			b.u32(b.chunkTable()+36, 0)
			b.u32(b.chunkTable()+40, 3)
		}, image.ErrCorrupt, "takes 3"},
		{"compressed offset", func(b *boot) { b.u64(b.chunkTable()+48, 1<<63) }, image.ErrCorrupt, "chunk at 0x8000000000000000"},
		{"uncompressed offset", func(b *boot) { b.u64(b.chunkTable()+56, 1<<63) }, image.ErrCorrupt, "uncompressed, blob 0"},
		{"overlap", func(b *boot) {
			first := binary.LittleEndian.Uint64(b.b[b.record(0)+56:])
			b.u64(b.record(1)+56, first)
		}, image.ErrCorrupt, "begins inside the chunk before it"},
		{"number", func(b *boot) { b.u32(b.chunkTable()+72, 1<<24) }, image.ErrCorrupt, "chunk number 16777216"},
		{"number twice", func(b *boot) { copy(b.b[b.chunkTable()+72:][:4], b.b[b.chunkTable()+152:]) }, image.ErrCorrupt, "contradicts"},
		{"not in the table", func(b *boot) { b.u64(xsb+32, b.ext(32)-80) }, image.ErrCorrupt, "is not in the chunk table"},
		{"format", func(b *boot) { b.u32(b.inode(file)+16, 0x08) }, image.ErrCorrupt, "chunk format 0x8"},
		{"format bits", func(b *boot) { b.u32(b.inode(file)+16, 0x68) }, image.ErrCorrupt, "chunk format 0x68"},
		{"layout", func(b *boot) { b.u16(b.inode(file), 0x1) }, image.ErrCorrupt, "data layout 0"},
		{"device", func(b *boot) { b.b[b.data(file)+2] = 0 }, image.ErrCorrupt, "device id 0"},
		{"unknown device", func(b *boot) { b.b[b.data(file)+2] = 9 }, image.ErrCorrupt, "of blob 8 is not"},
		{"unknown chunk", func(b *boot) { b.b[b.data(file)+3] = 1 }, image.ErrCorrupt, "is not in the chunk table"},
		{"block", func(b *boot) { b.b[b.data(file)+4]++ }, image.ErrCorrupt, "chunk table has it at"},
		{"too short", func(b *boot) { b.u64(b.inode(file)+8, 3<<20) }, image.ErrCorrupt, "file needs"},
		{"size beyond the bootstrap", func(b *boot) { b.u64(b.inode(file)+8, 1<<62) }, image.ErrCorrupt, "inodes overlap"},
		{"negative size", func(b *boot) { b.u64(b.inode(file)+8, 1<<63) }, image.ErrCorrupt, "size 0x8000000000000000"},
	})
}

func TestV6Inodes(t *testing.T) {
	const file, link, dir = "/xattrs/cap", "/links/abs", "/links"
	checkRules(t, "v6-zstd-blake3", []rule{
		{"format", func(b *boot) { b.u16(b.inode(file), 0x19) }, image.ErrCorrupt, "unknown bits"},
		{"no links", func(b *boot) { b.u32(b.inode(file)+44, 0) }, image.ErrCorrupt, "without links"},
		{"nanoseconds", func(b *boot) { b.u32(b.inode(file)+40, 1e9) }, image.ErrCorrupt, "mtime with"},
		{"file type", func(b *boot) { b.u16(b.inode(file)+4, 0o644) }, image.ErrCorrupt, "no file type"},
		{"xattrs too long", func(b *boot) { b.u16(b.inode(file)+2, 1<<16-1) }, image.ErrCorrupt, "inodes overlap"},
		{"xattr name index", func(b *boot) { b.b[b.inode(file)+64+12+1] = 5 }, image.ErrCorrupt, "name index 5"},
		{"xattr value", func(b *boot) { b.u16(b.inode(file)+64+12+2, 1000) }, image.ErrCorrupt, "left"},
		{"xattr name", func(b *boot) { b.b[b.inode(file)+64+12] = 0 }, image.ErrCorrupt, "xattr name security."},
		{"xattr name of an ACL", func(b *boot) { b.b[b.inode(file)+64+12+1] = 2 }, image.ErrCorrupt, "xattr name system.posix_acl_access"},
		{"xattr name with NUL", func(b *boot) { b.b[b.inode(file)+64+12+4] = 0 }, image.ErrCorrupt, "NUL"},
		{"shared xattr without a table", func(b *boot) { b.b[b.inode(file)+64+4] = 1 }, image.ErrCorrupt, "shared xattr"},
		{"too many shared xattrs", func(b *boot) { b.b[b.inode(file)+64+4] = 255 }, image.ErrCorrupt, "255 shared xattrs"},
		{"empty link", func(b *boot) { b.u64(b.inode(link)+8, 0) }, image.ErrCorrupt, "size 0"},
		{"long link", func(b *boot) { b.u64(b.inode(link)+8, 4096) }, image.ErrCorrupt, "size 4096"},
		{"link with NUL", func(b *boot) { b.b[b.data(link)] = 0 }, image.ErrCorrupt, "NUL in a symbolic link"},
		{"link crosses a block", func(b *boot) { b.u64(b.inode(link)+8, 4095) }, image.ErrCorrupt, "crosses a block"},
		{"empty folder", func(b *boot) { b.u64(b.inode(dir)+8, 0) }, image.ErrCorrupt, "size 0"},
		{"huge folder", func(b *boot) { b.u64(b.inode(dir)+8, 1<<50) }, image.ErrCorrupt, "size 1125899906842624"},
		{"folder beyond the bootstrap", func(b *boot) {
			b.u16(b.inode(dir), 0x1)
			b.u32(b.inode(dir)+16, uint32(len(b.b)/4096))
		}, image.ErrCorrupt, "bootstrap has"},
		{"folder of chunks", func(b *boot) { b.u16(b.inode(dir), 0x9) }, image.ErrCorrupt, "data layout 4"},
	})
}

func TestV6Folders(t *testing.T) {
	const dir = "/links"
	entry := func(name string, at uint64, v ...byte) func(b *boot) {
		return func(b *boot) {
			off, _ := b.dirent(dir, name)
			copy(b.b[off+at:], v)
		}
	}
	name := func(old, new string) func(b *boot) {
		return func(b *boot) {
			_, off := b.dirent(dir, old)
			copy(b.b[off:], new)
		}
	}
	target := func(path string, ft v6.FileType) func(b *boot) {
		return func(b *boot) {
			off, _ := b.dirent(dir, "abs")
			b.u64(off, b.nid(path))
			b.b[off+10] = byte(ft)
		}
	}
	checkRules(t, "v6-zstd-blake3", []rule{
		{"slash", name("abs", "a/s"), image.ErrCorrupt, "slash"},
		{"NUL", name("abs", "a\x00s"), image.ErrCorrupt, "NUL"},
		{"order", name("abs", "zbs"), image.ErrCorrupt, "ascending"},
		{"folder under another name", name(".", "!"), image.ErrCorrupt, "several parents"},
		{"no dot", func(b *boot) {
			entry, name := b.dirent(dir, ".")
			b.b[name] = '!'
			b.u64(entry, b.nid("/xattrs/cap"))
			b.b[entry+10] = byte(v6.TypeRegular)
		}, image.ErrCorrupt, "lacks"},
		{"dot", entry(".", 0, 0), image.ErrCorrupt, `"." of nid`},
		{"dot dot", entry("..", 0, 0), image.ErrCorrupt, `".." of nid`},
		{"type", entry("abs", 10, byte(v6.TypeFifo)), image.ErrCorrupt, "type 5"},
		{"no type", entry("abs", 10, 0), image.ErrCorrupt, "type 0"},
		{"nid", entry("abs", 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), image.ErrCorrupt, "nid 18446744073709551615"},
		{"cycle to itself", target(dir, v6.TypeDir), image.ErrCorrupt, "several parents"},
		{"cycle to the root", target("/", v6.TypeDir), image.ErrCorrupt, "several parents"},
		{"two parents", target("/many", v6.TypeDir), image.ErrCorrupt, "several parents"},
		{"first name", func(b *boot) { b.u16(b.data(dir)+8, 13) }, image.ErrCorrupt, "first name at 13"},
		{"first name zero", func(b *boot) { b.u16(b.data(dir)+8, 0) }, image.ErrCorrupt, "first name at 0"},
		{"first name outside", func(b *boot) { b.u16(b.data(dir)+8, 12*341) }, image.ErrCorrupt, "first name at 4092"},
		{"names out of order", func(b *boot) { b.u16(b.data(dir)+12+8, 4) }, image.ErrCorrupt, "name at 4"},
		{"name outside", func(b *boot) { b.u16(b.data(dir)+12+8, 4095) }, image.ErrCorrupt, "name at 4095"},
	})
}

// A table of nids is checked too: the first entry of the list is damaged.
func TestV6Prefetch(t *testing.T) {
	checkRules(t, "v6-prefetch-root", []rule{
		{"nid", func(b *boot) { b.u32(b.ext(40), 3) }, image.ErrCorrupt, "prefetch of nid 3"},
		{"huge nid", func(b *boot) { b.u32(b.ext(40), 1<<32-1) }, image.ErrCorrupt, "prefetch of nid 4294967295"},
	})
	b := newBoot(t, "v6-prefetch-root")
	b.u32(b.ext(40), 0)
	if im, err := image.New(b.b); err != nil || len(im.Prefetch()) != 0 {
		t.Errorf("a zero does not end the table: %v", err)
	}
}

// One block with one shared attribute is appended to the image, and a file made
// to use it beside an attribute of its own.
func TestV6SharedXattrs(t *testing.T) {
	b := newBoot(t, "v6-zstd-blake3")
	area := b.inode("/xattrs/cap") + 64
	if got := b.b[area+12 : area+48]; got[0] != 10 || got[1] != 6 {
		t.Fatalf("the file's attribute is %x, want security.capability", got)
	}
	b.b[area+4] = 1
	b.u32(area+12, 2) // 8 bytes into the block
	copy(b.b[area+16:area+48], v6.AppendXattr(nil, 1, "x", bytes.Repeat([]byte{7}, 27)))
	b.u32(sb+44, uint32(len(b.b)/v6.BlockSize))
	block := v6.AppendXattr(make([]byte, 8), 4, "shared", []byte("value"))
	b.b = append(b.b, append(block, make([]byte, v6.BlockSize-len(block))...)...)

	im, err := image.New(b.b)
	if err != nil {
		t.Fatal(err)
	}
	if err := rafstest.Exercise(im); err != nil {
		t.Error(err)
	}
	want := map[string]string{"trusted.shared": "value", "user.x": strings.Repeat("\x07", 27)}
	n := 0
	err = im.Xattrs(b.node("/xattrs/cap"), func(name string, value []byte) bool {
		n++
		if want[name] != string(value) {
			t.Errorf("xattr %q = %q, want %q", name, value, want[name])
		}
		return true
	})
	if err != nil || n != len(want) {
		t.Errorf("%d xattrs, %v, want %d", n, err, len(want))
	}

	b.u32(area+12, 1<<32-1)
	if _, err := image.New(b.b); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("shared xattr outside: got %v, want %v", err, image.ErrCorrupt)
	}
}

// nydus-image writes extended inodes only; EROFS has compact ones too, whose
// mtime is that of the superblock.
func TestV6CompactInode(t *testing.T) {
	b := newBoot(t, "v6-zstd-blake3")
	node, off := b.node("/sizes/mixed-2m"), b.inode("/sizes/mixed-2m")
	in, err := v6.DecodeInode(b.b[off:])
	if err != nil || !in.Extended || in.XattrICount != 0 {
		t.Fatalf("%+v, %v, want an extended inode without xattrs", in, err)
	}
	addrs := bytes.Clone(b.b[off+64:][:64])
	in.Extended, in.UID, in.GID = false, 7, 8
	copy(b.b[off:], append(in.Append(nil), addrs...))
	b.u64(sb+24, 1234567)
	b.u32(sb+32, 89)
	im, err := image.New(b.b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := im.Attr(node)
	if err != nil {
		t.Fatal(err)
	}
	want := image.Attr{
		Ino: node, Mode: uint32(in.Mode), Nlink: in.Nlink, UID: 7, GID: 8, Size: in.Size, Blocks: (in.Size + 511) / 512,
		Mtime: 1234567, MtimeNsec: 89,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	a, _ := b.im.Segments(nil, node, 0, 1<<30)
	c, err := im.Segments(nil, node, 0, 1<<30)
	if err != nil || len(a) != len(c) || len(a) < 2 {
		t.Fatalf("%d segments, %v, want %d", len(c), err, len(a))
	}
	for i := range a {
		if a[i].Chunk.Digest != c[i].Chunk.Digest || a[i].Length != c[i].Length {
			t.Errorf("segment %d: got %+v, want %+v", i, c[i], a[i])
		}
	}
}
