package rafsfs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/image"
)

// errno maps an error of the image or of the store to what the guest sees.
func errno(err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, image.ErrNode):
		return fuse.Status(syscall.ESTALE)
	case errors.Is(err, image.ErrNotFound):
		return fuse.ENOENT
	case errors.Is(err, image.ErrNotDir):
		return fuse.ENOTDIR
	case errors.Is(err, image.ErrNoXattr):
		return fuse.ENOATTR
	case errors.Is(err, image.ErrNotSymlink), errors.Is(err, image.ErrNotRegular):
		return fuse.EINVAL
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	}
	return fuse.EIO
}

// status maps err and logs it if it is the daemon's or the image's trouble and
// not just an answer that a guest can ask for.
func (f *FS) status(op string, node uint64, err error) fuse.Status {
	s := errno(err)
	if s == fuse.EIO {
		f.quiet.Do(func() { f.log.Error("request failed", "op", op, "node", node, "err", err) })
	}
	return s
}
