package zstdenc

import (
	"encoding/binary"
	"math/bits"
)

const (
	// Tables of the largest inputs, as powers of two. With more entries frames become
	// a tenth of a percent smaller, and little else fits the second-level cache.
	longBits  = 16
	shortBits = 16

	// minMatch is the shortest match that is looked for.
	minMatch = 4
	// margin is what must be left of a block for a position to be looked at: eight
	// bytes there and at the next.
	margin = 9

	maxSequences = maxBlock/minMatch + 1

	prime = 0xcf1bbcdcb7a56463
)

// sequence is some literals and a match behind them (RFC 8878, 3.1.1.3.2).
type sequence struct {
	literals uint32
	match    uint32 // length less 3
	offset   uint32 // 1: repeats an earlier one, else that of the match plus 3
}

// params are how an input is searched, by its size.
type params struct {
	longShift, shortShift uint // of the hashes
	// places masks the low bits of an entry of a table, a place in the input. The
	// bits above are of the hash: most places that cannot match need not be looked
	// at.
	places uint32
}

// paramsFor chooses tables no larger than an input can fill: they stay in the
// processor's caches, and clearing them costs little.
func paramsFor(size int) params {
	need := max(8, bits.Len(uint(size-1)))
	return params{
		longShift: uint(64 - min(need, longBits)), shortShift: uint(64 - min(need, shortBits)),
		places: 1<<max(16, bits.Len(uint(size))) - 1,
	}
}

// hash is where in a table some bytes are looked for, and what an entry has of them.
type hash struct {
	at  uint64
	tag uint32
}

// long hashes eight bytes.
func (p *params) long(v uint64) hash {
	h := v * prime
	return hash{h >> (p.longShift & 63) & (1<<longBits - 1), uint32(h) &^ p.places}
}

// short hashes the four low bytes of v.
func (p *params) short(v uint64) hash {
	h := v << 32 * prime
	return hash{h >> (p.shortShift & 63) & (1<<shortBits - 1), uint32(h>>10) &^ p.places}
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }

// matchLen is how many bytes at a and at b, which is behind a, are the same.
func matchLen(src []byte, a, b int) int {
	n := 0
	left, right := src[a:], src[b:]
	left = left[:len(right)]
	for len(right)-n >= 8 {
		if x := binary.LittleEndian.Uint64(left[n:]) ^ binary.LittleEndian.Uint64(right[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for n < len(right) && left[n] == right[n] {
		n++
	}
	return n
}

// find fills seqs and literals with what block src[at:] is made of. It looks for
// eight equal bytes and, where there are none, for four, through one table each
// that knows the last place of each hash.
func (e *Encoder) find(src []byte, at int, p *params) {
	e.seqs, e.literals = e.seqs[:0], e.literals[:0]
	places := p.places
	limit := len(src) - margin
	// A table says 0 where it has nothing, so that place is never looked for.
	anchor, s := at, max(at, 1)
	rep0, rep1 := e.rep[0], e.rep[1]
	for s <= limit {
		v := load64(src, s)
		hl, hs := p.long(v), p.short(v)
		inLong, inShort := e.long[hl.at], e.short[hs.at]
		e.long[hl.at], e.short[hs.at] = hl.tag|uint32(s), hs.tag|uint32(s)
		first := s + 2

		var from, n int
		again := false
		switch {
		case s+1 >= rep0 && load32(src, s+1-rep0) == uint32(v>>8):
			// The offset of the last match, a byte further on.
			s, again = s+1, true
			n = 4 + matchLen(src, s-rep0+4, s+4)
		case inLong^hl.tag <= places && load64(src, int(inLong&places)) == v:
			from = int(inLong & places)
			n = 8 + matchLen(src, from+8, s+8)
		case inShort^hs.tag <= places && load32(src, int(inShort&places)) == uint32(v):
			from = int(inShort & places)
			// Eight at the next byte are better than four here.
			next := load64(src, s+1)
			hl = p.long(next)
			inLong = e.long[hl.at]
			e.long[hl.at] = hl.tag | uint32(s+1)
			if inLong^hl.tag <= places && load64(src, int(inLong&places)) == next {
				s, from = s+1, int(inLong&places)
			}
			n = 4 + matchLen(src, from+4, s+4)
		default:
			s += 1 + (s-anchor)>>9
			continue
		}
		offset := uint32(1)
		if !again {
			for s > anchor && from > 0 && src[s-1] == src[from-1] {
				s, from, n = s-1, from-1, n+1
			}
			rep1, rep0 = rep0, s-from
			offset = uint32(rep0) + 3
		}
		e.add(src[anchor:s], n, offset)
		if s += n; s <= limit {
			e.note(src, first, s, p)
			s, rep0, rep1 = e.repeats(src, s, rep0, rep1, p)
		}
		anchor = s
	}
	e.literals = append(e.literals, src[anchor:]...)
	e.rep = [2]int{rep0, rep1}
}

// repeats takes matches directly behind another, as long as they have the offset
// before the last one, and returns where they end.
func (e *Encoder) repeats(src []byte, s, rep0, rep1 int, p *params) (end, last, before int) {
	for s <= len(src)-margin && s >= rep1 && load32(src, s) == load32(src, s-rep1) {
		n := 4 + matchLen(src, s-rep1+4, s+4)
		rep0, rep1 = rep1, rep0
		v := load64(src, s)
		hl, hs := p.long(v), p.short(v)
		e.long[hl.at], e.short[hs.at] = hl.tag|uint32(s), hs.tag|uint32(s)
		e.add(nil, n, 1)
		s += n
	}
	return s, rep0, rep1
}

// note puts places inside a match into the tables: near its start, and before its end.
func (e *Encoder) note(src []byte, first, end int, p *params) {
	v := load64(src, first)
	hl, hs := p.long(v), p.short(v)
	e.long[hl.at], e.short[hs.at] = hl.tag|uint32(first), hs.tag|uint32(first)
	v = load64(src, end-2)
	hl, hs = p.long(v), p.short(v>>8)
	e.long[hl.at], e.short[hs.at] = hl.tag|uint32(end-2), hs.tag|uint32(end-1)
}

func (e *Encoder) add(literals []byte, match int, offset uint32) {
	e.literals = append(e.literals, literals...)
	e.seqs = append(e.seqs, sequence{uint32(len(literals)), uint32(match - 3), offset})
}
