package device

import (
	"context"
	"encoding/binary"
	"runtime/debug"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/vhostuser"
)

// readIn is the part of struct fuse_read_in that a file system without handles
// needs.
type readIn struct {
	offset uint64
	size   uint32
}

// parseRead copies a READ's arguments out of guest memory, once.
func (q *request) parseRead() bool {
	var b [24]byte // fh, offset, size, read_flags
	if copyOut(b[:], q.chain.Readable, inHeaderSize) < len(b) {
		return false
	}
	q.read = readIn{
		offset: binary.LittleEndian.Uint64(b[8:]),
		size:   binary.LittleEndian.Uint32(b[16:]),
	}
	return true
}

// readNow serves a READ whose bytes are at hand. ok is false if they are not. A
// READ of more than there is room for is cut: a short read is a valid answer.
func (d *Device) readNow(q *request) (n int, status fuse.Status, ok bool) {
	if !q.parseRead() || q.chain.WriteLen < outHeaderSize {
		return 0, fuse.EINVAL, true
	}
	q.data = tail(q.data[:0], q.chain.Writable, outHeaderSize)
	q.data = head(q.data, int(min(q.read.size, MaxRead)))
	return d.fs.ReadNow(q.header.node, q.read.offset, q.data)
}

// maxWaiting bounds the reads that wait at the same time, on all rings: a hostile
// guest makes one cost some 100 KiB. Linux keeps maxBackground under way by itself,
// and one more for each thread that cannot go on without its bytes.
const maxWaiting = 1024

// wait gives a READ that has to fetch to a goroutine of its own, once there are
// fewer than maxWaiting of them. When ctx ends before, the chain goes back unserved.
func (d *Device) wait(ctx context.Context, r *vhostuser.Ring, q *request) {
	q.scratch.list = nil // a large list would wait too
	select {
	case d.slots <- struct{}{}:
	default:
		r.Flush()
		select {
		case d.slots <- struct{}{}:
		case <-ctx.Done():
			d.giveBack(r, q)
			return
		}
	}
	d.stats.waiting.Add(1)
	go d.readWait(ctx, r, q)
}

// readWait serves a READ that has to fetch. It owns q. When ctx ends, because the
// front-end stops the ring, the chain goes back unserved: reads can be done again.
func (d *Device) readWait(ctx context.Context, r *vhostuser.Ring, q *request) {
	debug.SetPanicOnFault(true)
	used, status := d.fetch(ctx, q)
	d.stats.waiting.Add(-1)
	<-d.slots
	if status == fuse.EINTR && ctx.Err() != nil {
		d.giveBack(r, q)
		return
	}
	d.complete(r, q, used)
	r.Flush()
}

// giveBack returns a chain unserved.
func (d *Device) giveBack(r *vhostuser.Ring, q *request) {
	r.Return(&q.chain)
	d.free.Put(q)
}

func (d *Device) fetch(ctx context.Context, q *request) (used int, status fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			d.caught(v)
			used, status = d.fail(q, fuse.EIO), fuse.EIO
		}
	}()
	n, status := d.fs.ReadWait(ctx, q.header.node, q.read.offset, q.data)
	if status == fuse.EINTR && ctx.Err() != nil {
		return 0, status
	}
	return q.finish(n, status), status
}
