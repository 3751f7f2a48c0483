package device

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// request is one chain while it is served. Requests are pooled.
type request struct {
	chain   virtq.Chain
	head    [inHeaderSize]byte // the header as it was copied out, once
	header  inHeader           // head, decoded
	stream  [][]byte           // head and then what follows it in chain.Readable
	read    readIn
	data    [][]byte // the part of chain.Writable that a READ fills
	scratch scratch
}

// parse copies the header out of guest memory. It reports false for a chain that
// is too short for one; what could be read of it is in q.header then.
func (q *request) parse() bool {
	clear(q.head[:])
	q.header = inHeader{} // also if what follows faults
	n := copyOut(q.head[:], q.chain.Readable, 0)
	q.header = decodeInHeader(&q.head)
	// The length in the header informs; the descriptors are what there is.
	return n == inHeaderSize && q.header.len >= inHeaderSize && int64(q.header.len) <= int64(q.chain.ReadLen)
}

// input is the request as a byte stream for go-fuse. The header in it is the copy
// that was looked at: a guest that changes its own afterwards changes nothing.
func (q *request) input() [][]byte {
	q.stream = tail(append(q.stream[:0], q.head[:]), q.chain.Readable, inHeaderSize)
	return q.stream
}

// finish writes a reply header for n bytes of data that are already in place
// behind it, and returns the bytes that the chain holds then.
func (q *request) finish(n int, status fuse.Status) int {
	if q.chain.WriteLen < outHeaderSize {
		return 0
	}
	if status != fuse.OK {
		n = 0
	}
	var b [outHeaderSize]byte
	putOutHeader(&b, outHeaderSize+n, status, q.header.unique)
	copyIn(q.chain.Writable, b[:])
	return outHeaderSize + n
}

// write copies a whole reply to the guest, or an error if there is no room for it.
func (q *request) write(reply []byte) int {
	if len(reply) < outHeaderSize || int(q.chain.WriteLen) < len(reply) {
		return q.finish(0, fuse.EIO)
	}
	return copyIn(q.chain.Writable, reply)
}

// copyOut copies what lies at off in src and returns how many bytes there were.
func copyOut(dst []byte, src [][]byte, off int) int {
	n := 0
	for _, part := range src {
		if off >= len(part) {
			off -= len(part)
			continue
		}
		n += copy(dst[n:], part[off:])
		off = 0
		if n == len(dst) {
			break
		}
	}
	return n
}

// tail appends to dst what follows the first off bytes of src.
func tail(dst, src [][]byte, off int) [][]byte {
	for _, part := range src {
		if off >= len(part) {
			off -= len(part)
			continue
		}
		dst = append(dst, part[off:])
		off = 0
	}
	return dst
}

// head cuts list to its first n bytes.
func head(list [][]byte, n int) [][]byte {
	for i, part := range list {
		if len(part) >= n {
			list[i] = part[:n]
			return list[:i+1]
		}
		n -= len(part)
	}
	return list
}

// copyIn copies src to the start of dst and returns how many bytes fitted.
func copyIn(dst [][]byte, src []byte) int {
	n := 0
	for _, part := range dst {
		n += copy(part, src[n:])
		if n == len(src) {
			break
		}
	}
	return n
}
