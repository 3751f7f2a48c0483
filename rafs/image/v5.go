package image

import (
	"encoding/binary"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
)

// v5Tree answers for the inodes of a RAFS v5 bootstrap. It is immutable. The
// node id of an inode is its number, which is also its position in the inode
// table, from 1.
type v5Tree struct {
	data      region
	table     uint64 // offset of the inode table
	entries   uint64
	chunkSize uint64
	chunks    *chunkTable
	pages     *pages
	owner     owner
	// nodes has the number of each inode that the root leads to.
	nodes bitset
}

// v5Open is the state of reading a v5 bootstrap.
type v5Open struct {
	im    *Image
	data  region
	opts  Options
	super v5.Super
	tree  *v5Tree
}

func isV5(data []byte) bool {
	b, ok := region(data).slice(0, 4)
	return ok && binary.LittleEndian.Uint32(b) == v5.Magic
}

func openV5(im *Image, data region, opts Options) error {
	o := &v5Open{im: im, data: data, opts: opts}
	for _, step := range []func() error{o.readSuper, o.readTables, o.readBlobs, o.walk, o.readPrefetch} {
		if err := step(); err != nil {
			return err
		}
	}
	im.v5 = o.tree
	return nil
}

func (o *v5Open) readSuper() error {
	s, err := v5.DecodeSuper(o.data)
	if err != nil {
		return corrupt(0, "%v", err)
	}
	o.super = s
	switch {
	case s.Version != v5.Version:
		return unsupported(4, "version %#x, want %#x", s.Version, v5.Version)
	case s.Size != v5.SuperSize:
		return corrupt(8, "superblock of %d bytes, want %d", s.Size, v5.SuperSize)
	case len(o.data)%v5.Align != 0:
		return corrupt(0, "bootstrap of %d bytes, want a multiple of %d", len(o.data), v5.Align)
	case s.InodeTableEntries == 0 || s.Inodes == 0 || s.Inodes > uint64(s.InodeTableEntries):
		return corrupt(24, "%d inodes in a table of %d", s.Inodes, s.InodeTableEntries)
	case s.InodeTableEntries > maxInodes:
		return corrupt(56, "inode table of %d entries, limit %d", s.InodeTableEntries, maxInodes)
	}
	if err := checkChunkSize(12, s.ChunkSize); err != nil {
		return err
	}
	flags := layout.Flags(s.Flags)
	if bad := flags & (layout.FlagTarfs | layout.FlagEncryptionAES128XTS); bad != 0 {
		return unsupported(16, "flags %s in a v5 image", bad)
	}
	comp, dig, err := checkFlags(16, flags)
	if err != nil {
		return err
	}
	o.im.super = Super{Version: 5, ChunkSize: s.ChunkSize, Flags: flags, Compressor: comp, Digester: dig}
	return nil
}

func (o *v5Open) readTables() error {
	s := &o.super
	err := checkTables(uint64(len(o.data)), v5.Align, []table{
		{"superblock", 0, v5.SuperSize},
		{"inode table", s.InodeTableOffset, uint64(s.InodeTableEntries) * v5.TableEntrySize},
		{"prefetch table", s.PrefetchTableOffset, uint64(s.PrefetchEntries) * v5.TableEntrySize},
		{"blob table", s.BlobTableOffset, uint64(s.BlobTableSize)},
		{"extended blob table", s.ExtBlobTableOffset, uint64(s.ExtBlobEntries) * v5.ExtBlobEntrySize},
	})
	if err != nil {
		return err
	}
	o.tree = &v5Tree{
		data: o.data, pages: o.im.pages, table: s.InodeTableOffset, entries: uint64(s.InodeTableEntries),
		chunkSize: uint64(s.ChunkSize), owner: ownerOf(layout.Flags(s.Flags)),
		nodes: newBitset(uint64(s.InodeTableEntries) + 1),
	}
	return nil
}

// readBlobs reads the blob table and the extended one, which early images lack:
// then nobody says how many chunks and bytes a blob has.
func (o *v5Open) readBlobs() error {
	s := &o.super
	at := s.BlobTableOffset
	b, _ := o.data.slice(at, uint64(s.BlobTableSize))
	entries, err := v5.DecodeBlobTable(b)
	if err != nil {
		return corrupt(at, "%v", err)
	}
	if len(entries) > maxBlobs {
		return corrupt(at, "%d blobs, limit %d", len(entries), maxBlobs)
	}
	if s.ExtBlobEntries != 0 && int(s.ExtBlobEntries) != len(entries) {
		return corrupt(68, "extended blob table of %d entries for %d blobs", s.ExtBlobEntries, len(entries))
	}
	for i, e := range entries {
		b := &blob.Info{
			Index: uint32(i), ID: e.ID, MetaID: e.ID, ChunkSize: s.ChunkSize,
			Compressor: o.im.super.Compressor, Digester: o.im.super.Digester,
			PrefetchOffset: e.PrefetchOffset, PrefetchSize: e.PrefetchSize,
		}
		off := at
		if s.ExtBlobEntries != 0 {
			off = s.ExtBlobTableOffset + uint64(i)*v5.ExtBlobEntrySize
			x, err := v5.DecodeExtBlobEntry(o.data.from(off))
			if err != nil {
				return corrupt(off, "%v", err)
			}
			b.Features, b.ChunkCount, b.ListedChunks = x.Features, x.ChunkCount, x.ChunkCount
			b.CompressedSize, b.UncompressedSize = x.CompressedSize, x.UncompressedSize
		}
		if f := layout.Features(b.Features) & featuresV6Only; f != 0 {
			return unsupported(off, "blob %d of a v5 image has features %s", b.Index, f)
		}
		if err := checkBlob(off, b, o.opts.InlineBlobID); err != nil {
			return err
		}
		o.im.blobs = append(o.im.blobs, b)
	}
	return checkBlobs(at, o.im.blobs)
}

// readPrefetch reads the prefetch table: numbers of inodes, up to a zero.
func (o *v5Open) readPrefetch() error {
	for i := range uint64(o.super.PrefetchEntries) {
		off := o.super.PrefetchTableOffset + i*v5.TableEntrySize
		b, ok := o.data.slice(off, v5.TableEntrySize)
		if !ok {
			return corrupt(off, "prefetch table ends beyond the bootstrap")
		}
		ino := uint64(binary.LittleEndian.Uint32(b))
		if ino == 0 {
			return nil
		}
		if !o.tree.nodes.has(ino) {
			return corrupt(off, "prefetch of inode %d, which the image does not have", ino)
		}
		o.im.prefetch = append(o.im.prefetch, ino)
	}
	return nil
}
