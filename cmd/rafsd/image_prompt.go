package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// tables are the places of an image's tables.
type tables struct{ blobs, blobsSize, prefetch, prefetched, chunks, chunksSize uint64 }

func (p *prompt) tables() tables {
	data := p.im.Bytes()
	if p.im.Super().Version == 6 {
		e, _ := v6.DecodeExtSuper(data[v6.ExtSuperOffset:])
		return tables{e.BlobTableOffset, uint64(e.BlobTableSize), e.PrefetchTableOffset, uint64(e.PrefetchTableSize) / 4, e.ChunkTableOffset, e.ChunkTableSize}
	}
	s, _ := v5.DecodeSuper(data)
	return tables{s.BlobTableOffset, uint64(s.BlobTableSize), s.PrefetchTableOffset, uint64(s.PrefetchEntries), 0, 0}
}

func (p *prompt) stats() (any, error) {
	s := p.im.Super()
	if p.asked {
		return struct {
			Inodes uint64 `json:"inodes_count"`
		}{p.inodes()}, nil
	}
	t := p.tables()
	row := func(name, format string, args ...any) {
		fmt.Fprintf(p.out, "    %-24s"+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintln(p.out)
	row("Version:", "%d", s.Version)
	row("Inodes Count:", "%d", p.inodes())
	row("Chunk Size:", "%dKB", s.ChunkSize/1024)
	row("Root Inode:", "%d", p.root)
	row("Flags:", "%s", strings.Join(append([]string{s.Compressor.String(), s.Digester.String()}, flagNames(s.Flags)...), " | "))
	row("Blob table offset:", "%#x", t.blobs)
	row("Blob table size:", "%#x", t.blobsSize)
	row("Prefetch table offset:", "%#x", t.prefetch)
	row("Prefetch table entries:", "%#x", t.prefetched)
	row("Chunk table offset:", "%#x", t.chunks)
	row("Chunk table size:", "%#x", t.chunksSize)
	return nil, nil
}

// inodes is the count in the superblock, which need not be what the walk counts.
func (p *prompt) inodes() uint64 {
	data := p.im.Bytes()
	if p.im.Super().Version == 6 {
		return binary.LittleEndian.Uint64(data[v6.SuperOffset+16:])
	}
	return binary.LittleEndian.Uint64(data[24:])
}

func (p *prompt) current() uint64 { return p.dirs[len(p.dirs)-1] }

func (p *prompt) list() error {
	return p.im.ReadDir(p.current(), 0, func(d image.Dirent) bool {
		if name := string(d.Name); name != "." && name != ".." {
			sign := map[uint32]string{unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l"}[d.Type]
			fmt.Fprintf(p.out, "%-1s    %-8d %q\n", sign, p.number(d.Node), plain(name))
		}
		return true
	})
}

func (p *prompt) changeDir(name string) error {
	switch name {
	case ".":
		return nil
	case "..":
		p.dirs = p.dirs[:max(1, len(p.dirs)-1)]
		return nil
	}
	node, err := p.im.Lookup(p.current(), name)
	if err != nil {
		fmt.Fprintf(p.out, "%s is not there\n", plain(name))
		return nil
	}
	if attr, err := p.im.Attr(node); err != nil || attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		fmt.Fprintf(p.out, "%s is not a directory\n", plain(name))
		return nil
	}
	p.dirs = append(p.dirs, node)
	return nil
}

func (p *prompt) stat(name string) error {
	node := p.current()
	if name != "." {
		var err error
		if node, err = p.im.Lookup(p.current(), name); errors.Is(err, image.ErrNotFound) {
			return nil // nydus-image says nothing
		} else if err != nil {
			return err
		}
	} else if name = "/"; len(p.dirs) > 1 {
		name = "."
	}
	attr, err := p.show(node, p.current(), name)
	if err != nil || attr.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	fmt.Fprintln(p.out, "  Chunk list:")
	i := 0
	return eachSegment(p.im, node, attr.Size, func(off uint64, s *blob.Segment) error {
		c := &s.Chunk
		if c.Blob == nil || s.Offset != 0 {
			return nil
		}
		fmt.Fprintf(p.out, "        %d ->\n        file offset: %d, chunk index: %d\n        compressed size: %d, decompressed size: %d\n"+
			"        compressed offset: %d, decompressed offset: %d\n        blob id: %s\n        chunk id: %s\n",
			i, off, c.Index, c.CompressedSize, c.UncompressedSize, c.CompressedOffset, c.UncompressedOffset, plain(c.Blob.ID), c.Digest)
		i++
		return nil
	})
}

// show prints the attributes of an inode.
func (p *prompt) show(node, parent uint64, name string) (image.Attr, error) {
	attr, err := p.im.Attr(node)
	if err != nil {
		return attr, err
	}
	fmt.Fprintf(p.out, "\nInode Number:       %d\nName:               %q\nSize:               %d\nParent:             %d\n"+
		"Mode:               0x%X\nPermissions:        %o\nNlink:              %d\nUID:                %d\nGID:                %d\n"+
		"Mtime:              %d\nMtimeNsec:          %d\nBlocks:             %d\n",
		p.number(node), plain(name), attr.Size, p.number(parent), attr.Mode, attr.Mode, attr.Nlink, attr.UID, attr.GID,
		attr.Mtime, attr.MtimeNsec, attr.Blocks)
	return attr, nil
}

// blobRow is a blob as a request gets it. Names come in the order that
// nydus-image has them in.
type blobRow struct {
	ID               string `json:"blob_id"`
	CompressedSize   uint64 `json:"compressed_size"`
	UncompressedSize uint64 `json:"decompressed_size"`
	PrefetchOffset   uint32 `json:"readahead_offset"`
	PrefetchSize     uint32 `json:"readahead_size"`
}

func (p *prompt) blobs() (any, error) {
	rows := []blobRow{}
	for _, b := range p.im.Blobs() {
		rows = append(rows, blobRow{b.ID, b.CompressedSize, b.UncompressedSize, b.PrefetchOffset, b.PrefetchSize})
		if !p.asked {
			p.showBlob(b)
		}
	}
	if !p.asked {
		return nil, nil
	}
	return rows, nil
}

func (p *prompt) showBlob(b *blob.Info) {
	row := func(name string, v any) { fmt.Fprintf(p.out, "%-24s%v\n", name, v) }
	fmt.Fprintln(p.out)
	row("Blob Index:", b.Index)
	row("Blob ID:", plain(b.ID))
	row("Blob Size:", b.CompressedSize)
	row("Uncompressed Data Size:", b.UncompressedSize)
	row("Mapped Block Address:", b.MappedBlock)
	row("Features:", layout.Features(b.Features))
	row("Compressor:", b.Compressor)
	row("Digester:", b.Digester)
	row("Cipher:", b.Cipher)
	row("Chunk Size:", fmt.Sprintf("%#x", b.ChunkSize))
	row("Chunk Count:", b.ListedChunks)
	row("Prefetch Table Offset:", b.PrefetchOffset)
	row("Prefetch Table Size:", b.PrefetchSize)
	row("Meta Compressor:", b.ChunkInfo.Compressor)
	row("Meta Offset:", b.ChunkInfo.Offset)
	row("Meta Compressed Size:", b.ChunkInfo.CompressedSize)
	row("Meta Uncompressed Size:", b.ChunkInfo.UncompressedSize)
	row("ToC Digest:", hex.EncodeToString(b.TOCDigest[:]))
	row("ToC Size:", b.TOCSize)
	if b.MetaID != b.ID {
		row("RAFS Blob Digest:", plain(b.MetaID))
		row("RAFS Blob Size:", b.MetaSize)
	}
}

type prefetchRow struct {
	Inode uint64   `json:"inode"`
	Paths []string `json:"path"`
}

func (p *prompt) prefetch() (any, error) {
	nodes := p.im.Prefetch()
	paths, err := p.paths(nodes)
	if err != nil {
		return nil, err
	}
	rows := []prefetchRow{}
	if !p.asked {
		fmt.Fprintf(p.out, "Total Prefetching Files: %d\n", len(nodes))
	}
	for _, n := range nodes {
		rows = append(rows, prefetchRow{p.number(n), paths[n]})
		if !p.asked {
			fmt.Fprintf(p.out, "Inode Number:%10d | Path: %q\n", p.number(n), strings.Join(paths[n], " "))
		}
	}
	if !p.asked {
		return nil, nil
	}
	return rows, nil
}

// paths finds all paths of some inodes.
func (p *prompt) paths(nodes []uint64) (map[uint64][]string, error) {
	out := map[uint64][]string{}
	for _, n := range nodes {
		out[n] = nil
	}
	if len(out) == 0 {
		return out, nil
	}
	err := walkImage(p.ctx, p.im, func(path string, node uint64) error {
		if _, wanted := out[node]; wanted {
			out[node] = append(out[node], path)
		}
		return nil
	})
	return out, err
}

func (p *prompt) chunk(offset uint64) error {
	return walkImage(p.ctx, p.im, func(name string, node uint64) error {
		attr, err := p.im.Attr(node)
		if err != nil || attr.Mode&unix.S_IFMT != unix.S_IFREG {
			return err
		}
		return eachSegment(p.im, node, attr.Size, func(_ uint64, s *blob.Segment) error {
			c := &s.Chunk
			if c.Blob == nil || s.Offset != 0 || c.CompressedOffset != offset {
				return nil
			}
			fmt.Fprintf(p.out, "\nFile: %-32s Parent Path: %-32s\nCompressed Offset: %d, Compressed Size: %d\nDecompressed Offset: %d, Decompressed Size: %d\n"+
				"Chunk ID: %s,\nBlob ID: %s\n", path.Base(name), path.Dir(name), c.CompressedOffset, c.CompressedSize,
				c.UncompressedOffset, c.UncompressedSize, c.Digest, plain(c.Blob.ID))
			return nil
		})
	})
}

func (p *prompt) check(number uint64) error {
	node := p.node(number)
	if _, err := p.im.Attr(node); err != nil {
		return fmt.Errorf("inode %d: %w", number, err)
	}
	paths, err := p.paths([]uint64{node})
	if err != nil {
		return err
	}
	for _, name := range paths[node] {
		fmt.Fprintln(p.out, name)
		parent, ok := lookup(p.im, path.Dir(name))
		if !ok {
			parent = image.Root // the name above is quoted
		}
		if _, err := p.show(node, parent, path.Base(name)); err != nil {
			return err
		}
	}
	return nil
}
