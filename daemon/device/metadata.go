package device

import (
	"bytes"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// GETATTR, LOOKUP, READLINK and listings (list.go) are most of what a guest asks, and FORGETs
// come by the thousand when it drops its caches. go-fuse takes about 1 us and a kilobyte of garbage for
// each, of which nothing is needed here: their forms are fixed and short.

const maxName = 255

// Sizes of struct fuse_attr_out and struct fuse_entry_out.
const (
	attrOutSize  = 16 + attrSize
	entryOutSize = 40 + attrSize
	attrSize     = 88
)

// scratch is what the answer to a request is made in. It is part of the request so
// that it costs no allocation.
type scratch struct {
	in    fuse.GetAttrIn
	attr  fuse.AttrOut
	entry fuse.EntryOut
	name  [maxName + 1]byte
	reply [outHeaderSize + entryOutSize]byte
	list  []byte
}

// inHeader fills in go-fuse's form of the header.
func (q *request) inHeader(h *fuse.InHeader) {
	*h = fuse.InHeader{Length: q.header.len, Opcode: q.header.opcode, Unique: q.header.unique, NodeId: q.header.node}
	h.Caller.Uid = binary.LittleEndian.Uint32(q.head[24:])
	h.Caller.Gid = binary.LittleEndian.Uint32(q.head[28:])
	h.Caller.Pid = binary.LittleEndian.Uint32(q.head[32:])
}

func (d *Device) getattr(q *request) int {
	s := &q.scratch
	var args [16]byte // flags, padding, fh
	if copyOut(args[:], q.chain.Readable, inHeaderSize) < len(args) {
		return d.fail(q, fuse.EINVAL)
	}
	q.inHeader(&s.in.InHeader)
	s.in.Flags_ = binary.LittleEndian.Uint32(args[0:])
	s.in.Fh_ = binary.LittleEndian.Uint64(args[8:])
	s.attr = fuse.AttrOut{}
	if status := d.fs.GetAttr(nil, &s.in, &s.attr); status != fuse.OK {
		return q.finish(0, status)
	}
	b := s.reply[:outHeaderSize+attrOutSize]
	body := b[outHeaderSize:]
	binary.LittleEndian.PutUint64(body[0:], s.attr.AttrValid)
	binary.LittleEndian.PutUint32(body[8:], s.attr.AttrValidNsec)
	binary.LittleEndian.PutUint32(body[12:], 0)
	putAttr(body[16:], &s.attr.Attr)
	return q.reply(b)
}

func (d *Device) lookup(q *request) int {
	s := &q.scratch
	n := copyOut(s.name[:], q.chain.Readable, inHeaderSize)
	end := bytes.IndexByte(s.name[:n], 0)
	switch {
	case end < 0 && n == len(s.name):
		return d.fail(q, fuse.Status(unix.ENAMETOOLONG))
	case end <= 0 || bytes.IndexByte(s.name[:end], '/') >= 0:
		return d.fail(q, fuse.EINVAL)
	}
	q.inHeader(&s.in.InHeader)
	s.entry = fuse.EntryOut{}
	if status := d.fs.Lookup(nil, &s.in.InHeader, string(s.name[:end]), &s.entry); status != fuse.OK {
		return q.finish(0, status)
	}
	b := s.reply[:outHeaderSize+entryOutSize]
	putEntry(b[outHeaderSize:], &s.entry)
	return q.reply(b)
}

// readlink answers READLINK. A target that does not fit is an error, not a part.
func (d *Device) readlink(q *request) int {
	s := &q.scratch
	q.inHeader(&s.in.InHeader)
	target, status := d.fs.Readlink(nil, &s.in.InHeader)
	if status != fuse.OK {
		return q.finish(0, status)
	}
	s.list = append(append(s.list[:0], s.reply[:outHeaderSize]...), target...)
	return q.reply(s.list)
}

// putEntry encodes struct fuse_entry_out.
func putEntry(b []byte, e *fuse.EntryOut) {
	binary.LittleEndian.PutUint64(b[0:], e.NodeId)
	binary.LittleEndian.PutUint64(b[8:], e.Generation)
	binary.LittleEndian.PutUint64(b[16:], e.EntryValid)
	binary.LittleEndian.PutUint64(b[24:], e.AttrValid)
	binary.LittleEndian.PutUint32(b[32:], e.EntryValidNsec)
	binary.LittleEndian.PutUint32(b[36:], e.AttrValidNsec)
	putAttr(b[40:], &e.Attr)
}

// forget is answered by nobody, not even where it is malformed.
func (d *Device) forget(q *request) int {
	var args [8]byte // nlookup
	if copyOut(args[:], q.chain.Readable, inHeaderSize) == len(args) {
		d.fs.Forget(q.header.node, binary.LittleEndian.Uint64(args[:]))
	}
	return 0
}

// putAttr encodes struct fuse_attr.
func putAttr(b []byte, a *fuse.Attr) {
	_ = b[attrSize-1]
	binary.LittleEndian.PutUint64(b[0:], a.Ino)
	binary.LittleEndian.PutUint64(b[8:], a.Size)
	binary.LittleEndian.PutUint64(b[16:], a.Blocks)
	binary.LittleEndian.PutUint64(b[24:], a.Atime)
	binary.LittleEndian.PutUint64(b[32:], a.Mtime)
	binary.LittleEndian.PutUint64(b[40:], a.Ctime)
	binary.LittleEndian.PutUint32(b[48:], a.Atimensec)
	binary.LittleEndian.PutUint32(b[52:], a.Mtimensec)
	binary.LittleEndian.PutUint32(b[56:], a.Ctimensec)
	binary.LittleEndian.PutUint32(b[60:], a.Mode)
	binary.LittleEndian.PutUint32(b[64:], a.Nlink)
	binary.LittleEndian.PutUint32(b[68:], a.Uid)
	binary.LittleEndian.PutUint32(b[72:], a.Gid)
	binary.LittleEndian.PutUint32(b[76:], a.Rdev)
	binary.LittleEndian.PutUint32(b[80:], a.Blksize)
	binary.LittleEndian.PutUint32(b[84:], a.Flags)
}

// reply puts the header in front of a reply that lies in private memory, and
// copies it to the guest.
func (q *request) reply(b []byte) int {
	putOutHeader((*[outHeaderSize]byte)(b), len(b), fuse.OK, q.header.unique)
	return q.write(b)
}
