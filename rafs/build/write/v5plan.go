package write

import (
	"errors"
	"fmt"
	"hash"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
)

const (
	// v5EntrySize is what a name adds to the size of its folder, in bytes: folders
	// have no size in v5, so nydus makes one up that is the same everywhere
	// (nydus builder/src/core/v5.rs, v5_set_dir_size).
	v5EntrySize = 8
	// v5DirUnit is what such a size is a multiple of.
	v5DirUnit = 4096
	// v5Cache is what is kept in memory of each table of a plan, in bytes.
	v5Cache = 1 << 20
)

// V5 is a v5 bootstrap with every offset, number and digest decided.
//
// The times of the root are kept. nydus-image sets them to 0 because a folder
// that it was given to build from has a time of its own; readers take any.
type V5 struct {
	tree   *tree.Tree
	opts   Options
	chunks *chunkMap
	flags  layout.Flags

	marks    *spill.Array // by node: v5Mark
	slots    *spill.Array // by position in the inode table: offset of the record, in units of v5.Align
	inodes   uint64       // hard links counted once
	hash     hash.Hash    // for one file at a time
	prefetch []tree.ID
	super    v5.Super
	size     uint64
}

// NewV5 plans the v5 bootstrap of a tree. The rules for blobs are those of NewV6.
func NewV5(t *tree.Tree, blobs []*BlobInfo, o Options) (_ *V5, err error) {
	if err = o.Check(); err != nil {
		return nil, err
	}
	p := &V5{
		tree: t, opts: o, flags: o.superFlags(), hash: newHash(o.Digester),
		marks: spill.NewArray(o.TempDir, v5MarkSize, v5Cache),
		slots: spill.NewArray(o.TempDir, v5.TableEntrySize, v5Cache),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.chunks, err = newChunkMap(blobs, o.TempDir); err != nil {
		return nil, err
	}
	if p.prefetch, err = prefetchNodes(t, o.Prefetch); err != nil {
		return nil, err
	}
	if err = p.survey(); err != nil {
		return nil, err
	}
	if err = p.chunks.finish(); err != nil {
		return nil, err
	}
	if err = p.checkBlobs(); err != nil {
		return nil, err
	}
	return p, p.number()
}

// checkBlobs refuses blobs that differ in what v5 says once for all of them.
func (p *V5) checkBlobs() error {
	for _, b := range p.Blobs() {
		c, d := blob.Compressor(b.Entry.Compressor), blob.Digester(b.Entry.Digester)
		if c != p.opts.Compressor && c != blob.CompressorNone || d != p.opts.Digester {
			return fmt.Errorf("blob %s has compressor %v and digester %v, the v5 image %v and %v", b.ID, c, d, p.opts.Compressor, p.opts.Digester)
		}
	}
	return nil
}

// Blobs returns the blobs that the image needs, in the order of its blob table.
func (p *V5) Blobs() []*BlobInfo { return p.chunks.blobs }

// Size is the size of the bootstrap in bytes.
func (p *V5) Size() int64 { return int64(p.size) }

// Inodes is the number of inodes.
func (p *V5) Inodes() int { return int(p.inodes) }

// Close drops what the plan has spilled. It may be called again.
func (p *V5) Close() error {
	errs := []error{p.marks.Close(), p.slots.Close()}
	if p.chunks != nil {
		errs = append(errs, p.chunks.Close())
	}
	return errors.Join(errs...)
}

// inode reads the node that stands for the inode of n. Only regular files are
// hard links in v5: nydusd takes a link of another type, whose first name lies
// deeper than the link, for damage (nydus rafs/src/metadata/direct_v5.rs,
// validate). Other files become one inode a name.
func (p *V5) inode(n *tree.Node) (tree.ID, error) {
	if n.Inode == n.ID || n.Type() != tree.TypeFile {
		return n.ID, nil
	}
	first, err := p.tree.Node(n.Inode)
	n.Attr, n.Xattrs, n.Chunks = first.Attr, first.Xattrs, first.Chunks
	return n.Inode, err
}

// v5Folder is a folder whose names are being surveyed.
type v5Folder struct {
	id                tree.ID
	digest            hash.Hash // over the digests of the children, in order
	names             uint64    // bytes that names count for
	children, folders uint32
}

// survey goes through the tree once and notes in the marks what an inode says
// that is not in its node: counts, sizes of folders, digests.
func (p *V5) survey() error {
	var open []v5Folder
	pool := map[int]hash.Hash{}
	for i := range p.tree.Len() {
		n, err := p.tree.Node(tree.ID(i))
		if err != nil {
			return err
		}
		for len(open) > 0 && open[len(open)-1].id != n.Parent {
			if open, err = p.closeFolder(open); err != nil {
				return err
			}
		}
		if len(open) > 0 {
			parent := &open[len(open)-1]
			parent.children++
			parent.names += uint64(len(n.Name)) + v5EntrySize
			if n.IsDir() {
				parent.folders++
			}
		}
		if !n.IsDir() {
			if err := p.surveyFile(&n, &open[len(open)-1]); err != nil {
				return err
			}
			continue
		}
		if len(n.Xattrs) > 0 {
			p.flags |= layout.FlagHasXattr
		}
		p.inodes++
		digest, ok := pool[len(open)]
		if !ok {
			digest = newHash(p.opts.Digester)
			pool[len(open)] = digest
		}
		digest.Reset()
		open = append(open, v5Folder{id: n.ID, digest: digest})
	}
	for len(open) > 0 {
		var err error
		if open, err = p.closeFolder(open); err != nil {
			return err
		}
	}
	return nil
}

// closeFolder marks the last folder of open, which is at its end.
func (p *V5) closeFolder(open []v5Folder) ([]v5Folder, error) {
	f := &open[len(open)-1]
	m := v5Mark{nlink: 2 + f.folders, children: f.children, size: max((f.names+v5DirUnit-1)/v5DirUnit*v5DirUnit, v5DirUnit)}
	f.digest.Sum(m.digest[:0])
	open = open[:len(open)-1]
	if len(open) > 0 {
		open[len(open)-1].digest.Write(m.digest[:])
	}
	return open, p.mark(f.id, &m)
}

// surveyFile marks a file: the digest is that of its content.
func (p *V5) surveyFile(n *tree.Node, parent *v5Folder) error {
	id, err := p.inode(n)
	if err != nil {
		return err
	}
	if len(n.Xattrs) > 0 {
		p.flags |= layout.FlagHasXattr
	}
	var m v5Mark
	if id == n.ID {
		p.inodes++
		m.nlink = 1
		if m.digest, err = p.digest(n); err != nil {
			return err
		}
	} else {
		first, err := p.read(id)
		if err != nil {
			return err
		}
		first.nlink++
		if err := p.mark(id, &first); err != nil {
			return err
		}
		m.digest = first.digest
	}
	parent.digest.Write(m.digest[:])
	return p.mark(n.ID, &m)
}

// digest is over the target of a symlink, and over the digests of the chunks of
// a regular file; a special file has none of them.
func (p *V5) digest(n *tree.Node) (sum blob.Digest, err error) {
	h := p.hash
	h.Reset()
	switch n.Type() {
	case tree.TypeLink:
		h.Write([]byte(n.Target))
	case tree.TypeFile:
		if _, err := p.chunks.use(p.tree.Refs(n), false); err != nil {
			return sum, err
		}
		for ref, err := range p.tree.Refs(n) {
			if err == nil {
				ref, err = p.chunks.choose(ref, false)
			}
			if err != nil {
				return sum, err
			}
			r, err := p.chunks.record(ref)
			if err != nil {
				return sum, err
			}
			h.Write(r.Digest[:])
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// number gives every node its position in the inode table and its record an
// offset. Positions are handed out to all children of a folder when its record
// comes, so that they follow each other; records lie in the order of the nodes.
func (p *V5) number() error {
	n := uint64(p.tree.Len())
	off := p.placeTables(n)
	next := uint32(v5.RootIndex + 1)
	for i := range p.tree.Len() {
		node, err := p.tree.Node(tree.ID(i))
		if err != nil {
			return err
		}
		m, err := p.read(node.ID)
		if err != nil {
			return err
		}
		if node.ID == tree.Root {
			m.index = v5.RootIndex
		} else if m.index, err = p.takeSlot(node.Parent); err != nil {
			return err
		}
		if node.IsDir() {
			m.child, m.next = next, next
			next += m.children
		}
		m.ino = m.index
		if err := p.mark(node.ID, &m); err != nil {
			return err
		}
		size, err := p.recordSize(&node, m.index)
		if err != nil {
			return err
		}
		if off > maxBootstrap-size {
			return fmt.Errorf("bootstrap of more than %d bytes", uint64(maxBootstrap))
		}
		if err := p.setSlot(m.index, off); err != nil {
			return err
		}
		off += size
	}
	p.size = off
	return nil
}

// takeSlot takes the position of the next child of a folder.
func (p *V5) takeSlot(dir tree.ID) (uint32, error) {
	m, err := p.read(dir)
	if err != nil {
		return 0, err
	}
	index := m.next
	m.next++
	return index, p.mark(dir, &m)
}

// recordSize is the size of a node's record. The number of a hard link is the
// lowest position of its names.
func (p *V5) recordSize(n *tree.Node, index uint32) (uint64, error) {
	id, err := p.inode(n)
	if err != nil {
		return 0, err
	}
	if id != n.ID {
		first, err := p.read(id)
		if err != nil {
			return 0, err
		}
		if index < first.ino {
			first.ino = index
			if err := p.mark(id, &first); err != nil {
				return 0, err
			}
		}
	}
	in := v5Inode(n)
	size := in.XattrOffset()
	if in.Flags&v5.InodeXattr != 0 {
		size += v5.XattrTableHeaderSize + v5.PadLen(v5XattrSize(n.Xattrs))
	}
	return size + uint64(n.Chunks.N())*layout.ChunkRecordSize, nil
}
