package fetch

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
)

// piece is a part of a batch that is decoded as one: a chunk of its own, or a
// unit with those of its chunks that are missing.
type piece struct {
	flights []*flight
	unit    *unit.Unit // nil: one chunk of its own
	start   uint64     // in the blob
	size    int
}

// pieces cuts a batch into its pieces.
func (b *batch) pieces() []*piece {
	out := make([]*piece, 0, len(b.flights))
	var units map[unit.Unit]*piece
	for _, f := range b.flights {
		p := &piece{start: f.start, size: f.size}
		if f.place != nil {
			p.unit = &f.place.Unit
			if same := units[*p.unit]; same != nil {
				same.flights = append(same.flights, f)
				continue
			}
			if units == nil {
				units = map[unit.Unit]*piece{}
			}
			units[*p.unit] = p
		}
		p.flights = []*flight{f}
		out = append(out, p)
	}
	return out
}

// decodes is how many bytes decoding a batch takes beside its body and its pages.
// One piece is decoded at a time.
func (b *batch) decodes() (most int) {
	for _, f := range b.flights {
		n := 0
		if f.place != nil {
			n = int(f.place.Unit.OutSize)
		}
		if b.store.key != nil {
			n += f.size
		}
		most = max(most, n)
	}
	return most
}

// part is where a piece lies in the body of its batch.
func (b *batch) part(body []byte, p *piece) []byte {
	at := p.start - b.start
	return body[at : at+uint64(p.size)]
}

// wanted reports whether anybody waits for a chunk of the piece now.
func (p *piece) wanted() bool { return slices.ContainsFunc(p.flights, (*flight).wanted) }

// order is the pieces with those that somebody waits for in front.
func order(pieces []*piece) []*piece {
	rank := make(map[*piece]int, len(pieces))
	for _, p := range pieces {
		if !p.wanted() {
			rank[p] = 1
		}
	}
	slices.SortStableFunc(pieces, func(x, y *piece) int { return cmp.Compare(rank[x], rank[y]) })
	return pieces
}

// settle lands all flights of a piece. If its bytes are not what the image says,
// they are fetched once more, around anything shared, into the same memory. What
// lies in a unit may be in another place by another table.
func (e *Engine) settle(b *batch, p *piece, raw []byte) {
	bad, err := e.verify(b, p, raw)
	if len(bad) > 0 && isBad(err) {
		e.stats.badBackend.Add(1)
		e.logFailure(bad[0], "backend", err)
		e.stats.refetches.Add(1)
		p.flights = bad
		if err = e.refetch(b, p, raw); err == nil {
			if bad, err = e.verify(b, p, raw); len(bad) > 0 && b.ctx.Err() == nil {
				e.stats.badBackend.Add(1)
			}
		}
	}
	if len(bad) == 0 {
		return
	}
	b.release(bad)
	if p.unit != nil && isBad(err) {
		bad = e.elsewhere(bad[0].table, bad, b.class())
	}
	e.landAll(b, bad, err)
}

func isBad(err error) bool { return errors.Is(err, blob.ErrDigest) || errors.Is(err, blob.ErrCorrupt) }

// refetch holds the batch's memory and asks for a slot only, before all who wait
// for memory that it holds. Those who hold slots never wait for memory.
func (e *Engine) refetch(b *batch, p *piece, raw []byte) error {
	t := e.net.ticket(demand, 1, 0)
	t.first = true
	if err := t.acquire(b.ctx); err != nil {
		return err
	}
	defer t.release(1, 0)
	again := &batch{store: b.store, ticket: t}
	return e.request(backend.Fresh(b.ctx), again, raw, p.start)
}

// verify waits for a processor and unpacks a piece.
func (e *Engine) verify(b *batch, p *piece, raw []byte) (bad []*flight, err error) {
	t := e.cpu.ticket(b.class(), 1, 0)
	if err := t.acquire(b.ctx); err != nil {
		return p.flights, err
	}
	return e.unpack(b, p, raw, t)
}

// unpack decodes a piece into private memory, checks the digests there, and lands
// the flights that are right. It gives back the processor, and with each page the
// memory that the batch holds for it. The other flights are returned, with why.
func (e *Engine) unpack(b *batch, p *piece, raw []byte, cpu *ticket) (bad []*flight, err error) {
	if p.unit == nil {
		f := p.flights[0]
		page, err := e.openChunk(b, f, raw)
		cpu.release(1, 0)
		if err != nil {
			return p.flights, err
		}
		e.finish(f, page)
		return nil, nil
	}
	pages, bad, err := e.openUnit(b, p, raw)
	cpu.release(1, 0)
	for i, f := range p.flights {
		if pages[i] != nil {
			e.finish(f, pages[i])
		}
	}
	return bad, err
}

// finish keeps what a flight brought and lands it.
func (e *Engine) finish(f *flight, p *page) {
	e.fill(f, p.data)
	e.land(f, p, nil)
	p.drop()
}

// page makes a page of memory of the engine that a batch holds.
func (e *Engine) page(b *batch, data []byte) *page {
	return newPage(data, func(p *page) {
		e.bufs.put(p.data)
		b.ticket.release(0, int64(len(p.data)))
	})
}

// openChunk makes a verified page of a chunk of its own.
func (e *Engine) openChunk(b *batch, f *flight, raw []byte) (*page, error) {
	data := e.bufs.get(int(f.chunk.UncompressedSize))
	start := time.Now()
	err := e.decode(f, data, raw)
	if err == nil {
		e.stats.decodeNanos.Add(uint64(time.Since(start)))
		err = e.checkDigest(f, data)
	}
	if err != nil {
		e.bufs.put(data)
		return nil, err
	}
	return e.page(b, data), nil
}

func (e *Engine) decode(f *flight, data, raw []byte) error {
	how := f.store.info.Compressor
	if !f.chunk.Compressed {
		how = blob.CompressorNone
	}
	if !f.chunk.Encrypted {
		return codec.Decode(how, data, raw)
	}
	room := e.bufs.get(len(raw))
	defer e.bufs.put(room)
	return f.store.decrypt(room, raw, func(plain []byte) error { return codec.Decode(how, data, plain) })
}

// decrypt gives what raw is without its encryption, in room, to fn. Whether 18
// bytes are padded only fn can tell.
func (s *store) decrypt(room, raw []byte, fn func(plain []byte) error) error {
	if s.key == nil {
		return fmt.Errorf("%w: encrypted, and the blob has no key", blob.ErrCorrupt)
	}
	plain, err := s.key.Decrypt(room, raw)
	if err != nil {
		return fmt.Errorf("%w: %w", blob.ErrCorrupt, err)
	}
	short := xts.Trim(plain)
	if err = fn(short); err != nil && len(short) < len(plain) {
		err = fn(plain)
	}
	return err
}

// openUnit makes verified pages of the chunks of a unit; those that are wrong have
// none.
func (e *Engine) openUnit(b *batch, p *piece, raw []byte) (pages []*page, bad []*flight, err error) {
	pages = make([]*page, len(p.flights))
	out := e.bufs.get(int(p.unit.OutSize))
	defer e.bufs.put(out)
	start := time.Now()
	if err := e.decodeUnit(p, out, raw); err != nil {
		return pages, p.flights, err
	}
	e.stats.decodeNanos.Add(uint64(time.Since(start)))
	for i, f := range p.flights {
		part := out[f.place.Offset:][:f.chunk.UncompressedSize]
		if wrong := e.checkDigest(f, part); wrong != nil {
			bad, err = append(bad, f), wrong
			continue
		}
		data := e.bufs.get(len(part))
		copy(data, part)
		pages[i] = e.page(b, data)
	}
	return pages, bad, err
}

func (e *Engine) decodeUnit(p *piece, out, raw []byte) error {
	f := p.flights[0]
	if f.store.key == nil {
		return f.table.Decode(p.unit, out, raw)
	}
	room := e.bufs.get(len(raw))
	defer e.bufs.put(room)
	return f.store.decrypt(room, raw, func(plain []byte) error { return f.table.Decode(p.unit, out, plain) })
}
