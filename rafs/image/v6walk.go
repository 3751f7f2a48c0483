package image

import (
	"bytes"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v6Walk checks every inode that the root leads to, once.
type v6Walk struct {
	*v6Tree
	budget budget
	// tar gathers the chunks of tarfs, which has no table of them; else nil.
	tar *tarChunks
	// folders are checked themselves, their entries not yet.
	folders   []v6Folder
	inodes    uint64
	names     uint64
	hasXattrs bool
}

type v6Folder struct{ nid, parent uint64 }

func (o *v6Open) walk() error {
	t := o.tree
	// More inodes than this do not fit, whatever nids say.
	slots := (uint64(len(o.data)) - t.meta) / v6.NIDUnit
	t.nodes = newBitset(slots)
	w := &v6Walk{v6Tree: t, budget: budget(len(o.data))}
	if o.tarfs() {
		w.tar = newTarChunks(o.im.blobs)
	}
	root, err := w.visit(v6.SuperOffset+14, t.root)
	if err != nil {
		return err
	}
	if !root.isType(v6.TypeDir) {
		return corrupt(root.off, "root has mode %#o, want a folder", root.Mode)
	}
	w.folders = append(w.folders, v6Folder{t.root, t.root})
	for len(w.folders) > 0 {
		f := w.folders[len(w.folders)-1]
		w.folders = w.folders[:len(w.folders)-1]
		if err := w.folder(f); err != nil {
			return err
		}
	}
	o.im.super.Inodes, o.im.super.Names, o.im.xattrs = w.inodes, w.names, w.hasXattrs
	if w.tar != nil {
		return o.tarTable(w.tar)
	}
	return nil
}

// visit decodes an inode and, the first time, checks all of it but the entries
// of a folder. from is the offset of what names the inode.
func (w *v6Walk) visit(from, nid uint64) (v6Inode, error) {
	slots := (uint64(len(w.data)) - w.meta) / v6.NIDUnit
	if nid >= slots {
		return v6Inode{}, corrupt(from, "nid %d, bootstrap has room for %d", nid, slots)
	}
	in := v6Inode{nid: nid, off: w.meta + nid*v6.NIDUnit}
	w.pages.at(in.off)
	var err error
	if in.Inode, err = v6.DecodeInode(w.data.from(in.off)); err != nil {
		return in, corrupt(in.off, "%v", err)
	}
	if w.nodes.has(nid) {
		return in, nil
	}
	if w.inodes++; w.inodes > maxInodes {
		return in, corrupt(in.off, "more than %d inodes", maxInodes)
	}
	if err := w.check(&in); err != nil {
		return in, err
	}
	w.nodes.add(nid)
	return in, nil
}

func (w *v6Walk) check(in *v6Inode) error {
	if err := w.budget.take(in.off, uint64(in.DiskSize()+in.XattrSize())); err != nil {
		return err
	}
	switch {
	case in.Nlink == 0:
		return corrupt(in.off, "inode without links")
	case in.MtimeNsec >= nsecs:
		return corrupt(in.off+40, "mtime with %d ns", in.MtimeNsec)
	case in.Size > maxFileSize:
		return corrupt(in.off+8, "size %#x", in.Size)
	}
	if err := w.checkXattrs(in); err != nil {
		return err
	}
	switch v6.TypeOf(uint32(in.Mode)) {
	case v6.TypeRegular:
		return w.checkChunks(in)
	case v6.TypeDir:
		return w.checkFlat(in, v6.BlockSize*maxEntries)
	case v6.TypeSymlink:
		return w.checkSymlink(in)
	case v6.TypeUnknown:
		return corrupt(in.off+4, "mode %#o is of no file type", in.Mode)
	}
	return nil
}

func (w *v6Walk) checkXattrs(in *v6Inode) error {
	bad := ""
	err := w.eachXattr(in, func(x v6Xattr) bool {
		w.hasXattrs = true
		bad = x.bad()
		return bad == ""
	})
	if err != nil {
		return err
	}
	if bad != "" {
		return corrupt(in.off+uint64(in.DiskSize()), "%s", bad)
	}
	return nil
}

// checkFlat checks that all data of a folder or a symbolic link is there.
func (w *v6Walk) checkFlat(in *v6Inode, limit uint64) error {
	if in.Size == 0 || in.Size > limit {
		return corrupt(in.off+8, "size %d of mode %#o, want 1 to %d", in.Size, in.Mode, limit)
	}
	if in.Layout != v6.LayoutFlatPlain && in.Layout != v6.LayoutFlatInline {
		return corrupt(in.off, "data layout %d of mode %#o", in.Layout, in.Mode)
	}
	if err := w.budget.take(in.off, in.Size); err != nil {
		return err
	}
	n := w.blocks(in)
	if n > 1 {
		// Blocks follow each other: if the first and the last but one are inside,
		// all between them are.
		if _, off, ok := w.block(in, n-2); !ok {
			return corrupt(in.off+16, "data at %#x, bootstrap has %d bytes", off, len(w.data))
		}
	}
	last, off, ok := w.block(in, n-1)
	if !ok {
		return corrupt(in.off+16, "data at %#x, bootstrap has %d bytes", off, len(w.data))
	}
	if in.Layout == v6.LayoutFlatInline && off>>w.blockBits != (off+uint64(len(last))-1)>>w.blockBits {
		return corrupt(in.off, "inline data of %d bytes at %#x crosses a block", len(last), off)
	}
	return nil
}

func (w *v6Walk) checkSymlink(in *v6Inode) error {
	if err := w.checkFlat(in, maxSymlink); err != nil {
		return err
	}
	target, ok := w.target(in)
	if i := bytes.IndexByte(target, 0); i >= 0 || !ok {
		_, off, _ := w.block(in, 0)
		return corrupt(off+uint64(max(i, 0)), "NUL in a symbolic link")
	}
	return nil
}

// checkChunks checks that each chunk of a regular file is in the chunk table, as
// long as the file needs it and where EROFS would look for it.
func (w *v6Walk) checkChunks(in *v6Inode) error {
	if in.Layout != v6.LayoutChunkBased {
		return corrupt(in.off, "data layout %d of a regular file, want %d", in.Layout, v6.LayoutChunkBased)
	}
	if f := in.U & 0xffff; f&v6.ChunkFormatIndexes == 0 || f&^(v6.ChunkFormatIndexes|v6.ChunkFormatBits) != 0 {
		return corrupt(in.off+16, "chunk format %#x", f)
	}
	n := in.Size >> w.chunkBits
	if n<<w.chunkBits < in.Size {
		n++
	}
	size := n * v6.ChunkAddrSize
	if err := w.budget.take(in.off, size); err != nil {
		return err
	}
	addrs, ok := w.data.slice(in.chunkAddrs(), size)
	if !ok {
		return corrupt(in.off, "%d chunk addresses end beyond the bootstrap", n)
	}
	for i := range n {
		off := in.chunkAddrs() + i*v6.ChunkAddrSize
		w.pages.at(off)
		a, err := v6.DecodeChunkAddr(addrs[i*v6.ChunkAddrSize:])
		if err != nil {
			return corrupt(off, "%v", err)
		}
		want := min(in.Size-i<<w.chunkBits, 1<<w.chunkBits)
		if w.tar != nil {
			if err := w.tar.add(off, a, uint32(want)); err != nil {
				return err
			}
			continue
		}
		place, ok := w.chunks.find(a.BlobIndex, a.ChunkIndex)
		if !ok {
			return corrupt(off, "chunk %d of blob %d is not in the chunk table", a.ChunkIndex, a.BlobIndex)
		}
		r := w.chunks.stray(place)
		switch {
		case r.UncompressedOffset != uint64(a.BlkAddr)<<w.blockBits:
			return corrupt(off, "chunk %d of blob %d in block %d, chunk table has it at %#x", a.ChunkIndex, a.BlobIndex, a.BlkAddr, r.UncompressedOffset)
		case uint64(r.UncompressedSize) < want:
			return corrupt(off, "chunk %d of blob %d has %d bytes, file needs %d", a.ChunkIndex, a.BlobIndex, r.UncompressedSize, want)
		}
	}
	return nil
}

// folder checks the entries of a folder and the inodes that they name. Names
// must ascend through all blocks, which also keeps them from being there twice.
func (w *v6Walk) folder(f v6Folder) error {
	in, err := w.visit(0, f.nid)
	if err != nil {
		return err
	}
	var last []byte
	entries, dots := 0, 0
	for i := range w.blocks(&in) {
		b, off, _ := w.block(&in, i)
		n, err := checkDirBlock(b, off)
		if err != nil {
			return err
		}
		if entries += n; entries > maxEntries {
			return corrupt(off, "folder with more than %d entries", maxEntries)
		}
		for j := range n {
			name, at := direntName(b, j, n), off+uint64(j*v6.DirentSize)
			if bad := badName(name); bad != "" {
				return corrupt(at, "%s: %q", bad, name)
			}
			if last != nil && bytes.Compare(last, name) >= 0 {
				return corrupt(at, "name %q after %q, want ascending order", name, last)
			}
			last = name
			d, _ := v6.DecodeDirent(b[j*v6.DirentSize:])
			isDot, err := w.entry(f, at, d, name)
			if err != nil {
				return err
			}
			if isDot {
				dots++
			}
		}
	}
	if dots != 2 {
		return corrupt(in.off, "folder lacks \".\" or \"..\"")
	}
	w.names += uint64(entries - dots)
	if w.names > maxInodes {
		return corrupt(in.off, "more than %d names", maxInodes)
	}
	return nil
}

// checkDirBlock checks that entries and names of a block lie inside it, one after
// the other, and counts them.
func checkDirBlock(b []byte, off uint64) (int, error) {
	d, err := v6.DecodeDirent(b)
	if err != nil {
		return 0, corrupt(off, "%v", err)
	}
	first := int(d.NameOff)
	if first%v6.DirentSize != 0 || first == 0 || first >= len(b) {
		return 0, corrupt(off+8, "first name at %d, block has %d bytes", first, len(b))
	}
	n := first / v6.DirentSize
	for j, pos := 1, first; j < n; j++ {
		d, _ := v6.DecodeDirent(b[j*v6.DirentSize:])
		if int(d.NameOff) <= pos || int(d.NameOff) >= len(b) {
			return 0, corrupt(off+uint64(j*v6.DirentSize)+8, "name at %d after %d, block has %d bytes", d.NameOff, pos, len(b))
		}
		pos = int(d.NameOff)
	}
	return n, nil
}

// entry checks one entry of a folder against the inode that it names.
func (w *v6Walk) entry(f v6Folder, at uint64, d v6.Dirent, name []byte) (isDot bool, err error) {
	switch string(name) {
	case ".":
		if d.NID != f.nid || d.Type != v6.TypeDir {
			return true, corrupt(at, "\".\" of nid %d is nid %d, type %d", f.nid, d.NID, d.Type)
		}
		return true, nil
	case "..":
		if d.NID != f.parent || d.Type != v6.TypeDir {
			return true, corrupt(at, "\"..\" of nid %d is nid %d, type %d, want nid %d", f.nid, d.NID, d.Type, f.parent)
		}
		return true, nil
	}
	known := w.nodes.has(d.NID)
	in, err := w.visit(at, d.NID)
	if err != nil {
		return false, err
	}
	if d.Type == v6.TypeUnknown || v6.TypeOf(uint32(in.Mode)) != d.Type {
		return false, corrupt(at+10, "entry %q has type %d, its inode mode %#o", name, d.Type, in.Mode)
	}
	if d.Type != v6.TypeDir {
		return false, nil
	}
	if known {
		return false, corrupt(at, "folder nid %d has several parents", d.NID)
	}
	w.folders = append(w.folders, v6Folder{d.NID, f.nid})
	return false, nil
}
