package tree

import (
	"archive/tar"
	"cmp"
	"encoding/base64"
	"math"
	"net/url"
	"slices"
	"strings"
)

// The prefixes of pax records that carry xattrs.
const (
	// GNU tar, star and the container tools write the value as it is.
	schilyXattr = "SCHILY.xattr."
	// libarchive writes it in base64, and the name as in a URL.
	libarchiveXattr = "LIBARCHIVE.xattr."
)

// describe fills in what a header says of an inode. opaque tells of a folder that
// overlayfs made opaque.
func (t *tarReader) describe(hdr *tar.Header, e *Entry) (opaque bool, err error) {
	if uint64(hdr.Uid) > math.MaxUint32 || uint64(hdr.Gid) > math.MaxUint32 {
		return false, e.refuse("uid %d or gid %d: want 32 bits", hdr.Uid, hdr.Gid)
	}
	if hdr.Size < 0 {
		return false, e.refuse("size %d", hdr.Size)
	}
	e.Mode = uint32(hdr.Mode & 0o7777)
	e.UID, e.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	e.Mtime, e.MtimeNsec = hdr.ModTime.Unix(), uint32(hdr.ModTime.Nanosecond())
	switch hdr.Typeflag {
	case tar.TypeDir:
		e.Mode |= TypeDir
	case tar.TypeSymlink:
		// Linux has no modes of symlinks: they all show 0777.
		e.Mode, e.Target = TypeLink|0o777, hdr.Linkname
	case tar.TypeChar:
		e.Mode |= TypeChar
	case tar.TypeBlock:
		e.Mode |= TypeBlock
	case tar.TypeFifo:
		e.Mode |= TypeFifo
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Mode |= TypeFile
		e.Size = uint64(hdr.Size)
	default:
		return false, e.refuse("unknown type %q", hdr.Typeflag)
	}
	if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
		// Linux has 12 bits of major and 20 of minor number.
		if uint64(hdr.Devmajor) >= 1<<12 || uint64(hdr.Devminor) >= 1<<20 {
			return false, e.refuse("device %d:%d: want below %d:%d", hdr.Devmajor, hdr.Devminor, 1<<12, 1<<20)
		}
		major, minor := uint32(hdr.Devmajor), uint32(hdr.Devminor)
		e.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
	}
	if err := t.xattrs(hdr, e); err != nil {
		return false, err
	}
	if t.whiteouts != WhiteoutOverlay {
		return false, nil
	}
	if e.Type() == TypeChar && e.Rdev == 0 {
		*e = Entry{Kind: KindWhiteout, Path: e.Path, Name: e.Name}
		return false, nil
	}
	if e.IsDir() {
		n := len(e.Xattrs)
		e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x Xattr) bool { return x == Xattr{overlayOpaque, "y"} })
		opaque = len(e.Xattrs) < n
	}
	return opaque, nil
}

// xattrs takes the xattrs of a header. Where both ways to write them are used,
// they say the same.
func (t *tarReader) xattrs(hdr *tar.Header, e *Entry) error {
	for key, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, schilyXattr); ok {
			e.Xattrs = append(e.Xattrs, Xattr{unescape.Replace(name), value})
			continue
		}
		if name, ok := aclRecords[key]; ok {
			t.acl(hdr, e, name, value)
			continue
		}
		name, ok := strings.CutPrefix(key, libarchiveXattr)
		if !ok {
			continue
		}
		name, err := url.PathUnescape(name)
		if err != nil {
			return e.refuse("xattr %q: %v", key, err)
		}
		if _, twice := hdr.PAXRecords[schilyXattr+escape.Replace(name)]; twice {
			continue
		}
		// libarchive leaves the padding out.
		data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return e.refuse("xattr %q: %v", name, err)
		}
		e.Xattrs = append(e.Xattrs, Xattr{name, string(data)})
	}
	// By value too, so that the order of a map never shows.
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Value, b.Value))
	})
	return nil
}

// acl takes an access control list. Where the tar has it as an xattr, too, that
// counts; one that names users without numbers is dropped, as who they are is not
// for a builder to say.
func (t *tarReader) acl(hdr *tar.Header, e *Entry, name, text string) {
	if _, twice := hdr.PAXRecords[schilyXattr+name]; twice || e.Type() == TypeLink {
		return
	}
	switch value, ok := parseACL(text, name == aclRecords["SCHILY.acl.access"]); {
	case !ok:
		t.dropped++
	case value != "":
		e.Xattrs = append(e.Xattrs, Xattr{name, value})
	}
}

// A pax keyword ends at its first "=", so GNU tar writes that character in the
// name of an xattr as %3D, and the percent sign as %25.
var (
	unescape = strings.NewReplacer("%3D", "=", "%25", "%")
	escape   = strings.NewReplacer("=", "%3D", "%", "%25")
)
