package check

import (
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Limits of the format.
const (
	minChunkSize = blob.MinChunkSize
	maxChunkSize = blob.MaxChunkSize
	// maxDevices is how many devices a chunk address can name: 8 bits less the 0
	// that means none.
	maxDevices = 255
	nsecs      = 1_000_000_000
)

// v6Check is the check of one v6 bootstrap, in the order of its methods.
type v6Check struct {
	*checker
	super v6.Super
	ext   v6.ExtSuper
	flags layout.Flags

	blockSize, blockBits uint64
	tarfs                bool

	blobs    []v6Blob
	chunks   *chunkIndex // nil: the chunk table cannot be read
	prefetch bool        // the prefetch table can be read

	walk v6Walk
}

// v6Blob is what the tables say of one blob.
type v6Blob struct {
	v6.BlobEntry
	off uint64 // of the entry
}

func (b *v6Blob) has(f layout.Features) bool { return layout.Features(b.Features)&f != 0 }

func (c *v6Check) run() {
	// Slots of inodes; whatever else there is is aligned to more.
	c.claims = newClaims(c.src.size, v6.NIDUnit)
	if !c.readSupers() {
		return
	}
	c.checkSuper()
	c.checkExtSuper()
	c.readTables()
	c.checkDevices()
	for _, step := range []func(){
		c.readChunks, c.walkTree, c.checkPrefetch, c.checkChunks, c.checkCounts, func() { c.gaps(c.walk.ran && c.walk.whole) }, c.checkBlobs,
	} {
		if c.done() {
			return
		}
		step()
	}
}

// readSupers decodes both superblocks. Without them nothing else can be found.
func (c *v6Check) readSupers() bool {
	var head [v6.SuperSize + v6.ExtSuperSize]byte
	if !c.src.read(head[:], v6.SuperOffset) {
		c.fail(0, "superblock", "bootstrap of %d bytes, want at least %d", c.src.size, v6.DevicesOffset)
		return false
	}
	// The lengths are those of the array.
	c.super, _ = v6.DecodeSuper(head[:])
	c.ext, _ = v6.DecodeExtSuper(head[v6.SuperSize:])
	c.flags = layout.Flags(c.ext.Flags)
	c.blockBits = v6.BlockBits
	if c.super.BlockBits == v6.TarfsBits {
		c.blockBits = v6.TarfsBits
	}
	c.blockSize = 1 << c.blockBits
	c.tarfs = c.flags&layout.FlagTarfs != 0
	c.report.Compressor = compressorOf(c.flags)
	return true
}

func (c *v6Check) checkSuper() {
	const at, where = v6.SuperOffset, "superblock"
	s := &c.super
	rule := func(ok bool, off uint64, format string, args ...any) {
		if !ok {
			c.fail(at+off, where, format, args...)
		}
	}
	rule(s.Checksum == 0, 4, "checksum %#x, want none", s.Checksum)
	rule(s.FeatureCompat&v6.FeatureCompatRafs != 0, 8, "compatible features %#x lack %#x: plain EROFS", s.FeatureCompat, v6.FeatureCompatRafs)
	rule(s.FeatureCompat&v6.FeatureCompatChecksum == 0, 8, "compatible features %#x ask for a checksum", s.FeatureCompat)
	want := uint8(v6.BlockBits)
	if c.tarfs {
		want = v6.TarfsBits
	}
	rule(s.BlockBits == want, 12, "block bits %d, want %d", s.BlockBits, want)
	rule(s.ExtSlots == 0, 13, "%d extension slots, want none", s.ExtSlots)
	rule(s.Inos != 0, 16, "counts no inodes")
	rule(s.BuildTimeNsec < nsecs, 32, "build time with %d ns", s.BuildTimeNsec)
	rule(uint64(s.MetaBlkAddr)<<c.blockBits < c.src.size, 40, "inodes in block %d, bootstrap has %d bytes", s.MetaBlkAddr, c.src.size)
	rule(s.XattrBlkAddr == 0, 44, "shared xattrs in block %d, RAFS has none", s.XattrBlkAddr)
	rule(s.FeatureIncompat == v6.FeatureIncompat, 80, "incompatible features %#x, want %#x", s.FeatureIncompat, v6.FeatureIncompat)
	rule(s.Union == 0, 84, "compression algorithms %#x, want none", s.Union)
	rule(s.DevtSlotOff == v6.DeviceSlotPos, 88, "device table in slot %d, want %d", s.DevtSlotOff, v6.DeviceSlotPos)
	c.reserved(at+90, v6.SuperSize-90, where)
	if c.src.size%c.blockSize != 0 {
		c.fail(0, "bootstrap", "%d bytes, want a multiple of %d", c.src.size, c.blockSize)
	}
	if extra := s.FeatureCompat &^ v6.FeatureCompatRafs &^ v6.FeatureCompatChecksum; extra != 0 {
		c.note(at+8, where, "further compatible features %#x", extra)
	}
}

func (c *v6Check) checkExtSuper() {
	const at, where = v6.ExtSuperOffset, "extended superblock"
	e := &c.ext
	c.flagRules(at, c.flags)
	c.chunkSizeRule(at+20, where, e.ChunkSize)
	if e.BlobTableSize != uint32(c.super.ExtraDevices)*v6.BlobEntrySize {
		c.fail(at+16, where, "blob table of %d bytes for %d devices", e.BlobTableSize, c.super.ExtraDevices)
	}
	if c.super.ExtraDevices > maxDevices {
		c.fail(v6.SuperOffset+86, "superblock", "%d devices, limit %d", c.super.ExtraDevices, maxDevices)
	}
	if e.ChunkTableSize%layout.ChunkRecordSize != 0 {
		c.fail(at+32, where, "chunk table of %d bytes, want a multiple of %d", e.ChunkTableSize, layout.ChunkRecordSize)
	}
	if e.PrefetchTableSize%4 != 0 {
		c.fail(at+48, where, "prefetch table of %d bytes, want a multiple of 4", e.PrefetchTableSize)
	}
	c.reserved(at+52, v6.ExtSuperSize-52, where)
}

// readTables claims the tables and reads the blob table.
func (c *v6Check) readTables() {
	const at = v6.ExtSuperOffset
	n := uint64(c.super.ExtraDevices)
	ok := c.tables([]table{
		{"superblock", 0, v6.SuperOffset, v6.SuperSize + v6.ExtSuperSize, 1},
		{"device table", v6.SuperOffset + 86, v6.DevicesOffset, n * v6.DeviceSlotSize, 1},
		{"blob table", at + 8, c.ext.BlobTableOffset, uint64(c.ext.BlobTableSize), c.blockSize},
		{"prefetch table", at + 40, c.ext.PrefetchTableOffset, uint64(c.ext.PrefetchTableSize), 8},
		{"chunk table", at + 24, c.ext.ChunkTableOffset, c.ext.ChunkTableSize, c.blockSize},
	})
	c.prefetch = ok[3]
	if !ok[2] {
		n = 0
	}
	for i := range min(n, uint64(c.ext.BlobTableSize)/v6.BlobEntrySize, maxDevices) {
		off := c.ext.BlobTableOffset + i*v6.BlobEntrySize
		var b [v6.BlobEntrySize]byte
		c.src.read(b[:], off)
		e, _ := v6.DecodeBlobEntry(b[:])
		c.blobs = append(c.blobs, v6Blob{e, off})
		c.report.Blobs = append(c.report.Blobs, BlobFacts{
			e.ID, e.CompressedSize, e.UncompressedSize, e.ChunkSize, e.ChunkCount, layout.Features(e.Features),
		})
	}
	if ok[4] {
		c.chunks = newChunkIndex(len(c.blobs))
	} else if c.ext.ChunkTableSize == 0 {
		c.chunks = newChunkIndex(len(c.blobs))
	}
}

// checkCounts compares the superblock with what the walk has found. The builder
// counts the names of hard links as well, and inodes that a merge took away
// again.
func (c *v6Check) checkCounts() {
	if c.super.Inos < c.report.Inodes {
		c.fail(v6.SuperOffset+16, "superblock", "counts %d inodes, there are %d", c.super.Inos, c.report.Inodes)
	}
	if c.super.Inos > c.report.Names+1 {
		c.note(v6.SuperOffset+16, "superblock", "counts %d inodes, there are %d names", c.super.Inos, c.report.Names+1)
	}
}

// checkPrefetch checks the prefetch table: nids, up to a zero. Old images end in
// further zeros.
func (c *v6Check) checkPrefetch() {
	if !c.prefetch || !c.walk.ran {
		return
	}
	var b [4]byte
	ended := false
	for n := uint64(0); n+4 <= uint64(c.ext.PrefetchTableSize); n += 4 {
		off := c.ext.PrefetchTableOffset + n
		c.src.read(b[:], off)
		nid := uint64(le.Uint32(b[:]))
		switch {
		case nid == 0:
			ended = true
		case ended:
			c.fail(off, "prefetch table", "nid %d behind the zero that ends the table", nid)
		case !c.walk.nodes.has(nid):
			c.fail(off, "prefetch table", "nid %d, which is no inode", nid)
		}
	}
	if ended {
		c.note(c.ext.PrefetchTableOffset, "prefetch table", "ends in zeros")
	}
}
