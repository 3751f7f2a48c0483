package check

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v6Xattrs is the check of one inode's xattrs.
type v6Xattrs struct {
	*v6Check
	where any
	off   uint64
	area  []byte
	n     int
	seen  map[string]bool
}

func (x *v6Xattrs) run() {
	h, err := v6.DecodeXattrHeader(x.area)
	if err != nil {
		x.fail(x.off, x.where, "%v", err)
		return
	}
	if h.SharedCount != 0 {
		x.fail(x.off+4, x.where, "%d shared xattrs, RAFS has none", h.SharedCount)
		return
	}
	if h.NameFilter != 0 {
		x.note(x.off, x.where, "xattr name filter %#x", h.NameFilter)
	}
	x.reserved(x.off+5, v6.XattrHeaderSize-5, x.where)
	for pos := v6.XattrHeaderSize; pos < len(x.area); {
		n := x.entry(pos)
		if n == 0 {
			return
		}
		pos += n
	}
}

// entry checks the xattr at pos and returns its size, 0 if what follows cannot be
// read.
func (x *v6Xattrs) entry(pos int) int {
	off := x.off + uint64(pos)
	e, err := v6.DecodeXattrEntry(x.area[pos:])
	if err != nil || e.DiskSize() > len(x.area)-pos {
		x.fail(off, x.where, "xattr of %d bytes, %d left", e.DiskSize(), len(x.area)-pos)
		return 0
	}
	x.n++
	rest := x.area[pos+v6.XattrEntrySize:][:e.NameLen]
	prefix, ok := v6.XattrPrefix(e.NameIndex)
	if !ok {
		x.fail(off+1, x.where, "xattr with name index %d", e.NameIndex)
		return e.DiskSize()
	}
	name := prefix + string(rest)
	if bad := badXattr(prefix, rest); bad != "" {
		x.fail(off, x.where, "xattr %q: %s", name, bad)
	}
	if x.seen[name] {
		x.fail(off, x.where, "xattr %q twice", name)
	}
	if x.seen == nil {
		x.seen = map[string]bool{}
	}
	x.seen[name] = true
	for i := v6.XattrEntrySize + int(e.NameLen) + int(e.ValueSize); i < e.DiskSize(); i++ {
		if x.area[pos+i] != 0 {
			x.fail(off+uint64(i), x.where, "padding of xattr %q is not zero", name)
		}
	}
	return e.DiskSize()
}

// badXattr says what is wrong with a name that EROFS splits in two. The names of
// ACLs are whole without a rest.
func badXattr(prefix string, rest []byte) string {
	switch {
	case strings.HasSuffix(prefix, ".") == (len(rest) == 0):
		return "no such name"
	case len(prefix)+len(rest) > maxName:
		return fmt.Sprintf("name of %d bytes, limit %d", len(prefix)+len(rest), maxName)
	case bytes.IndexByte(rest, 0) >= 0:
		return "name with NUL"
	}
	return ""
}
