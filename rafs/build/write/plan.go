package write

import (
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
)

const (
	// maxBlobs is the most blobs whose device ids nydus accepts.
	maxBlobs = 254
	// maxBootstrap is the largest bootstrap that readers open, in bytes.
	maxBootstrap = 2 << 30
)

// Plan is a bootstrap with everything decided. It reads the tree and the tables
// of the blobs when it is written, which must stay until then.
type Plan interface {
	// Blobs are the blobs that the image needs, in the order of its blob table.
	Blobs() []*BlobInfo
	// Size is the size of the bootstrap in bytes.
	Size() int64
	// Inodes is the number of inodes; hard links are counted once.
	Inodes() int
	// Write writes the bootstrap to w, from start to end. It is called once.
	Write(w io.Writer) error
	// Close drops what the plan has spilled. It may be called again.
	Close() error
}

// Options are what a bootstrap has beyond its tree and blobs.
type Options struct {
	// Format is that of the image as a whole; blobs of v6 have their own.
	Format
	// Version is 5 or 6; 0 means 6.
	Version int
	// Prefetch lists absolute paths, files or whole folders, that a reader should
	// fetch ahead. What does not exist is ignored.
	Prefetch []string
	// ImplicitOwners has readers show their own user instead of the owners that the
	// inodes have (nydus-image create without --uid-gid explicit).
	ImplicitOwners bool
	// Tarfs makes a v6 bootstrap over tar files: blocks of 512 bytes, and chunks
	// that lie anywhere in them.
	Tarfs bool
	// TempDir takes what is spilled; os.TempDir if empty.
	TempDir string
}

// Check refuses what a bootstrap cannot have.
func (o *Options) Check() error {
	switch {
	case o.Version != 0 && o.Version != 5 && o.Version != 6:
		return fmt.Errorf("version %d: want 5 or 6", o.Version)
	case o.Version == 5 && o.Tarfs:
		return errors.New("tarfs is for v6")
	}
	return o.Format.Check()
}

// New plans the bootstrap of a tree by Options.Version. The refs of its files
// count in blobs, which may hold nil where a layer has no data; what no file
// needs is left out, and the order stays. Where several blobs have the same
// chunk, every file uses the one of the first.
func New(t *tree.Tree, blobs []*BlobInfo, o Options) (Plan, error) {
	if o.Version == 5 {
		p, err := NewV5(t, blobs, o)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	p, err := NewV6(t, blobs, o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Bootstrap writes a planned bootstrap to w, from start to end.
func Bootstrap(w io.Writer, p Plan) error { return p.Write(w) }

var compressorFlags = map[blob.Compressor]layout.Flags{
	blob.CompressorNone:     layout.FlagCompressorNone,
	blob.CompressorLZ4Block: layout.FlagCompressorLZ4Block,
	blob.CompressorGzip:     layout.FlagCompressorGzip,
	blob.CompressorZstd:     layout.FlagCompressorZstd,
}

var digesterFlags = map[blob.Digester]layout.Flags{
	blob.DigesterBlake3: layout.FlagDigesterBlake3,
	blob.DigesterSHA256: layout.FlagDigesterSHA256,
}

// superFlags are the flags that both versions have.
func (o *Options) superFlags() layout.Flags {
	flags := compressorFlags[o.Compressor] | digesterFlags[o.Digester]
	if !o.ImplicitOwners {
		flags |= layout.FlagExplicitUIDGID
	}
	return flags
}
