package fetch

import (
	"cmp"
	"context"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
)

// start sets new flights going: those that the cache claims to hold are verified,
// the others fetched, neighbours together. With inline the caller has nothing
// else to do and verifies here and now.
func (e *Engine) start(fresh []*flight, inline bool) {
	for len(fresh) > 0 {
		s := fresh[0].store
		var missing []*flight
		rest := fresh[:0:0]
		for _, f := range fresh {
			switch {
			case f.store != s:
				rest = append(rest, f)
			case !f.foreign && s.cache != nil && s.cache.Present(f.chunk.Index):
				if inline && len(fresh) == 1 {
					e.verifyCached(f)
				} else {
					e.running.Go(func() { e.verifyCached(f) })
				}
			default:
				missing = append(missing, f)
			}
		}
		e.stats.misses.Add(uint64(len(missing)))
		for _, b := range e.plan(s, missing) {
			e.launch(b, demand)
		}
		fresh = rest
	}
}

// plan cuts missing flights of one blob into range requests and extends short
// ones by neighbours that are missing, too.
func (e *Engine) plan(s *store, missing []*flight) []*batch {
	slices.SortFunc(missing, func(a, b *flight) int {
		return cmp.Compare(a.chunk.CompressedOffset, b.chunk.CompressedOffset)
	})
	var out []*batch
	for _, f := range missing {
		if n := len(out) - 1; n < 0 || !e.extend(out[n], f, e.opts.MaxRange) {
			out = append(out, newBatch(f))
		}
	}
	for _, b := range out {
		e.amplify(b)
	}
	return out
}

// newBatch is a request for one chunk.
func newBatch(f *flight) *batch {
	return &batch{
		store: f.store, flights: []*flight{f},
		start: f.chunk.CompressedOffset, size: int(f.chunk.CompressedSize),
	}
}

// fits reports whether a chunk's range is near the batch's, and the size of both
// together if that is not above limit.
func (e *Engine) fits(b *batch, c *blob.Chunk, limit int) (size int, ok bool) {
	end := b.start + uint64(b.size)
	from, to := c.CompressedOffset, c.CompressedOffset+uint64(c.CompressedSize)
	if from < b.start || from > end+uint64(e.opts.Gap) || max(to, end)-b.start > uint64(limit) {
		return 0, false
	}
	return int(max(to, end) - b.start), true
}

// extend adds a flight to a batch if it fits.
func (e *Engine) extend(b *batch, f *flight, limit int) bool {
	size, ok := e.fits(b, &f.chunk, limit)
	if ok {
		b.size = size
		b.flights = append(b.flights, f)
	}
	return ok
}

// amplify extends a batch by the chunks that follow in the blob, as long as they
// are missing and cost little. Without a cache they would be thrown away.
func (e *Engine) amplify(b *batch) {
	s := b.store
	if !s.fills() || b.flights[0].foreign {
		return
	}
	const most = 64
	var have [most]bool
	next := b.flights[len(b.flights)-1].chunk.Index + 1
	s.cache.PresentRange(next, have[:])
	for i := range uint32(most) {
		c, ok := e.opts.Catalog.Chunk(s.info.Index, next+i)
		if !ok || b.size >= e.opts.Amplify || have[i] || s.isReady(c.Index) || e.checkChunk(&c) != nil {
			return
		}
		f := &flight{store: s, chunk: c}
		if _, ok := e.fits(b, &c, e.opts.Amplify); !ok || !s.claim(f) {
			return
		}
		e.extend(b, f, e.opts.Amplify)
		e.stats.amplified.Add(1)
	}
}

// claim makes f the flight of its chunk if there is none.
func (s *store) claim(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[f.chunk.Index] != nil {
		return false
	}
	s.flights[f.chunk.Index] = f
	return true
}

// launch runs a batch under the engine's context. The caller is counted in running.
func (e *Engine) launch(b *batch, c class) {
	weight := int64(b.size)
	for _, f := range b.flights {
		weight += int64(f.chunk.UncompressedSize)
	}
	b.ticket = e.net.ticket(c, 1, weight)
	b.done = make(chan struct{})
	ctx, stop := context.WithTimeoutCause(e.ctx, e.opts.Timeout, ErrTimeout)
	b.ctx, b.cancel = context.WithCancelCause(ctx)
	b.store.mu.Lock()
	b.kept = c == prefetch
	for _, f := range b.flights {
		f.batch = b
		if c == prefetch && len(f.waiters) > 0 {
			b.ticket.class = demand // nobody else has the ticket yet
		}
	}
	over := b.store.abandon(b)
	b.store.mu.Unlock()
	if over {
		b.cancel(context.Canceled)
	}
	e.running.Go(func() {
		defer close(b.done)
		defer stop()
		defer b.cancel(nil)
		e.run(b)
	})
}

// fills reports whether what is fetched now will be kept.
func (s *store) fills() bool {
	return s.cache != nil && !s.resting()
}
