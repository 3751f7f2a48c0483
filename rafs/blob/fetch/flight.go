package fetch

import (
	"context"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
)

// flight is the work on one chunk, done once for all who want it. It ends by
// telling them, and is forgotten then, however it ended.
type flight struct {
	store *store
	chunk blob.Chunk
	// foreign marks a chunk that differs from the catalog's one of its number: it
	// is served, and never cached.
	foreign bool

	// start and size are the range of the blob that the chunk takes: its own, or
	// that of its unit.
	start uint64
	size  int
	// place is where the chunk is in its unit, by that table; nil for a chunk of
	// its own.
	place *unit.Place
	table *table
	// again marks one that another table is asked for already.
	again bool

	// Guarded by store.mu.
	waiters []*waiter
	batch   *batch // nil until a request for it is planned
	// adoptable marks a flight whose chunk shares a unit and that nobody has planned
	// yet: whoever plans a request for the unit first takes it along.
	adoptable bool
}

// batch is one range request and the flights that it serves.
type batch struct {
	store   *store
	flights []*flight // immutable; by place in the blob
	start   uint64    // of the range in the blob
	size    int
	scratch int // bytes that decoding takes besides
	ticket  *ticket
	ctx     context.Context
	cancel  context.CancelCauseFunc
	done    chan struct{}
	err     error // the first; before done is closed

	// kept keeps the batch alive without waiters. Guarded by store.mu.
	kept bool
}

// flight makes a flight for a chunk; one of a shared unit has no range yet.
func (s *store) flight(c blob.Chunk) *flight {
	f := &flight{store: s, chunk: c, start: c.CompressedOffset, size: int(c.CompressedSize)}
	s.tar.settle(f)
	return f
}

func keyOf(c *blob.Chunk) chunkKey { return chunkKey{c.Blob.Index, c.Index} }

// foreign reports whether c is not what the catalog says of its number.
func (e *Engine) foreign(c *blob.Chunk) bool {
	known, ok := e.opts.Catalog.Chunk(c.Blob.Index, c.Index)
	return !ok || known.UncompressedOffset != c.UncompressedOffset ||
		known.UncompressedSize != c.UncompressedSize || known.Digest != c.Digest
}

// joinFlight puts w in line for a chunk. It returns the flight if that is new and
// to be started by the caller, who waits for it and so keeps it.
func (e *Engine) joinFlight(w *waiter, c blob.Chunk) *flight {
	s := e.store(c.Blob)
	if e.foreign(&c) {
		// Nobody shares it.
		f := s.flight(c)
		f.foreign, f.waiters, f.adoptable = true, []*waiter{w}, c.Shared
		w.flight = f
		return f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[c.Index]; f != nil {
		e.stats.joined.Add(1)
		w.flight, w.late = f, !w.again
		f.waiters = append(f.waiters, w)
		if f.batch != nil {
			f.batch.ticket.promote()
		}
		return nil
	}
	f := s.flight(c)
	f.waiters, f.adoptable, w.flight = []*waiter{w}, c.Shared, f
	// A flight may have ended since the caller looked.
	if w.page = e.recent.get(keyOf(&c)); w.page != nil {
		e.stats.recentHits.Add(1)
		f.waiters = nil
		w.to <- w
		return nil
	}
	s.flights[c.Index] = f
	e.stats.flights.Add(1)
	return f
}

// leaveFlight ends a wait. The last one to leave a range request ends that.
func (e *Engine) leaveFlight(w *waiter) {
	f := w.flight
	s := f.store
	s.mu.Lock()
	i := slices.Index(f.waiters, w)
	if i < 0 {
		s.mu.Unlock()
		return
	}
	f.waiters = slices.Delete(f.waiters, i, i+1)
	b := f.batch
	over := b != nil && s.abandon(b)
	s.mu.Unlock()
	if over {
		b.cancel(context.Canceled)
	}
}

// abandon forgets a batch's flights if nobody wants any of them, so that whoever
// comes next starts anew. The caller holds mu.
func (s *store) abandon(b *batch) bool {
	if b.kept {
		return false
	}
	for _, f := range b.flights {
		if len(f.waiters) > 0 {
			return false
		}
	}
	for _, f := range b.flights {
		s.forget(f)
	}
	return true
}

func (s *store) forget(f *flight) {
	if s.flights[f.chunk.Index] == f {
		delete(s.flights, f.chunk.Index)
	}
}

// land ends a flight: every waiter gets the page, of which the caller keeps its
// own hold, or the error.
func (e *Engine) land(f *flight, p *page, err error) {
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(f)
	if err != nil {
		e.stats.flightErrors.Add(1)
	}
	for _, w := range f.waiters {
		if p != nil {
			p.hold()
			w.page = p
		}
		w.err = err
		w.to <- w
	}
	f.waiters = nil
}

// wanted reports whether anybody waits for f now.
func (f *flight) wanted() bool {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	return len(f.waiters) > 0
}
