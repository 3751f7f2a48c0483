package fetch

import (
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
)

// gathering finds what is to be fetched together with some chunks of shared units.
type gathering struct {
	e    *Engine
	s    *store
	t    *table
	have presence
	// all are the flights that may be taken: first those that were asked for.
	all   []candidate
	asked int
	// wanted has the numbers of the chunks that were asked for, and claimed how many
	// bytes they are in each unit.
	wanted  map[uint32]bool
	claimed map[unit.Unit]int64
	units   map[unit.Unit]*uint32 // the last chunk seen of each
	lost    []*flight             // those whose chunks cannot be found
	err     error                 // why the last of them cannot
}

type candidate struct {
	flight *flight
	place  unit.Place
	// own marks a flight that is under way already, with waiters, and not one made
	// for the occasion.
	own bool
}

// gather makes the caller the one who fetches the units of some flights: those
// under way that nobody has planned yet (own), and new ones (fresh). It takes
// along all other chunks of these units that are missing, since they are decoded
// anyway. What somebody else plans is left out. lost are own flights that the
// table has no right place for.
func (e *Engine) gather(t *table, own, fresh []*flight) (out, lost []*flight, err error) {
	g := &gathering{e: e, t: t, units: map[unit.Unit]*uint32{}, wanted: map[uint32]bool{}, claimed: map[unit.Unit]int64{}}
	for i, f := range append(own[:len(own):len(own)], fresh...) {
		g.s = f.store
		p, err := t.Find(&f.chunk)
		if err != nil {
			g.err = err
			if i < len(own) {
				g.lost = append(g.lost, f)
			}
			continue
		}
		g.all = append(g.all, candidate{f, p, i < len(own)})
		g.wanted[f.chunk.Index] = true
		g.claimed[p.Unit] += int64(f.chunk.UncompressedSize)
	}
	if g.s == nil {
		return nil, nil, nil
	}
	g.have.cache, g.asked = g.s.cache, len(g.all)
	for _, c := range g.all[:g.asked] {
		if g.units[c.place.Unit] == nil {
			g.unit(c)
		}
	}
	if len(g.units) == 1 && g.s.fills() {
		g.amplify(g.all[0])
	}
	return g.take(), g.lost, g.err
}

// unit adds the other chunks of the unit of a chunk. All of them are no longer
// than it is together, or else something is wrong; what is more is left alone.
func (g *gathering) unit(of candidate) {
	u, last := of.place.Unit, of.flight.chunk.Index
	g.units[u] = &last
	if of.flight.foreign || !g.s.fills() && int(u.OutSize) > g.e.opts.Recent {
		return
	}
	room := int64(u.OutSize) - g.claimed[u]
	g.t.Neighbours(&u, of.flight.chunk.Index, func(i uint32) bool {
		last = max(last, i)
		if g.wanted[i] {
			return true
		}
		c, ok := g.missing(i)
		if !ok || c.place.Unit != u {
			return true
		}
		if room -= int64(c.flight.chunk.UncompressedSize); room < 0 {
			return false
		}
		g.all = append(g.all, c)
		return true
	})
}

// maxUnits bounds the units that one read takes along. What they decode to is no
// more than one unit may be: a unit of few bytes can be as large as any.
const maxUnits = 64

// amplify adds the units that follow, as long as they are missing and cost little.
func (g *gathering) amplify(first candidate) {
	start, last := first.place.Unit, first.place.Unit
	out := int64(start.OutSize)
	for range maxUnits {
		end := last.Offset + uint64(last.Size)
		c, ok := g.missing(*g.units[last] + 1)
		if !ok {
			return
		}
		u := c.place.Unit
		out += int64(u.OutSize)
		if g.units[u] != nil || out > blob.MaxUnitSize || u.Offset < end || u.Offset > end+uint64(g.e.opts.Gap) ||
			int64(u.Offset-start.Offset)+int64(u.Size) > int64(g.e.opts.Amplify) {
			return
		}
		g.all = append(g.all, c)
		g.unit(c)
		last = u
	}
}

// missing makes a candidate of a chunk, false if it is not missing or in no unit.
func (g *gathering) missing(i uint32) (candidate, bool) {
	c, ok := g.e.opts.Catalog.Chunk(g.s.info.Index, i)
	if !ok || !c.Shared || g.e.checkChunk(&c) != nil || g.s.isReady(i) || g.have.has(i) {
		return candidate{}, false
	}
	p, err := g.t.Find(&c)
	return candidate{flight: g.s.flight(c), place: p}, err == nil
}

// take takes all that nobody else has taken, at once: who comes later finds all
// chunks of a unit under way, or none. Units of which nothing is left that was
// asked for are left alone.
func (g *gathering) take() (out []*flight) {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	live := false
	for i, c := range g.all {
		if i == g.asked && !live {
			break
		}
		f := c.flight
		if !c.own {
			f = s.claimOr(f)
		}
		if f == nil || c.own && !f.adoptable {
			continue
		}
		f.adoptable = false
		f.place, f.table, f.start, f.size = &c.place, g.t, c.place.Unit.Offset, int(c.place.Unit.Size)
		out = append(out, f)
		live = true
		if i >= g.asked {
			g.e.stats.amplified.Add(1)
		}
	}
	lost := g.lost[:0]
	for _, f := range g.lost {
		if f.adoptable {
			f.adoptable = false
			lost = append(lost, f)
		}
	}
	g.lost = lost
	return out
}

// claimOr makes f the flight of its chunk, or gives the one that there is if nobody
// has planned it; else nil. The caller holds mu.
func (s *store) claimOr(f *flight) *flight {
	old := s.flights[f.chunk.Index]
	switch {
	case old == nil:
		s.flights[f.chunk.Index] = f
		return f
	case old.adoptable:
		return old
	}
	return nil
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
