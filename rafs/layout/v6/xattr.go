package v6

import (
	"encoding/binary"
	"strings"
)

const (
	// XattrHeaderSize is the size of an XattrHeader on disk in bytes.
	XattrHeaderSize = 12
	// XattrEntrySize is the size of an XattrEntry on disk, without name and value.
	XattrEntrySize = 4
	// XattrAlign is what an entry with its name and value is padded to.
	XattrAlign = 4
	// MaxXattrValue bounds a value in bytes: the size has 16 bits.
	MaxXattrValue = 1<<16 - 1
)

// XattrHeader comes before the xattrs of an inode. The numbers of its shared
// xattrs follow it, 4 bytes each, then the inline entries.
type XattrHeader struct {
	NameFilter  uint32
	SharedCount uint8
}

// DecodeXattrHeader decodes the header at the start of b.
func DecodeXattrHeader(b []byte) (XattrHeader, error) {
	if len(b) < XattrHeaderSize {
		return XattrHeader{}, short("xattr header", len(b), XattrHeaderSize)
	}
	return XattrHeader{NameFilter: binary.LittleEndian.Uint32(b), SharedCount: b[4]}, nil
}

// Append appends the header to b.
func (h *XattrHeader) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.NameFilter)
	b = append(b, h.SharedCount)
	return zeros(b, 7)
}

// XattrEntry comes before the name (without its prefix) and the value of an
// xattr, which is padded to XattrAlign.
type XattrEntry struct {
	NameLen   uint8
	NameIndex uint8 // see XattrPrefix
	ValueSize uint16
}

// DecodeXattrEntry decodes the entry at the start of b.
func DecodeXattrEntry(b []byte) (XattrEntry, error) {
	if len(b) < XattrEntrySize {
		return XattrEntry{}, short("xattr entry", len(b), XattrEntrySize)
	}
	return XattrEntry{NameLen: b[0], NameIndex: b[1], ValueSize: binary.LittleEndian.Uint16(b[2:])}, nil
}

// Append appends the entry to b.
func (e *XattrEntry) Append(b []byte) []byte {
	b = append(b, e.NameLen, e.NameIndex)
	return binary.LittleEndian.AppendUint16(b, e.ValueSize)
}

// DiskSize is the size of the entry with name, value and padding in bytes.
func (e *XattrEntry) DiskSize() int {
	n := XattrEntrySize + int(e.NameLen) + int(e.ValueSize)
	return (n + XattrAlign - 1) &^ (XattrAlign - 1)
}

// xattrPrefixes has the prefix of each name index; the ACL names are whole.
var xattrPrefixes = [...]string{
	1: "user.",
	2: "system.posix_acl_access",
	3: "system.posix_acl_default",
	4: "trusted.",
	6: "security.",
}

// XattrPrefix is what to put before the name of an xattr with this index. The
// second result is false for an index that RAFS does not know.
func XattrPrefix(index uint8) (string, bool) {
	if int(index) >= len(xattrPrefixes) || xattrPrefixes[index] == "" {
		return "", false
	}
	return xattrPrefixes[index], true
}

// SplitXattr splits a whole name into its index and the rest. The last result is
// false for a name that EROFS cannot hold.
func SplitXattr(name string) (index uint8, rest string, ok bool) {
	for i, prefix := range xattrPrefixes {
		if prefix == "" || !strings.HasPrefix(name, prefix) {
			continue
		}
		rest = name[len(prefix):]
		acl := i == 2 || i == 3
		if acl != (rest == "") || len(rest) > MaxNameLen {
			continue
		}
		return uint8(i), rest, true
	}
	return 0, "", false
}

// AppendXattr appends an inline xattr with its padding to b. It panics if name
// or value is longer than the format allows.
func AppendXattr(b []byte, index uint8, name string, value []byte) []byte {
	if len(name) > MaxNameLen || len(value) > MaxXattrValue {
		panic("v6: xattr too long")
	}
	e := XattrEntry{NameLen: uint8(len(name)), NameIndex: index, ValueSize: uint16(len(value))}
	b = e.Append(b)
	b = append(b, name...)
	b = append(b, value...)
	return zeros(b, e.DiskSize()-XattrEntrySize-len(name)-len(value))
}
