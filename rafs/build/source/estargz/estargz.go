// Package estargz makes layers of the tables of contents of eStargz layers, which
// are JSON: what is in the layer and where its chunks begin, each a gzip member.
// The layer itself, which is the blob, is not read.
//
// So nothing here is checked against the bytes: sizes, places and digests of
// chunks are what the table says, and a reader finds out. Chunks therefore must
// never stand for those of other layers. The table is a stranger's: it is read as
// a stream, entry by entry, each bounded in size, and rafs/build/tree refuses what
// no unpacker would take.
package estargz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// DefaultChunkSize is that of those who write eStargz layers, in bytes.
const DefaultChunkSize = 4 << 20

// Features are those of the blob.
const Features = layout.FeatureCapTarTOC | layout.FeatureAligned

// Special tells whether a path of a layer is one of those that make an eStargz of
// it and do not belong to the tree: the table of contents and the landmarks.
func Special(path string) bool {
	switch path {
	case "stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark":
		return true
	}
	return false
}

// Options say how to read a table of contents. Zero fields take the default.
type Options struct {
	Blob uint32 // the number that refs get
	// ChunkSize is the size in bytes that the chunks of the layer must have;
	// DefaultChunkSize by default.
	ChunkSize uint32
	// Size is the size of the layer in bytes.
	Size      uint64
	Limits    tree.Limits
	Whiteouts tree.Whiteouts
	// TempDir takes what is spilled; os.TempDir by default.
	TempDir string
}

// Layer is a layer as its table of contents has it.
type Layer struct {
	Tree  *tree.Layer
	Table *chunk.Table // with the SHA-256 digests of the table of contents

	chunkSize uint32
	size      uint64 // of the layer in bytes
	plainSize uint64 // of the uncompressed space
}

// Entry is what the blob table says of the layer. Chunk information would follow
// the data, but the layer has none: nydusd goes by the place all the same, and
// wants the information itself where a node keeps it (write.BlobInfo.WriteMeta).
func (l *Layer) Entry() v6.BlobEntry {
	ci := uint64(l.Table.Len()) * v6.ChunkInfoV1Size
	return v6.BlobEntry{
		CIOffset: l.size, CICompressedSize: ci, CIUncompressedSize: ci,
		ChunkSize: l.chunkSize, ChunkCount: l.Table.Len(),
		Compressor: uint32(blob.CompressorGzip), Digester: uint32(blob.DigesterSHA256), Features: uint32(Features),
		CompressedSize: l.size, UncompressedSize: l.plainSize,
	}
}

// Close drops the layer, Tree included unless it was taken away.
func (l *Layer) Close() error {
	err := l.Table.Close()
	if l.Tree != nil {
		err = errors.Join(err, l.Tree.Close())
	}
	return err
}

// ReadTOC reads a table of contents. An error wraps tree.ErrRefused where an entry
// is to blame.
func ReadTOC(ctx context.Context, r io.Reader, o Options) (*Layer, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	if o.Size == 0 || o.Size > blob.MaxCompressedSize {
		return nil, fmt.Errorf("eStargz layer of %d bytes, want 1 to %d", o.Size, uint64(blob.MaxCompressedSize))
	}
	b, err := tree.NewBuilder(tree.BuilderOptions{TempDir: o.TempDir, Limits: o.Limits})
	if err != nil {
		return nil, err
	}
	l := &Layer{Table: chunk.NewTable(o.TempDir), chunkSize: o.ChunkSize}
	t := &reader{builder: b, opts: &o, chunks: newChunks(&o, l.Table)}
	err = errors.Join(t.read(ctx, r), t.chunks.Close())
	if err == nil {
		l.Tree, err = b.Layer()
	}
	if err != nil {
		return nil, errors.Join(err, b.Close(), l.Close())
	}
	l.size, l.plainSize = o.Size, t.chunks.offset
	return l, nil
}

// reader makes a layer of the entries of a table.
type reader struct {
	builder *tree.Builder
	opts    *Options
	chunks  chunks
	file    *tree.Entry // a regular file whose further chunks may follow, or nil
}

func (t *reader) read(ctx context.Context, r io.Reader) error {
	err := decodeTOC(r, func(e *tocEntry) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return t.entry(e)
	})
	if err == nil {
		err = t.endFile()
	}
	if err == nil {
		err = t.chunks.finish()
	}
	return err
}

// entry takes one entry of the table.
func (t *reader) entry(e *tocEntry) error {
	path := clean(e.Name)
	if e.Type == "chunk" {
		if t.file == nil || path != t.file.Path {
			if Special(path) {
				return nil
			}
			return e.refuse("chunk of a file that is not the last one")
		}
		return t.chunks.add(e)
	}
	if err := t.endFile(); err != nil {
		return err
	}
	if Special(path) {
		return nil
	}
	if t.opts.Whiteouts == tree.WhiteoutOCI {
		if done, err := t.whiteout(path, e.Name); done || err != nil {
			return err
		}
	}
	node, err := e.node(path)
	if err != nil {
		return err
	}
	if e.Type == "reg" {
		t.file = node
		return t.chunks.begin(e)
	}
	return t.add(node)
}

// endFile adds the regular file whose chunks are all there.
func (t *reader) endFile() error {
	f := t.file
	if f == nil {
		return nil
	}
	t.file = nil
	refs, failed := t.chunks.finishFile()
	if err := failed(); err != nil {
		return err
	}
	err := t.builder.Add(f, refs)
	return errors.Join(err, failed())
}

// The marks of overlayfs (tree.WhiteoutOverlay).
const overlayOpaque = "trusted.overlay.opaque"

// add adds what is no regular file.
func (t *reader) add(e *tree.Entry) error {
	if t.opts.Whiteouts != tree.WhiteoutOverlay {
		return t.builder.Add(e, nil)
	}
	if e.Type() == tree.TypeChar && e.Rdev == 0 && e.Kind == tree.KindNode {
		return t.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: e.Path, Name: e.Name}, nil)
	}
	opaque := false
	if e.IsDir() {
		kept := e.Xattrs[:0]
		for _, x := range e.Xattrs {
			if x.Name == overlayOpaque && x.Value == "y" {
				opaque = true
				continue
			}
			kept = append(kept, x)
		}
		e.Xattrs = kept
	}
	if err := t.builder.Add(e, nil); err != nil || !opaque {
		return err
	}
	return t.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: e.Path, Name: e.Name}, nil)
}

// How a layer of an OCI image says that something is gone (image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, opaqueName aside
)

// whiteout adds an entry if it is one that removes what lower layers have, and
// tells whether that was all.
func (t *reader) whiteout(path, name string) (done bool, err error) {
	dir, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	for part := range strings.SplitSeq(dir, "/") {
		switch {
		case strings.HasPrefix(part, aufsPrefix) && part != opaqueName:
			return true, nil
		case strings.HasPrefix(part, whiteoutPrefix):
			return false, &tree.EntryError{Name: name, Reason: fmt.Sprintf("whiteout %q used as a folder", part)}
		}
	}
	gone, ok := strings.CutPrefix(base, whiteoutPrefix)
	e := tree.Entry{Kind: tree.KindWhiteout, Path: strings.TrimPrefix(dir+"/"+gone, "/"), Name: name}
	switch {
	case !ok:
		return false, nil
	case base == opaqueName:
		e.Kind, e.Path = tree.KindOpaque, dir
	case strings.HasPrefix(base, aufsPrefix):
		return true, nil
	case gone == "" || gone == "." || gone == "..":
		return false, &tree.EntryError{Name: name, Reason: fmt.Sprintf("whiteout of %q", gone)}
	}
	return true, t.builder.Add(&e, nil)
}
