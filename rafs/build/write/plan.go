package write

import (
	"fmt"
	"math"

	"github.com/rafsd/rafsd/rafs/build/oldtree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

const (
	// maxBlobs is the most blobs whose device ids nydus accepts.
	maxBlobs = 254
	// maxBootstrap is the largest bootstrap that readers open, in bytes.
	maxBootstrap = 2 << 30
	// mappedAlign is what nydus aligns blobs to in a flattened image, in bytes
	// (nydus builder/src/core/v6.rs, v6_align_mapped_blkaddr).
	mappedAlign = 512 << 10
)

// Plan is a bootstrap with every offset and number decided.
type Plan struct {
	format   Format
	flags    layout.Flags
	chunks   *chunkMap
	inodes   []inode
	index    map[*tree.Node]int32
	prefetch []uint32 // nids

	blobTable     uint64 // offsets in the file, in bytes
	prefetchTable uint64
	meta          uint64 // where nids are counted from
	chunkTable    uint64
	size          uint64
}

// inode is an inode and its place.
type inode struct {
	node   *tree.Node
	layout v6.InodeLayout
	parent int32  // of a folder
	own    bool   // of a file: uses the chunks of its own layer, see chunkMap.use
	nlink  uint32 // names, or for a folder 2 and its sub-folders
	off    uint64 // of the inode in the file
	blocks uint64 // of its whole blocks in the file; 0 if none
	size   uint64
	xattrs uint32 // bytes on disk
}

// Options are what a bootstrap has beyond its tree and blobs.
type Options struct {
	Format
	// Prefetch lists absolute paths, files or whole folders, that a reader should
	// fetch ahead. What does not exist is ignored.
	Prefetch []string
}

// New plans the bootstrap of a tree. The refs of its files count in blobs, which
// may hold nil where a layer has no data; what no file needs is left out. Where
// several blobs have the same chunk, every file uses the one of the first.
func New(t *tree.Tree, blobs []*BlobInfo, o Options) (*Plan, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	p := &Plan{format: o.Format, index: map[*tree.Node]int32{}, chunks: newChunkMap(blobs)}
	p.number(t.Root, 0)
	if err := p.chunks.finish(); err != nil {
		return nil, err
	}
	p.flags = p.superFlags()
	patterns := prefetchNodes(t.Root, o.Prefetch)
	space := p.placeTables(len(patterns))
	p.place(space)
	for _, node := range patterns {
		p.prefetch = append(p.prefetch, uint32(p.nid(&p.inodes[p.index[node]])))
	}
	p.chunkTable = space.next
	p.size = space.next + alignBlock(uint64(len(p.chunks.used))*layout.ChunkRecordSize)
	if p.size > maxBootstrap {
		return nil, fmt.Errorf("bootstrap of %d bytes, limit %d", p.size, uint64(maxBootstrap))
	}
	return p, p.checkBlocks()
}

// Blobs returns the blobs that the image needs, in the order of its blob table.
func (p *Plan) Blobs() []*BlobInfo { return p.chunks.blobs }

// Size is the size of the bootstrap in bytes.
func (p *Plan) Size() int64 { return int64(p.size) }

// Inodes is the number of inodes.
func (p *Plan) Inodes() int { return len(p.inodes) }

// number lists the inodes below n, which is a folder: folder, its files, its
// sub-folders, the order in which nydus lays them out.
func (p *Plan) number(n *tree.Node, parent int32) {
	self := int32(len(p.inodes))
	p.index[n] = self
	p.inodes = append(p.inodes, inode{node: n, parent: parent, nlink: 2})
	names := n.Names()
	for _, name := range names {
		child := n.Child(name)
		if child.IsDir() {
			p.inodes[self].nlink++
			continue
		}
		at, linked := p.index[child]
		if !linked {
			at = int32(len(p.inodes))
			p.index[child] = at
			p.inodes = append(p.inodes, inode{node: child, own: p.chunks.use(child.Chunks)})
		}
		p.inodes[at].nlink++
	}
	for _, name := range names {
		if child := n.Child(name); child.IsDir() {
			p.number(child, self)
		}
	}
}

// superFlags needs the inodes and the blobs.
func (p *Plan) superFlags() layout.Flags {
	flags := layout.FlagExplicitUIDGID | layout.FlagEncryptionNone |
		compressorFlags[p.format.Compressor] | digesterFlags[p.format.Digester]
	if len(p.Blobs()) > 0 {
		flags |= layout.FlagInlinedChunkDigest
	}
	for i := range p.inodes {
		if len(p.inodes[i].node.Xattrs) > 0 {
			return flags | layout.FlagHasXattr
		}
	}
	return flags
}

// placeTables places what comes before the inodes and returns the space for them.
func (p *Plan) placeTables(patterns int) *space {
	n := uint64(len(p.Blobs()))
	p.blobTable = alignBlock(v6.DevicesOffset + n*v6.DeviceSlotSize)
	p.prefetchTable = p.blobTable + n*v6.BlobEntrySize
	p.meta = alignBlock(p.prefetchTable + 4*uint64(patterns))
	if n == 0 && patterns == 0 {
		// nydus has no table to leave room for, and counts nids from 0.
		p.meta = 0
	}
	// Nids begin a block before the root: glibc hides entries with inode 0.
	return &space{next: p.meta + v6.BlockSize}
}

// place gives every inode its place, in order.
func (p *Plan) place(s *space) {
	for i := range p.inodes {
		in := &p.inodes[i]
		in.xattrs = xattrSize(in.node)
		fixed := v6.ExtendedInodeSize + uint64(in.xattrs)
		switch in.node.Type() {
		case tree.TypeFile:
			in.layout, in.size = v6.LayoutChunkBased, in.node.Size
			in.off = s.slots(alignIndex(fixed) + uint64(len(in.node.Chunks))*v6.ChunkAddrSize)
		case tree.TypeDir:
			in.size = dirSize(dirNames(in.node))
			p.placeFlat(s, in, fixed)
		case tree.TypeLink:
			in.size = in.node.Size
			p.placeFlat(s, in, fixed)
		default:
			in.layout = v6.LayoutFlatPlain
			in.off = s.slots(fixed)
		}
	}
}

// placeFlat places an inode whose data lies in the metadata area: whole blocks
// apart, and the rest behind the inode where that stays within one block.
func (p *Plan) placeFlat(s *space, in *inode, fixed uint64) {
	tail := in.size % v6.BlockSize
	if tail != 0 && fixed+tail <= v6.BlockSize {
		in.layout = v6.LayoutFlatInline
		in.off = s.slots(fixed + tail)
		if whole := in.size - tail; whole > 0 {
			in.blocks = s.blocks(whole)
		}
		return
	}
	in.layout = v6.LayoutFlatPlain
	in.off = s.slots(fixed)
	in.blocks = s.blocks(in.size)
}

// checkBlocks refuses what does not fit into EROFS' 32-bit block addresses.
func (p *Plan) checkBlocks() error {
	blocks := p.size / v6.BlockSize
	for _, b := range p.Blobs() {
		blocks += mappedAlign/v6.BlockSize + b.UncompressedSize()/v6.BlockSize
	}
	if blocks > math.MaxUint32 {
		return fmt.Errorf("%d blocks of data and metadata, limit %d", blocks, uint32(math.MaxUint32))
	}
	return nil
}

// nid is the number by which EROFS finds an inode.
func (p *Plan) nid(in *inode) uint64 { return (in.off - p.meta) / v6.NIDUnit }

// alignIndex is where the chunk index of a file starts.
func alignIndex(n uint64) uint64 { return (n + v6.ChunkAddrSize - 1) &^ (v6.ChunkAddrSize - 1) }

func xattrSize(n *tree.Node) uint32 {
	if len(n.Xattrs) == 0 {
		return 0
	}
	size := v6.XattrHeaderSize
	for _, x := range n.Xattrs {
		_, rest, _ := v6.SplitXattr(x.Name)
		e := v6.XattrEntry{NameLen: uint8(len(rest)), ValueSize: uint16(len(x.Value))}
		size += e.DiskSize()
	}
	return uint32(size)
}
