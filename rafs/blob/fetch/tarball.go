package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
)

// tarball is what stands in for the digests of a blob that is a plain tar file
// (tarfs). The image has none; the blob's id is the SHA-256 of the whole file. So
// all of it is read once in each process, and if it is the one that the id means,
// what its chunks digest to is kept, and every later read is held against that.
type tarball struct {
	task
	found atomic.Pointer[tarDigests]
}

// tarDigests are the digests of chunks by their numbers.
type tarDigests struct {
	index   []uint32 // ascending
	digests []blob.Digest
}

// sealed tells whether the file was found to be the right one.
func (t *tarball) sealed() bool { return t.found.Load() != nil }

// settle gives a flight the digest of its chunk, false if that is not known yet.
// A nil tarball has nothing to add to any.
func (t *tarball) settle(f *flight) bool {
	if t == nil {
		return true
	}
	d := t.found.Load()
	if d == nil {
		return false
	}
	if i, ok := slices.BinarySearch(d.index, f.chunk.Index); ok {
		f.chunk.Digest = d.digests[i]
	}
	return true
}

// How long a failure to verify a tar file stands. It is large, and reading it
// again because a guest asks again is work for others.
const (
	tarRest      = time.Second
	tarRestWrong = time.Minute
)

// seal reads a whole tar file and remembers what its chunks digest to. It waits at
// most until ctx ends; the reading itself goes on for others.
func (e *Engine) seal(ctx context.Context, s *store) error {
	rest := func(err error) time.Duration {
		if errors.Is(err, blob.ErrDigest) || errors.Is(err, backend.ErrRange) {
			return tarRestWrong
		}
		return tarRest
	}
	for !s.tar.sealed() {
		if err := s.tar.do(ctx, rest, func() error { return e.sealOnce(s) }); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) sealOnce(s *store) error {
	if s.tar.sealed() {
		return nil
	}
	start := time.Now()
	d, err := e.readTar(s)
	if err != nil {
		if errors.Is(err, blob.ErrDigest) {
			e.stats.badBackend.Add(1)
		}
		if e.ctx.Err() == nil {
			e.logs.warn(e.opts.Log, "tar file could not be verified", "blob", s.info.ID, "err", err)
		}
		return err
	}
	s.tar.found.Store(d)
	e.opts.Log.Info("tar file verified", "blob", s.info.ID, "bytes", s.info.CompressedSize, "took", time.Since(start))
	return nil
}

// tarPiece is how much of a tar file is read at once.
const tarPiece = 4 << 20

// readTar digests a tar file: out of the cache, if that has all of it, else out
// of the blob. What lies between chunks is put into the cache on the way, so that
// the next process finds all of it there; until then nothing of it is believed,
// nor is it ever served.
func (e *Engine) readTar(s *store) (*tarDigests, error) {
	want, err := hex.DecodeString(s.info.ID)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("tar file %q: %w: its id is no SHA-256", s.info.ID, ErrNoDigest)
	}
	c, err := e.tarChunks(s)
	if err != nil {
		return nil, err
	}
	if s.cache != nil && c.present(s.cache) {
		got, err := e.digestTar(s, c, func(p []byte, off uint64) error {
			_, err := s.cache.Preadv([][]byte{p}, int64(off))
			return err
		})
		if err == nil && string(got) == string(want) {
			return c.sorted(), nil
		}
		c.rewind()
	}
	if s.fills() {
		c.gap = func(p []byte, off uint64) bool { return s.cache.FillGap(p, int64(off)) == nil }
	}
	got, err := e.digestTar(s, c, func(p []byte, off uint64) error { return e.readPiece(e.ctx, s.source, p, off) })
	if err != nil {
		return nil, err
	}
	if string(got) != string(want) {
		return nil, fmt.Errorf("%w: tar file of %d bytes has sha256 %x, want %x", blob.ErrDigest, s.info.CompressedSize, got, want)
	}
	return c.sorted(), nil
}

// digestTar digests a tar file and its chunks.
func (e *Engine) digestTar(s *store, c *tarCut, read func(p []byte, off uint64) error) (sum []byte, err error) {
	whole, size := sha256.New(), s.info.CompressedSize
	buf := e.bufs.get(int(min(size, tarPiece)))
	defer e.bufs.put(buf)
	for at := uint64(0); at < size; {
		if err := e.ctx.Err(); err != nil {
			return nil, context.Cause(e.ctx)
		}
		piece := buf[:min(uint64(len(buf)), size-at)]
		if err := read(piece, at); err != nil {
			return nil, err
		}
		whole.Write(piece)
		c.take(at, piece)
		at += uint64(len(piece))
	}
	return whole.Sum(nil), nil
}

// readPiece reads a part of an object that is no chunk, as demand does.
func (e *Engine) readPiece(ctx context.Context, from reader, p []byte, off uint64) error {
	t := e.net.ticket(demand, 1, int64(len(p)))
	if err := t.acquire(ctx); err != nil {
		return err
	}
	defer t.release(1, int64(len(p)))
	ctx, stop := context.WithTimeoutCause(ctx, e.opts.Timeout, ErrTimeout)
	defer stop()
	start := time.Now()
	err := from.ReadRange(ctx, p, int64(off))
	e.stats.request(demand, len(p), time.Since(start), err)
	return err
}

// reader is what readPiece needs of an object.
type reader interface {
	ReadRange(ctx context.Context, p []byte, off int64) error
}

// tarCut digests the chunks of a tar file that goes by.
type tarCut struct {
	digester blob.Digester
	chunks   []tarChunk // by offset, one behind the other
	next     int
	part     hash.Hash // of chunks[next], if it has begun
	// gap takes what lies between chunks until it returns false; nil: nobody does.
	gap func(p []byte, off uint64) bool
}

type tarChunk struct {
	start, end uint64
	index      uint32
	digest     blob.Digest
}

func (e *Engine) tarChunks(s *store) (*tarCut, error) {
	c := &tarCut{digester: s.info.Digester}
	for i := range s.info.ChunkCount {
		if k, ok := e.opts.Catalog.Chunk(s.info.Index, i); ok {
			c.chunks = append(c.chunks, tarChunk{k.CompressedOffset, k.CompressedOffset + uint64(k.UncompressedSize), i, blob.Digest{}})
		}
	}
	slices.SortFunc(c.chunks, func(a, b tarChunk) int { return cmp.Compare(a.start, b.start) })
	end := uint64(0)
	for _, k := range c.chunks {
		if k.start < end || k.end > s.info.CompressedSize {
			return nil, fmt.Errorf("%w: chunk %d at %#x to %#x, another ends at %#x, the tar file at %#x", blob.ErrCorrupt, k.index, k.start, k.end, end, s.info.CompressedSize)
		}
		end = k.end
	}
	return c, nil
}

// present tells whether a cache claims to have all chunks.
func (c *tarCut) present(in *cache.Blob) bool {
	have := presence{cache: in}
	for _, k := range c.chunks {
		if !have.has(k.index) {
			return false
		}
	}
	return true
}

func (c *tarCut) rewind() { c.next, c.part = 0, nil }

// take digests what a piece of the file at an offset has of chunks.
func (c *tarCut) take(at uint64, piece []byte) {
	stop := at + uint64(len(piece))
	for pos := at; pos < stop; {
		if c.next == len(c.chunks) || c.chunks[c.next].start >= stop {
			c.between(piece[pos-at:], pos)
			return
		}
		k := &c.chunks[c.next]
		if k.start > pos {
			c.between(piece[pos-at:k.start-at], pos)
			pos = k.start
		}
		end := min(k.end, stop)
		c.digest(k, piece[pos-at:end-at])
		if end < k.end {
			return
		}
		c.next, c.part = c.next+1, nil
		pos = end
	}
}

// digest takes a part of a chunk, or all of it.
func (c *tarCut) digest(k *tarChunk, p []byte) {
	switch {
	case c.part == nil && uint64(len(p)) == k.end-k.start:
		k.digest = c.digester.Sum(p)
		return
	case c.part == nil:
		c.part = newHash(c.digester)
	}
	c.part.Write(p)
	c.part.Sum(k.digest[:0])
}

func (c *tarCut) between(p []byte, off uint64) {
	if c.gap != nil && !c.gap(p, off) {
		c.gap = nil
	}
}

func newHash(d blob.Digester) hash.Hash {
	if d == blob.DigesterSHA256 {
		return sha256.New()
	}
	return blake3.New()
}

// sorted is what take found, by the numbers of chunks.
func (c *tarCut) sorted() *tarDigests {
	slices.SortFunc(c.chunks, func(a, b tarChunk) int { return cmp.Compare(a.index, b.index) })
	d := &tarDigests{index: make([]uint32, len(c.chunks)), digests: make([]blob.Digest, len(c.chunks))}
	for i, k := range c.chunks {
		d.index[i], d.digests[i] = k.index, k.digest
	}
	return d
}
