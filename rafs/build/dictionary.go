package build

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// DictionaryOptions say what Dictionary makes a dictionary of.
type DictionaryOptions struct {
	Host

	// Sources are the paths of bootstraps: versions of one image, or images that
	// have much in common.
	Sources []string
	// MinImages is how many of the images must have a chunk; 2 by default, or 1 if
	// there is only one image.
	MinImages int

	// Bootstrap is the path of the dictionary; in BlobDir under its SHA-256 by
	// default.
	Bootstrap, BlobDir string
}

// Dictionary makes a chunk dictionary: a bootstrap of chunks that several images
// have, in blobs that exist. An image that is built with it as Options.ChunkDict
// refers to these blobs instead of storing the chunks again. It reads no blob.
//
// The digests are those that the images state. Whoever made them can put a chunk
// into the dictionary that is not what its digest says: images that use it then
// have a file that cannot be read, never one with other bytes.
//
// nydus-image keeps what it has seen in a database and looks for clusters of
// images in it; here a dictionary is a function of its sources alone.
func Dictionary(ctx context.Context, o DictionaryOptions) (*Result, error) {
	o.setDefaults()
	switch {
	case len(o.Sources) == 0:
		return nil, errors.New("no source bootstrap: want at least one")
	case o.Bootstrap == "" && o.BlobDir == "":
		return nil, errors.New("nowhere to put the dictionary: want its path (--bootstrap) or a folder (--blob-dir)")
	case o.MinImages == 0:
		o.MinImages = min(2, len(o.Sources))
	}
	if err := checkTarget(o.Bootstrap); err != nil {
		return nil, fmt.Errorf("dictionary: %w", err)
	}
	d := &dictionary{ctx: ctx, opts: &o, started: time.Now(), index: chunk.NewIndex(o.TempDir)}
	read := o.gaugeFiles(o.Sources...)
	defer d.close()
	for i, path := range o.Sources {
		if err := d.add(i, path); err != nil {
			return nil, fmt.Errorf("bootstrap %s: %w", path, err)
		}
		read.add(fileSize(path))
	}
	t, err := d.tree()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return d.finish(t)
}

// dictionary is one run of Dictionary.
type dictionary struct {
	ctx     context.Context
	opts    *DictionaryOptions
	started time.Time

	images []*image.Image
	blobs  rafs.Blobs
	index  *chunk.Index // digest to position in found
	found  []foundChunk
	boot   bootstrapFile
}

// foundChunk is a chunk, and how many images have it.
type foundChunk struct {
	ref    chunk.Ref // of the first
	images uint16
	last   uint16 // the image that has it, counted from 1
}

func (d *dictionary) close() {
	d.boot.discard()
	d.index.Close()
	for _, im := range d.images {
		im.Close()
	}
}

// add counts the chunks of an image.
func (d *dictionary) add(i int, path string) error {
	if i >= math.MaxUint16 {
		return fmt.Errorf("more than %d images", math.MaxUint16)
	}
	im, err := image.Open(path, image.Options{InlineBlobID: stem(path), InFile: true, TempDir: d.opts.TempDir})
	if err != nil {
		return err
	}
	d.images = append(d.images, im)
	if err := imageTraits(d.images[0]).compare(imageTraits(im)); err != nil {
		return err
	}
	known, err := d.blobs.Add(im, nil)
	if err != nil {
		return err
	}
	for c := range dictChunks(im) {
		if err := d.ctx.Err(); err != nil {
			return context.Cause(d.ctx)
		}
		ref, err := known.Ref(c.Blob.Index, c.Index)
		if err != nil {
			return err
		}
		if err := d.count(&c, ref, uint16(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// dictChunks lists the chunks of an image that can be in a dictionary: those
// whose bytes are in a blob like any other, digested as the image says.
func dictChunks(im *image.Image) iter.Seq[blob.Chunk] {
	const apart = layout.FeatureTarfs | layout.FeatureExternal
	return func(yield func(blob.Chunk) bool) {
		for _, b := range im.Blobs() {
			if layout.Features(b.Features)&apart != 0 || b.Digester != im.Super().Digester {
				continue
			}
			for c := range im.BlobChunks(b.Index) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

func (d *dictionary) count(c *blob.Chunk, ref chunk.Ref, im uint16) error {
	at, ok, err := d.index.Lookup(c.Digest, c.UncompressedSize)
	if err != nil {
		return err
	}
	if !ok {
		at.Index = uint32(len(d.found))
		d.found = append(d.found, foundChunk{ref: ref})
		if err := d.index.Add(c.Digest, c.UncompressedSize, at); err != nil {
			return err
		}
	}
	if f := &d.found[at.Index]; f.last != im {
		f.last, f.images = im, f.images+1
	}
	return nil
}

const (
	// dictFolder is the one folder of a dictionary.
	dictFolder = "chunkdict"
	// maxDictFile bounds the chunks of one file.
	maxDictFile = 1 << 12
)

// tree makes files of the chunks, in the order of the images, blobs and chunks.
// Only the last chunk of a file may be shorter than others.
func (d *dictionary) tree() (*tree.Tree, error) {
	b, err := tree.NewBuilder(tree.BuilderOptions{TempDir: d.opts.TempDir, Limits: d.opts.Limits})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	for _, p := range []string{"", dictFolder} {
		if err := b.Add(&tree.Entry{Path: p, Attr: tree.Attr{Mode: tree.TypeDir | 0o755}}, nil); err != nil {
			return nil, err
		}
	}
	file := dictFile{builder: b}
	chunkSize := d.images[0].Super().ChunkSize
	for _, f := range d.found {
		if int(f.images) < d.opts.MinImages {
			continue
		}
		_, records := d.blobs.Info(f.ref.Blob)
		r, err := records.Record(f.ref.Index)
		if err != nil {
			return nil, err
		}
		file.refs, file.size = append(file.refs, f.ref), file.size+uint64(r.UncompressedSize)
		if r.UncompressedSize < chunkSize || len(file.refs) == maxDictFile {
			if err := file.flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := file.flush(); err != nil {
		return nil, err
	}
	l, err := b.Layer()
	if err != nil {
		return nil, err
	}
	return tree.Merge(d.ctx, d.opts.TempDir, l)
}

// dictFile is the file that chunks are gathered for.
type dictFile struct {
	builder *tree.Builder
	refs    []chunk.Ref
	size    uint64
	number  int
}

// flush adds the file, and starts the next one.
func (f *dictFile) flush() error {
	if len(f.refs) == 0 {
		return nil
	}
	e := &tree.Entry{
		Path: fmt.Sprintf("%s/%08d", dictFolder, f.number),
		Attr: tree.Attr{Mode: tree.TypeFile | 0o444, Size: f.size},
	}
	err := f.builder.Add(e, slices.Values(f.refs))
	f.refs, f.size, f.number = f.refs[:0], 0, f.number+1
	return err
}

func (d *dictionary) finish(t *tree.Tree) (*Result, error) {
	o, s := d.opts, d.images[len(d.images)-1].Super()
	err := d.boot.emit(d.ctx, &o.Host, bootstrapDir(o.Bootstrap, o.BlobDir), t, foreignInfos(&d.blobs), write.Options{
		Format:  write.Format{ChunkSize: s.ChunkSize, Compressor: s.Compressor, Digester: s.Digester},
		Version: s.Version, ImplicitOwners: s.Flags&layout.FlagExplicitUIDGID == 0, Tarfs: s.Flags&layout.FlagTarfs != 0,
	})
	if err != nil {
		return nil, err
	}
	r := &Result{Blobs: d.boot.blobs, Inodes: d.boot.inodes, Names: t.Len(), Version: s.Version, Compressor: s.Compressor}
	if r.Bootstrap, err = d.boot.publish(o.Bootstrap, o.BlobDir); err != nil {
		return nil, fmt.Errorf("dictionary: %w", err)
	}
	r.Trace = map[string]float64{"total_build_time": time.Since(d.started).Seconds()}
	return r, nil
}
