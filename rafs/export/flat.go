package export

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// blobAlign is what the start of a blob on the disk is aligned to, in bytes
// (V6_BLOCK_SEG_ALIGNMENT, nydus builder/src/core/v6.rs).
const blobAlign = 512 << 10

// diskPlan says where everything goes on a disk.
type diskPlan struct {
	im      *image.Image // whose metadata the disk gets
	source  *image.Image // whose data
	remade  *remade      // of a v5 image; else nil, and both are one
	boot    []byte       // the bootstrap, which the disk begins with
	super   v6.Super
	ext     v6.ExtSuper
	keep    bool    // the bootstrap stays as it is
	bases   []int64 // of blobs, in bytes
	blocks  int64   // of the whole disk
	content int64   // bytes of chunks
	targets int64   // where targets of symbolic links go that are not where they should be
}

func (p *diskPlan) blockSize() int { return 1 << p.super.BlockBits }

func (p *diskPlan) size() int64 { return p.blocks << p.super.BlockBits }

// place is where a chunk of the source goes, -1 if nowhere.
func (p *diskPlan) place(c *blob.Chunk) int64 {
	if p.remade == nil {
		return p.bases[c.Blob.Index] + int64(c.UncompressedOffset)
	}
	i, off, ok := p.remade.place(c)
	if !ok {
		return -1
	}
	return p.bases[i] + off
}

// close gives back what the plan holds beside the image.
func (p *diskPlan) close() error {
	if p.remade == nil {
		return nil
	}
	return p.remade.im.Close()
}

func planDisk(ctx context.Context, im *image.Image, o *BlockOptions) (p *diskPlan, err error) {
	p = &diskPlan{im: im, source: im, keep: o.DeviceTable}
	if v := im.Super().Version; v != 6 {
		if p.keep {
			return nil, fmt.Errorf("%w: RAFS v%d has no device table", image.ErrUnsupported, v)
		}
		if p.remade, err = remake(ctx, im, o.TempDir); err != nil {
			return nil, fmt.Errorf("EROFS metadata of a v%d image: %w", v, err)
		}
		p.im = p.remade.im
	}
	if err := p.arrange(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// arrange finds a place for everything.
func (p *diskPlan) arrange(ctx context.Context) (err error) {
	p.boot = p.im.Bytes()
	if p.super, err = v6.DecodeSuper(p.boot[v6.SuperOffset:]); err != nil {
		return err
	}
	if p.ext, err = v6.DecodeExtSuper(p.boot[v6.ExtSuperOffset:]); err != nil {
		return err
	}
	p.targets = roundUp(int64(len(p.boot)), int64(p.blockSize()))
	pos, err := p.longTargets(ctx)
	if err != nil {
		return err
	}
	for _, b := range p.im.Blobs() {
		base, size := roundUp(pos, blobAlign), p.extent(b.Index)
		if p.keep {
			if base, size, err = p.mapped(b, pos, size); err != nil {
				return err
			}
		}
		p.bases = append(p.bases, base)
		pos = base + size
	}
	p.blocks = roundUp(pos, int64(p.blockSize())) >> p.super.BlockBits
	// The last number stands for no block.
	if p.blocks >= math.MaxUint32 {
		return fmt.Errorf("%w: disk of %d blocks, EROFS counts up to %d", image.ErrUnsupported, p.blocks, uint32(math.MaxUint32))
	}
	return nil
}

// moved tells whether the target of a symbolic link has to be written anew. Of one
// that is longer than a block, which only the blocks of tarfs allow, nydus-image
// writes everything where only the end belongs (builder/src/core/v6.rs).
func (p *diskPlan) moved(e *entry) bool {
	return !p.keep && e.kind() == unix.S_IFLNK && e.first == "" && e.attr.Size > uint64(p.blockSize())
}

// longTargets returns where targets that have to be written anew will end.
func (p *diskPlan) longTargets(ctx context.Context) (int64, error) {
	pos := p.targets
	if p.super.BlockBits == v6.BlockBits {
		return pos, nil
	}
	for e, err := range entries(ctx, p.im) {
		if err != nil {
			return 0, err
		}
		if p.moved(e) {
			pos += roundUp(int64(e.attr.Size), int64(p.blockSize()))
		}
	}
	return pos, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// extent is how many bytes of its uncompressed space a blob needs.
func (p *diskPlan) extent(blobIndex uint32) int64 {
	end := uint64(0)
	for c := range p.im.BlobChunks(blobIndex) {
		end = max(end, c.UncompressedOffset+uint64(c.UncompressedSize))
		p.content += int64(c.UncompressedSize)
	}
	return roundUp(int64(end), int64(p.blockSize()))
}

// mapped is where the device table maps a blob, and its size there. What is
// before pos is taken, and need bytes have to fit.
func (p *diskPlan) mapped(b *blob.Info, pos, need int64) (base, size int64, err error) {
	slot, err := v6.DecodeDeviceSlot(p.boot[v6.DevicesOffset+int(b.Index)*v6.DeviceSlotSize:])
	if err != nil {
		return 0, 0, err
	}
	base, size = int64(slot.MappedBlkAddr)<<p.super.BlockBits, int64(slot.Blocks)<<p.super.BlockBits
	if base < pos || size < need {
		return 0, 0, fmt.Errorf("%w: device %d maps %d blocks at block %d, of which %d bytes are taken and %d are needed",
			image.ErrCorrupt, b.Index, slot.Blocks, slot.MappedBlkAddr, pos, need)
	}
	return base, size, nil
}

// metadata writes the bootstrap, made flat unless it is to stay as it is.
func (p *diskPlan) metadata(ctx context.Context, w file) error {
	dead := p.deadRanges()
	const step = 1 << 20
	buf := make([]byte, step)
	for off := 0; off < len(p.boot); off += step {
		n, err := p.im.ReadAt(buf[:min(step, len(p.boot)-off)], int64(off))
		if err != nil {
			return err
		}
		for _, d := range dead {
			from, to := max(d[0], int64(off))-int64(off), min(d[1], int64(off+n))-int64(off)
			if from < to {
				clear(buf[from:to])
			}
		}
		if err := writeSparse(w, buf[:n], int64(off)); err != nil {
			return err
		}
	}
	if p.keep {
		return nil
	}
	if err := p.inodes(ctx, w); err != nil {
		return err
	}
	return p.superblock(w)
}

// deadRanges are the tables that only RAFS has: nothing in a flat disk may refer
// to blobs.
func (p *diskPlan) deadRanges() [][2]int64 {
	if p.keep {
		return nil
	}
	var out [][2]int64
	for _, t := range [...]struct{ off, size uint64 }{
		{v6.ExtSuperOffset, v6.ExtSuperSize},
		{v6.DevicesOffset, uint64(p.super.ExtraDevices) * v6.DeviceSlotSize},
		{p.ext.BlobTableOffset, uint64(p.ext.BlobTableSize)},
		{p.ext.ChunkTableOffset, p.ext.ChunkTableSize},
		{p.ext.PrefetchTableOffset, uint64(p.ext.PrefetchTableSize)},
	} {
		if t.size > 0 { // then image.Open has found it inside the bootstrap
			out = append(out, [2]int64{int64(t.off), int64(t.off + t.size)})
		}
	}
	return out
}

// inodes turns the chunk addresses of all files into addresses of the disk.
func (p *diskPlan) inodes(ctx context.Context, w io.WriterAt) error {
	var buf []byte
	targets := p.targets
	for e, err := range entries(ctx, p.im) {
		if err != nil {
			return err
		}
		switch {
		case e.hasData():
			var off int64
			if buf, off, err = p.addresses(buf[:0], e); err == nil {
				_, err = w.WriteAt(buf, off)
			}
		case p.moved(e):
			err = p.moveTarget(w, e, targets)
			targets += roundUp(int64(e.attr.Size), int64(p.blockSize()))
		}
		if err != nil {
			return fmt.Errorf("%q: inode %d: %w", e.path, e.node, err)
		}
	}
	return nil
}

// nidBias is what image adds to a nid to get a node id.
const nidBias = 2

// inode decodes the inode of a node and says where it lies.
func (p *diskPlan) inode(node uint64) (v6.Inode, uint64, error) {
	off := uint64(p.super.MetaBlkAddr)<<p.super.BlockBits + (node-nidBias)*v6.NIDUnit
	if off > uint64(len(p.boot)) {
		return v6.Inode{}, 0, fmt.Errorf("inode at %#x: %w", off, image.ErrCorrupt)
	}
	in, err := v6.DecodeInode(p.boot[off:])
	return in, off, err
}

// moveTarget writes the target of a symbolic link at off.
func (p *diskPlan) moveTarget(w io.WriterAt, e *entry, off int64) error {
	in, at, err := p.inode(e.node)
	if err != nil {
		return err
	}
	target, err := p.im.Readlink(e.node)
	if err != nil {
		return err
	}
	in.Layout, in.U = v6.LayoutFlatPlain, uint32(off>>p.super.BlockBits)
	if _, err := w.WriteAt(in.Append(nil), int64(at)); err != nil {
		return err
	}
	_, err = w.WriteAt(target, off)
	return err
}

// addresses appends what the addresses of a file become, and says where they lie.
func (p *diskPlan) addresses(buf []byte, e *entry) ([]byte, int64, error) {
	in, off, err := p.inode(e.node)
	if err != nil {
		return nil, 0, err
	}
	off = (off + uint64(in.DiskSize()+in.XattrSize()) + v6.ChunkAddrSize - 1) &^ (v6.ChunkAddrSize - 1)
	chunk := uint64(p.ext.ChunkSize)
	n := in.Size/chunk + (in.Size%chunk+chunk-1)/chunk
	if off > uint64(len(p.boot)) || n > (uint64(len(p.boot))-off)/v6.ChunkAddrSize {
		return nil, 0, fmt.Errorf("%d chunk addresses at %#x: %w", n, off, image.ErrCorrupt)
	}
	for i := range n {
		a, err := v6.DecodeChunkAddr(p.boot[off+i*v6.ChunkAddrSize:])
		if err != nil {
			return nil, 0, err
		}
		if a.BlobIndex >= uint32(len(p.bases)) {
			return nil, 0, fmt.Errorf("chunk %d of blob %d of %d: %w", i, a.BlobIndex, len(p.bases), image.ErrCorrupt)
		}
		// No device, that is the disk itself (struct erofs_inode_chunk_index).
		buf = binary.LittleEndian.AppendUint32(buf, 0)
		buf = binary.LittleEndian.AppendUint32(buf, uint32(p.bases[a.BlobIndex]>>p.super.BlockBits)+a.BlkAddr)
	}
	return buf, int64(off), nil
}

// The features of a flat disk.
const (
	compatChecksum      = v6.FeatureCompatChecksum
	incompatChunkedFile = 0x4
)

// superblock writes the superblock of a disk without devices, and with a
// checksum over its block as mkfs.erofs makes it.
func (p *diskPlan) superblock(w file) error {
	s := p.super
	s.FeatureCompat, s.FeatureIncompat = compatChecksum, incompatChunkedFile
	s.ExtraDevices, s.DevtSlotOff = 0, 0
	s.Blocks = uint32(p.blocks)
	s.UUID = p.uuid()
	if _, err := w.WriteAt(s.Append(nil), v6.SuperOffset); err != nil {
		return err
	}
	// erofs_superblock_csum_verify (fs/erofs/super.c): from the superblock to the
	// end of its block, or one block where that is smaller; not inverted at the end.
	n := p.blockSize()
	if n > v6.SuperOffset {
		n -= v6.SuperOffset
	}
	block := make([]byte, n)
	if _, err := w.ReadAt(block, v6.SuperOffset); err != nil {
		return err
	}
	sum := ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
	_, err := w.WriteAt(binary.LittleEndian.AppendUint32(nil, sum), v6.SuperOffset+4)
	return err
}

// uuid tells disks of different images apart: version 8 of RFC 9562, from the
// bootstrap's digest.
func (p *diskPlan) uuid() [16]byte {
	sum := p.source.Super().SHA256
	id := [16]byte(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}
