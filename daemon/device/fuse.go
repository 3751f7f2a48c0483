package device

import (
	"bytes"
	"encoding/binary"
	"log"
	"log/slog"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/time/rate"
)

// This file is the only one that knows go-fuse's ProtocolServer, which is
// declared experimental. What has to be mended around it:
//
//   - where there is no room for a header it counts what it could not write: such
//     a request does not reach it (Device.dispatch);
//   - an answer that does not fit, or a request that does not parse, comes back
//     with no header written: the device writes one (request.fail);
//   - READLINK does not look whether there is room for the whole target: it never
//     gets here (metadata.go);
//   - INIT writes fields that every other request reads: each session gets a
//     server of its own (Device.begin), and INIT is answered in private memory
//     first, because the reply's sizes follow this host's limits, not the guest's;
//   - some of what a guest gets wrong goes to the global logger of package log,
//     which is for the command to bound;
//   - a READ would take a buffer of its full size: READ never gets here (read.go);
//   - names are not checked, and the root has an entry and the tree a node by which
//     it plays a trick on poll: LOOKUP never gets here (metadata.go), nor does that
//     node (magicNode).

const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opReadlink    = 5
	opRead        = 15
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opDestroy     = 38
	opNotifyReply = 41
	opBatchForget = 42
	opReaddirplus = 44
)

// Sizes of the kernel's structs (Linux include/uapi/linux/fuse.h).
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	readInSize    = 40
	initOutSize   = 64
)

// MaxRead is the largest READ that is offered and served, in bytes: 256 pages,
// Linux' own bound (fs/fuse/fuse_i.h, FUSE_MAX_MAX_PAGES).
const MaxRead = 1 << 20

const (
	pageSize      = 4096
	maxBackground = 512
	// magicNode is a node id that go-fuse answers for by itself.
	magicNode = ^uint64(0)
)

// inHeader is struct fuse_in_header, copied out of guest memory.
type inHeader struct {
	len    uint32
	opcode uint32
	unique uint64
	node   uint64
}

func decodeInHeader(b *[inHeaderSize]byte) inHeader {
	return inHeader{
		len:    binary.LittleEndian.Uint32(b[0:]),
		opcode: binary.LittleEndian.Uint32(b[4:]),
		unique: binary.LittleEndian.Uint64(b[8:]),
		node:   binary.LittleEndian.Uint64(b[16:]),
	}
}

func putOutHeader(b *[outHeaderSize]byte, size int, status fuse.Status, unique uint64) {
	binary.LittleEndian.PutUint32(b[0:], uint32(size))
	binary.LittleEndian.PutUint32(b[4:], uint32(-int32(status)))
	binary.LittleEndian.PutUint64(b[8:], unique)
}

// noReply reports whether the guest waits for no answer to op: its chain has no
// writable part, and used.len is 0.
func noReply(op uint32) bool {
	return op == opForget || op == opBatchForget || op == opInterrupt || op == opNotifyReply
}

// protocol makes a go-fuse server for one session of a guest.
func protocol(fs FileSystem, opts Options) *fuse.ProtocolServer {
	return fuse.NewProtocolServer(fs, &fuse.MountOptions{
		Name:                     "rafsd",
		MaxWrite:                 MaxRead,
		MaxBackground:            maxBackground,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DisableXAttrs:            opts.NoXattrs,
		ExtraCapabilities:        fuse.CAP_EXPORT_SUPPORT | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_NO_OPENDIR_SUPPORT,
		// PASSTHROUGH needs /dev/fuse, and would count as a stacked file system
		// under a guest's overlay.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_RENAME_SWAP,
		Logger:               opts.odd,
		PanicHandler:         func(v any) fuse.Status { opts.panicked(v); return fuse.EIO },
	})
}

// initReply answers INIT in private memory and mends what go-fuse derives from
// this host instead of the guest: the largest request. It returns the reply.
func initReply(ps *fuse.ProtocolServer, in [][]byte) []byte {
	var reply [outHeaderSize + initOutSize]byte
	n, status := ps.HandleRequest(in, [][]byte{reply[:]})
	out := reply[:n]
	if status != fuse.OK || n < len(reply) {
		return out
	}
	body := out[outHeaderSize:]
	binary.LittleEndian.PutUint32(body[20:], MaxRead)          // max_write
	binary.LittleEndian.PutUint32(body[24:], 1)                // time_gran: nanoseconds
	binary.LittleEndian.PutUint16(body[28:], MaxRead/pageSize) // max_pages
	return out
}

// limitedLogger is a device's logger for all its sessions: a guest decides how many
// there are.
func limitedLogger(to *slog.Logger) *log.Logger {
	return log.New(&limitedWriter{log: to, quiet: rate.Sometimes{Interval: time.Second}}, "", 0)
}

// limitedWriter passes one line a second of what go-fuse logs: a guest decides
// how often a request is malformed.
type limitedWriter struct {
	log   *slog.Logger
	quiet rate.Sometimes
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	w.quiet.Do(func() { w.log.Warn("guest sent an odd request", "err", string(bytes.TrimSpace(p))) })
	return len(p), nil
}
