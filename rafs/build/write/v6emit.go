package write

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Write writes the bootstrap to w, from start to end. It is called once.
func (p *V6) Write(w io.Writer) error {
	if p.written {
		return errors.New("bootstrap written already")
	}
	p.written = true
	e := newEmitter(w)
	supers, err := p.appendSupers(nil)
	if err != nil {
		return err
	}
	e.put(v6.SuperOffset, supers)
	e.put(p.blobTable, p.appendBlobTable(nil))
	prefetch, err := p.appendPrefetch(nil)
	if err != nil {
		return err
	}
	e.put(p.prefetchTable, prefetch)
	if err := p.writeParts(e); err != nil {
		return err
	}
	e.pad(p.chunkTable)
	records, err := p.used.Sort()
	if err != nil {
		return err
	}
	for records.Next() {
		e.put(e.off, append(e.buf[:0], records.Value()...))
	}
	if records.Err() != nil {
		return records.Err()
	}
	e.pad(p.size)
	return e.flush()
}

// emitter writes pieces at rising offsets, zeros between them.
type emitter struct {
	w   *bufio.Writer
	off uint64
	err error
	buf []byte // reused
}

func newEmitter(w io.Writer) *emitter { return &emitter{w: bufio.NewWriterSize(w, 256<<10)} }

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

func (e *emitter) flush() error {
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.err
}

// writeParts writes inodes and whole blocks by offset.
func (p *V6) writeParts(e *emitter) error {
	parts, err := p.parts.Sort()
	if err != nil {
		return err
	}
	for parts.Next() && e.err == nil {
		off := binary.BigEndian.Uint64(parts.Key())
		id, blocks := tree.ID(binary.LittleEndian.Uint32(parts.Value())), parts.Value()[4] != 0
		n, err := p.tree.Node(id)
		if err != nil {
			return err
		}
		m, err := p.read(id)
		if err != nil {
			return err
		}
		if blocks {
			err = p.putWhole(e, off, &n, &m)
		} else {
			err = p.putInode(e, off, &n, &m)
		}
		if err != nil {
			return err
		}
	}
	if err := parts.Err(); err != nil {
		return err
	}
	return e.err
}

func (p *V6) appendSupers(b []byte) ([]byte, error) {
	root, err := p.read(tree.Root)
	if err != nil {
		return nil, err
	}
	blobs := p.Blobs()
	super := v6.Super{
		Magic: v6.Magic, FeatureCompat: v6.FeatureCompatRafs, BlockBits: p.bits,
		RootNID: uint16(root.nid), Inos: uint64(p.inodes),
		MetaBlkAddr:     uint32(p.meta >> p.bits),
		FeatureIncompat: v6.FeatureIncompat, ExtraDevices: uint16(len(blobs)), DevtSlotOff: v6.DeviceSlotPos,
	}
	slots := make([]v6.DeviceSlot, len(blobs))
	pos := p.size
	for i, info := range blobs {
		pos = (pos + mappedAlign - 1) / mappedAlign * mappedAlign
		blocks := info.UncompressedSize() >> p.bits
		slots[i] = v6.DeviceSlot{ID: info.ID, Blocks: uint32(blocks), MappedBlkAddr: uint32(pos >> p.bits)}
		pos += blocks << p.bits
		super.Blocks += slots[i].Blocks
	}
	ext := v6.ExtSuper{
		Flags: uint64(p.flags), ChunkSize: p.opts.ChunkSize,
		BlobTableOffset: p.blobTable, BlobTableSize: uint32(len(blobs) * v6.BlobEntrySize),
		ChunkTableOffset: p.chunkTable, ChunkTableSize: p.chunkRecords * layout.ChunkRecordSize,
	}
	if len(p.prefetch) > 0 {
		ext.PrefetchTableOffset, ext.PrefetchTableSize = p.prefetchTable, uint32(4*len(p.prefetch))
	}
	b = ext.Append(super.Append(b))
	for i := range slots {
		b = slots[i].Append(b)
	}
	return b, nil
}

func (p *V6) appendBlobTable(b []byte) []byte {
	for i, info := range p.Blobs() {
		e := info.Entry
		e.ID, e.Index, e.ChunkSize = info.ID, uint32(i), p.opts.ChunkSize
		b = e.Append(b)
	}
	return b
}

func (p *V6) appendPrefetch(b []byte) ([]byte, error) {
	for _, id := range p.prefetch {
		n, err := p.tree.Node(id)
		if err != nil {
			return nil, err
		}
		m, err := p.read(n.Inode)
		if err != nil {
			return nil, err
		}
		b = binary.LittleEndian.AppendUint32(b, m.nid)
	}
	return b, nil
}

// putInode writes an inode, its xattrs and what follows them.
func (p *V6) putInode(e *emitter, off uint64, n *tree.Node, m *v6Mark) error {
	disk := v6.Inode{
		Extended: true, Layout: m.layout, Mode: uint16(n.Mode), Nlink: m.nlink, Size: n.Size, Ino: m.ino,
		UID: n.UID, GID: n.GID, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
	}
	if size := xattrSize(n.Xattrs); size > 0 {
		disk.XattrICount = uint16((size-v6.XattrHeaderSize)/v6.XattrAlign + 1)
	}
	switch n.Type() {
	case tree.TypeFile:
		disk.U = v6.ChunkFormatIndexes | uint32(bits.TrailingZeros32(p.opts.ChunkSize)-int(p.bits))
	case tree.TypeDir:
		disk.U, disk.Size = m.blocks, uint64(m.size)
	case tree.TypeLink:
		disk.U = m.blocks
	default:
		disk.U = n.Rdev
	}
	e.put(off, appendXattrs(disk.Append(e.buf[:0]), n.Xattrs))
	switch m.layout {
	case v6.LayoutChunkBased:
		return p.putChunks(e, off, n, m)
	case v6.LayoutFlatInline:
		tail := disk.Size % p.block
		if n.Type() == tree.TypeLink {
			e.put(e.off, append(e.buf[:0], n.Target[disk.Size-tail:]...))
			return e.err
		}
		return p.eachDirBlock(n, func(block []byte, last bool) {
			if last {
				e.put(e.off, append(e.buf[:0], block...))
			}
		})
	}
	return e.err
}

// putChunks writes the chunk index of a file.
func (p *V6) putChunks(e *emitter, off uint64, n *tree.Node, m *v6Mark) error {
	b := append(e.buf[:0], zeroBlock[:alignIndex(e.off-off)-(e.off-off)]...)
	for ref, err := range p.tree.Refs(n) {
		if err == nil {
			ref, err = p.chunks.choose(ref, m.own)
		}
		if err != nil {
			return err
		}
		r, err := p.chunks.record(ref)
		if err != nil {
			return err
		}
		addr := r.UncompressedOffset >> p.bits
		if r.UncompressedOffset != addr<<p.bits {
			return fmt.Errorf("%s: chunk %d of blob %s at %#x, want a multiple of %d", n.Name, ref.Index, p.chunks.layers[ref.Blob].ID, r.UncompressedOffset, p.block)
		}
		a := v6.ChunkAddr{BlobIndex: p.chunks.number[ref.Blob], ChunkIndex: ref.Index, BlkAddr: uint32(addr)}
		if b = a.Append(b); len(b) >= piece {
			e.put(e.off, b)
			b = e.buf[:0]
		}
	}
	e.put(e.off, b)
	return e.err
}

// putWhole writes the blocks of an inode that lie apart from it.
func (p *V6) putWhole(e *emitter, off uint64, n *tree.Node, m *v6Mark) error {
	e.pad(off)
	inline := m.layout == v6.LayoutFlatInline
	if n.Type() == tree.TypeLink {
		target := n.Target
		if inline {
			target = target[:uint64(len(target))&^(p.block-1)]
		}
		e.put(off, append(e.buf[:0], target...))
		return e.err
	}
	return p.eachDirBlock(n, func(block []byte, last bool) {
		if !last || !inline {
			e.put(e.off, append(e.buf[:0], block...))
		}
	})
}

// eachDirBlock calls put with the blocks of a folder.
func (p *V6) eachDirBlock(n *tree.Node, put func(block []byte, last bool)) error {
	var held []byte
	for block, err := range p.dirBlocks(n.ID, n.Parent) {
		if err != nil {
			return err
		}
		if held != nil {
			put(held, false)
		}
		held = append(held[:0], block...)
	}
	put(held, true)
	return nil
}

func appendXattrs(b []byte, xattrs []tree.Xattr) []byte {
	if len(xattrs) == 0 {
		return b
	}
	b = (&v6.XattrHeader{}).Append(b)
	for _, x := range xattrs {
		index, rest, _ := v6.SplitXattr(x.Name)
		b = v6.AppendXattr(b, index, rest, []byte(x.Value))
	}
	return b
}
