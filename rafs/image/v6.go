package image

import (
	"encoding/binary"
	"os"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// nidBias keeps node ids apart from 0, which FUSE does not allow, and from Root.
const nidBias = 2

// v6Tree answers for the inodes of a RAFS v6 bootstrap. It is immutable.
type v6Tree struct {
	data      region
	meta      uint64 // where nids are counted from
	root      uint64 // nid
	blockBits uint
	chunkBits uint
	chunks    *chunkTable
	pages     *pages

	// sharedXattrs is where shared xattrs are counted from; 0: there are none.
	sharedXattrs uint64
	// What compact inodes have for an mtime.
	buildTime     int64
	buildTimeNsec uint32
	// owner replaces that of all inodes where the image says so.
	owner owner

	// nodes has the nid of each inode that the root leads to.
	nodes bitset
}

// owner is who inodes belong to in an image without explicit owners: the user
// that the reader runs as (nydus rafs/src/fs.rs).
type owner struct {
	override bool
	uid, gid uint32
}

func ownerOf(f layout.Flags) owner {
	if f&layout.FlagExplicitUIDGID != 0 {
		return owner{}
	}
	return owner{override: true, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
}

// v6Open is the state of reading a v6 bootstrap.
type v6Open struct {
	im    *Image
	data  region
	opts  Options
	super v6.Super
	ext   v6.ExtSuper
	tree  *v6Tree
}

// tarfs tells whether the blobs are plain tar files.
func (o *v6Open) tarfs() bool { return layout.Flags(o.ext.Flags)&layout.FlagTarfs != 0 }

func isV6(data []byte) bool {
	b, ok := region(data).slice(v6.SuperOffset, 4)
	return ok && binary.LittleEndian.Uint32(b) == v6.Magic
}

func openV6(im *Image, data region, opts Options) error {
	o := &v6Open{im: im, data: data, opts: opts}
	for _, step := range []func() error{
		o.readSuper, o.readExtSuper, o.readBlobs, o.readChunks, o.walk, o.readPrefetch,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	im.v6 = o.tree
	return nil
}

func (o *v6Open) readSuper() error {
	const at = v6.SuperOffset
	s, err := v6.DecodeSuper(o.data.from(at))
	if err != nil {
		return corrupt(at, "%v", err)
	}
	o.super = s
	meta := uint64(s.MetaBlkAddr) << (s.BlockBits & 31)
	switch {
	case s.BlockBits != v6.BlockBits && s.BlockBits != v6.TarfsBits:
		return unsupported(at+12, "block bits %d, want %d", s.BlockBits, v6.BlockBits)
	case s.FeatureCompat&v6.FeatureCompatRafs == 0:
		return unsupported(at+8, "plain EROFS: compatible features %#x lack %#x", s.FeatureCompat, v6.FeatureCompatRafs)
	case s.Checksum != 0 || s.FeatureCompat&v6.FeatureCompatChecksum != 0:
		return unsupported(at+4, "superblock checksum %#x", s.Checksum)
	case s.FeatureIncompat != v6.FeatureIncompat:
		return unsupported(at+80, "incompatible features %#x, want %#x", s.FeatureIncompat, v6.FeatureIncompat)
	case s.ExtSlots != 0:
		return unsupported(at+13, "%d superblock extension slots", s.ExtSlots)
	case s.DevtSlotOff != v6.DeviceSlotPos:
		return corrupt(at+88, "device table in slot %d, want %d", s.DevtSlotOff, v6.DeviceSlotPos)
	case s.Inos == 0:
		return corrupt(at+16, "no inodes")
	case meta >= uint64(len(o.data)):
		return corrupt(at+40, "inodes in block %d, bootstrap has %d bytes", s.MetaBlkAddr, len(o.data))
	case s.BuildTimeNsec >= nsecs:
		return corrupt(at+32, "build time with %d ns", s.BuildTimeNsec)
	}
	o.tree = &v6Tree{
		data: o.data, pages: o.im.pages, meta: meta, root: uint64(s.RootNID), blockBits: uint(s.BlockBits),
		sharedXattrs: uint64(s.XattrBlkAddr) << s.BlockBits,
		buildTime:    int64(s.BuildTime), buildTimeNsec: s.BuildTimeNsec,
	}
	return nil
}

func (o *v6Open) readExtSuper() error {
	const at = v6.ExtSuperOffset
	s, err := v6.DecodeExtSuper(o.data.from(at))
	if err != nil {
		return corrupt(at, "%v", err)
	}
	o.ext = s
	flags := layout.Flags(s.Flags)
	comp, dig, err := checkFlags(at, flags)
	if err != nil {
		return err
	}
	if err := checkChunkSize(at+20, s.ChunkSize); err != nil {
		return err
	}
	switch {
	case o.tarfs() != (o.super.BlockBits == v6.TarfsBits):
		return unsupported(at, "flags %s with blocks of %d bytes", flags, 1<<o.super.BlockBits)
	case s.BlobTableSize%v6.BlobEntrySize != 0:
		return corrupt(at+16, "blob table of %d bytes, want a multiple of %d", s.BlobTableSize, v6.BlobEntrySize)
	case s.BlobTableSize/v6.BlobEntrySize != uint32(o.super.ExtraDevices):
		return corrupt(at+16, "blob table of %d bytes for %d devices", s.BlobTableSize, o.super.ExtraDevices)
	case o.super.ExtraDevices > v6MaxBlobs:
		return corrupt(v6.SuperOffset+86, "%d devices, limit %d", o.super.ExtraDevices, v6MaxBlobs)
	case s.ChunkTableSize%layout.ChunkRecordSize != 0:
		return corrupt(at+32, "chunk table of %d bytes, want a multiple of %d", s.ChunkTableSize, layout.ChunkRecordSize)
	case s.PrefetchTableSize%4 != 0:
		return corrupt(at+48, "prefetch table of %d bytes, want a multiple of 4", s.PrefetchTableSize)
	}
	err = checkTables(uint64(len(o.data)), 8, []table{
		{"superblock", 0, v6.DevicesOffset},
		{"device table", v6.DevicesOffset, uint64(o.super.ExtraDevices) * v6.DeviceSlotSize},
		{"blob table", s.BlobTableOffset, uint64(s.BlobTableSize)},
		{"chunk table", s.ChunkTableOffset, s.ChunkTableSize},
		{"prefetch table", s.PrefetchTableOffset, uint64(s.PrefetchTableSize)},
	})
	if err != nil {
		return err
	}
	o.im.super = Super{Version: 6, ChunkSize: s.ChunkSize, BlockSize: 1 << o.super.BlockBits, Flags: flags, Compressor: comp, Digester: dig}
	o.tree.owner = ownerOf(flags)
	for 1<<o.tree.chunkBits < s.ChunkSize {
		o.tree.chunkBits++
	}
	return nil
}

// v6MaxBlobs is how many devices a chunk address can name: 8 bits less the 0
// that means none.
const v6MaxBlobs = 255

// readBlobs reads the blob table and holds it against the device table.
func (o *v6Open) readBlobs() error {
	for i := range uint64(o.super.ExtraDevices) {
		off := o.ext.BlobTableOffset + i*v6.BlobEntrySize
		e, err := v6.DecodeBlobEntry(o.data.from(off))
		if err != nil {
			return corrupt(off, "%v", err)
		}
		slotOff := v6.DevicesOffset + i*v6.DeviceSlotSize
		slot, err := v6.DecodeDeviceSlot(o.data.from(slotOff))
		if err != nil {
			return corrupt(slotOff, "%v", err)
		}
		switch {
		case uint64(e.Index) != i:
			return corrupt(off+64, "blob %d has index %d", i, e.Index)
		case e.ChunkSize != o.ext.ChunkSize:
			return corrupt(off+68, "blob %d has chunk size %#x, image %#x", i, e.ChunkSize, o.ext.ChunkSize)
		case slot.ID != e.ID:
			return corrupt(slotOff, "device %d is %q, blob %q", i, slot.ID, e.ID)
		case slot.Blocks == 0:
			return corrupt(slotOff+64, "device %d has no blocks", i)
		}
		b := entryInfo(&e, &slot)
		if err := checkBlob(off, b, o.opts.InlineBlobID); err != nil {
			return err
		}
		if err := o.checkFeatures(off, b, &e); err != nil {
			return err
		}
		o.im.blobs = append(o.im.blobs, b)
	}
	return checkBlobs(o.ext.BlobTableOffset, o.im.blobs)
}

// readChunks reads the chunk table. It is what gives v6 data its digests.
func (o *v6Open) readChunks() error {
	if o.tarfs() {
		return nil // the walk gathers them
	}
	places := make([]uint32, 0, o.ext.ChunkTableSize/layout.ChunkRecordSize)
	for n := uint64(0); n < o.ext.ChunkTableSize; n += layout.ChunkRecordSize {
		off := o.ext.ChunkTableOffset + n
		places = append(places, uint32(off/recordUnit))
	}
	t, err := newChunkTable(o.im, o.data, places, false)
	if err != nil {
		return err
	}
	o.im.chunks, o.tree.chunks = t, t
	return checkBlobs(o.ext.BlobTableOffset, o.im.blobs) // with what was counted
}

// readPrefetch reads the prefetch table: nids, up to a zero.
func (o *v6Open) readPrefetch() error {
	for n := uint64(0); n < uint64(o.ext.PrefetchTableSize); n += 4 {
		off := o.ext.PrefetchTableOffset + n
		b, ok := o.data.slice(off, 4)
		if !ok {
			return corrupt(off, "prefetch table ends beyond the bootstrap")
		}
		nid := uint64(binary.LittleEndian.Uint32(b))
		if nid == 0 {
			return nil
		}
		if !o.tree.nodes.has(nid) {
			return corrupt(off, "prefetch of nid %d, which is no inode", nid)
		}
		o.im.prefetch = append(o.im.prefetch, o.tree.node(nid))
	}
	return nil
}
