package rafsfs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A read-only image answers EROFS to what would change it. The guest's own
// read-only mount is no protection: a hostile guest sends what it likes.

const erofs = fuse.Status(syscall.EROFS)

// SetAttr answers EROFS.
func (f *FS) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status { return erofs }

// Mknod answers EROFS.
func (f *FS) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status { return erofs }

// Mkdir answers EROFS.
func (f *FS) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status { return erofs }

// Unlink answers EROFS.
func (f *FS) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return erofs }

// Rmdir answers EROFS.
func (f *FS) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return erofs }

// Rename answers EROFS.
func (f *FS) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status { return erofs }

// Link answers EROFS.
func (f *FS) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status { return erofs }

// Symlink answers EROFS.
func (f *FS) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return erofs
}

// SetXAttr answers EROFS.
func (f *FS) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status { return erofs }

// RemoveXAttr answers EROFS.
func (f *FS) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return erofs }

// Create answers EROFS.
func (f *FS) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return erofs
}

// Tmpfile answers EROFS.
func (f *FS) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status { return erofs }

// Write answers EROFS.
func (f *FS) Write(<-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) { return 0, erofs }

// Writev answers EROFS.
func (f *FS) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) { return 0, erofs }

// CopyFileRange answers EROFS.
func (f *FS) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, erofs
}

// Fallocate answers EROFS.
func (f *FS) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return erofs }

// Open answers ENOSYS: the guest then opens files without asking, keeps their
// pages, and reads by node id alone (Linux fs/fuse/file.c, fuse_file_open).
func (f *FS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir answers ENOSYS: the guest then opens folders without asking and caches
// their listings.
func (f *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// Flush answers ENOSYS once; the guest never asks again.
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync has nothing to write.
func (f *FS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// FsyncDir has nothing to write.
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
