package rafsfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/image"
)

// blockSize is st_blksize: the unit in which v6 lays out data.
const blockSize = 4096

func fillAttr(out *fuse.Attr, a *image.Attr) {
	out.Ino = a.Ino
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid = a.UID
	out.Gid = a.GID
	out.Rdev = a.Rdev
	out.Blksize = blockSize
	// The format keeps one time an inode.
	out.Atime, out.Mtime, out.Ctime = uint64(a.Mtime), uint64(a.Mtime), uint64(a.Mtime)
	out.Atimensec, out.Mtimensec, out.Ctimensec = a.MtimeNsec, a.MtimeNsec, a.MtimeNsec
}

func (f *FS) fillEntry(out *fuse.EntryOut, node uint64) error {
	a, err := f.image.Attr(node)
	if err != nil {
		return err
	}
	out.NodeId = node
	out.SetEntryTimeout(Valid)
	out.SetAttrTimeout(Valid)
	fillAttr(&out.Attr, &a)
	return nil
}

// GetAttr answers GETATTR.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, err := f.image.Attr(in.NodeId)
	if err != nil {
		return f.status("getattr", in.NodeId, err)
	}
	out.SetTimeout(Valid)
	fillAttr(&out.Attr, &a)
	return fuse.OK
}

// Readlink answers READLINK.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := f.image.Readlink(h.NodeId)
	if err != nil {
		return nil, f.status("readlink", h.NodeId, err)
	}
	return target, fuse.OK
}

// StatFs answers STATFS: a full file system of the image's size.
func (f *FS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s := f.image.Super()
	var bytes uint64
	for _, b := range f.image.Blobs() {
		bytes += b.UncompressedSize
	}
	out.Bsize = blockSize
	out.Frsize = blockSize
	out.Blocks = (bytes + blockSize - 1) / blockSize
	out.Files = s.Inodes
	out.NameLen = 255
	return fuse.OK
}

// Access lets everything pass: the guest's driver mounts with
// default_permissions and checks modes itself.
func (f *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }
