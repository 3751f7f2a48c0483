// Package image is the model of a RAFS image: inodes, names, attributes and the
// chunks that file data is made of, for RAFS v5 and v6 alike.
//
// [Open] reads a bootstrap into memory that nobody can change any more, checks
// every rule of the format once, and returns a model that is immutable and safe
// for any number of readers. Nothing is built per inode: every answer is decoded
// from the bootstrap's bytes when it is asked for, and the calls that a guest
// makes all the time allocate nothing.
//
// The package trusts neither the bootstrap nor its callers' node ids, names and
// offsets, which come from a guest. It never reads blobs: what it knows of data
// are addresses and digests. Node ids and directory offsets are functions of the
// image, so that they outlive any process.
package image

import (
	"crypto/sha256"
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Root is the node id of the root folder. In v6 another inode's id is its nid
// plus 2, in v5 its inode number.
const Root uint64 = 1

// Options tell Open what to expect.
type Options struct {
	// SHA256 is the digest that the bootstrap must have; nil takes any.
	SHA256 *[sha256.Size]byte
	// InlineBlobID is the id of the blob that the bootstrap was found in
	// ([ExtractBootstrap]). Such a bootstrap cannot name that blob itself; without
	// InlineBlobID it is refused. Where the data is another object yet, the
	// bootstrap names that, and this is where its metadata is.
	InlineBlobID string
	// External accepts blobs whose data lies in a backend that the image does not
	// name. Their chunks may have no digest, so that nothing can be read of them;
	// it is for who wants to know what is in an image.
	External bool
	// InFile keeps the bootstrap in a file without a name in TempDir (os.TempDir by
	// default) in place of memory. It is for tools: the process then holds only what
	// it needed last of a bootstrap, however large that is, and answers take longer.
	// Should the file become unreadable, the process ends with SIGBUS.
	InFile  bool
	TempDir string
}

// Attr is what stat tells of an inode.
type Attr struct {
	Ino       uint64 // the node id
	Mode      uint32 // st_mode with its type
	Nlink     uint32
	UID, GID  uint32
	Rdev      uint32 // as Linux encodes it in 32 bits
	Size      uint64 // bytes; of a folder, what it takes in the image
	Blocks    uint64 // of 512 bytes
	Mtime     int64  // seconds
	MtimeNsec uint32
}

// Dirent is an entry of a folder.
type Dirent struct {
	Node uint64
	Name []byte // aliases the image, which must stay open
	Type uint32 // the S_IFMT bits of the inode's mode
	Next uint64 // offset of the entry after this one
}

// Super is what an image tells of itself.
type Super struct {
	Version    int // 5 or 6
	ChunkSize  uint32
	BlockSize  uint32 // what folders and chunk addresses count; 0 in v5
	Inodes     uint64 // reachable; hard links counted once
	Names      uint64 // entries of all folders, without "." and ".."
	Flags      layout.Flags
	Compressor blob.Compressor // of the image; blobs have their own
	Digester   blob.Digester   // of the image; blobs have their own
	Size       int64           // of the bootstrap in bytes
	SHA256     [sha256.Size]byte
}

// Image is an open image. All methods are safe for concurrent use, but none may
// run while or after Close does.
type Image struct {
	super    Super
	blobs    []*blob.Info
	chunks   *chunkTable
	prefetch []uint64
	xattrs   bool
	unmap    func() error // nil: the bytes are not ours
	pages    *pages       // nil: they stay in memory

	// Exactly one of these is not nil. They are not behind an interface since
	// arguments of an interface call escape to the heap.
	v5 *v5Tree
	v6 *v6Tree
}

// New makes an image of a bootstrap's bytes, which must never change. The rules
// are those of Open.
func New(data []byte) (*Image, error) { return NewWith(data, Options{}) }

// NewWith is New with options.
func NewWith(data []byte, opts Options) (*Image, error) {
	return parse(data, sha256.Sum256(data), opts, nil)
}

func parse(data []byte, sum [sha256.Size]byte, opts Options, p *pages) (*Image, error) {
	if opts.SHA256 != nil && sum != *opts.SHA256 {
		return nil, fmt.Errorf("%w: got sha256 %x, want %x", ErrDigest, sum, *opts.SHA256)
	}
	im := &Image{pages: p}
	var err error
	switch {
	case len(data) > MaxBootstrap:
		return nil, unsupported(0, "bootstrap of %d bytes, limit %d", len(data), MaxBootstrap)
	case isV6(data):
		err = openV6(im, data, opts)
	case isV5(data):
		err = openV5(im, data, opts)
	default:
		return nil, corrupt(0, "%d bytes without the magic of RAFS v5 or v6", len(data))
	}
	if err != nil {
		return nil, err
	}
	im.super.Size = int64(len(data))
	im.super.SHA256 = sum
	return im, nil
}

// Super describes the image as a whole.
func (im *Image) Super() Super { return im.super }

// Blobs are the blobs of the image by index. The slice must not be changed.
func (im *Image) Blobs() []*blob.Info { return im.blobs }

// Chunk finds a chunk by blob and number, false if no file of the image uses it.
func (im *Image) Chunk(blobIndex, chunkIndex uint32) (blob.Chunk, bool) {
	return im.chunks.chunk(blobIndex, chunkIndex)
}

// ChunkRecord is what the image says of a chunk with all that Chunk leaves out:
// flags and CRC. In tarfs it has neither, nor a digest. FileOffset means nothing.
func (im *Image) ChunkRecord(blobIndex, chunkIndex uint32) (layout.ChunkRecord, bool) {
	place, ok := im.chunks.find(blobIndex, chunkIndex)
	if !ok {
		return layout.ChunkRecord{}, false
	}
	r := im.chunks.stray(place)
	r.Index, r.FileOffset = chunkIndex, 0
	return r, true
}

// Prefetch are the node ids of the prefetch table in its order: files, and
// folders whose files below are meant. The slice must not be changed.
func (im *Image) Prefetch() []uint64 { return im.prefetch }

// HasXattrs tells whether any inode has an extended attribute.
func (im *Image) HasXattrs() bool { return im.xattrs }

// Attr returns the attributes of an inode. The error is ErrNode.
func (im *Image) Attr(node uint64) (Attr, error) {
	if im.v6 != nil {
		return im.v6.attr(node)
	}
	return im.v5.attr(node)
}

// Lookup finds an entry of a folder, also "." and "..", and returns its node id.
// The errors are ErrNotFound, ErrNotDir and ErrNode.
func (im *Image) Lookup(dir uint64, name string) (uint64, error) {
	if im.v6 != nil {
		return im.v6.lookup(dir, name)
	}
	return im.v5.lookup(dir, name)
}

// ReadDir yields the entries of a folder, with "." and "..", until yield returns
// false. It begins at off: 0 or the Next of an entry; any other offset yields
// some of the entries or none. The errors are ErrNotDir and ErrNode.
func (im *Image) ReadDir(dir, off uint64, yield func(Dirent) bool) error {
	if im.v6 != nil {
		return im.v6.readDir(dir, off, yield)
	}
	return im.v5.readDir(dir, off, yield)
}

// Readlink returns the target of a symbolic link, 1 to 4095 bytes, which alias
// the image. The errors are ErrNotSymlink and ErrNode.
func (im *Image) Readlink(node uint64) ([]byte, error) {
	if im.v6 != nil {
		return im.v6.readlink(node)
	}
	return im.v5.readlink(node)
}

// Xattr returns the value of an extended attribute, which aliases the image. The
// errors are ErrNoXattr and ErrNode.
func (im *Image) Xattr(node uint64, name string) ([]byte, error) {
	if im.v6 != nil {
		return im.v6.xattr(node, name)
	}
	return im.v5.xattr(node, name)
}

// Xattrs yields the extended attributes of an inode until yield returns false.
// Values alias the image. The error is ErrNode.
func (im *Image) Xattrs(node uint64, yield func(name string, value []byte) bool) error {
	if im.v6 != nil {
		return im.v6.xattrs(node, yield)
	}
	return im.v5.xattrs(node, yield)
}

// Segments appends to dst where size bytes at off of a regular file come from:
// in order, without gaps, none beyond the end of the file. A segment whose chunk
// has no blob is a hole and reads as zeros. The errors are ErrNotRegular and
// ErrNode.
func (im *Image) Segments(dst []blob.Segment, node uint64, off uint64, size uint32) ([]blob.Segment, error) {
	if im.v6 != nil {
		return im.v6.segments(dst, node, off, size)
	}
	return im.v5.segments(dst, node, off, size)
}

// Close gives the bootstrap's memory back. Names, targets and values that alias
// the image are gone with it.
func (im *Image) Close() error {
	unmap := im.unmap
	im.unmap = nil
	if unmap == nil {
		return nil
	}
	return unmap()
}
