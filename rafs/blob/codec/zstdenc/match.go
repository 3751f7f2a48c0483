package zstdenc

import (
	"encoding/binary"
	"math/bits"
)

const (
	// tableBits is the size of the tables of the largest inputs, as a power of two.
	// With more entries frames become a tenth of a percent smaller, and little else
	// fits the second-level cache.
	tableBits = 16

	// minMatch is the shortest match that is looked for.
	minMatch = 4
	// near is how far back a match of four bytes may be: the offset of one further
	// away takes about as many bits as the bytes do.
	near = 8 << 10
	// margin is what must be left of a block for a position to be looked at: eight
	// bytes there and at the next.
	margin = 9
	// skipBits is after how many bytes without a match one more is left out at each
	// step, as a power of two.
	skipBits = 9

	maxSequences = maxBlock/minMatch + 1
	// slack is how much more than the literals of a block may be written: short runs
	// of them are copied sixteen at a time.
	slack = 16

	prime = 0xcf1bbcdcb7a56463
)

// sequence is some literals and a match behind them (RFC 8878, 3.1.1.3.2): from the
// lowest bit on 18 bits of how many literals, 18 of the length of the match less 3,
// and the offset, 1 if it repeats an earlier one, else that of the match plus 3.
type sequence uint64

func (s sequence) literals() uint32 { return uint32(s) & (1<<18 - 1) }
func (s sequence) match() uint32    { return uint32(s>>18) & (1<<18 - 1) }
func (s sequence) offset() uint32   { return uint32(s >> 36) }

// places know where bytes with a hash were seen last. The low bits of an entry are
// the place in the input, those above are of the hash: most places that cannot match
// need not be looked at.
type places [1 << tableBits]uint32

// params are how an input is searched, by its size.
type params struct {
	shift uint   // of the hashes
	tags  uint32 // masks the bits of an entry that are of the hash
}

// paramsFor chooses tables no larger than an input can fill: they stay in the
// processor's caches, and clearing them costs little.
func paramsFor(size int) params {
	return params{
		shift: uint(64 - min(max(8, bits.Len(uint(size-1))), tableBits)),
		tags:  ^uint32(1<<max(16, bits.Len(uint(size))) - 1),
	}
}

// put notes that v is at place s. The result is what was noted before; it is a
// place if it has none of the tags.
func (p *params) put(t *places, v uint64, s int) uint32 {
	h := v * prime
	slot := &t[h>>(p.shift&63)&(1<<tableBits-1)]
	entry := uint32(h)&p.tags | uint32(s)
	before := *slot ^ entry ^ uint32(s)
	*slot = entry
	return before
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8 : i+8]) }

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i : i+4 : i+4]) }

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

// find fills seq and literals with what block src[at:] is made of.
func (e *Encoder) find(src []byte, at int, p *params) {
	if e.rep[0] > at+1 { // search does not look again
		panic("zstdenc: offset from another frame")
	}
	anchor := search(e, src, at, p.shift, p.tags)
	e.lits += copy(e.literals[e.lits:], src[anchor:])
}

// searchGo finds the sequences of block src[at:]. It looks for eight equal bytes and,
// where there are none, for four, through one table each that knows the last place
// of each hash. The result is where the last match ends.
func searchGo(e *Encoder, src []byte, at int, shift uint, tags uint32) (anchor int) {
	p := &params{shift, tags}
	e.seqs, e.lits = 0, 0
	limit := len(src) - margin
	// A table says 0 where it has nothing, so that place is never looked for.
	anchor = at
	rep0, rep1 := e.rep[0], e.rep[1]
	for s := max(at, 1); s <= limit; {
		v, next := load64(src, s), load64(src, s+1)
		long := p.put(&e.long, v, s)
		short := p.put(&e.short, uint64(uint32(v)), s)
		first := s + 2
		from, offset := 0, 1
		x := load64(src, s+1-rep0) ^ next // 0 where eight bytes match
		again := uint32(x) == 0
		switch {
		case again:
			// The offset of the last match, a byte further on.
			s++
			from = s - rep0
		case long&tags == 0 && load64(src, int(long)) == v:
			from, x = int(long), 0
		case short&tags == 0 && load32(src, int(short)) == uint32(v):
			from, x = int(short), load64(src, int(short))^v
			if s-from > near && uint8(x>>32) != 0 {
				s += 1 + (s-anchor)>>skipBits
				continue
			}
			// Eight at the next byte are better than four here.
			if long = p.put(&e.long, next, s+1); long&tags == 0 && load64(src, int(long)) == next {
				s, from, x = s+1, int(long), 0
			}
		default:
			s += 1 + (s-anchor)>>skipBits
			continue
		}
		n := bits.TrailingZeros64(x) >> 3
		if x == 0 {
			n = 8 + matchLen(src, from+8, s+8)
		}
		if !again {
			for s > anchor && from > 0 && src[s-1] == src[from-1] {
				s, from, n = s-1, from-1, n+1
			}
			rep1, rep0 = rep0, s-from
			offset = rep0 + 3
		}
		e.add(src, anchor, s-anchor, n, offset)
		if s += n; s <= limit {
			p.note(e, src, first, s)
			s, rep0, rep1 = p.repeats(e, src, s, rep0, rep1)
		}
		anchor = s
	}
	e.rep = [2]int{rep0, rep1}
	return anchor
}

// note puts places inside a match into the tables: near its start, and before its end.
func (p *params) note(e *Encoder, src []byte, first, end int) {
	v := load64(src, first)
	p.put(&e.long, v, first)
	p.put(&e.short, uint64(uint32(v)), first)
	v = load64(src, end-2)
	p.put(&e.long, v, end-2)
	p.put(&e.short, uint64(uint32(v>>8)), end-1)
}

// repeats takes matches directly behind another, as long as they have the offset
// before the last one, and returns where they end.
func (p *params) repeats(e *Encoder, src []byte, s, rep0, rep1 int) (end, last, before int) {
	for s <= len(src)-margin && s >= rep1 && load32(src, s) == load32(src, s-rep1) {
		n := 4 + matchLen(src, s-rep1+4, s+4)
		rep0, rep1 = rep1, rep0
		v := load64(src, s)
		p.put(&e.long, v, s)
		p.put(&e.short, uint64(uint32(v)), s)
		e.add(src, s, 0, n, 1)
		s += n
	}
	return s, rep0, rep1
}

// add adds the sequence of some literals, which begin at anchor, and a match.
func (e *Encoder) add(src []byte, anchor, literals, match, offset int) {
	e.seq[e.seqs] = sequence(literals) | sequence(match-3)<<18 | sequence(offset)<<36
	e.seqs++
	if literals > slack || anchor+slack > len(src) {
		e.lits += copy(e.literals[e.lits:], src[anchor:anchor+literals])
		return
	}
	*(*[slack]byte)(e.literals[e.lits : e.lits+slack]) = *(*[slack]byte)(src[anchor : anchor+slack])
	e.lits += literals
}
