package tree

import (
	"encoding/binary"

	"github.com/rafsd/rafsd/rafs/build/chunk"
)

// nodeRecordSize is the size of a nodeRecord in a file, in bytes.
const nodeRecordSize = 108

// nodeRecord is a Node as it is spilled.
type nodeRecord struct {
	attr               Attr
	parent, end, inode uint32
	name, target       int64 // in Tree.names
	nameLen, targetLen uint16
	layer              uint32 // that holds xattrs and refs
	xattrLen           uint32
	xattr              int64 // in the layer
	chunks             chunk.List
}

func (r *nodeRecord) encode() (b [nodeRecordSize]byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], r.attr.Mode)
	le.PutUint32(b[4:], r.attr.UID)
	le.PutUint32(b[8:], r.attr.GID)
	le.PutUint32(b[12:], r.attr.Rdev)
	le.PutUint32(b[16:], r.attr.MtimeNsec)
	le.PutUint64(b[20:], uint64(r.attr.Mtime))
	le.PutUint64(b[28:], r.attr.Size)
	le.PutUint32(b[36:], r.parent)
	le.PutUint32(b[40:], r.end)
	le.PutUint32(b[44:], r.inode)
	le.PutUint64(b[48:], uint64(r.name))
	le.PutUint64(b[56:], uint64(r.target))
	le.PutUint16(b[64:], r.nameLen)
	le.PutUint16(b[66:], r.targetLen)
	le.PutUint32(b[68:], r.layer)
	le.PutUint32(b[72:], r.xattrLen)
	le.PutUint64(b[76:], uint64(r.xattr))
	le.PutUint32(b[84:], r.chunks.Count)
	le.PutUint32(b[88:], r.chunks.First.Blob)
	le.PutUint32(b[92:], r.chunks.First.Index)
	le.PutUint64(b[96:], uint64(r.chunks.Offset))
	le.PutUint32(b[104:], r.chunks.Log)
	return b
}

func (r *nodeRecord) decode(b *[nodeRecordSize]byte) {
	le := binary.LittleEndian
	*r = nodeRecord{
		attr: Attr{
			Mode: le.Uint32(b[0:]), UID: le.Uint32(b[4:]), GID: le.Uint32(b[8:]), Rdev: le.Uint32(b[12:]),
			MtimeNsec: le.Uint32(b[16:]), Mtime: int64(le.Uint64(b[20:])), Size: le.Uint64(b[28:]),
		},
		parent: le.Uint32(b[36:]), end: le.Uint32(b[40:]), inode: le.Uint32(b[44:]),
		name: int64(le.Uint64(b[48:])), target: int64(le.Uint64(b[56:])),
		nameLen: le.Uint16(b[64:]), targetLen: le.Uint16(b[66:]),
		layer: le.Uint32(b[68:]), xattrLen: le.Uint32(b[72:]), xattr: int64(le.Uint64(b[76:])),
		chunks: chunk.List{
			Count: le.Uint32(b[84:]), First: chunk.Ref{Blob: le.Uint32(b[88:]), Index: le.Uint32(b[92:])},
			Offset: int64(le.Uint64(b[96:])), Log: le.Uint32(b[104:]),
		},
	}
}
