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
	"github.com/rafsd/rafsd/rafs/blob/codec"
)

// run fetches a batch's range and lands its flights, the wanted ones first, and
// these as soon as their part has arrived.
func (e *Engine) run(b *batch) {
	if err := b.ticket.acquire(b.ctx); err != nil {
		e.landAll(b, b.flights, err)
		return
	}
	defer b.ticket.release(1, int64(b.size))
	body := e.bufs.get(b.size)
	defer e.bufs.put(body)
	left, err := e.stream(b, body)
	b.ticket.release(1, 0)
	if err != nil {
		for _, f := range left {
			b.ticket.release(0, int64(f.chunk.UncompressedSize))
		}
		e.landAll(b, left, err)
		return
	}
	for _, f := range order(left) {
		p, err := e.decode(b, f, b.part(body, f))
		if err != nil {
			b.ticket.release(0, int64(f.chunk.UncompressedSize))
			e.landAll(b, []*flight{f}, err)
			continue
		}
		e.finish(f, p)
	}
}

// finish keeps what a flight brought and lands it.
func (e *Engine) finish(f *flight, p *page) {
	e.fill(f, p.data)
	e.land(f, p, nil)
	p.drop()
}

// stream reads a batch's range and lands the flights that somebody waits for on
// the way. It returns those that are left: nobody waited, no processor was free, or
// they are wrong, which is not looked into while the request has a slot.
func (e *Engine) stream(b *batch, body []byte) (left []*flight, err error) {
	coming := slices.Clone(b.flights)
	ctx := backend.WithProgress(b.ctx, func(n int) {
		coming = slices.DeleteFunc(coming, func(f *flight) bool {
			if f.chunk.CompressedOffset-b.start+uint64(f.chunk.CompressedSize) > uint64(n) || !f.wanted() {
				return false
			}
			t := e.cpu.ticket(b.class(), 1, 0)
			if !t.try() {
				return false
			}
			p, err := e.verified(b, f, b.part(body, f), t)
			if err != nil {
				left = append(left, f)
			} else {
				e.finish(f, p)
			}
			return true
		})
	})
	err = e.request(ctx, b, body, b.start)
	return append(coming, left...), err
}

// part is where a flight's chunk lies in the body of its batch.
func (b *batch) part(body []byte, f *flight) []byte {
	at := f.chunk.CompressedOffset - b.start
	return body[at : at+uint64(f.chunk.CompressedSize)]
}

// order is the flights with those that somebody waits for in front.
func order(flights []*flight) []*flight {
	rank := make(map[*flight]int, len(flights))
	for _, f := range flights {
		if !f.wanted() {
			rank[f] = 1
		}
	}
	slices.SortStableFunc(flights, func(x, y *flight) int { return cmp.Compare(rank[x], rank[y]) })
	return flights
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

// decode makes a verified page of a chunk's compressed bytes. If they are not
// what the image says, they are fetched once more, around anything shared, into
// the same memory.
func (e *Engine) decode(b *batch, f *flight, raw []byte) (*page, error) {
	p, err := e.verify(b, f, raw)
	if errors.Is(err, blob.ErrDigest) || errors.Is(err, blob.ErrCorrupt) {
		e.stats.badBackend.Add(1)
		e.logFailure(f, "backend", err)
		e.stats.refetches.Add(1)
		if err = e.refetch(b, f, raw); err == nil {
			if p, err = e.verify(b, f, raw); err != nil && b.ctx.Err() == nil {
				e.stats.badBackend.Add(1)
			}
		}
	}
	return p, err
}

// refetch holds the batch's memory and asks for a slot only, before all who wait
// for memory that it holds. Those who hold slots never wait for memory.
func (e *Engine) refetch(b *batch, f *flight, raw []byte) error {
	t := e.net.ticket(demand, 1, 0)
	t.first = true
	if err := t.acquire(b.ctx); err != nil {
		return err
	}
	defer t.release(1, 0)
	again := &batch{store: b.store, ticket: t}
	return e.request(backend.Fresh(b.ctx), again, raw, f.chunk.CompressedOffset)
}

// verify waits for a processor and makes a verified page of raw.
func (e *Engine) verify(b *batch, f *flight, raw []byte) (*page, error) {
	t := e.cpu.ticket(b.class(), 1, 0)
	if err := t.acquire(b.ctx); err != nil {
		return nil, err
	}
	return e.verified(b, f, raw, t)
}

// verified decompresses raw into private memory and checks the digest there. It
// gives back the processor, and with the page the memory that its batch holds.
func (e *Engine) verified(b *batch, f *flight, raw []byte, cpu *ticket) (*page, error) {
	defer cpu.release(1, 0)
	size := int(f.chunk.UncompressedSize)
	data := e.bufs.get(size)
	if err := e.decompress(f, data, raw); err != nil {
		e.bufs.put(data)
		return nil, err
	}
	return newPage(data, func(p *page) {
		e.bufs.put(p.data)
		b.ticket.release(0, int64(size))
	}), nil
}

func (e *Engine) decompress(f *flight, data, raw []byte) error {
	start := time.Now()
	how := f.store.info.Compressor
	if !f.chunk.Compressed {
		how = blob.CompressorNone
	}
	if err := codec.Decode(how, data, raw); err != nil {
		return err
	}
	e.stats.decodeNanos.Add(uint64(time.Since(start)))
	return e.checkDigest(f, data)
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
	for _, b := range e.plan(f.store, []*flight{f}) {
		e.launch(b, demand)
	}
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
	if f.wanted() {
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
