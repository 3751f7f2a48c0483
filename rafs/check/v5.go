package check

import (
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
)

// maxBlobs bounds the blob table of v5 as rafs/image does.
const maxBlobs = 1024

// v5Check is the check of one v5 bootstrap.
type v5Check struct {
	*checker
	super v5.Super
	flags layout.Flags

	entries  uint64 // of the inode table; 0: it cannot be read
	prefetch bool   // the prefetch table can be read
	blobs    []v5Blob

	walk   v5Walk
	chunks v5Chunks
}

// v5Blob is what the tables say of one blob.
type v5Blob struct {
	v5.BlobEntry
	v5.ExtBlobEntry
	off   uint64 // of the extended entry, else of the blob table
	rules *blobRules
}

func (c *v5Check) run() {
	c.claims = newClaims(c.src.size, v5.Align)
	if !c.readSuper() {
		return
	}
	c.readTables()
	for _, step := range []func(){c.walkTable, c.checkLinks, c.checkChunks, c.checkPrefetch, c.checkCounts, func() { c.gaps(c.walk.whole) }, c.checkBlobs} {
		if c.done() {
			return
		}
		step()
	}
}

func (c *v5Check) readSuper() bool {
	const where = "superblock"
	buf := make([]byte, v5.SuperSize)
	if !c.src.read(buf, 0) {
		c.fail(0, where, "bootstrap of %d bytes, want at least %d", c.src.size, v5.SuperSize)
		return false
	}
	c.super, _ = v5.DecodeSuper(buf)
	s := &c.super
	c.flags = layout.Flags(s.Flags)
	c.report.Compressor = compressorOf(c.flags)
	rule := func(ok bool, off uint64, format string, args ...any) {
		if !ok {
			c.fail(off, where, format, args...)
		}
	}
	rule(s.Version == v5.Version, 4, "version %#x, want %#x", s.Version, v5.Version)
	rule(s.Size == v5.SuperSize, 8, "superblock of %d bytes, want %d", s.Size, v5.SuperSize)
	c.chunkSizeRule(12, where, s.ChunkSize)
	c.flagRules(16, c.flags)
	only6 := layout.FlagTarfs | layout.FlagEncryptionAES128XTS | layout.FlagInlinedChunkDigest
	rule(c.flags&only6 == 0, 16, "flags %#x, which v5 does not have", uint64(c.flags&only6))
	rule(s.Inodes != 0 && s.Inodes <= uint64(s.InodeTableEntries), 24, "%d inodes in a table of %d", s.Inodes, s.InodeTableEntries)
	rule(s.InodeTableEntries != 0 && s.InodeTableEntries <= maxInodes, 56, "inode table of %d entries, want 1 to %d", s.InodeTableEntries, maxInodes)
	rule(c.src.size%v5.Align == 0, 0, "bootstrap of %d bytes, want a multiple of %d", c.src.size, v5.Align)
	rule(s.BlobTableSize%v5.Align == 0, 64, "blob table of %d bytes, want a multiple of %d", s.BlobTableSize, v5.Align)
	c.reserved(80, v5.SuperSize-80, where)
	return true
}

func (c *v5Check) readTables() {
	s := &c.super
	// Tables of numbers are padded to Align.
	inodes := v5.PadLen(uint64(s.InodeTableEntries) * v5.TableEntrySize)
	prefetch := v5.PadLen(uint64(s.PrefetchEntries) * v5.TableEntrySize)
	ok := c.tables([]table{
		{"superblock", 8, 0, v5.SuperSize, 1},
		{"inode table", 32, s.InodeTableOffset, inodes, v5.Align},
		{"prefetch table", 40, s.PrefetchTableOffset, prefetch, v5.Align},
		{"blob table", 48, s.BlobTableOffset, uint64(s.BlobTableSize), v5.Align},
		{"extended blob table", 72, s.ExtBlobTableOffset, uint64(s.ExtBlobEntries) * v5.ExtBlobEntrySize, v5.Align},
	})
	if ok[1] {
		c.entries = min(uint64(s.InodeTableEntries), maxInodes)
		c.padding(s.InodeTableOffset, uint64(s.InodeTableEntries)*v5.TableEntrySize, "inode table")
	}
	if c.prefetch = ok[2]; c.prefetch {
		c.padding(s.PrefetchTableOffset, uint64(s.PrefetchEntries)*v5.TableEntrySize, "prefetch table")
	}
	if ok[3] {
		c.readBlobs(s.ExtBlobEntries != 0 && ok[4])
	}
}

// padding checks the bytes between n bytes at off and the next multiple of Align.
func (c *v5Check) padding(off, n uint64, where string) {
	if at, ok := c.src.zero(off+n, v5.PadLen(n)-n); !ok {
		c.fail(at, where, "padding is not zero")
	}
}

// readBlobs reads the blob table and the extended one, which early images lack:
// then nobody says how many chunks and bytes a blob has.
func (c *v5Check) readBlobs(extended bool) {
	s := &c.super
	at := s.BlobTableOffset
	table := make([]byte, min(s.BlobTableSize, maxBlobs*(8+blob.MaxIDLen+1)))
	if len(table) < int(s.BlobTableSize) {
		c.fail(64, "superblock", "blob table of %d bytes, limit %d", s.BlobTableSize, len(table))
		return
	}
	c.src.read(table, at)
	entries, err := v5.DecodeBlobTable(table)
	if err != nil {
		c.fail(at, "blob table", "%v", err)
		return
	}
	if len(entries) > maxBlobs {
		c.fail(at, "blob table", "%d blobs, limit %d", len(entries), maxBlobs)
		return
	}
	if s.ExtBlobEntries != 0 && int(s.ExtBlobEntries) != len(entries) {
		c.fail(68, "superblock", "extended blob table of %d entries for %d blobs", s.ExtBlobEntries, len(entries))
		extended = false
	}
	ids := make(map[string]int, len(entries))
	for i, e := range entries {
		b := v5Blob{BlobEntry: e, off: at}
		if extended {
			var buf [v5.ExtBlobEntrySize]byte
			b.off = s.ExtBlobTableOffset + uint64(i)*v5.ExtBlobEntrySize
			c.src.read(buf[:], b.off)
			b.ExtBlobEntry, _ = v5.DecodeExtBlobEntry(buf[:])
			c.reserved(b.off+24, v5.ExtBlobEntrySize-24, blobPlace(i))
		}
		if first, ok := ids[e.ID]; ok {
			c.fail(at, blobPlace(i), "id %q is that of blob %d", e.ID, first)
		}
		ids[e.ID] = i
		c.checkBlob(i, &b, extended)
		c.blobs = append(c.blobs, b)
		c.report.Blobs = append(c.report.Blobs, BlobFacts{
			b.ID, b.CompressedSize, b.UncompressedSize, s.ChunkSize, b.ChunkCount, layout.Features(b.Features),
		})
	}
}

func (c *v5Check) checkBlob(i int, b *v5Blob, extended bool) {
	where := blobPlace(i)
	if err := blob.CheckID(b.ID); err != nil {
		c.fail(c.super.BlobTableOffset, where, "%v", err)
	}
	f := layout.Features(b.Features)
	for _, r := range featureRules(f, false, 5) {
		c.fail(b.off+4, where, "%s", r)
	}
	if b.ChunkCount > blob.MaxChunks {
		c.fail(b.off, where, "%d chunks, limit %d", b.ChunkCount, blob.MaxChunks)
	}
	if b.UncompressedSize > blob.MaxUncompressedSize {
		c.fail(b.off+8, where, "%#x uncompressed bytes, limit %#x", b.UncompressedSize, uint64(blob.MaxUncompressedSize))
	}
	if b.CompressedSize > blob.MaxCompressedSize {
		c.fail(b.off+16, where, "%#x bytes, limit %#x", b.CompressedSize, uint64(blob.MaxCompressedSize))
	}
	if b.PrefetchSize != 0 && b.CompressedSize != 0 && uint64(b.PrefetchOffset)+uint64(b.PrefetchSize) > b.CompressedSize {
		c.fail(c.super.BlobTableOffset, where, "read-ahead of %#x+%#x, blob has %#x bytes", b.PrefetchOffset, b.PrefetchSize, b.CompressedSize)
	}
	b.rules = &blobRules{
		features: f, compressor: compressorOf(c.flags), chunkSize: c.super.ChunkSize, chunkCount: b.ChunkCount,
		compressedSize: b.CompressedSize, uncompressedSize: b.UncompressedSize, anyNumber: !extended, alignment: 1,
	}
	if f&layout.FeatureAligned != 0 {
		b.rules.alignment = 4096
	}
}

// compressorOf is the compressor that flags name.
func compressorOf(f layout.Flags) blob.Compressor {
	switch f & layout.FlagsCompressor {
	case layout.FlagCompressorLZ4Block:
		return blob.CompressorLZ4Block
	case layout.FlagCompressorGzip:
		return blob.CompressorGzip
	case layout.FlagCompressorZstd:
		return blob.CompressorZstd
	}
	return blob.CompressorNone
}

// digesterOf is the digester that flags name.
func digesterOf(f layout.Flags) blob.Digester {
	if f&layout.FlagDigesterSHA256 != 0 {
		return blob.DigesterSHA256
	}
	return blob.DigesterBlake3
}

// checkPrefetch checks the prefetch table: numbers of inodes, up to a zero.
func (c *v5Check) checkPrefetch() {
	if !c.prefetch || c.entries == 0 {
		return
	}
	var b [v5.TableEntrySize]byte
	ended := false
	for i := range uint64(c.super.PrefetchEntries) {
		off := c.super.PrefetchTableOffset + i*v5.TableEntrySize
		c.src.read(b[:], off)
		ino := uint64(le.Uint32(b[:]))
		switch {
		case ino == 0:
			ended = true
		case ended:
			c.fail(off, "prefetch table", "inode %d behind the zero that ends the table", ino)
		case ino > c.entries || !c.walk.first.has(ino):
			c.fail(off, "prefetch table", "inode %d, which the image does not have", ino)
		}
	}
	if ended {
		c.note(c.super.PrefetchTableOffset, "prefetch table", "ends in zeros")
	}
}

func (c *v5Check) checkCounts() {
	switch {
	case !c.walk.whole || c.super.Inodes == c.report.Inodes:
	case c.super.Inodes+1 == c.report.Inodes:
		c.note(24, "superblock", "counts %d inodes, there is the root as well", c.super.Inodes)
	default:
		c.fail(24, "superblock", "counts %d inodes, there are %d", c.super.Inodes, c.report.Inodes)
	}
	if c.walk.whole && c.flags&layout.FlagHasXattr != 0 && !c.walk.hasXattrs {
		c.note(16, "superblock", "says that there are xattrs, no inode has any")
	}
}

func inodeWhere(index uint64) string { return fmt.Sprintf("inode %d", index) }
