package fetch

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// start sets new flights going: those that the cache claims to hold are verified,
// the others fetched, neighbours together. With inline the caller has nothing
// else to do and verifies here and now.
func (e *Engine) start(fresh []*flight, inline bool) {
	for len(fresh) > 0 {
		s := fresh[0].store
		var missing, unsealed []*flight
		rest := fresh[:0:0]
		for _, f := range fresh {
			switch {
			case f.store != s:
				rest = append(rest, f)
			case s.tar != nil && !s.tar.settle(f):
				unsealed = append(unsealed, f)
			case !f.foreign && s.cache != nil && s.cache.Present(f.chunk.Index):
				if f.chunk.Shared && !s.adopt(f) {
					continue // it is being fetched with its unit
				}
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
		e.fetch(s, missing, demand)
		if len(unsealed) > 0 {
			e.running.Go(func() { e.startSealed(s, unsealed) })
		}
		fresh = rest
	}
}

// startSealed starts flights of a tar file once that is known to be the right one.
func (e *Engine) startSealed(s *store, flights []*flight) {
	if err := e.seal(e.ctx, s); err != nil {
		e.landUnplanned(flights, err)
		return
	}
	e.start(flights, false)
}

// landUnplanned ends flights that never got as far as a request.
func (e *Engine) landUnplanned(flights []*flight, err error) {
	for _, f := range flights {
		e.land(f, nil, fmt.Errorf("blob %s: chunk %d: %w", f.store.info.ID, f.chunk.Index, err))
	}
}

// fetch sets flights of one blob going whose chunks are not in the cache.
func (e *Engine) fetch(s *store, missing []*flight, c class) {
	var shared []*flight
	if s.units != nil {
		own := missing[:0:0]
		for _, f := range missing {
			if f.chunk.Shared {
				shared = append(shared, f)
			} else {
				own = append(own, f)
			}
		}
		missing = own
	}
	for _, b := range e.plan(s, missing) {
		e.launch(b, c)
	}
	if len(shared) > 0 {
		// The table may have to be loaded, and the caller has waiters of its own.
		e.running.Go(func() { e.fetchShared(s, shared, c) })
	}
}

// offer lets anybody plan flights who fetches their units.
func (s *store) offer(flights ...*flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range flights {
		f.adoptable = true
	}
}

// adopt makes the caller the one who plans a flight, unless somebody was before.
func (s *store) adopt(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := f.adoptable
	f.adoptable = false
	return ok
}

// fetchShared sets flights going whose chunks lie in units with others.
func (e *Engine) fetchShared(s *store, flights []*flight, c class) {
	t, err := e.table(e.ctx, s)
	if err != nil {
		for _, f := range flights {
			if s.adopt(f) {
				e.landUnplanned([]*flight{f}, err)
			}
		}
		return
	}
	found, lost, err := e.gather(t, flights, nil)
	for _, b := range e.plan(s, found) {
		e.launch(b, c)
	}
	if lost = e.elsewhere(t, lost, c); len(lost) > 0 {
		e.landUnplanned(lost, err)
	}
}

// elsewhere asks another table for flights that one has misled, and returns those
// for which there is none.
func (e *Engine) elsewhere(t *table, flights []*flight, c class) (rest []*flight) {
	if len(flights) == 0 {
		return nil
	}
	s := flights[0].store
	if !s.units.distrust(t) {
		return flights
	}
	var again []*flight
	for _, f := range flights {
		if f.again {
			rest = append(rest, f)
		} else {
			f.again = true
			again = append(again, f)
		}
	}
	if len(again) > 0 {
		e.stats.refetches.Add(uint64(len(again)))
		s.offer(again...)
		e.running.Go(func() { e.fetchShared(s, again, c) })
	}
	return rest
}

// plan cuts missing flights of one blob into range requests and extends short
// ones by neighbours that are missing, too.
func (e *Engine) plan(s *store, missing []*flight) []*batch {
	slices.SortFunc(missing, func(a, b *flight) int { return cmp.Compare(a.start, b.start) })
	out := e.cut(missing)
	for _, b := range out {
		e.amplify(b)
	}
	return out
}

// cut makes range requests of flights of one blob in their order.
func (e *Engine) cut(flights []*flight) (out []*batch) {
	for _, f := range flights {
		if n := len(out) - 1; n < 0 || !e.extend(out[n], f, e.opts.MaxRange) {
			out = append(out, newBatch(f))
		}
	}
	return out
}

// newBatch is a request for one chunk.
func newBatch(f *flight) *batch {
	return &batch{store: f.store, flights: []*flight{f}, start: f.start, size: f.size}
}

// fits reports whether a flight's range is near the batch's, and the size of both
// together if that is not above limit.
func (e *Engine) fits(b *batch, f *flight, limit int) (size int, ok bool) {
	end := b.start + uint64(b.size)
	from, to := f.start, f.start+uint64(f.size)
	if from < b.start || from > end+uint64(e.opts.Gap) || to > end && to-b.start > uint64(limit) {
		return 0, false
	}
	return int(max(to, end) - b.start), true
}

// extend adds a flight to a batch if it fits.
func (e *Engine) extend(b *batch, f *flight, limit int) bool {
	size, ok := e.fits(b, f, limit)
	if ok {
		b.size = size
		b.flights = append(b.flights, f)
	}
	return ok
}

// amplify extends a batch by the chunks that follow in the blob, as long as they
// are missing and cost little. Without a cache they would be thrown away.
func (e *Engine) amplify(b *batch) {
	s, last := b.store, b.flights[len(b.flights)-1]
	if !s.fills() || b.flights[0].foreign || last.place != nil {
		return
	}
	const most = 64
	var have [most]bool
	next := last.chunk.Index + 1
	s.cache.PresentRange(next, have[:])
	for i := range uint32(most) {
		c, ok := e.opts.Catalog.Chunk(s.info.Index, next+i)
		if !ok || c.Shared || b.size >= e.opts.Amplify || have[i] || s.isReady(c.Index) || e.checkChunk(&c) != nil {
			return
		}
		f := s.flight(c)
		if _, ok := e.fits(b, f, e.opts.Amplify); !ok || !s.claim(f) {
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
	b.scratch = b.decodes()
	weight := int64(b.size + b.scratch)
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
