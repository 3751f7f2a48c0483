package export

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/image"
)

// xattrKey begins the pax records that are xattrs, by the word of star.
const xattrKey = "SCHILY.xattr."

// escape is what GNU tar does to names of xattrs, as a pax key has no "=".
var escape = strings.NewReplacer("%", "%25", "=", "%3D")

// typeflags are the tar entries of file types. There is none for a socket.
var typeflags = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg,
	unix.S_IFDIR: tar.TypeDir,
	unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar,
	unix.S_IFBLK: tar.TypeBlock,
	unix.S_IFIFO: tar.TypeFifo,
}

// header is the tar header of an entry. Names of users and groups are none of
// the image's and stay empty.
func header(im *image.Image, e *entry) (*tar.Header, error) {
	h := &tar.Header{
		Format:   tar.FormatPAX,
		Typeflag: typeflags[e.kind()],
		Name:     string(e.path),
		Mode:     int64(e.attr.Mode & 0o7777),
		Uid:      int(e.attr.UID),
		Gid:      int(e.attr.GID),
		ModTime:  time.Unix(e.attr.Mtime, int64(e.attr.MtimeNsec)),
	}
	if e.first != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, e.first
		return h, nil // the rest is the inode's and came with its first name
	}
	switch e.kind() {
	case unix.S_IFDIR:
		if h.Name == "" {
			h.Name = "."
		}
		h.Name += "/"
	case unix.S_IFREG:
		h.Size = int64(e.attr.Size)
	case unix.S_IFLNK:
		target, err := im.Readlink(e.node)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", e.node, err)
		}
		h.Linkname = string(target)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Devmajor, h.Devminor = device(e.attr.Rdev)
	}
	err := im.Xattrs(e.node, func(name string, value []byte) bool {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrKey+escape.Replace(name)] = string(value)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", e.node, err)
	}
	return h, nil
}

// device splits a device number as the kernel packs it into 32 bits
// (new_decode_dev, include/linux/kdev_t.h).
func device(dev uint32) (major, minor int64) {
	return int64(dev >> 8 & 0xfff), int64(dev&0xff | dev>>12&0xfff00)
}
