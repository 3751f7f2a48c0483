// Package device is the virtio-fs device: it takes chains off the rings of a
// vhost-user session, hands them to a FUSE file system, and gives them back.
//
// The way of a request:
//
//  1. ServeRing pops a chain; its buffers are guest memory, pinned until Complete.
//  2. The FUSE header is copied out of guest memory once; nothing in it is trusted.
//  3. A READ whose bytes are at hand goes straight from the cache file into guest
//     pages, on the ring worker. A READ that must fetch gets a goroutine of its
//     own, so that nobody waits behind it; maxWaiting bounds their number.
//  4. Everything else is metadata and is answered on the ring worker: GETATTR,
//     LOOKUP, FORGET and listings here (metadata.go, list.go), the rest by go-fuse's
//     ProtocolServer (fuse.go).
//  5. The chain is completed with used.len equal to the reply's own length, or 0
//     where there is no reply. Completions are published in batches.
//
// The guest is hostile: whatever it sends costs it its own request, or its ring.
// A panic while serving a request, also one for guest memory that vanished, is
// caught, counted and answered EIO.
package device

import (
	"context"
	"log"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/rafsd/rafsd/vhostuser"
)

// FileSystem is what a device serves. It is safe for concurrent use.
type FileSystem interface {
	fuse.RawFileSystem
	// ReadNow reads file data into dst, which is guest memory, if that needs no
	// waiting; ok is false, and nothing was written, if it does.
	ReadNow(node, off uint64, dst [][]byte) (n int, status fuse.Status, ok bool)
	// ReadWait reads file data into dst, waiting for it until ctx ends.
	ReadWait(ctx context.Context, node, off uint64, dst [][]byte) (n int, status fuse.Status)
	// List yields the entries of a folder from off on until add returns false; with
	// plus, out describes the inode. name and out are only lent.
	List(node, off uint64, plus bool, add func(name []byte, ino, next uint64, mode uint32, out *fuse.EntryOut) bool) fuse.Status
}

// Options are what a Device may be told.
type Options struct {
	// NoXattrs tells guests that no inode has extended attributes, so that they
	// never ask: a guest otherwise asks for security.capability at every exec.
	NoXattrs bool
	// Log receives what goes wrong, rate limited where a guest can cause it.
	Log *slog.Logger

	panicked func(v any)
	odd      *log.Logger // of go-fuse, on what a guest got wrong
}

// Device serves one file system on all rings of a session. It implements
// vhostuser.Device and is safe for concurrent use.
type Device struct {
	fs      FileSystem
	opts    Options
	log     *slog.Logger
	session atomic.Pointer[fuse.ProtocolServer]
	free    sync.Pool
	stats   counters
	quiet   rate.Sometimes
	slots   chan struct{} // has an element for each read that waits
}

// New returns a device that serves fs.
func New(fs FileSystem, opts Options) *Device {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{
		fs: fs, opts: opts, log: opts.Log,
		quiet: rate.Sometimes{Interval: time.Second},
		slots: make(chan struct{}, maxWaiting),
	}
	d.opts.panicked, d.opts.odd = d.caught, limitedLogger(opts.Log)
	d.free.New = func() any { return new(request) }
	d.Reset()
	return d
}

// Reset ends the session: the guest was reset, or the VMM has gone. A guest whose
// daemon was replaced sends no INIT again: the session that begins here serves it.
func (d *Device) Reset() { d.session.Store(protocol(d.fs, d.opts)) }

// begin answers INIT, which starts a session. Each one has a ProtocolServer of its
// own, which other rings get to see after INIT has written what their requests read.
func (d *Device) begin(q *request) int {
	ps := protocol(d.fs, d.opts)
	reply := initReply(ps, q.input())
	d.session.Store(ps)
	return q.write(reply)
}

// Batches are published when a ring has run dry, or after this many completions,
// or once a large reply is in them: a guest that waits for it can go on.
const (
	batchRequests = 32
	batchBytes    = 64 << 10
)

// ServeRing serves ring r until ctx ends or the ring breaks.
func (d *Device) ServeRing(ctx context.Context, r *vhostuser.Ring) error {
	debug.SetPanicOnFault(true)
	for {
		if err := d.drain(ctx, r); err != nil {
			return err
		}
		if err := r.WaitKick(ctx); err != nil {
			return err
		}
	}
}

// drain serves what is available on r.
func (d *Device) drain(ctx context.Context, r *vhostuser.Ring) error {
	requests, bytes := 0, 0
	for {
		q := d.free.Get().(*request)
		ok, err := r.Pop(&q.chain)
		if !ok {
			d.free.Put(q)
			r.Flush()
			return err
		}
		requests++
		bytes += d.serve(ctx, r, q, err)
		if requests >= batchRequests || bytes >= batchBytes {
			r.Flush()
			requests, bytes = 0, 0
		}
	}
}

// serve answers q or sends it on its way; fault is what is wrong with its chain.
// It returns the bytes that were written.
func (d *Device) serve(ctx context.Context, r *vhostuser.Ring, q *request, fault error) int {
	used, done := d.answer(ctx, r, q, fault)
	if !done {
		return 0
	}
	d.complete(r, q, used)
	return used
}

func (d *Device) complete(r *vhostuser.Ring, q *request, used int) {
	r.Complete(&q.chain, uint32(used))
	d.free.Put(q)
}

// answer serves q on this goroutine, or starts another one for it and says that
// it is not done. A panic costs this request only.
func (d *Device) answer(ctx context.Context, r *vhostuser.Ring, q *request, fault error) (used int, done bool) {
	defer func() {
		if v := recover(); v != nil {
			d.caught(v)
			used, done = d.fail(q, fuse.EIO), true
		}
	}()
	if !q.parse() || fault != nil {
		d.stats.malformed.Add(1)
		return d.fail(q, fuse.EIO), true
	}
	d.stats.requests.Add(1)
	if q.header.opcode != opRead {
		return d.dispatch(q), true
	}
	n, status, ok := d.readNow(q)
	if !ok {
		d.wait(ctx, r, q)
		return 0, false
	}
	return q.finish(n, status), true
}

// dispatch answers everything but READ.
func (d *Device) dispatch(q *request) int {
	op := q.header.opcode
	switch {
	case q.chain.WriteLen < outHeaderSize && !noReply(op):
		return 0 // nobody could be told what came of it, so it is not done
	case op == opInit:
		return d.begin(q)
	case op == opGetattr:
		return d.getattr(q)
	case op == opLookup:
		return d.lookup(q)
	case op == opReaddir, op == opReaddirplus:
		return d.list(q, op == opReaddirplus)
	case op == opReadlink:
		return d.readlink(q)
	case op == opForget:
		return d.forget(q)
	case q.header.node == magicNode:
		return d.fail(q, fuse.Status(unix.ESTALE))
	}
	n, _ := d.session.Load().HandleRequest(q.input(), q.chain.Writable)
	if n < outHeaderSize {
		return d.fail(q, fuse.EIO)
	}
	return n
}

// fail answers q with an error. Older guests trust a reply to have a header, so
// one goes out wherever there is room for it. It returns the bytes written.
func (d *Device) fail(q *request, status fuse.Status) (used int) {
	defer func() {
		if v := recover(); v != nil {
			d.caught(v)
			used = 0
		}
	}()
	d.stats.failed.Add(1)
	if noReply(q.header.opcode) {
		return 0
	}
	return q.finish(0, status)
}

func (d *Device) caught(v any) {
	d.stats.panics.Add(1)
	d.quiet.Do(func() {
		d.log.Error("panic while serving a request", "err", v, "stack", string(debug.Stack()))
	})
}
