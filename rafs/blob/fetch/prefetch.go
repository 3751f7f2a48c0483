package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
)

// Prefetch brings chunks into the cache, in order, neighbours in one request, and
// returns when they are there. It yields to demand for connections, memory and
// processors. What the cache claims to hold is left alone; it is verified at its
// first use. A chunk that fails its digest is passed over and told at the end,
// any other error ends the prefetch.
func (e *Engine) Prefetch(ctx context.Context, chunks iter.Seq[blob.Chunk]) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.running.Done()
	p := &prefetching{e: e, room: max(1, e.opts.Connections/2)}
	defer p.abandon()
	for c := range chunks {
		if err := p.add(ctx, c); err != nil {
			return err
		}
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	for len(p.out) > 0 {
		if err := p.await(ctx); err != nil {
			return err
		}
	}
	return p.failed
}

// prefetching is one call of Prefetch.
type prefetching struct {
	e      *Engine
	room   int          // batches at once
	next   []blob.Chunk // being gathered, of one blob
	bytes  int          // of next, compressed
	out    []*batch     // running, the oldest first
	failed error
}

func (p *prefetching) add(ctx context.Context, c blob.Chunk) error {
	if c.Blob == nil {
		return ctx.Err()
	}
	if err := p.e.checkChunk(&c); err != nil {
		return err
	}
	s := p.e.store(c.Blob)
	if !s.fills() {
		return fmt.Errorf("blob %s: %w", s.info.ID, ErrNoCache)
	}
	if c.Index >= s.count || s.isReady(c.Index) || s.cache.Present(c.Index) {
		return ctx.Err()
	}
	if p.e.foreign(&c) {
		return ctx.Err()
	}
	full := p.bytes+cost(&c) > p.e.opts.MaxRange
	if len(p.next) > 0 && (full || p.next[0].Blob != c.Blob) {
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	p.next = append(p.next, c)
	p.bytes += cost(&c)
	return ctx.Err()
}

// flush starts what was gathered. Chunks become flights only when there is room to
// fetch them: a guest that wants one before that gets it by itself.
func (p *prefetching) flush(ctx context.Context) error {
	for len(p.next) > 0 && len(p.out) >= p.room {
		if err := p.await(ctx); err != nil {
			return err
		}
	}
	flights, err := p.claim(ctx)
	p.e.stats.prefetched.Add(uint64(len(flights)))
	for _, b := range p.e.cut(flights) {
		p.e.launch(b, prefetch)
		p.out = append(p.out, b)
	}
	p.next, p.bytes = p.next[:0], 0
	return err
}

// claim makes flights of the gathered chunks that are still missing, by their
// places in the blob. Those of an error are complete, and to be launched.
func (p *prefetching) claim(ctx context.Context) (flights []*flight, err error) {
	if len(p.next) == 0 {
		return nil, nil
	}
	s := p.e.store(p.next[0].Blob)
	if s.tar != nil {
		if err := p.e.seal(ctx, s); err != nil {
			return nil, err
		}
	}
	var shared []*flight
	for _, c := range p.next {
		f := s.flight(c)
		switch {
		case s.isReady(c.Index):
		case c.Shared:
			shared = append(shared, f)
		case s.claim(f):
			flights = append(flights, f)
		}
	}
	if len(shared) == 0 {
		return flights, nil
	}
	t, err := p.e.table(ctx, s)
	if err != nil {
		return flights, err
	}
	found, _, ferr := p.e.gather(t, nil, shared)
	p.failed = errors.Join(p.failed, ferr)
	flights = append(flights, found...)
	slices.SortStableFunc(flights, func(a, b *flight) int { return cmp.Compare(a.start, b.start) })
	return flights, nil
}

// cost is about how many bytes a chunk takes of a request.
func cost(c *blob.Chunk) int {
	if c.Shared {
		return int(c.UncompressedSize)
	}
	return int(c.CompressedSize)
}

// await waits for the oldest batch.
func (p *prefetching) await(ctx context.Context) error {
	b := p.out[0]
	select {
	case <-b.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.out = p.out[1:]
	if b.err == nil || errors.Is(b.err, blob.ErrDigest) || errors.Is(b.err, blob.ErrCorrupt) {
		p.failed = errors.Join(p.failed, b.err)
		return nil
	}
	return b.err
}

// abandon lets go of what still runs, except for what a guest waits for.
func (p *prefetching) abandon() {
	for _, b := range p.out {
		b.store.mu.Lock()
		b.kept = false
		over := b.store.abandon(b)
		b.store.mu.Unlock()
		if over {
			b.cancel(context.Canceled)
		}
	}
}
