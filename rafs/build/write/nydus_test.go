package write

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v5Record is what a v5 bootstrap has at one position of its inode table.
type v5Record struct {
	Offset uint32
	Inode  v5.Inode
	Name   string
	Chunks []layout.ChunkRecord
}

func v5Records(t testing.TB, boot []byte) (v5.Super, []v5Record) {
	t.Helper()
	super, err := v5.DecodeSuper(boot)
	if err != nil {
		t.Fatal(err)
	}
	var all []v5Record
	for i := range uint64(super.InodeTableEntries) {
		r := v5Record{Offset: binary.LittleEndian.Uint32(boot[super.InodeTableOffset+4*i:])}
		b := boot[r.Offset*v5.Align:]
		if r.Inode, err = v5.DecodeInode(b); err != nil {
			t.Fatal(err)
		}
		r.Name = string(b[v5.InodeSize:][:r.Inode.NameSize])
		b = b[r.Inode.XattrOffset():]
		if r.Inode.Flags&v5.InodeXattr != 0 {
			b = b[v5.XattrTableHeaderSize+v5.PadLen(binary.LittleEndian.Uint64(b)):]
		}
		for range r.Inode.ChildCount {
			if r.Inode.Mode&tree.TypeMask != tree.TypeFile {
				break
			}
			c, err := layout.DecodeChunkRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			r.Chunks, b = append(r.Chunks, c), b[layout.ChunkRecordSize:]
		}
		all = append(all, r)
	}
	return super, all
}

// dropCompressed leaves out what depends on the compressor.
func dropCompressed(c *layout.ChunkRecord) {
	c.CompressedOffset, c.CompressedSize = 0, 0
	c.Flags &^= layout.ChunkCompressed
}

// From the same tar comes what nydus-image makes of it, number by number: only how
// well chunks compress differs, and that nydus-image drops nanoseconds.
func TestSameV5AsNydus(t *testing.T) {
	f := flavour{Options: Options{Format: zstdBlake3, Version: 5}, packed: true, crc: true}
	b := buildAs(t, f, 1, fixtureTars(t, "tarable.tar")...)
	wantSuper, want := v5Records(t, nydusFile(t, "images", "v5-tar-rafs", "image.boot"))
	gotSuper, got := v5Records(t, b.bootstrap)
	if diff := cmp.Diff(wantSuper, gotSuper); diff != "" {
		t.Errorf("superblock (-nydus +got):\n%s", diff)
	}
	for _, all := range [][]v5Record{want, got} {
		for i := range all {
			in := &all[i].Inode
			in.MtimeNsec = 0
			if i == 0 {
				in.Mtime = 0 // see V5
			}
			if m := in.Mode & tree.TypeMask; m != tree.TypeChar && m != tree.TypeBlock {
				in.Rdev = 0 // means nothing
			}
			for j := range all[i].Chunks {
				dropCompressed(&all[i].Chunks[j])
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("inodes (-nydus +got):\n%s", diff)
	}
}

// v6Tables are the tables of a v6 bootstrap, without what depends on compressors
// or on where inodes lie.
type v6Tables struct {
	Super  v6.Super
	Ext    v6.ExtSuper
	Blobs  []v6.BlobEntry
	Slots  []v6.DeviceSlot
	Chunks []layout.ChunkRecord
}

func decodeV6(t testing.TB, boot []byte) (x v6Tables) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var err error
	x.Super, err = v6.DecodeSuper(boot[v6.SuperOffset:])
	must(err)
	x.Ext, err = v6.DecodeExtSuper(boot[v6.ExtSuperOffset:])
	must(err)
	for i := range int(x.Super.ExtraDevices) {
		slot, err := v6.DecodeDeviceSlot(boot[v6.DevicesOffset+i*v6.DeviceSlotSize:])
		must(err)
		e, err := v6.DecodeBlobEntry(boot[int(x.Ext.BlobTableOffset)+i*v6.BlobEntrySize:])
		must(err)
		if slot.ID != e.ID {
			t.Errorf("device %s for blob %s", slot.ID, e.ID)
		}
		slot.ID, e.ID, e.CompressedSize, e.CIOffset, e.CICompressedSize = "", "", 0, 0, 0
		slot.MappedBlkAddr = 0
		x.Slots, x.Blobs = append(x.Slots, slot), append(x.Blobs, e)
	}
	for off := uint64(0); off < x.Ext.ChunkTableSize; off += layout.ChunkRecordSize {
		r, err := layout.DecodeChunkRecord(boot[x.Ext.ChunkTableOffset+off:])
		must(err)
		dropCompressed(&r)
		r.FileOffset = 0 // of one of the files that have the chunk
		x.Chunks = append(x.Chunks, r)
	}
	x.Ext.ChunkTableOffset = 0
	x.Super.Inos = 0 // nydus-image counts names
	return x
}

func TestSameV6AsNydus(t *testing.T) {
	for _, name := range []string{"v6-tar-rafs", "v6-targz-rafs"} {
		t.Run(name, func(t *testing.T) {
			f := flavour{Options: Options{Format: zstdBlake3}, plain: true, crc: true}
			b := buildAs(t, f, 1, fixtureTars(t, "tarable.tar")...)
			boot := nydusFile(t, "images", name, "image.boot")
			if diff := cmp.Diff(decodeV6(t, boot), decodeV6(t, b.bootstrap)); diff != "" {
				t.Errorf("tables (-nydus +got):\n%s", diff)
			}
			if diff := cmp.Diff(places(t, boot), places(t, b.bootstrap)); diff != "" || len(boot) != len(b.bootstrap) {
				t.Errorf("inodes by name, %d bytes, got %d (-nydus +got):\n%s", len(boot), len(b.bootstrap), diff)
			}
		})
	}
}

// place is an inode and where it lies.
type place struct {
	Node  uint64
	Inode v6.Inode
}

// places tells where the inodes of a bootstrap lie, by name, without what means
// nothing or nydus-image drops.
func places(t *testing.T, boot []byte) map[string]place {
	t.Helper()
	im, err := image.New(boot)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	super, err := v6.DecodeSuper(boot[v6.SuperOffset:])
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]place{}
	var walk func(dir uint64, at string)
	walk = func(dir uint64, at string) {
		err := im.ReadDir(dir, 0, func(d image.Dirent) bool {
			name := at + "/" + string(d.Name)
			nid := uint64(super.RootNID)
			if d.Node != image.Root {
				nid = d.Node - 2
			}
			in, err := v6.DecodeInode(boot[uint64(super.MetaBlkAddr)<<super.BlockBits+nid*v6.NIDUnit:])
			if err != nil {
				t.Fatal(err)
			}
			in.Ino, in.MtimeNsec = 0, 0
			if d.Node == image.Root {
				in.Mtime = 0 // see V5
			}
			switch m := uint32(in.Mode) & tree.TypeMask; {
			case m == tree.TypeFile:
				in.U &^= v6.ChunkFormatBits // nydus announces larger chunks where a file lies in one piece
			case m == tree.TypeFifo || in.Layout == v6.LayoutFlatInline && in.Size < 1<<super.BlockBits:
				in.U = 0
			}
			all[name] = place{d.Node, in}
			if d.Type == tree.TypeDir && string(d.Name) != "." && string(d.Name) != ".." {
				walk(d.Node, name)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(image.Root, "")
	return all
}
