package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/source/estargz"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// Options say what Create makes of what. They begin with [Defaults].
type Options struct {
	Host

	// Source is the path of a folder or a file; a file may be a fifo.
	Source string
	Type   SourceType

	// Version of the image: 5 or 6.
	Version int
	// A chunk size of 0 stands for what the type of the source has by default.
	write.Format
	// BatchSize, if not 0, is how many bytes of small files are compressed
	// together at most (v6).
	BatchSize uint32
	// Encrypt encrypts the blob with Cipher, or with a key that is made up if that
	// is nil: then no two builds have the same bytes (v6).
	Encrypt bool
	Cipher  *write.Cipher
	// AlignedChunks puts chunks at multiples of 4096 in the uncompressed space. v6
	// always does.
	AlignedChunks bool
	// TOC gives the blob a table of contents and the digests of its chunks (v6).
	TOC bool
	// InlineMeta puts the bootstrap into the blob, and nowhere else.
	InlineMeta bool
	// Whiteouts say how the source writes down that a lower layer loses an entry.
	Whiteouts tree.Whiteouts
	// NoOwner makes an image whose files belong to whoever reads it.
	NoOwner  bool
	Prefetch Prefetch
	// ChunkDict is the path of a bootstrap whose chunks need not be stored again.
	ChunkDict string
	// Parent is the path of a bootstrap that the source is a layer on.
	Parent string
	// BlobID names the blob; its SHA-256 does by default. For TOCRef it must be
	// that of the layer, and BlobDataSize is the layer's size in bytes.
	BlobID       string
	BlobDataSize uint64

	// Bootstrap is the path of the bootstrap; in BlobDir under its SHA-256 by
	// default. Blob is the path of the blob, which may be a fifo; in BlobDir under
	// its id by default; of a TOCRef it takes ID.blob.meta, which nydusd wants to find in
	// its work folder. CacheDir takes ID.blob.data and ID.blob.meta as a node
	// keeps them, in place of the blob.
	Bootstrap, Blob, BlobDir, CacheDir string
}

// Defaults are what nydus-image does unless told otherwise.
func Defaults() Options {
	return Options{
		Type: Directory, Version: 6, Prefetch: Prefetch{Policy: PrefetchNone}, Whiteouts: tree.WhiteoutOCI,
		Format: write.Format{ChunkSize: blob.DefaultChunkSize, Compressor: blob.CompressorZstd, Digester: blob.DigesterBlake3},
	}
}

// check refuses options that contradict each other, and settles those that the
// type of the source decides, as nydus-image does.
func (o *Options) check() error {
	if o.ChunkSize == 0 {
		o.ChunkSize = blob.DefaultChunkSize
		if o.Type == TOCRef {
			o.ChunkSize = estargz.DefaultChunkSize
		}
	}
	switch {
	case o.Source == "":
		return errors.New("no source")
	case o.Version != 5 && o.Version != 6:
		return fmt.Errorf("version %d: want 5 or 6", o.Version)
	case o.TOC && o.Version == 5:
		return errors.New("a table of contents in the blob (--features blob-toc) needs version 6")
	case o.Encrypt && o.Version == 5:
		return errors.New("encryption needs version 6")
	case o.BatchSize > 0 && o.Version == 5:
		return errors.New("a batch size needs version 6")
	case o.BatchSize > 0 && (o.BatchSize&(o.BatchSize-1) != 0 || o.BatchSize > o.ChunkSize || o.BatchSize < blob.MinChunkSize):
		return fmt.Errorf("batch size %d: want a power of two from %d to the chunk size, %d", o.BatchSize, blob.MinChunkSize, o.ChunkSize)
	case o.InlineMeta && o.Bootstrap != "":
		return fmt.Errorf("bootstrap %s: it goes into the blob, want no path", o.Bootstrap)
	case o.BlobID != "":
		if err := blob.CheckID(o.BlobID); err != nil {
			return err
		}
	}
	if err := o.checkType(); err != nil {
		return err
	}
	if o.CacheDir != "" {
		o.Compressor = blob.CompressorNone // a cache has no other
	}
	if err := o.checkOutput(); err != nil {
		return err
	}
	return o.Format.Check()
}

// checkType has the rules of single types (nydus src/bin/nydus-image/main.rs,
// create).
func (o *Options) checkType() error {
	conflict := func(what string, given bool) error {
		if given {
			return fmt.Errorf("source type %s: %s cannot be", o.Type, what)
		}
		return nil
	}
	if !o.Type.isRef() && o.Type != TarTarfs {
		_, err := ParseSourceType(string(o.Type))
		return err
	}
	err := errors.Join(
		conflict("version 5", o.Version == 5),
		conflict("prefetch policy blob", o.Prefetch.Policy == PrefetchBlob),
		conflict("encryption", o.Encrypt),
		conflict("a batch size", o.BatchSize > 0),
	)
	o.Digester = blob.DigesterSHA256
	if o.Type.isRef() {
		o.Compressor = blob.CompressorGzip
		return errors.Join(err,
			conflict("a blob id", o.BlobID != "" && o.Type != TOCRef),
			conflict("no blob id (that of the layer)", o.BlobID == "" && o.Type == TOCRef),
			conflict("a blob or a cache folder", o.Type == TOCRef && (o.Blob != "" || o.CacheDir != "")),
		)
	}
	o.Compressor = blob.CompressorNone
	return errors.Join(err,
		conflict("a chunk dictionary", o.ChunkDict != ""),
		conflict("a parent", o.Parent != ""),
		conflict("a bootstrap inside the blob", o.InlineMeta),
		conflict("a table of contents", o.TOC),
		conflict("aligned chunks", o.AlignedChunks),
		conflict("a path for the blob", o.Blob != ""),
		conflict("a cache folder", o.CacheDir != ""),
	)
}

func (o *Options) checkOutput() error {
	switch {
	case samePlace(o.Bootstrap, o.Blob):
		return fmt.Errorf("bootstrap and blob: both would be %s", o.Blob)
	case samePlace(o.Source, o.Bootstrap), samePlace(o.Source, o.Blob):
		return fmt.Errorf("source %s: would be replaced by what is made of it", o.Source)
	case o.Bootstrap == "" && o.BlobDir == "" && !o.InlineMeta:
		return errors.New("nowhere to put the bootstrap: want its path (--bootstrap) or a folder (--blob-dir)")
	case o.Type == TOCRef || o.CacheDir != "":
		if o.InlineMeta {
			return errors.New("no blob is written that could take the bootstrap (--blob-inline-meta)")
		}
	case o.Blob == "" && o.BlobDir == "":
		return errors.New("nowhere to put the blob: want its path (--blob), or a folder (--blob-dir, --blob-cache-dir)")
	}
	return nil
}

// samePlace tells whether two paths are of one file, or would be. A pipe or a
// device is no place.
func samePlace(a, b string) bool {
	if a == "" || b == "" || special(a) || special(b) {
		return false
	}
	one, err := os.Stat(a)
	if err != nil {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	two, err := os.Stat(b)
	return err == nil && os.SameFile(one, two)
}
