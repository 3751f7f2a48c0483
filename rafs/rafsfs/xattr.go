package rafsfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// GetXAttr answers GETXATTR. A dest that is too small is answered ERANGE and the
// needed size, which is also how a guest asks for the size.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	value, err := f.image.Xattr(h.NodeId, attr)
	if err != nil {
		return 0, f.status("getxattr", h.NodeId, err)
	}
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr answers LISTXATTR with NUL-terminated names.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	var need int
	err := f.image.Xattrs(h.NodeId, func(name string, _ []byte) bool {
		if end := need + len(name) + 1; end <= len(dest) {
			copy(dest[need:], name)
			dest[end-1] = 0
		}
		need += len(name) + 1
		return true
	})
	if err != nil {
		return 0, f.status("listxattr", h.NodeId, err)
	}
	if need > len(dest) {
		return uint32(need), fuse.ERANGE
	}
	return uint32(need), fuse.OK
}
