// Package build makes RAFS images: from a folder, a tar or an OCI layer
// ([Create]), from the bootstraps of layers ([Merge]), or from an image that is
// there already ([Compact], [Optimize], [Dictionary]). It is what nydus-image
// does, and what it says of its options holds here.
//
// The way of a build: a source goes through its input once, and gives contents
// to a cutter, which writes the blob, and names to a builder, which spills them.
// Layers are merged into a tree, the bootstrap is planned over it and emitted,
// and rafs/check reads the bootstrap that was written before anybody else can.
//
// Inputs are a stranger's; bootstraps among them have been validated by
// rafs/image. Memory does not grow with the input. A file gets its name when it
// is whole and on the disk, and its name never holds anything else: a build that
// is cut off leaves what was there before. The same input and options give the
// same bytes, keys of encrypted blobs included if they are given.
package build

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// SourceType is what Create is given, by the name that nydus-image has for it.
type SourceType string

// The types of sources.
const (
	Directory   SourceType = "directory"
	TarRafs     SourceType = "tar-rafs"     // a tar, plain or compressed
	TargzRafs   SourceType = "targz-rafs"   // the same
	EstargzRafs SourceType = "estargz-rafs" // the same, without the files that make it an eStargz
	TargzRef    SourceType = "targz-ref"    // a gzip of a tar, which stays what it is
	EstargzRef  SourceType = "estargz-ref"  // the same for an eStargz
	TOCRef      SourceType = "stargz_index" // only the table of contents of an eStargz
	TarTarfs    SourceType = "tar-tarfs"    // a tar, which stays what it is
)

// ParseSourceType finds a type by a name of nydus-image.
func ParseSourceType(name string) (SourceType, error) {
	switch SourceType(name) {
	case "dir-rafs":
		return Directory, nil
	case "estargztoc-ref":
		return TOCRef, nil
	case Directory, TarRafs, TargzRafs, EstargzRafs, TargzRef, EstargzRef, TOCRef, TarTarfs:
		return SourceType(name), nil
	}
	return "", fmt.Errorf("source type %q: want directory, tar-rafs, targz-rafs, estargz-rafs, targz-ref, estargz-ref, stargz_index or tar-tarfs", name)
}

// isRef tells whether the data stays in the object that it is in.
func (t SourceType) isRef() bool { return t == TargzRef || t == EstargzRef || t == TOCRef }

// PrefetchPolicy says what is done with the list of files that will be wanted
// first.
type PrefetchPolicy string

// The policies.
const (
	PrefetchNone PrefetchPolicy = "none"
	PrefetchFS   PrefetchPolicy = "fs"   // the bootstrap lists them
	PrefetchBlob PrefetchPolicy = "blob" // the blob begins with them, and says how far (v5)
)

// ParsePrefetchPolicy finds a policy by its name.
func ParsePrefetchPolicy(name string) (PrefetchPolicy, error) {
	switch p := PrefetchPolicy(name); p {
	case PrefetchNone, PrefetchFS, PrefetchBlob:
		return p, nil
	}
	return "", fmt.Errorf("prefetch policy %q: want none, fs or blob", name)
}

// Prefetch is a policy and the absolute paths that it is about, files or whole
// folders. What is not absolute or does not exist is ignored.
type Prefetch struct {
	Policy PrefetchPolicy
	Paths  []string
}

// table are the paths for the bootstrap.
func (p *Prefetch) table() []string {
	if p.Policy == PrefetchFS {
		return p.absolute()
	}
	return nil
}

func (p *Prefetch) absolute() []string {
	var paths []string
	for _, s := range p.Paths {
		if p.Policy != PrefetchNone && p.Policy != "" && len(s) > 0 && s[0] == '/' {
			paths = append(paths, s)
		}
	}
	return paths
}

// ErrInconsistent means that bootstraps cannot become one image, because they
// differ in what an image has only one of: the chunk size, the version, owners,
// tarfs, and in v5 the digester. nydus-image ends with code 2 then.
var ErrInconsistent = errors.New("inconsistent images")

// Host is what every build needs of the machine.
type Host struct {
	// Workers compress chunks at the same time; GOMAXPROCS by default.
	Workers int
	// TempDir takes what does not fit into memory, in files without names;
	// os.TempDir by default.
	TempDir string
	// Limits of each layer.
	Limits tree.Limits
	// NoCheck leaves out the check of the bootstrap that was written.
	NoCheck bool
	// Log gets warnings; none by default.
	Log *slog.Logger
	// Progress, if set, is told how much was done, in bytes. Create tells how much of
	// the source it has read: of a file, or of the files in a folder, whose total is
	// not known and 0. Merge and Dictionary tell of their bootstraps, Compact and
	// Optimize of the chunks that are stored anew. It is called by the goroutine that
	// reads, about once in 1 MiB, and by all but Create when all was read, too.
	Progress func(done, total int64)
}

func (h *Host) setDefaults() {
	if h.Workers <= 0 {
		h.Workers = runtime.GOMAXPROCS(0)
	}
	if h.TempDir == "" {
		h.TempDir = os.TempDir()
	}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
}

// Result tells what a build has written.
type Result struct {
	// Bootstrap is the path of the bootstrap; empty if it is inside the blob.
	Bootstrap string
	// Blobs are the ids of the image's blobs, in the order of its blob table.
	Blobs []string
	// Blob is the id of the blob that was written and BlobSize its size in bytes;
	// empty if the source has no data that the image did not have.
	Blob     string
	BlobSize int64
	// Version is 5 or 6.
	Version int
	// Compressor is that of the image; blobs may have others.
	Compressor blob.Compressor
	// Names and Inodes count what is in the image, with the root.
	Names, Inodes int
	// DroppedXattrs had names that the format cannot hold.
	DroppedXattrs int
	// Trace is what was measured, by nydus-image's names: seconds and counts.
	Trace map[string]float64
}

func blobIDs(infos []*write.BlobInfo) []string {
	ids := make([]string, 0, len(infos))
	for _, info := range infos {
		ids = append(ids, info.ID)
	}
	return ids
}
