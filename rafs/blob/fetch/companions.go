package fetch

import (
	"github.com/rafsd/rafsd/rafs/blob/cache"
)

// companions adds to a batch the other chunks of its units that are missing: they
// are decoded anyway. All chunks of a unit are no longer than it is together, or
// else something is wrong with them; what is more is left alone.
func (e *Engine) companions(b *batch) {
	s := b.store
	if s.units == nil || b.flights[0].foreign {
		return
	}
	have := presence{cache: s.cache}
	for _, p := range b.pieces() {
		if p.unit == nil || !s.fills() && int(p.unit.OutSize) > e.opts.Recent/2 {
			continue
		}
		room := int64(p.unit.OutSize)
		for _, f := range p.flights {
			room -= int64(f.chunk.UncompressedSize)
		}
		first := p.flights[0]
		first.table.Neighbours(p.unit, first.chunk.Index, func(i uint32) bool {
			f := e.companion(first, i, &have)
			if f == nil {
				return true
			}
			if room -= int64(f.chunk.UncompressedSize); room < 0 || !s.claim(f) {
				return room >= 0
			}
			b.flights = append(b.flights, f)
			e.stats.amplified.Add(1)
			return true
		})
	}
}

// companion is a flight for chunk i in the unit of another flight; nil if it is
// not missing.
func (e *Engine) companion(of *flight, i uint32, have *presence) *flight {
	s := of.store
	c, ok := e.opts.Catalog.Chunk(s.info.Index, i)
	if !ok || !c.Shared || e.checkChunk(&c) != nil || s.isReady(i) || have.has(i) {
		return nil
	}
	f := s.flight(c)
	if f.locate(of.table) != nil || f.place.Unit != of.place.Unit {
		return nil
	}
	return f
}

// presence remembers what a cache holds, a run of chunks at a time.
type presence struct {
	cache *cache.Blob
	first uint32
	known bool
	have  [256]bool
}

func (p *presence) has(i uint32) bool {
	if p.cache == nil {
		return false
	}
	n := uint32(len(p.have))
	if first := i - i%n; !p.known || first != p.first {
		p.first, p.known = first, true
		p.cache.PresentRange(first, p.have[:])
	}
	return p.have[i%n]
}
