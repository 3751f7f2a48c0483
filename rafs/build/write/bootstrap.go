package write

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/oldchunk"
	"github.com/rafsd/rafsd/rafs/build/oldtree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

var compressorFlags = map[blob.Compressor]layout.Flags{
	blob.CompressorNone:     layout.FlagCompressorNone,
	blob.CompressorLZ4Block: layout.FlagCompressorLZ4Block,
	blob.CompressorZstd:     layout.FlagCompressorZstd,
}

var digesterFlags = map[blob.Digester]layout.Flags{
	blob.DigesterBlake3: layout.FlagDigesterBlake3,
	blob.DigesterSHA256: layout.FlagDigesterSHA256,
}

// Bootstrap writes a planned bootstrap to w, from start to end.
func Bootstrap(w io.Writer, p *Plan) error {
	e := &emitter{w: bufio.NewWriterSize(w, 1<<20)}
	e.put(v6.SuperOffset, p.appendSupers(nil))
	e.put(p.blobTable, p.appendBlobTable(nil))
	e.put(p.prefetchTable, p.appendPrefetch(nil))
	for _, part := range p.parts() {
		in := &p.inodes[part.inode]
		if part.blocks {
			e.put(in.blocks, p.appendWhole(e.buf[:0], in))
		} else {
			e.put(in.off, p.appendInode(e.buf[:0], in, uint32(part.inode)+1))
		}
	}
	e.pad(p.chunkTable)
	for _, ref := range p.chunks.used {
		r := p.chunkRecord(ref)
		e.put(e.off, r.Append(e.buf[:0]))
	}
	e.pad(p.size)
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.err
}

// emitter writes pieces at rising offsets, zeros between them.
type emitter struct {
	w   *bufio.Writer
	off uint64
	err error
	buf []byte // reused
}

var zeroBlock [v6.BlockSize]byte

func (e *emitter) pad(to uint64) {
	if e.err == nil && to < e.off {
		e.err = fmt.Errorf("plan puts something at %#x, which is taken up to %#x", to, e.off)
	}
	for e.err == nil && e.off < to {
		n := min(to-e.off, v6.BlockSize)
		_, e.err = e.w.Write(zeroBlock[:n])
		e.off += n
	}
}

func (e *emitter) put(off uint64, b []byte) {
	if e.buf = b; len(b) == 0 {
		return
	}
	e.pad(off)
	if e.err == nil {
		_, e.err = e.w.Write(b)
		e.off += uint64(len(b))
	}
}

// part is an inode with what follows it, or its whole blocks.
type part struct {
	inode  int32
	blocks bool
}

// parts lists what lies in the metadata area by offset.
func (p *Plan) parts() []part {
	parts := make([]part, 0, len(p.inodes))
	for i := range p.inodes {
		parts = append(parts, part{int32(i), false})
		if p.inodes[i].blocks != 0 {
			parts = append(parts, part{int32(i), true})
		}
	}
	at := func(x part) uint64 {
		if x.blocks {
			return p.inodes[x.inode].blocks
		}
		return p.inodes[x.inode].off
	}
	slices.SortFunc(parts, func(a, b part) int {
		if at(a) < at(b) {
			return -1
		}
		return 1
	})
	return parts
}

func (p *Plan) appendSupers(b []byte) []byte {
	blobs := p.Blobs()
	super := v6.Super{
		Magic: v6.Magic, FeatureCompat: v6.FeatureCompatRafs, BlockBits: v6.BlockBits,
		RootNID: uint16(p.nid(&p.inodes[0])), Inos: uint64(len(p.inodes)),
		MetaBlkAddr:     uint32(p.meta / v6.BlockSize),
		FeatureIncompat: v6.FeatureIncompat, ExtraDevices: uint16(len(blobs)), DevtSlotOff: v6.DeviceSlotPos,
	}
	slots := make([]v6.DeviceSlot, len(blobs))
	pos := p.size
	for i, info := range blobs {
		pos = (pos + mappedAlign - 1) / mappedAlign * mappedAlign
		size := info.UncompressedSize()
		slots[i] = v6.DeviceSlot{ID: info.ID, Blocks: uint32(size / v6.BlockSize), MappedBlkAddr: uint32(pos / v6.BlockSize)}
		pos += size
		super.Blocks += slots[i].Blocks
	}
	ext := v6.ExtSuper{
		Flags: uint64(p.flags), ChunkSize: p.format.ChunkSize,
		BlobTableOffset: p.blobTable, BlobTableSize: uint32(len(blobs) * v6.BlobEntrySize),
		ChunkTableOffset: p.chunkTable, ChunkTableSize: uint64(len(p.chunks.used)) * layout.ChunkRecordSize,
	}
	if len(p.prefetch) > 0 {
		ext.PrefetchTableOffset, ext.PrefetchTableSize = p.prefetchTable, uint32(4*len(p.prefetch))
	}
	b = ext.Append(super.Append(b))
	for i := range slots {
		b = slots[i].Append(b)
	}
	return b
}

func (p *Plan) appendBlobTable(b []byte) []byte {
	for i, info := range p.Blobs() {
		e := info.entry
		e.ID, e.Index = info.ID, uint32(i)
		b = e.Append(b)
	}
	return b
}

func (p *Plan) appendPrefetch(b []byte) []byte {
	for _, nid := range p.prefetch {
		b = binary.LittleEndian.AppendUint32(b, nid)
	}
	return b
}

// appendInode appends the inode, its xattrs and what follows them.
func (p *Plan) appendInode(b []byte, in *inode, ino uint32) []byte {
	n := in.node
	disk := v6.Inode{
		Extended: true, Layout: in.layout, Mode: uint16(n.Mode), Nlink: in.nlink, Size: in.size, Ino: ino,
		UID: n.UID, GID: n.GID, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
	}
	if in.xattrs > 0 {
		disk.XattrICount = uint16((in.xattrs-v6.XattrHeaderSize)/v6.XattrAlign + 1)
	}
	switch n.Type() {
	case tree.TypeFile:
		disk.U = v6.ChunkFormatIndexes | uint32(bits.TrailingZeros32(p.format.ChunkSize)-v6.BlockBits)
	case tree.TypeDir, tree.TypeLink:
		disk.U = uint32(in.blocks / v6.BlockSize)
	default:
		disk.U = n.Rdev
	}
	start := len(b)
	b = appendXattrs(disk.Append(b), n)
	switch in.layout {
	case v6.LayoutChunkBased:
		b = append(b, make([]byte, int(alignIndex(uint64(len(b)-start)))-(len(b)-start))...)
		for _, ref := range n.Chunks {
			a := p.chunkAddr(p.chunks.choose(ref, in.own))
			b = a.Append(b)
		}
	case v6.LayoutFlatInline:
		tail := int(in.size % v6.BlockSize)
		data := p.appendData(nil, in)
		b = append(b, data[len(data)-tail:]...)
	}
	return b
}

// appendWhole appends the blocks of an inode that lie apart from it.
func (p *Plan) appendWhole(b []byte, in *inode) []byte {
	start := len(b)
	b = p.appendData(b, in)
	if in.layout == v6.LayoutFlatInline {
		b = b[:start+int(in.size/v6.BlockSize*v6.BlockSize)]
	}
	return b
}

func (p *Plan) appendData(b []byte, in *inode) []byte {
	if in.node.IsDir() {
		return p.appendDir(b, in)
	}
	return append(b, in.node.Target...)
}

func appendXattrs(b []byte, n *tree.Node) []byte {
	if len(n.Xattrs) == 0 {
		return b
	}
	b = (&v6.XattrHeader{}).Append(b)
	for _, x := range n.Xattrs {
		index, rest, _ := v6.SplitXattr(x.Name)
		b = v6.AppendXattr(b, index, rest, []byte(x.Value))
	}
	return b
}

func (p *Plan) chunkAddr(ref chunk.Ref) v6.ChunkAddr {
	return v6.ChunkAddr{
		BlobIndex: p.chunks.number[ref.Blob], ChunkIndex: ref.Index,
		BlkAddr: uint32(p.chunks.record(ref).UncompressedOffset / v6.BlockSize),
	}
}

func (p *Plan) chunkRecord(ref chunk.Ref) layout.ChunkRecord {
	r := p.chunks.record(ref)
	rec := layout.ChunkRecord{
		Digest: r.Digest, BlobIndex: p.chunks.number[ref.Blob], Index: ref.Index,
		CompressedSize: r.CompressedSize, UncompressedSize: r.UncompressedSize,
		CompressedOffset: r.CompressedOffset, UncompressedOffset: r.UncompressedOffset,
	}
	if r.CompressedSize != r.UncompressedSize {
		rec.Flags = layout.ChunkCompressed
	}
	return rec
}
