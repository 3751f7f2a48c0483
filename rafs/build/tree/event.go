package tree

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/chunk"
)

// A key is a path with NUL for slash, so that the bytes of keys are in the order
// of paths by component: a folder, all that is below it, the next name.

func appendKey(b []byte, path string) []byte {
	for i := range len(path) {
		c := path[i]
		if c == '/' {
			c = 0
		}
		b = append(b, c)
	}
	return b
}

func pathOf(key []byte) string {
	return strings.ReplaceAll(string(key), "\x00", "/")
}

// baseOf is the last component of a key.
func baseOf(key []byte) []byte { return key[parentLen(key, true):] }

// parentLen is the length of the key of the folder that a key lies in; with
// slash, that of where the name begins.
func parentLen(key []byte, slash bool) int {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] == 0 {
			if slash {
				return i + 1
			}
			return i
		}
	}
	return 0
}

// below reports whether key lies below the folder dir.
func below(key, dir []byte) bool {
	return len(dir) == 0 && len(key) > 0 || len(key) > len(dir) && key[len(dir)] == 0 && string(key[:len(dir)]) == string(dir)
}

// op is what a record does at its path.
type op uint8

const (
	opDir      op = iota + 1 // an entry, or in a resolved layer a folder of any kind
	opNode                   // an entry that is no folder
	opLink                   // a hard link
	opWhiteout               // lower layers lose the path
	opOpaque                 // lower layers lose what is in the folder
	opQuery                  // a hard link elsewhere wants to know what is here
	opHeld                   // an inode that hard links name, alive or replaced
)

// The flags of a record.
const (
	flagShared   = 1 << iota // the inode may have more names
	flagImplicit             // no entry describes the folder
	flagOpaque
)

// event is a record of a layer: before it is resolved, an entry; afterwards, what
// is left of the entries of a path.
type event struct {
	op    op
	flags uint8
	// seq counts the entries of the layer from 1, in order of arrival.
	seq uint32
	// name is what the source calls the entry to blame, if it is not the path.
	name string
	inode
}

// inode is what an event says of an inode.
type inode struct {
	attr     Attr
	target   string // of a symlink
	xattr    int64  // in the layer's log
	xattrLen uint32
	chunks   chunk.List
}

func (e *event) append(b []byte) []byte {
	b = append(b, byte(e.op), e.flags)
	b = binary.AppendUvarint(b, uint64(e.seq))
	b = appendText(b, e.name)
	if e.op == opDir || e.op == opNode || e.op == opHeld {
		b = e.inode.append(b)
	}
	return b
}

func (i *inode) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(i.attr.Mode))
	b = binary.AppendUvarint(b, uint64(i.attr.UID))
	b = binary.AppendUvarint(b, uint64(i.attr.GID))
	b = binary.AppendUvarint(b, uint64(i.attr.Rdev))
	b = binary.AppendUvarint(b, uint64(i.attr.MtimeNsec))
	b = binary.AppendVarint(b, i.attr.Mtime)
	b = binary.AppendUvarint(b, i.attr.Size)
	b = binary.AppendUvarint(b, uint64(i.xattrLen))
	if i.xattrLen > 0 {
		b = binary.AppendUvarint(b, uint64(i.xattr))
	}
	b = appendText(b, i.target)
	b = binary.AppendUvarint(b, uint64(i.chunks.Count))
	switch i.chunks.Count {
	case 0:
	case 1:
		b = binary.AppendUvarint(b, uint64(i.chunks.First.Blob))
		b = binary.AppendUvarint(b, uint64(i.chunks.First.Index))
	default:
		b = binary.AppendUvarint(b, uint64(i.chunks.Offset))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errRecord = errors.New("tree: a record that was spilled is broken")

// decoder reads what append wrote. A short record leaves bad set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (e *event) decode(b []byte) error {
	d := decoder{b: b}
	*e = event{op: op(d.byte()), flags: d.byte(), seq: uint32(d.uint()), name: d.text()}
	if e.op == opDir || e.op == opNode || e.op == opHeld {
		e.inode.decode(&d)
	}
	if d.bad || len(d.b) > 0 {
		return errRecord
	}
	return nil
}

func (i *inode) decode(d *decoder) {
	i.attr = Attr{
		Mode: uint32(d.uint()), UID: uint32(d.uint()), GID: uint32(d.uint()), Rdev: uint32(d.uint()),
		MtimeNsec: uint32(d.uint()), Mtime: d.int(), Size: d.uint(),
	}
	if i.xattrLen = uint32(d.uint()); i.xattrLen > 0 {
		i.xattr = int64(d.uint())
	}
	i.target = d.text()
	switch i.chunks.Count = uint32(d.uint()); i.chunks.Count {
	case 0:
	case 1:
		i.chunks.First = chunk.Ref{Blob: uint32(d.uint()), Index: uint32(d.uint())}
	default:
		i.chunks.Offset = int64(d.uint())
	}
}
