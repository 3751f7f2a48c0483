// Package convert turns an OCI image into a RAFS image: it reads the layers of
// one from a registry, a folder or an archive, and pushes the blobs and the
// bootstrap of the other, packed as nydus' tools know it.
//
// Layers are verified against the digests of the manifest and of the image's
// configuration as they are read, and a layer that is not what these say becomes
// part of nothing. No file of an image is ever unpacked: a layer becomes a blob
// while its tar passes by. The manifest goes last, so there is no half image under
// the target's name. Blobs lie in files of the work folder until they are pushed,
// without names unless a state folder was given: there a layer that is done gets a
// name, so that a conversion that is cut off goes on from there.
//
// The same image and options give the same bytes.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// Options say what to convert, and how. Zero fields take the default.
type Options struct {
	// Source and Target are images by their names (store.OpenSource, OpenTarget).
	Source, Target string
	// SourceRegistry and TargetRegistry say how to reach the two. The platform of
	// the first picks the image out of an index, where Platforms does not.
	SourceRegistry, TargetRegistry artifact.Options
	// Push says how blobs are sent.
	Push store.Push

	// Platforms are the images of an index to convert; more than one becomes an
	// index again. AllPlatforms takes all of them.
	Platforms    store.Platforms
	AllPlatforms bool
	// MergePlatform makes an index that has each RAFS image beside the OCI image
	// that it was made of, which is copied.
	MergePlatform bool
	// Referrer makes each RAFS image say that it is about its OCI image (the
	// manifest's subject).
	Referrer bool
	// DockerFormat gives manifest, configuration and bootstrap docker's media types
	// where the source has these.
	DockerFormat bool

	// Format of the image; v6, chunks of 1 MiB, zstd and blake3 by default.
	Format Format
	// Reference leaves the data in the layers of the source, gzip as they are, and
	// makes blobs that index them only (zran). The layers are copied.
	Reference bool
	// Dict is an image, or a bootstrap in a file, whose chunks need not be stored
	// again; none if empty. DictRegistry says how to reach it.
	Dict         string
	DictRegistry artifact.Options
	// Cache lists layers that were converted before, and gets those of this run.
	Cache Cache
	// BlobDir takes the blobs, by their ids, in place of the target, whose manifest
	// then lists the bootstrap alone.
	BlobDir string
	// Bucket takes the blobs likewise; nil if none does. Several are sent at a time.
	Bucket *Bucket
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
	// StateDir keeps the layers of a conversion that fails or is killed, so that the
	// next one goes on from there; when one succeeds its layers are removed. Nobody
	// else may be able to write to it. Empty keeps nothing.
	StateDir string
	// Progress is told how the conversion goes, if not nil. It is called by
	// several goroutines, but never at the same time, and should return at once.
	Progress func(Event)
}

// Format holds the choices of an image. The compressor is a pointer because
// "none" is its zero value.
type Format struct {
	Version    int    // 5 or 6; 6 by default
	ChunkSize  uint32 // bytes, a power of two; blob.DefaultChunkSize by default
	BatchSize  uint32 // up to how many bytes small chunks are compressed together; 0 is never
	Aligned    bool   // v5: chunks at multiples of 4096 in the uncompressed space, as v6 has them
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
	StageRead  Stage = iota
	StageFound       // a conversion before this one has done it
	StagePush
	StageDone // Done is Total, the size of what came of the layer
)

func (s Stage) String() string { return [...]string{"read", "found", "push", "done"}[s] }

// Result describes a finished conversion.
type Result struct {
	// Target is the reference of the image by its digest.
	Target string
	// Digest is that of the manifest, or of the index of several.
	Digest v1.Hash
	// Images is how many were converted. What follows is about all of them.
	Images int
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
	// Resumed is set where a conversion before this one has done the work.
	Resumed bool
}

func (o *Options) setDefaults() error {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Layers <= 0 {
		o.Layers = 3
	}
	f := &o.Format
	if f.ChunkSize == 0 {
		f.ChunkSize = blob.DefaultChunkSize
	}
	if f.Version == 0 {
		f.Version = 6
	}
	if f.Compressor == nil {
		zstd := blob.CompressorZstd
		f.Compressor = &zstd
	}
	switch {
	case f.Version == 5 && f.BatchSize > 0:
		return errors.New("a batch size needs version 6")
	case f.Version == 5 && o.Reference:
		return errors.New("an image that refers to OCI layers needs version 6")
	case o.Reference && f.BatchSize > 0:
		return errors.New("an image that refers to OCI layers has no batches")
	case o.Reference && o.elsewhere():
		return errors.New("an image that refers to OCI layers has its blobs beside them")
	case o.BlobDir != "" && o.Bucket != nil:
		return errors.New("blobs go into a folder or into a bucket, not into both")
	case o.Cache.Name != "" && o.Bucket != nil:
		return errors.New("a build cache takes layers from registries: blobs in a bucket have none")
	case o.Cache.Name != "" && (o.Reference || o.Dict != "" || f.Version == 5):
		return errors.New("a build cache is for images of version 6 without a chunk dictionary that have their data themselves")
	case f.BatchSize > 0 && (f.BatchSize&(f.BatchSize-1) != 0 || f.BatchSize < blob.MinChunkSize || f.BatchSize > f.ChunkSize):
		return fmt.Errorf("batch size %d: want a power of two from %d to the chunk size, %d", f.BatchSize, blob.MinChunkSize, f.ChunkSize)
	}
	if o.Reference { // nydus builder/src/tarball.rs: both are what the layers have
		gzip := blob.CompressorGzip
		f.Compressor, f.Digester = &gzip, blob.DigesterSHA256
		return nil
	}
	return o.format().Check()
}

func (o *Options) format() write.Format {
	return write.Format{ChunkSize: o.Format.ChunkSize, Compressor: *o.Format.Compressor, Digester: o.Format.Digester}
}

// packed tells whether uncompressed offsets follow one another without gaps.
func (o *Options) packed() bool { return o.Format.Version == 5 && !o.Format.Aligned }

// run is one run of Convert.
type run struct {
	opts   Options
	src    store.Source
	dst    store.Target
	dict   *dictionary // nil: none
	state  *state      // nil: none
	pool   *chunk.Pool
	result Result

	mu sync.Mutex // held while Progress runs
}

// again tells how to go on.
const again = "run it again: what is done is not done twice"

// Convert converts an image. When it returns an error, nothing has changed under
// the target's name, but blobs may be there that no image uses yet; a second run
// finds and keeps them.
func Convert(ctx context.Context, o Options) (*Result, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	r := &run{opts: o, pool: chunk.NewPool(o.Workers, o.Layers, int(o.Format.ChunkSize))}
	defer func() { _ = r.close() }()
	var err error
	if r.src, err = store.OpenSource(ctx, o.Source, o.SourceRegistry, o.WorkDir); err != nil {
		return nil, fmt.Errorf("source %s: %w", o.Source, err)
	}
	o.Push.From, o.Push.Name = r.src, store.NameOf(r.src)
	if r.dst, err = store.OpenTarget(ctx, o.Target, o.TargetRegistry, o.Push); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if o.Dict != "" {
		if r.dict, err = openDictionary(ctx, &o); err != nil {
			return nil, fmt.Errorf("chunk dictionary %s: %w", o.Dict, err)
		}
	}
	if o.StateDir != "" {
		if r.state, err = openState(o.StateDir); err != nil {
			return nil, err
		}
	}
	root, err := r.root(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.dst.Tag(ctx, root); err != nil {
		return nil, fmt.Errorf("target %s: %w (%s)", o.Target, err, again)
	}
	if r.state != nil {
		r.state.forget()
	}
	r.result.Target, r.result.Digest = r.dst.Reference(root.Digest), root.Digest
	return &r.result, nil
}

func (r *run) close() error {
	var errs []error
	for _, c := range []io.Closer{r.src, r.dst} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if r.dict != nil {
		errs = append(errs, r.dict.close())
	}
	return errors.Join(errs...)
}

func (r *run) report(e Event) {
	if r.opts.Progress == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opts.Progress(e)
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
