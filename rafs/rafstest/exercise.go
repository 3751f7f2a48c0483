package rafstest

import (
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// maxReads is how many places of one file Exercise asks for: a damaged image may
// well have a file of 1<<60 bytes that is one hole.
const maxReads = 64

// Exercise asks an image for everything that it has: attributes, names in both
// ways, targets, xattrs, the place of all data. It returns an error for the first
// answer that contradicts another or lies outside of what the image says of
// itself. It reads no blob, and its work is bounded by the size of the bootstrap.
func Exercise(im *image.Image) error {
	x := &exercise{im: im, nodes: map[uint64]bool{}}
	if err := x.inode(image.Root); err != nil {
		return err
	}
	todo := []edge{{image.Root, image.Root}}
	for len(todo) > 0 {
		e := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		below, err := x.folder(e)
		if err != nil {
			return fmt.Errorf("folder %d: %w", e.node, err)
		}
		todo = append(todo, below...)
	}
	s := im.Super()
	if uint64(len(x.nodes)) != s.Inodes || x.names != s.Names {
		return fmt.Errorf("%d inodes and %d names, superblock says %d and %d", len(x.nodes), x.names, s.Inodes, s.Names)
	}
	for _, node := range im.Prefetch() {
		if !x.nodes[node] {
			return fmt.Errorf("prefetch of node %d, which no folder has", node)
		}
	}
	return x.strangers()
}

type edge struct{ node, parent uint64 }

type exercise struct {
	im    *image.Image
	nodes map[uint64]bool
	names uint64
	segs  []blob.Segment
}

// folder goes through a folder and returns the folders in it.
func (x *exercise) folder(e edge) ([]edge, error) {
	var below []edge
	var bad error
	last, dots := uint64(0), 0
	err := x.im.ReadDir(e.node, 0, func(d image.Dirent) bool {
		if d.Next <= last {
			bad = fmt.Errorf("offset %d after %d", d.Next, last)
			return false
		}
		last = d.Next
		if found, err := x.im.Lookup(e.node, string(d.Name)); err != nil || found != d.Node {
			bad = fmt.Errorf("lookup of %q = %d, %v, readdir has %d", d.Name, found, err, d.Node)
			return false
		}
		if want, dot := map[string]uint64{".": e.node, "..": e.parent}[string(d.Name)]; dot {
			dots++
			if d.Node != want {
				bad = fmt.Errorf("%q is node %d, want %d", d.Name, d.Node, want)
			}
			return bad == nil
		}
		x.names++
		if d.Type == 0o040000 {
			if x.nodes[d.Node] {
				bad = fmt.Errorf("folder %d has several parents", d.Node)
				return false
			}
			below = append(below, edge{d.Node, e.node})
		}
		bad = x.dirent(d)
		return bad == nil
	})
	if err != nil || bad != nil {
		return nil, fmt.Errorf("readdir: %v, %w", err, bad)
	}
	if dots != 2 {
		return nil, fmt.Errorf("%d of \".\" and \"..\"", dots)
	}
	return below, nil
}

func (x *exercise) dirent(d image.Dirent) error {
	a, err := x.im.Attr(d.Node)
	if err != nil {
		return fmt.Errorf("%q: %w", d.Name, err)
	}
	if a.Mode&0o170000 != d.Type || d.Type == 0 {
		return fmt.Errorf("%q: mode %o, type %o", d.Name, a.Mode, d.Type)
	}
	if x.nodes[d.Node] {
		return nil
	}
	if err := x.inode(d.Node); err != nil {
		return fmt.Errorf("%q: %w", d.Name, err)
	}
	return nil
}

func (x *exercise) inode(node uint64) error {
	x.nodes[node] = true
	a, err := x.im.Attr(node)
	if err != nil {
		return err
	}
	if a.MtimeNsec >= 1e9 || a.Nlink == 0 || a.Ino != node || a.Size > 1<<63-1 {
		return fmt.Errorf("attributes %+v", a)
	}
	var bad error
	err = x.im.Xattrs(node, func(name string, value []byte) bool {
		if len(name) == 0 || len(name) > 255 || len(value) > 64<<10 || !x.im.HasXattrs() {
			bad = fmt.Errorf("xattr %q of %d bytes", name, len(value))
		} else if _, err := x.im.Xattr(node, name); err != nil {
			bad = fmt.Errorf("xattr %q: %w", name, err)
		}
		return bad == nil
	})
	if err != nil || bad != nil {
		return fmt.Errorf("xattrs: %v, %w", err, bad)
	}
	switch a.Mode & 0o170000 {
	case 0o120000:
		if link, err := x.im.Readlink(node); err != nil || len(link) == 0 || len(link) > 4095 {
			return fmt.Errorf("link of %d bytes, %w", len(link), err)
		}
	case 0o100000:
		return x.file(node, a.Size)
	}
	return nil
}

// file asks for the data of a file: the whole of it in pieces, or where that is
// too much, places all over it.
func (x *exercise) file(node, size uint64) error {
	const piece = 1<<24 - 5
	step := max(uint64(piece), size/maxReads)
	for off := uint64(0); off < size; off += step {
		if err := x.read(node, off, size, piece); err != nil {
			return err
		}
	}
	if size > 0 {
		if err := x.read(node, size-1, size, 1<<32-1); err != nil {
			return err
		}
	}
	return x.read(node, size, size, piece)
}

func (x *exercise) read(node, off, size uint64, n uint32) error {
	var err error
	x.segs, err = x.im.Segments(x.segs[:0], node, off, n)
	if err != nil {
		return err
	}
	sum := uint64(0)
	for i := range x.segs {
		if err := x.segment(&x.segs[i]); err != nil {
			return fmt.Errorf("segment %d at %d: %w", i, off, err)
		}
		sum += uint64(x.segs[i].Length)
	}
	if want := min(size-off, uint64(n)); sum != want {
		return fmt.Errorf("segments of %d bytes at %d, want %d", sum, off, want)
	}
	return nil
}

func (x *exercise) segment(s *blob.Segment) error {
	c := &s.Chunk
	if s.Length == 0 {
		return fmt.Errorf("empty")
	}
	if c.Blob == nil {
		return nil
	}
	blobs := x.im.Blobs()
	b := c.Blob
	if int(b.Index) >= len(blobs) || blobs[b.Index] != b {
		return fmt.Errorf("blob %d of %d", b.Index, len(blobs))
	}
	if found, ok := x.im.Chunk(b.Index, c.Index); !ok || found != *c {
		return fmt.Errorf("chunk %d of blob %d is %+v, %t, want %+v", c.Index, b.Index, found, ok, *c)
	}
	switch {
	case uint64(s.Offset)+uint64(s.Length) > uint64(c.UncompressedSize),
		c.UncompressedSize > blob.MaxChunkSize, c.CompressedSize > blob.MaxChunkSize, (c.CompressedSize == 0) != c.Shared,
		b.CompressedSize != 0 && c.CompressedOffset+uint64(c.CompressedSize) > b.CompressedSize,
		b.UncompressedSize != 0 && c.UncompressedOffset+uint64(c.UncompressedSize) > b.UncompressedSize,
		(c.Digest == blob.Digest{}) != (layout.Features(b.Features)&layout.FeatureTarfs != 0), b.ChunkCount != 0 && c.Index >= b.ChunkCount:
		return fmt.Errorf("%+v of blob %+v", *s, *b)
	}
	return nil
}

// strangers asks for inodes, offsets and names that a guest may make up.
func (x *exercise) strangers() error {
	for _, node := range []uint64{0, 2, 3, 1 << 20, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1<<64 - 1} {
		if x.nodes[node] {
			continue
		}
		if _, err := x.im.Attr(node); err != image.ErrNode {
			return fmt.Errorf("attributes of node %d: %v, want %v", node, err, image.ErrNode)
		}
		if _, err := x.im.Lookup(node, "."); err != image.ErrNode {
			return fmt.Errorf("lookup in node %d: %v, want %v", node, err, image.ErrNode)
		}
		if _, err := x.im.Segments(nil, node, 0, 1); err != image.ErrNode {
			return fmt.Errorf("segments of node %d: %v, want %v", node, err, image.ErrNode)
		}
	}
	for _, off := range []uint64{1 << 9, 1<<32 + 511, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		n := 0
		err := x.im.ReadDir(image.Root, off, func(image.Dirent) bool { n++; return n < 10 })
		if err != nil {
			return fmt.Errorf("readdir at %d: %w", off, err)
		}
	}
	for _, name := range []string{"", "/", "\x00", "no such name", "..."} {
		if _, err := x.im.Lookup(image.Root, name); err != image.ErrNotFound && name != "..." && name != "no such name" {
			return fmt.Errorf("lookup of %q: %v, want %v", name, err, image.ErrNotFound)
		}
	}
	return nil
}
