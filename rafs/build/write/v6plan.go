package write

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

const (
	// mappedAlign is what nydus aligns blobs to in a flattened image, in bytes
	// (nydus builder/src/core/v6.rs, v6_align_mapped_blkaddr).
	mappedAlign = 512 << 10
	// rootGap is what lies between where nids are counted from and the root.
	// glibc hides entries with inode number 0.
	rootGap = 4096
	// The memory of a plan, in bytes: of the marks, and of each sorter.
	markCache   = 2 << 20
	sorterCache = 1 << 20
)

// V6 is a v6 bootstrap with every offset and number decided.
type V6 struct {
	tree   *tree.Tree
	opts   Options
	chunks *chunkMap
	flags  layout.Flags
	bits   uint8  // log2 of block
	block  uint64 // size of a block in bytes

	marks    *spill.Array  // by node: v6Mark
	parts    *spill.Sorter // what lies in the metadata area, by offset
	used     *spill.Sorter // the chunk table, in its order
	prefetch []tree.ID
	inodes   uint32

	blobTable     uint64 // offsets in the file, in bytes
	prefetchTable uint64
	meta          uint64 // where nids are counted from
	chunkTable    uint64
	chunkRecords  uint64 // how many
	size          uint64
	written       bool // parts and used are gone
}

// v6Mark is what a plan notes of an inode, under its first node.
type v6Mark struct {
	nid    uint32
	blocks uint32 // number of the first whole block; 0 if none
	size   uint32 // of a folder, in bytes
	nlink  uint32 // names, or for a folder 2 and its sub-folders
	ino    uint32
	layout v6.InodeLayout
	own    bool // of a file: uses the chunks of its own layer, see chunkMap.use
}

const v6MarkSize = 22

func (p *V6) mark(id tree.ID, m *v6Mark) error {
	var b [v6MarkSize]byte
	for i, v := range [...]uint32{m.nid, m.blocks, m.size, m.nlink, m.ino} {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
	b[20] = byte(m.layout)
	if m.own {
		b[21] = 1
	}
	return p.marks.Set(int64(id), b[:])
}

func (p *V6) read(id tree.ID) (m v6Mark, err error) {
	var b [v6MarkSize]byte
	if err := p.marks.Get(int64(id), b[:]); err != nil {
		return m, err
	}
	for i, v := range [...]*uint32{&m.nid, &m.blocks, &m.size, &m.nlink, &m.ino} {
		*v = binary.LittleEndian.Uint32(b[4*i:])
	}
	m.layout, m.own = v6.InodeLayout(b[20]), b[21] != 0
	return m, nil
}

// NewV6 plans the v6 bootstrap of a tree; see New.
func NewV6(t *tree.Tree, blobs []*BlobInfo, o Options) (_ *V6, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	p := &V6{
		tree: t, opts: o, flags: o.superFlags(), bits: v6.BlockBits,
		marks: spill.NewArray(o.TempDir, v6MarkSize, markCache),
		parts: spill.NewSorter(o.TempDir, sorterCache),
		used:  spill.NewSorter(o.TempDir, sorterCache),
	}
	if o.Tarfs {
		p.bits = v6.TarfsBits
	}
	p.block = 1 << p.bits
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.chunks, err = newChunkMap(blobs, o.TempDir); err != nil {
		return nil, err
	}
	if err := p.survey(); err != nil {
		return nil, err
	}
	if err := p.chunks.finish(); err != nil {
		return nil, err
	}
	if len(p.Blobs()) > 0 { // nydus reads no prefetch table without blobs
		if p.prefetch, err = prefetchNodes(t, o.Prefetch); err != nil {
			return nil, err
		}
	}
	return p, p.layOut()
}

// Blobs returns the blobs that the image needs, in the order of its blob table.
func (p *V6) Blobs() []*BlobInfo { return p.chunks.blobs }

// Size is the size of the bootstrap in bytes.
func (p *V6) Size() int64 { return int64(p.size) }

// Inodes is the number of inodes.
func (p *V6) Inodes() int { return int(p.inodes) }

// Close drops what the plan has spilled. It may be called again.
func (p *V6) Close() error {
	errs := []error{p.marks.Close(), p.parts.Close(), p.used.Close()}
	if p.chunks != nil {
		errs = append(errs, p.chunks.Close())
	}
	return errors.Join(errs...)
}

// survey goes through the tree once and notes in the marks what an inode says
// that is not in its node: link counts, and the size of a folder.
func (p *V6) survey() error {
	for i := range p.tree.Len() {
		n, err := p.tree.Node(tree.ID(i))
		if err != nil {
			return err
		}
		if len(n.Xattrs) > 0 {
			p.flags |= layout.FlagHasXattr
		}
		var m v6Mark
		switch {
		case n.IsDir():
			m, err = p.surveyFolder(&n)
		case n.Inode == n.ID:
			m.nlink = 1
			if n.Type() == tree.TypeFile {
				m.own, err = p.chunks.use(p.tree.Refs(&n), true)
			}
		default:
			if m, err = p.read(n.Inode); err == nil {
				m.nlink++
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := p.mark(n.Inode, &m); err != nil {
			return err
		}
	}
	return nil
}

func (p *V6) surveyFolder(n *tree.Node) (m v6Mark, err error) {
	packer := dirPacker{block: p.block}
	for d, err := range dirents(p.tree, n.ID, n.Parent) {
		if err != nil {
			return m, err
		}
		packer.add(d.name)
		if d.typ == v6.TypeDir {
			m.nlink++ // "." and ".." among them
		}
	}
	if packer.size() > maxBootstrap {
		return m, fmt.Errorf("folder of %d bytes", packer.size())
	}
	m.size = uint32(packer.size())
	return m, nil
}

// layOut places all that the bootstrap has.
func (p *V6) layOut() (err error) {
	for _, info := range p.Blobs() {
		if blocks := info.UncompressedSize() >> p.bits; blocks == 0 || blocks > math.MaxUint32 {
			return fmt.Errorf("blob %s has %d blocks of data", info.ID, blocks)
		}
	}
	p.finishFlags()
	s := p.placeTables()
	if err := p.place(s); err != nil {
		return err
	}
	if p.chunkRecords, err = p.chunks.sortUsed(p.used); err != nil {
		return err
	}
	p.chunkTable = alignBlock(s.next)
	p.size = p.chunkTable + alignBlock(p.chunkRecords*layout.ChunkRecordSize)
	if p.size > maxBootstrap {
		return fmt.Errorf("bootstrap of %d bytes, limit %d", p.size, uint64(maxBootstrap))
	}
	return p.checkBlocks()
}

// finishFlags sets the flags that depend on the blobs.
func (p *V6) finishFlags() {
	cipher, digests := layout.FlagEncryptionNone, len(p.Blobs()) > 0
	for _, b := range p.Blobs() {
		digests = digests && b.has(layout.FeatureInlinedChunkDigest)
		if blob.Cipher(b.Entry.Cipher) == blob.CipherAES128XTS {
			cipher = layout.FlagEncryptionAES128XTS
		}
	}
	if p.flags |= cipher; digests {
		p.flags |= layout.FlagInlinedChunkDigest
	}
	if p.opts.Tarfs {
		p.flags |= layout.FlagTarfs
	}
}

// placeTables places what comes before the inodes and returns the space for them.
func (p *V6) placeTables() *space {
	n := uint64(len(p.Blobs()))
	p.blobTable = alignBlock(v6.DevicesOffset + n*v6.DeviceSlotSize)
	p.prefetchTable = p.blobTable + n*v6.BlobEntrySize
	if n > 0 {
		// Without blobs nydus has no table to leave room for, and counts nids from 0.
		p.meta = alignBlock(p.prefetchTable + 4*uint64(len(p.prefetch)))
	}
	return &space{block: p.block, next: p.meta + rootGap}
}

// place gives every inode its place: folder, its files, its sub-folders, the order
// in which nydus lays them out.
func (p *V6) place(s *space) error {
	for i := range p.tree.Len() {
		dir, err := p.tree.Node(tree.ID(i))
		if err != nil {
			return err
		}
		if !dir.IsDir() {
			continue
		}
		if err := p.placeInode(s, &dir); err != nil {
			return err
		}
		for n, err := range p.tree.Children(dir.ID) {
			if err == nil && !n.IsDir() {
				err = p.placeInode(s, n)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// placeInode places the inode of a node unless another of its names came before.
func (p *V6) placeInode(s *space, n *tree.Node) error {
	m, err := p.read(n.Inode)
	if err != nil || m.nid != 0 {
		return err
	}
	if n.Inode != n.ID {
		first, err := p.tree.Node(n.Inode)
		if err != nil {
			return err
		}
		n = &first
	}
	p.inodes++
	m.ino = p.inodes
	fixed := v6.ExtendedInodeSize + uint64(xattrSize(n.Xattrs))
	var off, blocks uint64
	switch n.Type() {
	case tree.TypeFile:
		m.layout = v6.LayoutChunkBased
		off = s.slots(alignIndex(fixed) + uint64(n.Chunks.N())*v6.ChunkAddrSize)
	case tree.TypeDir:
		m.layout, off, blocks = s.flat(fixed, uint64(m.size))
	case tree.TypeLink:
		m.layout, off, blocks = s.flat(fixed, n.Size)
	default:
		m.layout, off = v6.LayoutFlatPlain, s.append(fixed)
	}
	if s.next > maxBootstrap {
		return fmt.Errorf("bootstrap of more than %d bytes", uint64(maxBootstrap))
	}
	m.nid, m.blocks = uint32((off-p.meta)/v6.NIDUnit), uint32(blocks>>p.bits)
	if err := p.addPart(off, n.ID, false); err != nil {
		return err
	}
	if blocks != 0 {
		if err := p.addPart(blocks, n.ID, true); err != nil {
			return err
		}
	}
	return p.mark(n.ID, &m)
}

// addPart notes that an inode, or its whole blocks, lie at an offset.
func (p *V6) addPart(off uint64, id tree.ID, blocks bool) error {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], off)
	var value [5]byte
	binary.LittleEndian.PutUint32(value[:], uint32(id))
	if blocks {
		value[4] = 1
	}
	return p.parts.Add(key[:], value[:])
}

// checkBlocks refuses what does not fit into EROFS' 32-bit block addresses.
func (p *V6) checkBlocks() error {
	blocks := p.size >> p.bits
	for _, b := range p.Blobs() {
		blocks += mappedAlign>>p.bits + b.UncompressedSize()>>p.bits
	}
	if blocks > math.MaxUint32 {
		return fmt.Errorf("%d blocks of data and metadata, limit %d", blocks, uint32(math.MaxUint32))
	}
	return nil
}

// alignIndex is where the chunk index of a file starts.
func alignIndex(n uint64) uint64 { return (n + v6.ChunkAddrSize - 1) &^ (v6.ChunkAddrSize - 1) }

func xattrSize(xattrs []tree.Xattr) uint32 {
	if len(xattrs) == 0 {
		return 0
	}
	size := v6.XattrHeaderSize
	for _, x := range xattrs {
		_, rest, _ := v6.SplitXattr(x.Name)
		e := v6.XattrEntry{NameLen: uint8(len(rest)), ValueSize: uint16(len(x.Value))}
		size += e.DiskSize()
	}
	return uint32(size)
}
