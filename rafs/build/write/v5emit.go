package write

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"

	"github.com/zeebo/blake3"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout/v5"
)

func newHash(d blob.Digester) hash.Hash {
	if d == blob.DigesterSHA256 {
		return sha256.New()
	}
	return blake3.New()
}

// v5MarkSize is the size of a v5Mark in a file, in bytes.
const v5MarkSize = 64

// v5Mark is what a plan notes of a node.
type v5Mark struct {
	digest   blob.Digest
	size     uint64 // of a folder
	index    uint32 // position in the inode table
	ino      uint32 // of an inode's first node
	nlink    uint32 // of an inode's first node
	children uint32 // of a folder
	child    uint32 // of a folder: position of the first child
	next     uint32 // of a folder: position of the child to number next; not kept after that
}

func (p *V5) mark(id tree.ID, m *v5Mark) error {
	var b [v5MarkSize]byte
	le := binary.LittleEndian
	copy(b[:], m.digest[:])
	le.PutUint64(b[32:], m.size)
	for i, v := range [...]uint32{m.index, m.ino, m.nlink, m.children, m.child, m.next} {
		le.PutUint32(b[40+4*i:], v)
	}
	return p.marks.Set(int64(id), b[:])
}

func (p *V5) read(id tree.ID) (m v5Mark, err error) {
	var b [v5MarkSize]byte
	if err := p.marks.Get(int64(id), b[:]); err != nil {
		return m, err
	}
	le := binary.LittleEndian
	m.digest, m.size = blob.Digest(b[:32]), le.Uint64(b[32:])
	for i, v := range [...]*uint32{&m.index, &m.ino, &m.nlink, &m.children, &m.child, &m.next} {
		*v = le.Uint32(b[40+4*i:])
	}
	return m, nil
}

func (p *V5) setSlot(index uint32, off uint64) error {
	var b [v5.TableEntrySize]byte
	binary.LittleEndian.PutUint32(b[:], uint32(off/v5.Align))
	return p.slots.Set(int64(index-v5.RootIndex), b[:])
}

// placeTables fills in the superblock for n names and returns where records begin.
func (p *V5) placeTables(n uint64) uint64 {
	s := &p.super
	*s = v5.Super{
		Magic: v5.Magic, Version: v5.Version, Size: v5.SuperSize, ChunkSize: p.opts.ChunkSize, Flags: uint64(p.flags),
		Inodes: p.inodes, InodeTableOffset: v5.SuperSize, InodeTableEntries: uint32(n),
		PrefetchEntries: uint32(len(p.prefetch)), BlobTableSize: uint32(len(p.blobTable())), ExtBlobEntries: uint32(len(p.Blobs())),
	}
	s.PrefetchTableOffset = s.InodeTableOffset + v5.PadLen(n*v5.TableEntrySize)
	s.BlobTableOffset = s.PrefetchTableOffset + v5.PadLen(uint64(len(p.prefetch))*v5.TableEntrySize)
	s.ExtBlobTableOffset = s.BlobTableOffset + uint64(s.BlobTableSize)
	return s.ExtBlobTableOffset + uint64(len(p.Blobs()))*v5.ExtBlobEntrySize
}

func (p *V5) blobTable() []byte {
	entries := make([]v5.BlobEntry, len(p.Blobs()))
	for i, b := range p.Blobs() {
		entries[i] = v5.BlobEntry{PrefetchSize: b.PrefetchSize, ID: b.ID}
	}
	return v5.AppendBlobTable(nil, entries)
}

func extBlobEntry(b *BlobInfo) v5.ExtBlobEntry {
	e := &b.Entry
	return v5.ExtBlobEntry{
		ChunkCount: e.ChunkCount, Features: e.Features,
		UncompressedSize: e.UncompressedSize, CompressedSize: e.CompressedSize,
	}
}

// Write writes the bootstrap to w, from start to end.
func (p *V5) Write(w io.Writer) error {
	e := newEmitter(w)
	e.put(0, p.super.Append(nil))
	if err := p.writeSlots(e); err != nil {
		return err
	}
	prefetch, err := p.prefetchTable()
	if err != nil {
		return err
	}
	e.put(p.super.PrefetchTableOffset, prefetch)
	e.put(p.super.BlobTableOffset, p.blobTable())
	e.pad(p.super.ExtBlobTableOffset)
	for _, b := range p.Blobs() {
		x := extBlobEntry(b)
		e.put(e.off, x.Append(nil))
	}
	for i := range p.tree.Len() {
		if err := p.writeRecord(e, tree.ID(i)); err != nil {
			return err
		}
	}
	e.pad(p.size)
	return e.flush()
}

func (p *V5) writeSlots(e *emitter) error {
	e.pad(p.super.InodeTableOffset)
	var b [v5.TableEntrySize]byte
	for i := range p.slots.Len() {
		if err := p.slots.Get(i, b[:]); err != nil {
			return err
		}
		e.put(e.off, append(e.buf[:0], b[:]...))
	}
	return e.err
}

func (p *V5) prefetchTable() ([]byte, error) {
	var b []byte
	for _, id := range p.prefetch {
		n, err := p.tree.Node(id)
		if err != nil {
			return nil, err
		}
		if id, err = p.inode(&n); err != nil {
			return nil, err
		}
		m, err := p.read(id)
		if err != nil {
			return nil, err
		}
		b = binary.LittleEndian.AppendUint32(b, m.ino)
	}
	return b, nil
}

// writeRecord writes the record of a node: inode, name, target, xattrs, chunks.
func (p *V5) writeRecord(e *emitter, id tree.ID) error {
	n, err := p.tree.Node(id)
	if err != nil {
		return err
	}
	first, err := p.inode(&n)
	if err != nil {
		return err
	}
	m, err := p.read(first)
	if err != nil {
		return err
	}
	in := v5Inode(&n)
	in.Digest, in.Ino, in.Nlink = m.digest, uint64(m.ino), m.nlink
	if m.nlink > 1 && n.Type() == tree.TypeFile {
		in.Flags |= v5.InodeHardlink
	}
	if n.IsDir() {
		in.Size, in.ChildIndex, in.ChildCount = m.size, m.child, m.children
	}
	if id != tree.Root {
		parent, err := p.read(n.Parent)
		if err != nil {
			return err
		}
		in.Parent = uint64(parent.index)
	}
	in.Blocks = (in.Size + v5.PadLen(v5XattrSize(n.Xattrs)) + 511) / 512
	e.put(e.off, appendV5(e.buf[:0], &in, &n))
	return p.writeChunks(e, &n)
}

// writeChunks writes the records of a file's chunks.
func (p *V5) writeChunks(e *emitter, n *tree.Node) error {
	if n.Type() != tree.TypeFile {
		return nil
	}
	off := uint64(0)
	for ref, err := range p.tree.Refs(n) {
		if err == nil {
			ref, err = p.chunks.choose(ref, false)
		}
		if err != nil {
			return err
		}
		rec, err := p.chunks.layoutRecord(ref)
		if err != nil {
			return err
		}
		rec.FileOffset = off
		off += uint64(p.opts.ChunkSize)
		e.put(e.off, rec.Append(e.buf[:0]))
	}
	return e.err
}

// v5Inode is what a node alone says of its inode.
func v5Inode(n *tree.Node) v5.Inode {
	in := v5.Inode{
		UID: n.UID, GID: n.GID, Mode: n.Mode, Size: n.Size, NameSize: uint16(len(v5Name(n))), Rdev: n.Rdev,
		Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
	}
	switch n.Type() {
	case tree.TypeLink:
		in.Flags |= v5.InodeSymlink
		in.SymlinkSize = uint16(len(n.Target))
	case tree.TypeFile:
		in.ChildCount = uint32(n.Chunks.N())
	}
	if len(n.Xattrs) > 0 {
		in.Flags |= v5.InodeXattr
	}
	return in
}

func v5Name(n *tree.Node) string {
	if n.ID == tree.Root {
		return "/"
	}
	return n.Name
}

// appendV5 appends an inode with all that follows it but chunks.
func appendV5(b []byte, in *v5.Inode, n *tree.Node) []byte {
	b = in.Append(b)
	b = appendAligned(b, v5Name(n))
	if in.Flags&v5.InodeSymlink != 0 {
		b = appendAligned(b, n.Target)
	}
	if in.Flags&v5.InodeXattr == 0 {
		return b
	}
	b = binary.LittleEndian.AppendUint64(b, v5XattrSize(n.Xattrs))
	start := len(b)
	for _, x := range n.Xattrs {
		b = v5.AppendXattrPair(b, x.Name, []byte(x.Value))
	}
	return pad8(b, len(b)-start)
}

func appendAligned(b []byte, s string) []byte { return pad8(append(b, s...), len(s)) }

// pad8 pads what was appended last, n bytes.
func pad8(b []byte, n int) []byte {
	return append(b, zeroBlock[:int(v5.PadLen(uint64(n)))-n]...)
}

// v5XattrSize is the size of all pairs in bytes, without header and padding.
func v5XattrSize(xattrs []tree.Xattr) uint64 {
	size := 0
	for _, x := range xattrs {
		size += v5.XattrPairHeaderSize + len(x.Name) + 1 + len(x.Value)
	}
	return uint64(size)
}
