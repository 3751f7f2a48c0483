package image

import (
	"encoding/binary"

	"github.com/rafsd/rafsd/rafs/layout/v5"
)

// eachXattr yields the attributes of an inode. The error says what is wrong with
// their bytes, and cannot occur once the image is open.
func (t *v5Tree) eachXattr(in *v5Inode, yield func(name, value []byte) bool) error {
	if in.Flags&v5.InodeXattr == 0 {
		return nil
	}
	off := in.off + in.XattrOffset()
	b, ok := t.data.slice(off, v5.XattrTableHeaderSize)
	if !ok {
		return corrupt(off, "xattr table ends beyond the bootstrap")
	}
	size := binary.LittleEndian.Uint64(b)
	if size > maxXattrBytes {
		return corrupt(off, "xattrs of %d bytes, limit %d", size, maxXattrBytes)
	}
	off += v5.XattrTableHeaderSize
	pairs, ok := t.data.slice(off, size)
	if !ok {
		return corrupt(off, "xattrs of %d bytes end beyond the bootstrap", size)
	}
	for len(pairs) > 0 {
		name, value, n, err := v5.DecodeXattrPair(pairs)
		if err != nil {
			return corrupt(off, "%v", err)
		}
		if !yield(name, value) {
			return nil
		}
		pairs = pairs[n:]
		off += uint64(n)
	}
	return nil
}

func (t *v5Tree) xattr(node uint64, name string) ([]byte, error) {
	in, err := t.inode(node)
	if err != nil {
		return nil, err
	}
	var value []byte
	found := false
	err = t.eachXattr(&in, func(n, v []byte) bool {
		if string(n) == name {
			value, found = v, true
		}
		return !found
	})
	if err != nil || !found {
		return nil, ErrNoXattr
	}
	return value, nil
}

func (t *v5Tree) xattrs(node uint64, yield func(string, []byte) bool) error {
	in, err := t.inode(node)
	if err != nil {
		return err
	}
	return t.eachXattr(&in, func(n, v []byte) bool { return yield(string(n), v) })
}
