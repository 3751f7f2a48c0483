package device

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxList bounds one listing in bytes: a guest that asks for more asks again.
const maxList = 64 << 10

// direntSize is struct fuse_dirent without the name, which is padded to 8 bytes.
const direntSize = 24

// list answers READDIR and READDIRPLUS. The listing is made in private memory: a
// guest could otherwise change an entry while the next one is put behind it.
func (d *Device) list(q *request, plus bool) int {
	if !q.parseRead() {
		return d.fail(q, fuse.EINVAL)
	}
	room := min(int(min(q.read.size, maxList)), q.chain.WriteLen-outHeaderSize)
	if cap(q.scratch.list) < outHeaderSize+room {
		q.scratch.list = make([]byte, 0, outHeaderSize+room)
	}
	b := q.scratch.list[:outHeaderSize]
	full := false
	status := d.fs.List(q.header.node, q.read.offset, plus,
		func(name []byte, ino, next uint64, mode uint32, out *fuse.EntryOut) bool {
			size := direntSize + (len(name)+7)&^7
			if plus {
				size += entryOutSize
			}
			if full = len(b)+size > outHeaderSize+room; full {
				return false
			}
			at := len(b)
			b = b[:at+size]
			if plus {
				putEntry(b[at:], out)
				at += entryOutSize
			}
			putDirent(b[at:], name, ino, next, mode)
			return true
		})
	switch {
	case status != fuse.OK:
		return q.finish(0, status)
	case full && len(b) == outHeaderSize:
		// An empty listing would be the end of the folder.
		return d.fail(q, fuse.EINVAL)
	}
	return q.reply(b)
}

// putDirent encodes struct fuse_dirent with its name and padding.
func putDirent(b []byte, name []byte, ino, next uint64, mode uint32) {
	binary.LittleEndian.PutUint64(b[0:], ino)
	binary.LittleEndian.PutUint64(b[8:], next)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(name)))
	binary.LittleEndian.PutUint32(b[20:], mode>>12&0o17)
	n := copy(b[direntSize:], name)
	clear(b[direntSize+n:])
}
