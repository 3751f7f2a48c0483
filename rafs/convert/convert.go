// Package convert turns an OCI image into a RAFS image: it reads the layers of
// one from a registry, a folder or an archive, and pushes the blobs and the
// bootstrap of the other, packed as nydus' tools know it.
//
// Layers are verified against the digests of the manifest and of the image's
// configuration as they are read, and a layer that is not what these say becomes
// part of nothing. No file of an image is ever unpacked: a layer becomes a blob
// while its tar passes by. Blobs lie in unnamed files of the work folder until
// they are pushed, so nothing is left when a conversion is cut off; the manifest
// goes last, so there is no half image under the target's name either.
//
// The same image and options give the same bytes.
package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// Options say what to convert, and how. Zero fields take the default.
type Options struct {
	// Source is the image: a reference of a registry, or "oci:DIR[:TAG]" for an
	// OCI layout, or "oci-archive:FILE[:TAG]" or "docker-archive:FILE[:TAG]" for
	// a tar of one. A path that exists needs no prefix.
	Source string
	// Target is a reference of a registry, or "oci:DIR[:TAG]" for an OCI layout.
	Target string
	// SourceRegistry and TargetRegistry say how to reach the two. The platform
	// of the first picks the image out of an index.
	SourceRegistry, TargetRegistry artifact.Options

	// Format of the image; chunks of 1 MiB, zstd and blake3 by default.
	Format Format
	// Prefetch lists absolute paths that readers should fetch ahead.
	Prefetch []string
	// Limits of each layer.
	Limits tree.Limits

	// Workers compress chunks at the same time; GOMAXPROCS by default.
	Workers int
	// Layers are read at the same time; 3 by default.
	Layers int
	// WorkDir takes the blobs until they are pushed; os.TempDir by default. It
	// needs room for the finished image.
	WorkDir string
	// Progress is told how the conversion goes, if not nil. It is called by
	// several goroutines, but never at the same time, and should return at once.
	Progress func(Event)
}

// Format holds the choices of an image. The compressor is a pointer because
// "none" is its zero value.
type Format struct {
	ChunkSize  uint32 // bytes, a power of two; blob.DefaultChunkSize by default
	Compressor *blob.Compressor
	Digester   blob.Digester
}

// Event is news of a conversion.
type Event struct {
	// Layer counts from 0; -1 is the bootstrap.
	Layer int
	// Layers is how many there are.
	Layers int
	// Digest is the source layer's, or for the bootstrap that of its own layer.
	Digest string
	Stage  Stage
	// Done and Total are bytes: of the source layer while it is read, of what
	// came of it while that is pushed. Total is 0 where it is not known.
	Done, Total int64
}

// Stage is what happens to a layer.
type Stage int

// The stages, in order. A layer that had to be read again goes back to StageRead.
const (
	StageRead Stage = iota
	StagePush
	StageDone // Done is Total, the size of what came of the layer
)

func (s Stage) String() string { return [...]string{"read", "push", "done"}[s] }

// Result describes a finished conversion.
type Result struct {
	// Target is the reference of the image by its digest.
	Target string
	// Digest is that of the manifest.
	Digest v1.Hash
	Layers []LayerResult
	// Blobs are the ids of the image's blobs, in order.
	Blobs []string
	// Inodes is the number of files, folders and so on in the image.
	Inodes int
	// BootstrapSize is that of the bootstrap itself, BootstrapLayerSize that of
	// the compressed layer which holds it, in bytes.
	BootstrapSize, BootstrapLayerSize int64
}

// LayerResult describes what became of one layer.
type LayerResult struct {
	Source        string // digest of the source layer
	SourceSize    int64  // bytes as it is stored
	Entries       int    // of its tar
	Bytes         int64  // of all its files
	Blob          string // id of the blob; empty if the layer has no data
	BlobSize      int64
	Chunks        int
	DroppedXattrs int // in namespaces that Linux does not have
}

func (o *Options) setDefaults() error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Layers <= 0 {
		o.Layers = 3
	}
	if o.Format.ChunkSize == 0 {
		o.Format.ChunkSize = blob.DefaultChunkSize
	}
	if o.Format.Compressor == nil {
		zstd := blob.CompressorZstd
		o.Format.Compressor = &zstd
	}
	return o.format().Check()
}

func (o *Options) format() write.Format {
	return write.Format{ChunkSize: o.Format.ChunkSize, Compressor: *o.Format.Compressor, Digester: o.Format.Digester}
}

// conversion is one run of Convert.
type conversion struct {
	opts   Options
	source *source
	target target
	pool   *chunk.Pool
	layers []*layer

	mu sync.Mutex // held while Progress runs
}

// Convert converts an image. When it returns an error, nothing has changed under
// the target's name, but blobs may be there that no image uses yet; a second run
// finds and keeps them.
func Convert(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	target, err := openTarget(o.Target, o.TargetRegistry)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	source, err := openSource(ctx, o.Source, o.SourceRegistry)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", o.Source, err)
	}
	defer source.close()
	c := &conversion{
		opts: o, source: source, target: target,
		pool:   chunk.NewPool(o.Workers, o.Layers, int(o.Format.ChunkSize)),
		layers: make([]*layer, len(source.layers)),
	}
	defer c.closeLayers()
	if err := c.convertLayers(ctx); err != nil {
		return nil, err
	}
	image, err := c.assemble(ctx)
	if err != nil {
		return nil, err
	}
	defer image.close()
	if err := c.target.image(ctx, image); err != nil {
		return nil, fmt.Errorf("target %s: %w (run it again: blobs that have arrived are not sent twice)", o.Target, err)
	}
	c.report(Event{Layer: -1, Digest: image.bootstrap.digest.String(), Stage: StageDone,
		Done: image.bootstrap.size, Total: image.bootstrap.size})
	return c.result(image)
}

// convertLayers converts all layers, several at a time.
func (c *conversion) convertLayers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.opts.Layers)
	for i := range c.source.layers {
		group.Go(func() error {
			l, err := c.convertLayer(ctx, i)
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				err = fmt.Errorf("%w (the work folder needs room for the finished image)", err)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(c.layers), c.source.layers[i].name(), err)
			}
			c.layers[i] = l
			return nil
		})
	}
	return group.Wait()
}

func (c *conversion) closeLayers() {
	for _, l := range c.layers {
		if l != nil {
			l.close()
		}
	}
}

func (c *conversion) report(e Event) {
	if c.opts.Progress == nil {
		return
	}
	e.Layers = len(c.layers)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opts.Progress(e)
}

func (c *conversion) result(image *rafsImage) (*Result, error) {
	r := &Result{
		Target: c.target.reference(image.digest), Digest: image.digest, Inodes: image.plan.Inodes(),
		BootstrapSize: image.plan.Size(), BootstrapLayerSize: image.bootstrap.size,
	}
	for _, b := range image.plan.Blobs() {
		r.Blobs = append(r.Blobs, b.ID)
	}
	for i, l := range c.layers {
		src := &c.source.layers[i]
		lr := LayerResult{
			Source: src.name(), SourceSize: src.size,
			Entries: l.entries, Bytes: l.bytes, DroppedXattrs: l.droppedXattrs,
		}
		if l.info != nil {
			lr.Blob, lr.BlobSize, lr.Chunks = l.info.ID, l.info.Object.Size, int(l.info.Table.Len())
		}
		r.Layers = append(r.Layers, lr)
	}
	return r, nil
}

// tempFile opens a file without a name.
func (o *Options) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(o.WorkDir, "rafsd-convert-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
