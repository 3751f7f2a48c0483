package tree

import (
	"archive/tar"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// xattrKey is the prefix of pax records that carry xattrs, as GNU tar, star and
// the container tools write them.
const xattrKey = "SCHILY.xattr."

// maxXattrs bounds the xattrs of one inode in bytes on disk: a count of 4-byte
// units in 16 bits, the first of which is the header.
const maxXattrs = v6.XattrHeaderSize + 4*(math.MaxUint16-1)

// node makes the inode that an entry describes, hard links aside, and cuts the
// contents of a file.
func (l *layerReader) node(hdr *tar.Header) (*Node, error) {
	n := &Node{Mode: uint32(hdr.Mode & 0o7777)}
	if err := l.attributes(hdr, n); err != nil {
		return nil, err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		n.Mode |= TypeDir
		n.folder = &folder{children: map[string]*Node{}}
	case tar.TypeSymlink:
		// Linux has no modes of symlinks: they all show 0777.
		n.Mode = TypeLink | 0o777
		n.Target, n.Size = hdr.Linkname, uint64(len(hdr.Linkname))
		if n.Size == 0 || n.Size > maxTarget || strings.IndexByte(n.Target, 0) >= 0 {
			return nil, refuse(hdr, "symlink target of %d bytes, want 1 to %d and no NUL", n.Size, maxTarget)
		}
	case tar.TypeChar:
		n.Mode |= TypeChar
	case tar.TypeBlock:
		n.Mode |= TypeBlock
	case tar.TypeFifo:
		n.Mode |= TypeFifo
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.Mode |= TypeFile
		return n, l.contents(hdr, n)
	default:
		return nil, refuse(hdr, "unknown type %q", hdr.Typeflag)
	}
	return n, nil
}

// contents passes a file's bytes to the cutter.
func (l *layerReader) contents(hdr *tar.Header, n *Node) error {
	if hdr.Size < 0 || hdr.Size > l.limits.Data-l.layer.Bytes {
		return refuse(hdr, "%d bytes after %d make more than %d in one layer", hdr.Size, l.layer.Bytes, l.limits.Data)
	}
	l.layer.Bytes += hdr.Size
	n.Size = uint64(hdr.Size)
	if n.Size == 0 {
		return nil
	}
	chunks, err := l.files.File(l.tar, hdr.Size)
	if err != nil {
		return &fileError{hdr.Name, err}
	}
	n.Chunks = chunks
	return nil
}

// fileError is a failure to read or to store a file that was not refused.
type fileError struct {
	name string
	err  error
}

func (e *fileError) Error() string { return fmt.Sprintf("entry %q: %v", e.name, e.err) }

func (e *fileError) Unwrap() error { return e.err }

func (l *layerReader) attributes(hdr *tar.Header, n *Node) error {
	if uint64(hdr.Uid) > math.MaxUint32 || uint64(hdr.Gid) > math.MaxUint32 {
		return refuse(hdr, "uid %d or gid %d: want 32 bits", hdr.Uid, hdr.Gid)
	}
	n.UID, n.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	n.Mtime, n.MtimeNsec = hdr.ModTime.Unix(), uint32(hdr.ModTime.Nanosecond())
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		// Linux has 12 bits of major and 20 of minor number.
		if uint64(hdr.Devmajor) >= 1<<12 || uint64(hdr.Devminor) >= 1<<20 {
			return refuse(hdr, "device %d:%d: want below %d:%d", hdr.Devmajor, hdr.Devminor, 1<<12, 1<<20)
		}
		major, minor := uint32(hdr.Devmajor), uint32(hdr.Devminor)
		n.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
	}
	return l.xattrs(hdr, n)
}

func (l *layerReader) xattrs(hdr *tar.Header, n *Node) error {
	size := v6.XattrHeaderSize
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrKey)
		if !ok {
			continue
		}
		name = unescape.Replace(name)
		if len(name) > maxName {
			return refuse(hdr, "xattr name of %d bytes, want at most %d", len(name), maxName)
		}
		_, rest, ok := v6.SplitXattr(name)
		if !ok {
			l.layer.DroppedXattrs++
			continue
		}
		if len(value) > v6.MaxXattrValue {
			return refuse(hdr, "xattr %q of %d bytes, want at most %d", name, len(value), v6.MaxXattrValue)
		}
		e := v6.XattrEntry{NameLen: uint8(len(rest)), ValueSize: uint16(len(value))}
		if size += e.DiskSize(); size > maxXattrs {
			return refuse(hdr, "xattrs of more than %d bytes", maxXattrs)
		}
		if err := l.spend(hdr, len(name)+len(value)); err != nil {
			return err
		}
		n.Xattrs = append(n.Xattrs, Xattr{Name: name, Value: value})
	}
	slices.SortFunc(n.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// A pax keyword ends at its first "=", so GNU tar writes that character in the
// name of an xattr as %3D, and the percent sign as %25.
var unescape = strings.NewReplacer("%3D", "=", "%25", "%")
