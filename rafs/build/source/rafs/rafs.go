// Package rafs takes images that exist as layers of another one: their trees,
// and the blobs that these refer to.
//
// A bootstrap has been validated by rafs/image; beyond that it is not trusted.
// The digests that it has were computed by somebody else, so that two chunks are
// never taken for the same because of them, and what it says of a blob is passed
// on as it is. Where two bootstraps contradict each other about a blob, there is
// no image that has both. The package never reads blobs.
package rafs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
)

// Options say how an image is read as a layer.
type Options struct {
	// TempDir takes what does not fit into memory.
	TempDir string
	// Limits of the layer.
	Limits tree.Limits
	// Whiteouts say how the image writes down that a lower layer loses an entry.
	Whiteouts tree.Whiteouts
	// Below tells that there is something below the image: a root that nothing is
	// said of (mode 0755, owner and time 0, no xattrs) leaves that as it is.
	Below bool
	// Ref finds the chunk of the build that a chunk of the image is.
	Ref func(blobIndex, chunkIndex uint32) (chunk.Ref, error)
}

// Read reads the tree of an image. The image may be closed afterwards as far as
// Read is concerned.
func Read(ctx context.Context, im *image.Image, o Options) (*tree.Layer, error) {
	b, err := tree.NewBuilder(tree.BuilderOptions{TempDir: o.TempDir, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	w := &walker{ctx: ctx, im: im, opts: o, builder: b, chunkSize: uint64(im.Super().ChunkSize)}
	if err := w.add("", "", image.Root); err != nil {
		return nil, err
	}
	if err := w.folder("", image.Root); err != nil {
		return nil, err
	}
	return b.Layer()
}

type walker struct {
	ctx       context.Context
	im        *image.Image
	opts      Options
	builder   *tree.Builder
	chunkSize uint64
	segments  []blob.Segment // reused
}

// The file types of st_mode.
const (
	modeMask    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// folder adds what is in a folder. The image has proven that folders form a tree.
func (w *walker) folder(dir string, node uint64) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	var inner error
	err := w.im.ReadDir(node, 0, func(d image.Dirent) bool {
		name := string(d.Name)
		if name == "." || name == ".." {
			return true
		}
		full := name
		if dir != "" {
			full = dir + "/" + name
		}
		inner = w.add(dir, full, d.Node)
		switch {
		case inner != nil || d.Type != modeDir:
		case w.opts.Whiteouts == tree.WhiteoutOCI && strings.HasPrefix(name, whiteoutPrefix):
			inner = w.whiteoutFolder(full, name, d.Node)
		default:
			inner = w.folder(full, d.Node)
		}
		return inner == nil
	})
	return errors.Join(err, inner)
}

// add adds one name.
func (w *walker) add(dir, full string, node uint64) error {
	attr, err := w.im.Attr(node)
	if err != nil {
		return fmt.Errorf("%q: %w", full, err)
	}
	if done, err := w.whiteout(dir, full, &attr); done || err != nil {
		return err
	}
	e := &tree.Entry{Kind: tree.KindNode, Path: full, Attr: tree.Attr{
		Mode: attr.Mode, UID: attr.UID, GID: attr.GID, Rdev: attr.Rdev, Mtime: attr.Mtime, MtimeNsec: attr.MtimeNsec,
	}}
	err = w.im.Xattrs(node, func(name string, value []byte) bool {
		e.Xattrs = append(e.Xattrs, tree.Xattr{Name: strings.Clone(name), Value: string(value)})
		return true
	})
	if err != nil {
		return fmt.Errorf("%q: xattrs: %w", full, err)
	}
	kind := attr.Mode & modeMask
	switch kind {
	case modeDir:
		implied := tree.Attr{Mode: modeDir | 0o755}
		if w.opts.Below && full == "" && e.Attr == implied && len(e.Xattrs) == 0 {
			return nil
		}
		return w.addFolder(e)
	case modeSymlink:
		target, err := w.im.Readlink(node)
		if err != nil {
			return fmt.Errorf("%q: %w", full, err)
		}
		e.Target, e.Size = string(target), uint64(len(target))
	case modeRegular:
		e.Size = attr.Size
	}
	// What a hostile image says of its link counts does not count: a file with
	// many chunks is known by its inode in any case, or else each of its names
	// would cost as much as the file.
	if attr.Nlink > 1 || e.Size > w.chunkSize {
		e.Inode = node
	}
	if kind == modeRegular {
		return w.file(e, node)
	}
	return w.builder.Add(e, nil)
}

// readAhead is how many chunks of a file are asked of the image at a time.
const readAhead = 256

// file adds a regular file with its chunks.
func (w *walker) file(e *tree.Entry, node uint64) error {
	var failed error
	err := w.builder.Add(e, func(yield func(chunk.Ref) bool) {
		for off := uint64(0); off < e.Size; {
			n := min(e.Size-off, readAhead*w.chunkSize, 1<<31)
			if w.segments, failed = w.im.Segments(w.segments[:0], node, off, uint32(n)); failed != nil {
				return
			}
			for i := range w.segments {
				var ref chunk.Ref
				if ref, failed = w.ref(&w.segments[i], e.Size-off); failed != nil || !yield(ref) {
					return
				}
				off += uint64(w.segments[i].Length)
			}
		}
	})
	if failed != nil {
		return fmt.Errorf("%q: %w", e.Path, failed)
	}
	return err
}

// ref finds the chunk that a segment is; rest are the bytes of the file from
// there. Other images than ours may have chunks that are shorter than the chunk
// size in the midst of a file; no image has them when it has been written anew.
func (w *walker) ref(s *blob.Segment, rest uint64) (chunk.Ref, error) {
	want := min(rest, w.chunkSize)
	switch {
	case s.Chunk.Blob == nil:
		return chunk.Ref{}, fmt.Errorf("hole of %d bytes: %w", s.Length, errors.ErrUnsupported)
	case s.Offset != 0 || uint64(s.Length) != want || uint64(s.Chunk.UncompressedSize) != want:
		return chunk.Ref{}, fmt.Errorf("chunk %d of blob %d gives bytes %d+%d of its %d, want %d from its start: %w",
			s.Chunk.Index, s.Chunk.Blob.Index, s.Offset, s.Length, s.Chunk.UncompressedSize, want, errors.ErrUnsupported)
	}
	return w.opts.Ref(s.Chunk.Blob.Index, s.Chunk.Index)
}
