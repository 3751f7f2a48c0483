package image

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v6Xattr is one extended attribute; its parts alias the image.
type v6Xattr struct {
	prefix string
	rest   []byte
	value  []byte
}

// eachXattr yields the shared attributes of an inode, then those of its own. The
// error says what is wrong with their bytes, and cannot occur once the image is
// open.
func (t *v6Tree) eachXattr(in *v6Inode, yield func(v6Xattr) bool) error {
	if in.XattrICount == 0 {
		return nil
	}
	off := in.off + uint64(in.DiskSize())
	area, ok := t.data.slice(off, uint64(in.XattrSize()))
	if !ok {
		return corrupt(off, "xattrs of %d bytes end beyond the bootstrap", in.XattrSize())
	}
	h, err := v6.DecodeXattrHeader(area)
	if err != nil {
		return corrupt(off, "%v", err)
	}
	pos := v6.XattrHeaderSize
	if n := int(h.SharedCount) * v6.XattrAlign; n > len(area)-pos {
		return corrupt(off+4, "%d shared xattrs do not fit in %d bytes", h.SharedCount, len(area))
	}
	for range h.SharedCount {
		x, err := t.sharedXattr(off+uint64(pos), binary.LittleEndian.Uint32(area[pos:]))
		if err != nil {
			return err
		}
		if !yield(x) {
			return nil
		}
		pos += v6.XattrAlign
	}
	for pos < len(area) {
		x, n, err := decodeV6Xattr(off+uint64(pos), area[pos:])
		if err != nil {
			return err
		}
		if !yield(x) {
			return nil
		}
		pos += n
	}
	return nil
}

// sharedXattr decodes a shared attribute, whose number counts 4 bytes from the
// block that the superblock names. nydus-image writes none and its loader
// refuses them; EROFS has them where many inodes carry the same attribute.
func (t *v6Tree) sharedXattr(off uint64, id uint32) (v6Xattr, error) {
	if t.sharedXattrs == 0 {
		return v6Xattr{}, corrupt(off, "shared xattr %d, superblock names no block for them", id)
	}
	at := t.sharedXattrs + uint64(id)*v6.XattrAlign
	t.pages.at(at)
	x, _, err := decodeV6Xattr(at, t.data.from(at))
	return x, err
}

// decodeV6Xattr decodes the attribute at the start of b and tells its size.
func decodeV6Xattr(off uint64, b []byte) (v6Xattr, int, error) {
	e, err := v6.DecodeXattrEntry(b)
	if err != nil {
		return v6Xattr{}, 0, corrupt(off, "%v", err)
	}
	prefix, ok := v6.XattrPrefix(e.NameIndex)
	if !ok {
		return v6Xattr{}, 0, corrupt(off+1, "xattr with name index %d", e.NameIndex)
	}
	if e.DiskSize() > len(b) {
		return v6Xattr{}, 0, corrupt(off, "xattr of %d bytes, %d left", e.DiskSize(), len(b))
	}
	name, value := v6.XattrEntrySize, v6.XattrEntrySize+int(e.NameLen)
	end := value + int(e.ValueSize)
	return v6Xattr{prefix: prefix, rest: b[name:value:value], value: b[value:end:end]}, e.DiskSize(), nil
}

// bad says what is wrong with the name of an attribute, "" if nothing. The names
// of ACLs are whole without a rest.
func (x *v6Xattr) bad() string {
	switch {
	case strings.HasSuffix(x.prefix, ".") == (len(x.rest) == 0):
		return "xattr name " + x.prefix + string(x.rest)
	case len(x.prefix)+len(x.rest) > maxXattrName:
		return "xattr name longer than 255 bytes"
	case bytes.IndexByte(x.rest, 0) >= 0:
		return "xattr name with NUL"
	}
	return ""
}

func (t *v6Tree) xattr(node uint64, name string) ([]byte, error) {
	in, err := t.inode(node)
	if err != nil {
		return nil, err
	}
	var value []byte
	found := false
	err = t.eachXattr(&in, func(x v6Xattr) bool {
		rest, ok := strings.CutPrefix(name, x.prefix)
		if ok && string(x.rest) == rest {
			value, found = x.value, true
		}
		return !found
	})
	if err != nil || !found {
		return nil, ErrNoXattr
	}
	return value, nil
}

func (t *v6Tree) xattrs(node uint64, yield func(string, []byte) bool) error {
	in, err := t.inode(node)
	if err != nil {
		return err
	}
	return t.eachXattr(&in, func(x v6Xattr) bool { return yield(x.prefix+string(x.rest), x.value) })
}
