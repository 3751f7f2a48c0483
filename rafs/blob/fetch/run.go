package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// run fetches a batch's range and lands its flights, the wanted ones first, and
// these as soon as their part has arrived.
func (e *Engine) run(b *batch) {
	if err := b.ticket.acquire(b.ctx); err != nil {
		e.landAll(b, b.flights, err)
		return
	}
	defer b.ticket.release(1, int64(b.size+b.scratch))
	body := e.bufs.get(b.size)
	defer e.bufs.put(body)
	left, err := e.stream(b, body)
	b.ticket.release(1, 0)
	if err != nil {
		for _, p := range left {
			b.release(p.flights)
			e.landAll(b, p.flights, err)
		}
		return
	}
	for _, p := range order(left) {
		e.settle(b, p, b.part(body, p))
	}
}

// release gives back what a batch holds for the pages of flights that got none.
func (b *batch) release(flights []*flight) {
	for _, f := range flights {
		b.ticket.release(0, int64(f.chunk.UncompressedSize))
	}
}

// stream reads a batch's range and lands the flights that somebody waits for on
// the way. It returns what is left: nobody waited, no processor was free, or it is
// wrong, which is not looked into while the request has a slot.
func (e *Engine) stream(b *batch, body []byte) (left []*piece, err error) {
	coming := b.pieces()
	ctx := backend.WithProgress(b.ctx, func(n int) {
		coming = slices.DeleteFunc(coming, func(p *piece) bool {
			if p.start-b.start+uint64(p.size) > uint64(n) || !p.wanted() {
				return false
			}
			t := e.cpu.ticket(b.class(), 1, 0)
			if !t.try() {
				return false
			}
			if p.flights, _ = e.unpack(b, p, b.part(body, p), t); len(p.flights) > 0 {
				left = append(left, p)
			}
			return true
		})
	})
	err = e.request(ctx, b, body, b.start)
	return append(coming, left...), err
}

func (e *Engine) landAll(b *batch, flights []*flight, err error) {
	if c := context.Cause(b.ctx); c != nil && !errors.Is(err, c) {
		err = fmt.Errorf("%w: %w", c, err)
	}
	b.err = cmp.Or(b.err, err)
	for _, f := range flights {
		e.land(f, nil, fmt.Errorf("blob %s: chunk %d: %w", f.store.info.ID, f.chunk.Index, err))
	}
}

// request reads a range of the blob and counts that.
func (e *Engine) request(ctx context.Context, b *batch, body []byte, off uint64) error {
	start := time.Now()
	err := b.store.source.ReadRange(ctx, body, int64(off))
	e.stats.request(b.class(), len(body), time.Since(start), err)
	return err
}

func (b *batch) class() class {
	b.ticket.gate.mu.Lock()
	defer b.ticket.gate.mu.Unlock()
	return b.ticket.class
}

func (e *Engine) checkDigest(f *flight, data []byte) error {
	start := time.Now()
	got := f.store.info.Digester.Sum(data)
	e.stats.verifyNanos.Add(uint64(time.Since(start)))
	if got != f.chunk.Digest {
		return fmt.Errorf("%w: %v of %d bytes is %v, want %v",
			blob.ErrDigest, f.store.info.Digester, len(data), got, f.chunk.Digest)
	}
	return nil
}

// verifyCached is the first use of a chunk that the cache claims to hold. What
// fails is dropped there and fetched.
func (e *Engine) verifyCached(f *flight) {
	size := int(f.chunk.UncompressedSize)
	t := e.local.ticket(demand, 1, int64(size))
	if err := t.acquire(e.ctx); err != nil {
		e.land(f, nil, err)
		return
	}
	data := e.bufs.get(size)
	err := e.readCached(f, data)
	if err == nil {
		f.store.setReady(f.chunk.Index)
		p := newPage(data, func(p *page) {
			e.bufs.put(p.data)
			t.release(1, int64(size))
		})
		e.stats.firstUses.Add(1)
		e.stats.firstBytes.Add(uint64(size))
		e.land(f, p, nil)
		p.drop()
		return
	}
	e.bufs.put(data)
	t.release(1, int64(size))
	if e.ctx.Err() != nil {
		e.land(f, nil, context.Cause(e.ctx))
		return
	}
	if errors.Is(err, blob.ErrDigest) {
		e.stats.badCache.Add(1)
		e.logFailure(f, "cache", err)
	} else {
		e.stats.cacheErrors.Add(1)
		e.logs.warn(e.opts.Log, "reading the cache failed", "blob", f.store.info.ID, "chunk", f.chunk.Index, "err", err)
	}
	if err := f.store.cache.Drop(&f.chunk); err != nil {
		e.stats.cacheErrors.Add(1)
	}
	e.stats.misses.Add(1)
	f.store.offer(f)
	e.fetch(f.store, []*flight{f}, demand)
}

func (e *Engine) readCached(f *flight, data []byte) error {
	t := e.cpu.ticket(demand, 1, 0)
	if err := t.acquire(e.ctx); err != nil {
		return err
	}
	defer t.release(1, 0)
	if _, err := f.store.cache.Preadv([][]byte{data}, int64(f.chunk.UncompressedOffset)); err != nil {
		return err
	}
	return e.checkDigest(f, data)
}

// restAfter is how long the cache is not filled after an error: a full disk is
// not asked for each chunk.
const restAfter = time.Second

func (s *store) resting() bool { return time.Now().UnixNano() < s.noFill.Load() }

// fill puts a verified chunk into the cache, or into memory if that fails.
func (e *Engine) fill(f *flight, data []byte) {
	s := f.store
	if f.foreign {
		return
	}
	if s.fills() && f.chunk.Index < s.count {
		err := s.cache.Fill(&f.chunk, data)
		if err == nil {
			s.setReady(f.chunk.Index)
			e.stats.fills.Add(1)
			return
		}
		s.noFill.Store(time.Now().Add(restAfter).UnixNano())
		e.stats.fillErrors.Add(1)
		e.logs.warn(e.opts.Log, "chunk is not cached", "blob", s.info.ID, "chunk", f.chunk.Index, "err", err)
	}
	if f.wanted() || f.place != nil {
		e.recent.put(keyOf(&f.chunk), data)
	}
}

// maxFailed bounds the chunks that we remember to have complained about.
const maxFailed = 1024

// logFailure says once for a chunk that it failed.
func (e *Engine) logFailure(f *flight, source string, err error) {
	s := f.store
	s.mu.Lock()
	_, told := s.failed[f.chunk.Index]
	if !told && len(s.failed) < maxFailed {
		if s.failed == nil {
			s.failed = map[uint32]struct{}{}
		}
		s.failed[f.chunk.Index] = struct{}{}
	}
	s.mu.Unlock()
	if !told {
		e.logs.warn(e.opts.Log, "chunk failed verification, fetching it again",
			"blob", s.info.ID, "chunk", f.chunk.Index, "source", source, "err", err)
	}
}
