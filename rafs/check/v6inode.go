package check

import (
	"bytes"

	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// checkInode checks an inode with all that follows it, but not the entries of a
// folder.
func (c *v6Check) checkInode(in *v6Inode, where any) {
	fail := func(off uint64, format string, args ...any) { c.fail(in.off+off, where, format, args...) }
	if in.nid == 0 {
		fail(0, "nid 0, which means none")
	}
	if in.Nlink == 0 {
		fail(nlinkAt(in), "no links")
	}
	if in.MtimeNsec >= nsecs {
		fail(40, "mtime with %d ns", in.MtimeNsec)
	}
	if in.Size > maxFileSize {
		fail(8, "size %#x", in.Size)
		return
	}
	if in.Extended {
		c.reserved(in.off+6, 2, where)
		c.reserved(in.off+48, 16, where)
	} else {
		c.reserved(in.off+12, 4, where)
		c.reserved(in.off+28, 4, where)
	}
	if uint64(in.Ino) > c.super.Inos {
		c.note(in.off+20, where, "inode number %d, superblock counts %d", in.Ino, c.super.Inos)
	}
	c.checkXattrs(in, where)
	switch v6.TypeOf(uint32(in.Mode)) {
	case v6.TypeRegular:
		c.checkFile(in, where)
		return
	case v6.TypeDir:
		c.checkFlat(in, where, maxEntries*c.blockSize)
		return
	case v6.TypeSymlink:
		c.checkSymlink(in, where)
		return
	case v6.TypeUnknown:
		fail(4, "mode %#o is of no file type", in.Mode)
	default:
		if in.Size != 0 {
			fail(8, "size %d of mode %#o, want 0", in.Size, in.Mode)
		}
		if in.Layout != v6.LayoutFlatPlain && in.Layout != v6.LayoutFlatInline {
			c.note(in.off, where, "data layout %d of mode %#o", in.Layout, in.Mode)
		}
	}
	c.claim(in.off, in.tail()-in.off, where)
}

// claim claims what belongs to an inode, and tells whether it lies inside the
// bootstrap and belongs to nothing else.
func (c *v6Check) claim(off, n uint64, where any) bool {
	if off > c.src.size || n > c.src.size-off {
		c.fail(off, where, "%d bytes end beyond the bootstrap of %d", n, c.src.size)
		return false
	}
	if at, ok := c.claims.take(off, n); !ok {
		c.fail(off, where, "%d bytes overlap another part at %#x", n, at)
		return false
	}
	return true
}

// checkFlat checks that all data of a folder or a link is there. A folder or link
// without its data counts as empty from then on.
func (c *v6Check) checkFlat(in *v6Inode, where any, limit uint64) bool {
	if in.Size == 0 || in.Size > limit {
		c.fail(in.off+8, where, "size %d of mode %#o, want 1 to %d", in.Size, in.Mode, limit)
		c.claim(in.off, in.tail()-in.off, where)
		return c.unreadable(in)
	}
	whole, rest := in.Size>>c.blockBits, in.Size&(c.blockSize-1)
	switch in.Layout {
	case v6.LayoutFlatPlain:
		if rest != 0 {
			whole++
		}
		rest = 0
	case v6.LayoutFlatInline:
		tail := in.tail()
		if rest != 0 && tail>>c.blockBits != (tail+rest-1)>>c.blockBits {
			c.fail(in.off, where, "inline data of %d bytes at %#x crosses a block", rest, tail)
		}
		if rest == 0 {
			c.fail(in.off, where, "inline data of 0 bytes: size %d is a multiple of the block size", in.Size)
			return c.unreadable(in)
		}
	default:
		c.fail(in.off, where, "data layout %d of mode %#o", in.Layout, in.Mode)
		c.claim(in.off, in.tail()-in.off, where)
		return c.unreadable(in)
	}
	ok := c.claim(in.off, in.tail()+rest-in.off, where)
	if whole > 0 {
		start, n := uint64(in.U)<<c.blockBits, whole<<c.blockBits
		// The last block may be short where the bootstrap ends.
		if end := start + n; end > c.src.size && end-c.src.size < c.blockSize && in.Size-(whole-1)<<c.blockBits <= c.src.size-(end-c.blockSize) {
			n = c.src.size - start
		}
		ok = c.claim(start, n, where) && ok
	}
	if !ok {
		return c.unreadable(in)
	}
	return true
}

// unreadable keeps the entries of a folder from being looked at that cannot be
// there, or have been looked at as somebody else's.
func (c *v6Check) unreadable(in *v6Inode) bool {
	c.walk.whole = false
	c.walk.broken.add(in.nid)
	return false
}

func (c *v6Check) checkSymlink(in *v6Inode, where any) {
	if !c.checkFlat(in, where, maxSymlink) {
		return
	}
	var buf [maxSymlink]byte
	target, done := buf[:in.Size], uint64(0)
	for i := uint64(0); done < in.Size; i++ {
		off, n := c.blockOf(in, i)
		c.src.read(target[done:done+n], off)
		done += n
	}
	at := bytes.IndexByte(target, 0)
	if at < 0 {
		return
	}
	if in.Size > c.blockSize && in.Layout == v6.LayoutFlatInline && c.src.read(target, in.tail()) && bytes.IndexByte(target, 0) < 0 {
		// Only blocks of 512 bytes are too small for a target (nydus builder/src/core/v6.rs).
		c.note(in.tail(), where, "all of a target of %d bytes behind the inode, of which a part belongs there", in.Size)
		return
	}
	off, _ := c.blockOf(in, uint64(at)>>c.blockBits)
	c.fail(off+uint64(at)&(c.blockSize-1), where, "NUL in a symbolic link")
}

// checkFile checks that each chunk of a regular file is in the chunk table, as
// long as the file needs it and where EROFS would look for it.
func (c *v6Check) checkFile(in *v6Inode, where any) {
	chunkBits := log2(c.ext.ChunkSize)
	n := (in.Size + uint64(c.ext.ChunkSize) - 1) >> chunkBits
	addrs := alignUp(in.tail(), v6.ChunkAddrSize)
	if in.Layout != v6.LayoutChunkBased {
		c.fail(in.off, where, "data layout %d of a regular file, want %d", in.Layout, v6.LayoutChunkBased)
		c.claim(in.off, in.tail()-in.off, where)
		return
	}
	if n > c.src.size/v6.ChunkAddrSize || !c.claim(in.off, addrs+n*v6.ChunkAddrSize-in.off, where) {
		if n > c.src.size/v6.ChunkAddrSize {
			c.fail(in.off+8, where, "%d chunk addresses end beyond the bootstrap", n)
		}
		c.walk.whole = false
		return
	}
	f := v6File{v6Check: c, where: where, in: in, chunkBits: chunkBits, contiguous: true}
	for i := range n {
		f.address(i, addrs+i*v6.ChunkAddrSize)
	}
	f.checkFormat(n)
}

func log2(n uint32) (bits uint64) {
	for ; n > 1; n >>= 1 {
		bits++
	}
	return bits
}

// v6File is the check of one file's chunk addresses.
type v6File struct {
	*v6Check
	where      any
	in         *v6Inode
	chunkBits  uint64
	last       v6.ChunkAddr
	lastEnd    uint64 // in the uncompressed space of last's blob
	contiguous bool   // all chunks follow each other in one blob
}

func (f *v6File) address(i, off uint64) {
	var b [v6.ChunkAddrSize]byte
	f.src.read(b[:], off)
	a, err := v6.DecodeChunkAddr(b[:])
	if err != nil {
		f.contiguous = false
		f.fail(off, f.where, "%v", err)
		return
	}
	if a.BlobIndex >= uint32(len(f.blobs)) {
		f.contiguous = false
		f.fail(off+2, f.where, "chunk of blob %d, there are %d", a.BlobIndex, len(f.blobs))
		return
	}
	want := min(f.in.Size-i<<f.chunkBits, 1<<f.chunkBits)
	start := uint64(a.BlkAddr) << f.blockBits
	size := want
	switch {
	case f.tarfs:
		f.tarChunk(off, &a, want)
	case f.chunks != nil:
		size = f.record(off, &a, want)
	}
	if i > 0 {
		step := uint64(1) << f.chunkBits
		f.contiguous = f.contiguous && a.BlobIndex == f.last.BlobIndex && uint64(a.BlkAddr) == uint64(f.last.BlkAddr)+step>>f.blockBits
		if a.BlobIndex != f.last.BlobIndex && f.lastEnd == start {
			f.note(off, f.where, "chunk at %#x of blob %d follows one of blob %d without a gap in the block numbers, which Linux joins into one read",
				start, a.BlobIndex, f.last.BlobIndex)
		}
	}
	f.last, f.lastEnd = a, start+size
}

// record holds an address against the chunk table and returns the chunk's size.
func (f *v6File) record(off uint64, a *v6.ChunkAddr, want uint64) uint64 {
	at, ok := f.chunks.find(a.BlobIndex, a.ChunkIndex)
	if !ok {
		f.fail(off, f.where, "chunk %d of blob %d is not in the chunk table", a.ChunkIndex, a.BlobIndex)
		return want
	}
	f.chunks.use(a.BlobIndex, at)
	word := f.chunks.sets[a.BlobIndex].words[at]
	block, size := word>>32, word&(1<<32-1)
	if block != uint64(a.BlkAddr) {
		f.fail(off+4, f.where, "chunk %d of blob %d in block %d, chunk table has it in %d", a.ChunkIndex, a.BlobIndex, a.BlkAddr, block)
	}
	if size != want {
		f.fail(off, f.where, "chunk %d of blob %d has %d bytes, file needs %d", a.ChunkIndex, a.BlobIndex, size, want)
	}
	return size
}

// checkFormat checks the chunk format: that of the image, or for a file whose
// chunks all follow each other the power of two that holds it whole, which nydus
// announces to save the kernel work.
func (f *v6File) checkFormat(n uint64) {
	format, at := f.in.U, f.in.off+16
	if format&v6.ChunkFormatIndexes == 0 || format&^(v6.ChunkFormatIndexes|v6.ChunkFormatBits) != 0 {
		f.fail(at, f.where, "chunk format %#x", format)
		return
	}
	bits := uint64(format&v6.ChunkFormatBits) + f.blockBits
	if bits == f.chunkBits {
		return
	}
	if n > 1 && f.contiguous && bits < 63 && bits > f.chunkBits && 1<<bits >= f.in.Size {
		return
	}
	if f.contiguous && bits < 63 && n <= 1 && 1<<bits >= f.in.Size {
		f.note(at, f.where, "chunks of %#x bytes announced", uint64(1)<<bits)
		return
	}
	f.fail(at, f.where, "chunks of 2^%d bytes announced, image has 2^%d", bits, f.chunkBits)
}

// checkXattrs checks the xattrs of an inode.
func (c *v6Check) checkXattrs(in *v6Inode, where any) {
	if in.XattrICount == 0 {
		return
	}
	start, size := in.off+uint64(in.DiskSize()), uint64(in.XattrSize())
	if !c.takeXattrs(start, size, where) {
		return
	}
	x := &c.walk.xattrs
	area := room(x.area, int(size))
	if !c.src.read(area, start) {
		return // said with the rest of the inode
	}
	clear(x.seen)
	*x = v6Xattrs{v6Check: c, where: where, off: start, area: area, seen: x.seen}
	x.run()
	if x.n > 0 {
		c.walk.hasXattrs = true
		if c.flags&layout.FlagHasXattr == 0 {
			c.fail(in.off+2, where, "has xattrs, the superblock says that nothing has")
		}
	}
}
