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
		if errors.Is(err, blob.ErrDigest) {
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

func (e *Engine) readTar(s *store) (*tarDigests, error) {
	want, err := hex.DecodeString(s.info.ID)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("tar file %q: %w: its id is no SHA-256", s.info.ID, ErrNoDigest)
	}
	c := e.tarChunks(s)
	whole, size := sha256.New(), s.info.CompressedSize
	buf := e.bufs.get(int(min(size, tarPiece)))
	defer e.bufs.put(buf)
	for at := uint64(0); at < size; {
		piece := buf[:min(uint64(len(buf)), size-at)]
		if err := e.readPiece(e.ctx, s.source, piece, at); err != nil {
			return nil, err
		}
		whole.Write(piece)
		c.take(at, piece)
		at += uint64(len(piece))
	}
	if got := whole.Sum(nil); string(got) != string(want) {
		return nil, fmt.Errorf("%w: tar file of %d bytes has sha256 %x, want %x", blob.ErrDigest, size, got, want)
	}
	return c.sorted(), nil
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
	chunks   []tarChunk // by offset
	next     int
	part     hash.Hash // of chunks[next], if it has begun
}

type tarChunk struct {
	start, end uint64
	index      uint32
	digest     blob.Digest
}

func (e *Engine) tarChunks(s *store) *tarCut {
	c := &tarCut{digester: s.info.Digester}
	for i := range s.info.ChunkCount {
		if k, ok := e.opts.Catalog.Chunk(s.info.Index, i); ok {
			c.chunks = append(c.chunks, tarChunk{k.CompressedOffset, k.CompressedOffset + uint64(k.UncompressedSize), i, blob.Digest{}})
		}
	}
	slices.SortFunc(c.chunks, func(a, b tarChunk) int { return cmp.Compare(a.start, b.start) })
	return c
}

// take digests what a piece of the file at an offset has of chunks, which follow
// each other.
func (c *tarCut) take(at uint64, piece []byte) {
	stop := at + uint64(len(piece))
	for c.next < len(c.chunks) && c.chunks[c.next].start < stop {
		k := &c.chunks[c.next]
		part := piece[max(k.start, at)-at : max(min(k.end, stop), at)-at]
		if k.start >= at && k.end <= stop {
			k.digest = c.digester.Sum(part)
		} else {
			if c.part == nil {
				c.part = newHash(c.digester)
			}
			c.part.Write(part)
			if k.end > stop {
				return
			}
			c.part.Sum(k.digest[:0])
			c.part = nil
		}
		c.next++
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
