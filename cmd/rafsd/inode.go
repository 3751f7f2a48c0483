package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// inodeFacts is what inspect inode tells.
type inodeFacts struct {
	Path   string       `json:"path"`
	Node   uint64       `json:"node"`
	Type   string       `json:"type"`
	Mode   string       `json:"mode"`
	UID    uint32       `json:"uid"`
	GID    uint32       `json:"gid"`
	Nlink  uint32       `json:"nlink"`
	Size   uint64       `json:"size"`
	Mtime  string       `json:"mtime"`
	Rdev   string       `json:"rdev,omitempty"`
	Target string       `json:"target,omitempty"`
	Xattrs []xattrFacts `json:"xattrs"`
	Chunks []chunkFacts `json:"chunks"`
	More   bool         `json:"more_chunks"`
}

type xattrFacts struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// chunkFacts is one range of a file. A hole has no blob.
type chunkFacts struct {
	FileOffset         uint64 `json:"file_offset"`
	Length             uint32 `json:"length"`
	Blob               string `json:"blob,omitempty"`
	Index              uint32 `json:"index"`
	Compressed         bool   `json:"compressed"`
	CompressedOffset   uint64 `json:"compressed_offset"`
	CompressedSize     uint32 `json:"compressed_size"`
	UncompressedOffset uint64 `json:"uncompressed_offset"`
	UncompressedSize   uint32 `json:"uncompressed_size"`
	Digest             string `json:"digest,omitempty"`
}

func newInodeFacts(ctx context.Context, im *image.Image, path string, limit int) (*inodeFacts, error) {
	node, err := resolve(im, path)
	if err != nil {
		return nil, err
	}
	attr, err := im.Attr(node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f := &inodeFacts{
		Path: plain(path), Node: node, Type: typeName(attr.Mode), Mode: fmt.Sprintf("%04o", attr.Mode&0o7777),
		UID: attr.UID, GID: attr.GID, Nlink: attr.Nlink, Size: attr.Size, Xattrs: []xattrFacts{}, Chunks: []chunkFacts{},
		Mtime: time.Unix(attr.Mtime, int64(attr.MtimeNsec)).UTC().Format("2006-01-02T15:04:05.999999999Z"),
	}
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		f.Rdev = fmt.Sprintf("%d:%d", unix.Major(uint64(attr.Rdev)), unix.Minor(uint64(attr.Rdev)))
	case unix.S_IFLNK:
		target, err := im.Readlink(node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		f.Target = plain(string(target))
	case unix.S_IFREG:
		if err := f.readChunks(ctx, im, limit); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	err = im.Xattrs(node, func(name string, value []byte) bool {
		f.Xattrs = append(f.Xattrs, xattrFacts{plain(name), plain(string(value))})
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// resolve follows a path name by name. Symbolic links are not followed: they are
// what one may want to look at.
func resolve(im *image.Image, path string) (uint64, error) {
	node, walked := image.Root, ""
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		next, err := im.Lookup(node, name)
		switch {
		case errors.Is(err, image.ErrNotFound):
			return 0, fmt.Errorf("%s: %w: the image has no %s/%s", path, fs.ErrNotExist, walked, plain(name))
		case err != nil:
			return 0, fmt.Errorf("%s: %s: %w", path, walked, err)
		}
		node, walked = next, walked+"/"+plain(name)
	}
	return node, nil
}

// window is how much of a file is looked at in one call.
const window = 64 << 20

func (f *inodeFacts) readChunks(ctx context.Context, im *image.Image, limit int) error {
	var segments []blob.Segment
	for off := uint64(0); off < f.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		size := uint32(min(window, f.Size-off))
		if segments, err = im.Segments(segments[:0], f.Node, off, size); err != nil {
			return err
		}
		if len(segments) == 0 {
			return fmt.Errorf("no chunks at %d of %d bytes", off, f.Size)
		}
		for i := range segments {
			if !f.add(off, &segments[i], limit) {
				f.More = true
				return nil
			}
			off += uint64(segments[i].Length)
		}
	}
	return nil
}

// add appends a segment, or lengthens the chunk or hole that it goes on with.
// It reports false when there is room for no more.
func (f *inodeFacts) add(off uint64, s *blob.Segment, limit int) bool {
	if n := len(f.Chunks); n > 0 {
		last := &f.Chunks[n-1]
		hole := s.Chunk.Blob == nil && last.Blob == "" && uint64(last.Length)+uint64(s.Length) < 1<<32
		same := s.Chunk.Blob != nil && last.Blob == s.Chunk.Blob.ID && last.Index == s.Chunk.Index && s.Offset != 0
		if hole || same {
			last.Length += s.Length
			return true
		}
	}
	if len(f.Chunks) >= limit {
		return false
	}
	c := chunkFacts{FileOffset: off, Length: s.Length}
	if s.Chunk.Blob != nil {
		c.Blob, c.Index, c.Compressed = plain(s.Chunk.Blob.ID), s.Chunk.Index, s.Chunk.Compressed
		c.CompressedOffset, c.CompressedSize = s.Chunk.CompressedOffset, s.Chunk.CompressedSize
		c.UncompressedOffset, c.UncompressedSize = s.Chunk.UncompressedOffset, s.Chunk.UncompressedSize
		c.Digest = s.Chunk.Blob.Digester.String() + ":" + s.Chunk.Digest.String()
	}
	f.Chunks = append(f.Chunks, c)
	return true
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

func (f *inodeFacts) text(w io.Writer) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("Path", "%s", f.Path)
	row("Type", "%s", f.Type)
	row("Node", "%d", f.Node)
	row("Mode", "%s, uid %d, gid %d, %d links", f.Mode, f.UID, f.GID, f.Nlink)
	row("Size", "%d", f.Size)
	row("Mtime", "%s", f.Mtime)
	if f.Rdev != "" {
		row("Device", "%s", f.Rdev)
	}
	if f.Target != "" {
		row("Target", "%s", f.Target)
	}
	for _, x := range f.Xattrs {
		row("Xattr", "%s=%s", x.Name, x.Value)
	}
	if len(f.Chunks) == 0 {
		return
	}
	fmt.Fprintf(w, "\nOFFSET\tLENGTH\tBLOB\tCHUNK\tAT\tSTORED\tDIGEST\n")
	for _, c := range f.Chunks {
		if c.Blob == "" {
			fmt.Fprintf(w, "%d\t%d\thole\n", c.FileOffset, c.Length)
			continue
		}
		fmt.Fprintf(w, "%d\t%d\t%.12s\t%d\t%d\t%d\t%s\n", c.FileOffset, c.Length, c.Blob, c.Index,
			c.CompressedOffset, c.CompressedSize, c.Digest)
	}
	if f.More {
		fmt.Fprintf(w, "(more: --chunks N shows N)\n")
	}
}
