// Package rafsfs serves one RAFS image as a read-only FUSE file system.
//
// It joins three worlds and holds no state of its own: metadata is decoded from
// the image on use, file bytes come from a Store that hands out verified bytes
// only, and FUSE is go-fuse's RawFileSystem. Node ids, generations and readdir
// offsets are functions of the image, so a process that takes over from another
// one answers the same guest with the same numbers, and FORGET means nothing.
//
// The guest is not trusted: every node id, offset and name may be made up. An id
// that is no inode of the image is answered ESTALE.
package rafsfs

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/time/rate"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// Valid is how long a guest may keep names and attributes: the image cannot
// change, so only the width of the kernel's arithmetic bounds it.
const Valid = 10 * 365 * 24 * time.Hour

// Store hands out verified bytes of chunks. It is safe for concurrent use.
type Store interface {
	// Ready reports whether every byte of c can be read at once: verified in
	// this process, and in the cache. It neither blocks nor allocates.
	Ready(c *blob.Chunk) bool
	// ReadReady reads from the uncompressed space of b at off into dst, which
	// may be guest memory. The range lies in chunks that were Ready.
	ReadReady(b *blob.Info, dst [][]byte, off int64) (int, error)
	// Read brings the segments' bytes into the start of dst one after the other,
	// zeros for holes, fetching and verifying what is missing. It blocks until
	// done or ctx ends, and returns their length.
	Read(ctx context.Context, segs []blob.Segment, dst [][]byte) (int, error)
}

// Options are what an FS may be told.
type Options struct {
	// Log receives one record for each kind of failure, rate limited.
	Log *slog.Logger
}

// FS is a fuse.RawFileSystem over one image. It is safe for concurrent use and
// immutable but for its counters.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what a read-only image has no use for

	image *image.Image
	store Store
	log   *slog.Logger
	stats counters
	// quiet lets one record a second pass: a guest decides how often an error occurs.
	quiet rate.Sometimes
}

// New returns the file system of im with file bytes from store.
func New(im *image.Image, store Store, opts Options) *FS {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		image:         im,
		store:         store,
		log:           log,
		quiet:         rate.Sometimes{Interval: time.Second},
	}
}

func (f *FS) String() string { return "rafs" }

// HasXattrs reports whether any inode of the image carries extended attributes;
// where none does, a device may tell the guest never to ask.
func (f *FS) HasXattrs() bool { return f.image.HasXattrs() }

type counters struct {
	readNow, readWait, readBytes, readErrors atomic.Uint64
}

// Stats counts what was read through an FS since it was made.
type Stats struct {
	// ReadNow is how many reads were answered from the cache at once.
	ReadNow uint64
	// ReadWait is how many reads had to fetch or to verify first.
	ReadWait uint64
	// ReadBytes is how many bytes of file data were given to the guest.
	ReadBytes uint64
	// ReadErrors is how many reads ended in an error.
	ReadErrors uint64
}

// Stats returns the counters as they are now.
func (f *FS) Stats() Stats {
	return Stats{
		ReadNow:    f.stats.readNow.Load(),
		ReadWait:   f.stats.readWait.Load(),
		ReadBytes:  f.stats.readBytes.Load(),
		ReadErrors: f.stats.readErrors.Load(),
	}
}
