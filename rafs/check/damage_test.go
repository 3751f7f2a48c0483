package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// bootstrap reads the bootstrap of an image of rafstest.Core.
func bootstrap(t testing.TB, name string) []byte {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name == name {
			data, err := os.ReadFile(c.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatalf("no image %s", name)
	return nil
}

func report(t testing.TB, data []byte) *Report {
	t.Helper()
	r, err := Reader(context.Background(), bytes.NewReader(data), int64(len(data)), Options{Max: 20})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// agree tells whether check and rafs/image have the same opinion of a bootstrap
// as far as they must: what check accepts, a reader opens and counts alike.
func agree(data []byte, r *Report) error {
	if len(r.Violations) > 0 {
		return nil
	}
	im, err := image.NewWith(data, image.Options{InlineBlobID: "inline"})
	if errors.Is(err, image.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check accepts what rafs/image refuses: %w", err)
	}
	if s := im.Super(); s.Inodes != r.Inodes || s.Names != r.Names {
		return fmt.Errorf("check counts %d inodes and %d names, rafs/image %d and %d", r.Inodes, r.Names, s.Inodes, s.Names)
	}
	return nil
}

// field is a number, or a part of a struct, that damage is done to. A field
// without free must be found whatever happens to it; what is free says why some
// or all other values are as good.
type field struct {
	name     string
	off, len int
	free     string
}

const (
	anyValue  = "any value is legal"
	other     = "another legal value, which nothing else in the bootstrap tells"
	smaller   = "less is legal: nothing else in the bootstrap tells"
	onlyData  = "only the data can tell"
	elsewhere = "a further bit is legal"
)

// part is a struct in an image.
type part struct {
	name   string
	at     int
	fields []field
}

// v6Parts are the structs of a v6 image without its tree.
func v6Parts(data []byte) []part {
	le := binary.LittleEndian
	ext, _ := v6.DecodeExtSuper(data[v6.ExtSuperOffset:])
	super, _ := v6.DecodeSuper(data[v6.SuperOffset:])
	root := int(super.MetaBlkAddr)*v6.BlockSize + int(super.RootNID)*v6.NIDUnit
	parts := []part{
		{"superblock", v6.SuperOffset, []field{
			{"magic", 0, 4, ""}, {"checksum", 4, 4, ""}, {"feature_compat", 8, 4, elsewhere}, {"blkszbits", 12, 1, ""},
			{"sb_extslots", 13, 1, ""}, {"root_nid", 14, 2, ""}, {"inos", 16, 8, "more is legal"}, {"build_time", 24, 8, anyValue},
			{"build_time_nsec", 32, 4, other}, {"blocks", 36, 4, ""}, {"meta_blkaddr", 40, 4, ""}, {"xattr_blkaddr", 44, 4, ""},
			{"uuid", 48, 16, anyValue}, {"volume", 64, 16, anyValue}, {"feature_incompat", 80, 4, ""}, {"union", 84, 2, ""},
			{"extra_devices", 86, 2, ""}, {"devt_slotoff", 88, 2, ""}, {"reserved", 90, 38, ""},
		}},
		{"extended superblock", v6.ExtSuperOffset, []field{
			{"flags", 0, 8, elsewhere}, {"blob_table_offset", 8, 8, ""}, {"blob_table_size", 16, 4, ""}, {"chunk_size", 20, 4, ""},
			{"chunk_table_offset", 24, 8, ""}, {"chunk_table_size", 32, 8, ""}, {"prefetch_table_offset", 40, 8, "means nothing without a table"},
			{"prefetch_table_size", 48, 4, ""}, {"reserved", 52, 204, ""},
		}},
		{"device slot", v6.DevicesOffset, []field{
			{"id", 0, 64, ""}, {"blocks", 64, 4, ""}, {"mapped_blkaddr", 68, 4, "more is legal"}, {"reserved", 72, 56, ""},
		}},
		{"blob entry", int(ext.BlobTableOffset), []field{
			{"id", 0, 64, ""}, {"index", 64, 4, ""}, {"chunk_size", 68, 4, ""}, {"chunk_count", 72, 4, ""}, {"compressor", 76, 4, other},
			{"digester", 80, 4, other}, {"features", 84, 4, elsewhere}, {"compressed_size", 88, 8, ""}, {"uncompressed_size", 96, 8, ""},
			{"toc_size", 104, 4, ""}, {"ci_compressor", 108, 4, other}, {"ci_offset", 112, 8, ""}, {"ci_compressed_size", 120, 8, ""},
			{"ci_uncompressed_size", 128, 8, ""}, {"toc_digest", 136, 32, ""}, {"meta_digest", 168, 32, ""}, {"meta_size", 200, 8, ""},
			{"reserved", 208, 8, ""}, {"cipher", 216, 4, ""}, {"reserved", 220, 36, ""},
		}},
		{"chunk record", int(ext.ChunkTableOffset), []field{
			{"digest", 0, 32, onlyData}, {"blob_index", 32, 4, ""}, {"flags", 36, 4, elsewhere}, {"compressed_size", 40, 4, smaller},
			{"uncompressed_size", 44, 4, ""}, {"compressed_offset", 48, 8, smaller}, {"uncompressed_offset", 56, 8, ""},
			{"file_offset", 64, 8, "means nothing in v6"}, {"index", 72, 4, ""}, {"crc32", 76, 4, onlyData},
		}},
		{"root", root, []field{
			{"format", 0, 2, ""}, {"mode", 4, 2, "permissions"}, {"reserved", 6, 2, ""}, {"size", 8, 8, "the last name ends with the folder"},
			{"ino", 20, 4, other}, {"uid", 24, 4, anyValue}, {"gid", 28, 4, anyValue}, {"mtime", 32, 8, anyValue},
			{"mtime_nsec", 40, 4, other}, {"nlink", 44, 4, ""}, {"reserved", 48, 16, ""},
		}},
	}
	// The root's entries are inline: each has nid, name offset, type, reserved byte.
	dir := root + v6.ExtendedInodeSize
	for i := range int(le.Uint16(data[dir+8:])) / v6.DirentSize {
		parts = append(parts, part{fmt.Sprintf("root entry %d", i), dir + i*v6.DirentSize, []field{
			{"nid", 0, 8, ""}, {"nameoff", 8, 2, "names split in another place may be in order still"}, {"type", 10, 1, ""}, {"reserved", 11, 1, ""},
		}})
	}
	return parts
}

func v5Parts(data []byte) []part {
	s, _ := v5.DecodeSuper(data)
	record := func(i int) int {
		return int(binary.LittleEndian.Uint32(data[int(s.InodeTableOffset)+i*v5.TableEntrySize:])) * v5.Align
	}
	inode := []field{
		{"digest", 0, 32, ""}, {"parent", 32, 8, ""}, {"ino", 40, 8, ""}, {"uid", 48, 4, anyValue}, {"gid", 52, 4, anyValue}, {"projid", 56, 4, "nobody reads it"},
		{"mode", 60, 4, "permissions"}, {"size", 64, 8, "of a folder, nobody computes with it"}, {"blocks", 72, 8, "nobody computes with it"}, {"flags", 80, 8, ""},
		{"nlink", 88, 4, ""}, {"name_size", 100, 2, ""}, {"symlink_size", 102, 2, ""}, {"rdev", 104, 4, anyValue}, {"mtime_nsec", 108, 4, other},
		{"mtime", 112, 8, anyValue}, {"reserved", 120, 8, ""},
	}
	parts := []part{
		{"superblock", 0, []field{
			{"magic", 0, 4, ""}, {"version", 4, 4, ""}, {"size", 8, 4, ""}, {"chunk_size", 12, 4, "more is legal: files say how much each chunk has"}, {"flags", 16, 8, elsewhere},
			{"inodes", 24, 8, "one less in old images"}, {"inode_table_offset", 32, 8, ""}, {"prefetch_table_offset", 40, 8, "means nothing without a table"},
			{"blob_table_offset", 48, 8, ""}, {"inode_table_entries", 56, 4, ""}, {"prefetch_entries", 60, 4, ""}, {"blob_table_size", 64, 4, ""},
			{"ext_blob_entries", 68, 4, "none is legal"}, {"ext_blob_table_offset", 72, 8, ""}, {"reserved", 80, v5.SuperSize - 80, ""},
		}},
		{"inode table", int(s.InodeTableOffset), []field{{"root", 0, 4, ""}, {"second", 4, 4, ""}}},
		{"extended blob entry", int(s.ExtBlobTableOffset), []field{
			{"chunk_count", 0, 4, "more is legal: not all need be used"}, {"features", 4, 4, elsewhere}, {"uncompressed_size", 8, 8, "more is legal"},
			{"compressed_size", 16, 8, "more is legal"}, {"reserved", 24, 40, ""},
		}},
		{"root", record(0), append(slices.Clone(inode[:len(inode)-6]), field{"child_index", 92, 4, ""}, field{"child_count", 96, 4, ""}, inode[len(inode)-1])},
	}
	for i := 1; i < int(s.InodeTableEntries); i++ {
		in, _ := v5.DecodeInode(data[record(i):])
		parts = append(parts, part{fmt.Sprintf("inode %d", i+1), record(i), inode})
		if v6.TypeOf(in.Mode) == v6.TypeRegular && in.ChildCount > 0 && in.Flags&v5.InodeXattr == 0 {
			parts = append(parts, part{fmt.Sprintf("chunk of inode %d", i+1), record(i) + int(in.XattrOffset()), []field{
				{"digest", 0, 32, ""}, {"blob_index", 32, 4, "another blob may have room"}, {"flags", 36, 4, elsewhere}, {"compressed_size", 40, 4, smaller}, {"uncompressed_size", 44, 4, ""},
				{"compressed_offset", 48, 8, smaller}, {"uncompressed_offset", 56, 8, "a gap is legal"}, {"file_offset", 64, 8, ""}, {"index", 72, 4, "a number that nobody has is legal"}, {"crc32", 76, 4, onlyData},
			}})
		}
	}
	return parts
}

// damages are what is done to the bytes of a field.
var damages = []struct {
	name string
	do   func(b []byte)
}{
	{"first bit", func(b []byte) { b[0] ^= 1 }},
	{"last bit", func(b []byte) { b[len(b)-1] ^= 0x80 }},
	{"inverted", func(b []byte) {
		for i := range b {
			b[i] ^= 0xff
		}
	}},
	{"zero", func(b []byte) { clear(b) }},
	{"one more", func(b []byte) { b[0]++ }},
}

// Each field of each struct is damaged by itself: the damage is found, at an
// offset inside the bootstrap, or there is a reason why it need not be.
func TestDamagedFields(t *testing.T) {
	if layout.ChunkRecordSize != 80 {
		t.Fatal("the fields below are those of another record")
	}
	for _, tt := range []struct {
		name  string
		parts func([]byte) []part
	}{{"v6-layers", v6Parts}, {"v5-layers", v5Parts}} {
		whole := bootstrap(t, tt.name)
		for _, p := range tt.parts(whole) {
			for _, f := range p.fields {
				for _, d := range damages {
					data := bytes.Clone(whole)
					d.do(data[p.at+f.off:][:f.len])
					if bytes.Equal(data, whole) {
						continue
					}
					r := report(t, data)
					what := fmt.Sprintf("%s: %s at %#x: %s: %s", tt.name, p.name, p.at, f.name, d.name)
					if len(r.Violations) == 0 && f.free == "" {
						t.Errorf("%s: not found", what)
					}
					for _, v := range r.Violations {
						if v.Offset > uint64(len(data)) && v.What == "" {
							t.Errorf("%s: %v", what, v)
						}
					}
					if err := agree(data, r); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
		}
	}
}

// Whatever byte is flipped, wherever an image ends, check has a verdict that
// rafs/image shares.
func TestFlippedAndCut(t *testing.T) {
	for _, name := range []string{"v5-layers", "v6-layers"} {
		whole := bootstrap(t, name)
		for i := 0; i < len(whole); i += 7 {
			data := bytes.Clone(whole)
			data[i] ^= 1 << (i % 8)
			if err := agree(data, report(t, data)); err != nil {
				t.Errorf("%s: byte %#x: %v", name, i, err)
			}
		}
		for n := 0; n < len(whole); n += 97 {
			r := report(t, whole[:n])
			if len(r.Violations) == 0 {
				t.Errorf("%s: %d of %d bytes: nothing found", name, n, len(whole))
			}
		}
	}
}

// Every image that nydus made in other versions and with other options is right;
// what is odd about them are notes.
func TestOldAndLayerBootstraps(t *testing.T) {
	dir := testenv.Fixtures(t)
	var files []string
	for _, pattern := range []string{"nydus-made/images/*/layers/*", "nydus-made/images/*/*.boot", "upstream/*/image.boot", "upstream/toc/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, f := range files {
		if err := Image(context.Background(), f); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// The same for images of every kind that nydus makes.
func TestFlippedNydusImages(t *testing.T) {
	kinds := map[string]bool{"v6-encrypt": true, "v6-tar-tarfs": true, "v6-targz-ref": true, "v6-batch-1m": true, "v5-aligned": true, "v6-chunk-4k": true}
	for _, c := range rafstest.Nydus(t) {
		if !kinds[c.Name] {
			continue
		}
		whole, err := os.ReadFile(c.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(whole); i += 211 {
			was := whole[i]
			whole[i] ^= 1 << (i % 8)
			if err := agree(whole, report(t, whole)); err != nil {
				t.Errorf("%s: byte %#x: %v", c.Name, i, err)
			}
			whole[i] = was
		}
	}
}

// Images of nydus-image 2.2 have no flat disk in mind.
func TestNotFlattened(t *testing.T) {
	data := bootstrap(t, "v6-layers")
	for i := range 3 {
		clear(data[v6.DevicesOffset+i*v6.DeviceSlotSize+68:][:4])
	}
	r := report(t, data)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}
