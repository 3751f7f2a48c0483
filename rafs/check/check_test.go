package check

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func TestNydusImagesAreRight(t *testing.T) {
	for _, cases := range [][]rafstest.Case{rafstest.Core(t), rafstest.Nydus(t)} {
		for _, c := range cases {
			t.Run(c.Name, func(t *testing.T) {
				if err := Image(context.Background(), c.Bootstrap); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// wantViolation looks for exactly one violation that begins like this.
func wantViolation(t *testing.T, err error, want string) {
	t.Helper()
	var found *Error
	if !errors.As(err, &found) {
		t.Fatalf("got %v, want violations", err)
	}
	n := 0
	for _, v := range found.Violations {
		if strings.Contains(v.String(), want) {
			n++
		}
	}
	if n == 0 {
		t.Errorf("got %v, want %q in it", err, want)
	}
}

// damage is the bytes of a v6 bootstrap and where its parts are.
type damage struct {
	data                       []byte
	root, blobs, chunks, slots int // offsets
}

func (d *damage) add32(at int, n uint32) {
	binary.LittleEndian.PutUint32(d.data[at:], binary.LittleEndian.Uint32(d.data[at:])+n)
}

func open(t *testing.T, name string) *damage {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name != name {
			continue
		}
		data, err := os.ReadFile(c.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		super, err := v6.DecodeSuper(data[v6.SuperOffset:])
		if err != nil {
			t.Fatal(err)
		}
		ext, err := v6.DecodeExtSuper(data[v6.ExtSuperOffset:])
		if err != nil {
			t.Fatal(err)
		}
		return &damage{
			data: data, slots: v6.DevicesOffset,
			root:  int(super.MetaBlkAddr)*v6.BlockSize + int(super.RootNID)*v6.NIDUnit,
			blobs: int(ext.BlobTableOffset), chunks: int(ext.ChunkTableOffset),
		}
	}
	t.Fatalf("no image %q", name)
	return nil
}

func TestViolations(t *testing.T) {
	const record = layout.ChunkRecordSize
	for _, tc := range []struct {
		name, image, want string
		change            func(d *damage)
	}{
		{"magic", "v6-layers", "bootstrap: ", func(d *damage) { d.data[v6.SuperOffset]++ }},
		{"length", "v6-layers", "bootstrap: 20481 bytes", func(d *damage) { d.data = append(d.data, 0) }},
		{"links of a folder", "v6-layers", "/: link count", func(d *damage) { d.add32(d.root+44, 1) }},
		{"inode count", "v6-layers", "superblock: counts 3 inodes", func(d *damage) { d.data[v6.SuperOffset+16] = 3 }},
		{"block count", "v6-layers", "superblock: counts 992 blocks", func(d *damage) { d.add32(v6.SuperOffset+36, 1) }},
		{"blocks of a device", "v6-layers", "blob 1: device has 293 blocks", func(d *damage) { d.add32(d.slots+v6.DeviceSlotSize+64, 1) }},
		{"flattened places", "v6-layers", "blob 1: flattened at block 0", func(d *damage) { copy(d.data[d.slots+v6.DeviceSlotSize+68:], "\x00\x00\x00\x00") }},
		{"digest section", "v6-layers", "blob 0: has no digest section", func(d *damage) { d.data[v6.ExtSuperOffset+1] |= 1 }},
		{"no xattrs where there are some", "v6-zstd-blake3", "/xattrs/user: has xattrs, the superblock says", func(d *damage) { d.data[v6.ExtSuperOffset] &^= 0x20 }},
		{"chunk information of another size", "v6-layers", "blob 2: chunk information of 65 bytes for 4 chunks", func(d *damage) { d.add32(d.blobs+2*v6.BlobEntrySize+128, 1) }},
		{"chunk information that grew", "v6-layers", "blob 2: chunk information of 64 bytes takes 1085", func(d *damage) { d.add32(d.blobs+2*v6.BlobEntrySize+120, 1024) }},
		{"chunk information beyond the blob", "v6-layers", "blob 2: chunk information ends beyond", func(d *damage) { d.add32(d.blobs+2*v6.BlobEntrySize+112, 1<<20) }},
		{"order of records", "v6-layers", "chunk record 1 at", func(d *damage) {
			a, b := d.data[d.chunks:][:record], d.data[d.chunks+record:][:record]
			old := string(a)
			copy(a, b)
			copy(b, old)
		}},
		{"digest twice in a blob", "v6-zstd-blake3", "chunk record 1 at", func(d *damage) { copy(d.data[d.chunks+record:][:32], d.data[d.chunks:][:32]) }},
		{"chunks at one place of the blob", "v6-zstd-blake3", "overlap at 0x0 of the blob", func(d *damage) {
			for at := d.chunks; at+record <= len(d.data); at += record {
				if binary.LittleEndian.Uint32(d.data[at+72:]) == 1 { // the second chunk of the blob
					copy(d.data[at+48:at+56], make([]byte, 8))
					return
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := open(t, tc.image)
			tc.change(d)
			file := filepath.Join(t.TempDir(), "image.boot")
			if err := os.WriteFile(file, d.data, 0o600); err != nil {
				t.Fatal(err)
			}
			wantViolation(t, Image(context.Background(), file), tc.want)
		})
	}
}

func TestErrorsThatAreNoViolations(t *testing.T) {
	if err := Image(context.Background(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v, want %v", err, fs.ErrNotExist)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Image(ctx, rafstest.Core(t)[0].Bootstrap); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v, want %v", err, context.Canceled)
	}
}

func TestErrorListsSoMany(t *testing.T) {
	c := &checker{opts: Options{Max: DefaultMax}, report: &Report{}}
	for range DefaultMax + 5 {
		c.fail(0, "here", "wrong")
	}
	if got := c.report.Err().Error(); len(c.report.Violations) != DefaultMax || !strings.HasPrefix(got, "1005 violations: here: wrong (offset 0x0); ") || !strings.HasSuffix(got, "; and 5 more") {
		t.Errorf("got %d listed, %.80s", len(c.report.Violations), got)
	}
}

// patchSize is the size of one piece of damage in a fuzz input: where, how many
// bytes, what.
const patchSize = 9

// patched applies patches to an image. A length of more than 4 cuts it there.
func patched(data, patches []byte) []byte {
	data = bytes.Clone(data)
	for ; len(patches) >= patchSize && len(data) > 0; patches = patches[patchSize:] {
		off := binary.LittleEndian.Uint32(patches) % uint32(len(data))
		if n := patches[4] % 6; n > 4 {
			data = data[:off:off]
		} else {
			copy(data[off:], patches[5:][:n])
		}
	}
	return data
}

// FuzzImage: whatever the bytes are, there is a verdict, and what is right can be
// opened. A number beyond the last image stands for none, so that the patches are
// taken as a bootstrap themselves.
func FuzzImage(f *testing.F) {
	var images [][]byte
	for i, name := range []string{"v5-layers", "v6-layers", "v6-dict", "upstream-v6", "v6-prefetch-root"} {
		images = append(images, bootstrap(f, name))
		f.Add(uint8(i), []byte{})
		for off := uint32(0); off < 1600; off += 4 {
			p := binary.LittleEndian.AppendUint32(nil, off)
			f.Add(uint8(i), append(p, 4, 0xff, 0xff, 0xff, 0x7f))
		}
	}
	f.Add(uint8(len(images)), images[0])
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		data := patches
		if n := int(which) % (len(images) + 1); n < len(images) {
			data = patched(images[n], patches)
		}
		if err := agree(data, report(t, data)); err != nil {
			t.Error(err)
		}
	})
}

// An image of any size is checked in little memory: next to nothing is allocated
// for an inode, and nothing of it stays.
func TestAllocations(t *testing.T) {
	for _, name := range []string{"v6-bigdir", "v5-bigdir"} {
		for _, c := range rafstest.Nydus(t) {
			if c.Name != name {
				continue
			}
			data, err := os.ReadFile(c.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			r := report(t, data)
			per := testing.AllocsPerRun(1, func() { report(t, data) }) / float64(r.Names)
			if r.Names < 10_000 || per > 8 {
				t.Errorf("%s: %.1f allocations for each of %d names, want at most 8", name, per, r.Names)
			}
		}
	}
}
