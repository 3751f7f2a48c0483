// Package fetch turns "these parts of these chunks" into verified bytes.
//
// The way of a read:
//
//  1. A chunk that this process has verified, and that the cache holds, is ready:
//     ReadReady moves its bytes from the cache file to where they are wanted.
//  2. For any other chunk Read joins the flight that is after it, or starts one.
//  3. A flight whose chunk the cache claims to hold reads and verifies that.
//  4. Otherwise it is fetched: chunks that are neighbours in the blob share one
//     range request, which may be extended to neighbours that nobody asked for.
//  5. What arrives is decrypted, decompressed to its exact size and verified, in
//     private memory, by a bounded number of workers.
//  6. Verified bytes fill the cache and go to all who wait.
//
// Chunks that share a unit (a batch, a stretch of a gzip stream) are fetched by
// units: one is decoded once for all of its chunks that are missing, and each of
// them is verified by its own digest. Which unit a chunk lies in the blob's chunk
// information says, which is loaded when it is first needed and trusted with
// nothing. The chunks of a plain tar file (tarfs) have no digests: the whole of it
// is read and held against its SHA-256, the blob's id, before the first byte is
// served, and what its chunks digest to is remembered from then on.
//
// Nothing is trusted but the digests in the image: not the backend, not the cache
// files. There is no way to get a byte out of this package that was not verified
// by this process. A chunk that fails is dropped, fetched once more around
// anything shared, and then an error. No lock is held while something is read
// from disk or network, and nobody waits for a fetch of what they do not want.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Errors of the engine itself.
var (
	// ErrClosed means that the engine was closed.
	ErrClosed = errors.New("fetch engine closed")
	// ErrTimeout means that a fetch took longer than Options.Timeout.
	ErrTimeout = errors.New("fetch took too long")
	// ErrNoDigest means that there is nothing to verify a chunk by.
	ErrNoDigest = errors.New("chunk without a digest")
	// ErrNoCache means that there is nothing to prefetch into.
	ErrNoCache = errors.New("no cache to prefetch into")
)

// Catalog knows the chunks of an image; it is an image.Image.
type Catalog interface {
	// Chunk finds a chunk by blob and number, false if there is none.
	Chunk(blobIndex, chunkIndex uint32) (blob.Chunk, bool)
}

// Options configure an Engine.
type Options struct {
	// Blobs are the blobs of the image, each at its own Index.
	Blobs []*blob.Info
	// Catalog is the image's chunks. It must not change.
	Catalog Catalog
	// Backend is where blobs come from. The engine does not close it.
	Backend backend.Backend
	// Cache keeps chunks; nil keeps none. The engine does not close it.
	Cache *cache.Cache
	// MetaDir is a folder that may have the chunk information of blobs in files
	// <id>.blob.meta, as bootstrap layers carry it, named by blob.Info.ID or MetaID;
	// what is not there comes from the Backend. Empty is no folder.
	MetaDir string

	// MemoryLimit bounds the bytes of chunks in flight. Default 64 MiB.
	MemoryLimit int64
	// Connections bounds range requests that run at once; prefetch has at most
	// half of them. Default 16.
	Connections int
	// Amplify is up to how many compressed bytes a request for less is extended
	// by missing neighbours. Default 128 KiB; negative is not at all.
	Amplify int
	// MaxRange is up to how many compressed bytes wanted neighbours share one
	// request. Default 1 MiB; a larger chunk is fetched whole.
	MaxRange int
	// Gap is how many unwanted bytes between two neighbours are fetched and thrown
	// away rather than asking twice. Default 8 KiB.
	Gap int
	// Recent bounds the bytes of chunks kept in memory where the cache does not
	// work. Default 16 MiB.
	Recent int
	// MetaLimit bounds the bytes of chunk information of all blobs that lie in files
	// of the folder for temporary files. Default 2 GiB.
	MetaLimit int64
	// Timeout bounds one fetch with all the tries of the backend. Default 60 s.
	Timeout time.Duration
	// Log gets what an operator should know. Default none.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.MemoryLimit <= 0 {
		o.MemoryLimit = 64 << 20
	}
	if o.Connections <= 0 {
		o.Connections = 16
	}
	if o.Amplify == 0 {
		o.Amplify = 128 << 10
	}
	if o.MaxRange <= 0 {
		o.MaxRange = 1 << 20
	}
	if o.Gap <= 0 {
		o.Gap = 8 << 10
	}
	if o.Recent <= 0 {
		o.Recent = 16 << 20
	}
	if o.MetaLimit <= 0 {
		o.MetaLimit = 2 << 30
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Engine serves the chunks of one image. Its methods are safe for concurrent use.
type Engine struct {
	opts   Options  // immutable
	blobs  []*store // immutable, by blob.Info.Index
	net    *gate    // requests, and memory of what they bring
	local  *gate    // memory of what is verified out of the cache
	cpu    *gate    // decompression and digests
	bufs   buffers
	recent recent
	kept   spools // of chunk information
	stats  counters
	logs   throttle

	ctx     context.Context // of flights; ends with Close
	cancel  context.CancelCauseFunc
	mu      sync.Mutex
	running sync.WaitGroup // guarded by mu against Close
}

// New makes an engine and opens the cache files of its blobs. A cache that cannot
// be used is logged and done without. The network is not touched.
func New(o Options) (*Engine, error) {
	o = o.withDefaults()
	workers := runtime.GOMAXPROCS(0)
	e := &Engine{
		opts:   o,
		net:    newGate(o.Connections, o.MemoryLimit),
		local:  newGate(4*workers, max(o.MemoryLimit/4, blob.MaxChunkSize)),
		cpu:    newGate(workers, 0),
		bufs:   buffers{limit: int(min(4<<20, o.MemoryLimit/4))},
		recent: recent{limit: o.Recent},
		kept:   spools{limit: o.MetaLimit},
	}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	for i, info := range o.Blobs {
		if info.Index != uint32(i) || !info.Digester.Valid() {
			return nil, errors.Join(fmt.Errorf("blob %d of %d: index %d, %v", i, len(o.Blobs), info.Index, info.Digester), e.Close())
		}
		s, err := e.open(info)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("blob %d: %w", i, err), e.Close())
		}
		e.blobs = append(e.blobs, s)
	}
	return e, nil
}

// Close ends all flights and reads, waits for them, and closes the cache files.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.cancel(ErrClosed)
	e.mu.Unlock()
	e.running.Wait()
	var errs []error
	for _, s := range e.blobs {
		if s.cache != nil {
			errs = append(errs, s.cache.Close())
		}
		if s.units != nil {
			s.units.close()
		}
	}
	return errors.Join(errs...)
}

// begin counts a piece of work that Close waits for, by a call to running.Done.
func (e *Engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	e.running.Add(1)
	return nil
}

// store is one blob: its source, its cache, what of it is ready and in flight.
type store struct {
	info   *blob.Info
	source backend.Reader
	cache  *cache.Blob // nil without a cache
	count  uint32      // above the largest chunk number; 0 without a cache

	// ready has a bit for each chunk that was verified in this process and lies in
	// the cache.
	ready []atomic.Uint32
	// noFill is until when filling the cache is not tried again after an error,
	// in Unix nanoseconds.
	noFill atomic.Int64

	key   *xts.Key // nil: nothing is encrypted
	units *units   // nil: no chunks share units
	tar   *tarball // nil: chunks have digests

	mu      sync.Mutex
	flights map[uint32]*flight
	// failed has the chunks whose failure was logged, at most maxFailed.
	failed map[uint32]struct{}
}

func (e *Engine) open(info *blob.Info) (*store, error) {
	source, err := e.opts.Backend.Open(info.ID)
	if err != nil {
		return nil, err
	}
	s := &store{info: info, source: source, flights: map[uint32]*flight{}}
	if err := s.setFormat(); err != nil {
		return nil, err
	}
	if e.opts.Cache == nil {
		return s, nil
	}
	chunk := func(i uint32) (blob.Chunk, bool) { return e.opts.Catalog.Chunk(info.Index, i) }
	count := info.ChunkCount
	if count == 0 {
		for count < blob.MaxChunks {
			if _, ok := chunk(count); !ok {
				break
			}
			count++
		}
	}
	s.cache, err = e.opts.Cache.Blob(cache.Table{Info: info, Count: count, Chunk: chunk})
	if err != nil {
		e.opts.Log.Warn("blob is not cached", "blob", info.ID, "err", err)
		e.stats.cacheErrors.Add(1)
		return s, nil
	}
	s.count = count
	s.ready = make([]atomic.Uint32, (uint64(count)+31)/32)
	return s, nil
}

// setFormat prepares for what is special about a blob.
func (s *store) setFormat() (err error) {
	f := layout.Features(s.info.Features)
	switch s.info.Cipher {
	case blob.CipherNone:
	case blob.CipherAES128XTS:
		if s.key, err = xts.NewKey(s.info.Key.XTS, s.info.Key.IV); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%v: %w", s.info.Cipher, errors.ErrUnsupported)
	}
	if f&(layout.FeatureBatch|layout.FeatureZran) != 0 {
		s.units = &units{}
	}
	if f&layout.FeatureTarfs != 0 {
		s.tar = &tarball{}
	}
	return nil
}

// store finds the store of a chunk's blob, nil for a hole or another image's blob.
func (e *Engine) store(b *blob.Info) *store {
	if b == nil || int(b.Index) >= len(e.blobs) {
		return nil
	}
	return e.blobs[b.Index]
}

// Ready reports whether ReadReady can serve c: it was verified by this process
// and lies in the cache. It takes no lock. A hole is not ready.
func (e *Engine) Ready(c *blob.Chunk) bool {
	s := e.store(c.Blob)
	return s != nil && s.isReady(c.Index)
}

func (s *store) isReady(i uint32) bool {
	word := int(i >> 5)
	return word < len(s.ready) && s.ready[word].Load()&(1<<(i&31)) != 0
}

func (s *store) setReady(i uint32) {
	if word := int(i >> 5); word < len(s.ready) {
		s.ready[word].Or(1 << (i & 31))
	}
}

// distrust forgets that anything was verified: reading the cache file failed.
func (s *store) distrust() {
	for i := range s.ready {
		s.ready[i].Store(0)
	}
}

// ReadReady fills dst from off in b's uncompressed space, straight from the cache
// file. The caller has found every chunk in that range Ready. After an error,
// which a damaged cache or a bad address in dst can cause, Read is the way.
func (e *Engine) ReadReady(b *blob.Info, dst [][]byte, off int64) (int, error) {
	s := e.store(b)
	if s == nil || s.cache == nil {
		return 0, fmt.Errorf("read of ready chunks: blob has no cache: %w", ErrNoCache)
	}
	n, err := s.cache.Preadv(dst, off)
	if err != nil {
		e.cacheReadFailed(s, err)
		return 0, fmt.Errorf("blob %s: %d bytes at %d: %w", s.info.ID, length(dst), off, err)
	}
	e.stats.readyReads.Add(1)
	e.stats.readyBytes.Add(uint64(n))
	return n, nil
}

// cacheReadFailed makes the next readers verify anew, unless it was their own
// memory that is gone.
func (e *Engine) cacheReadFailed(s *store, err error) {
	if errors.Is(err, unix.EFAULT) {
		return
	}
	s.distrust()
	e.stats.cacheErrors.Add(1)
	e.logs.warn(e.opts.Log, "reading the cache failed", "blob", s.info.ID, "err", err)
}

func length(dst [][]byte) (n int) {
	for _, d := range dst {
		n += len(d)
	}
	return n
}
