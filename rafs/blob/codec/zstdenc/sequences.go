package zstdenc

import (
	"encoding/binary"
	"math/bits"
)

// The three alphabets of sequences, in the order of their tables in a block.
const (
	literalLengths = iota
	offsets
	matchLengths
	kinds
)

// maxSymbols bounds the symbols of an alphabet.
const maxSymbols = 53

// alphabet is one of the three (RFC 8878, 3.1.1.3.2.2).
type alphabet struct {
	maxLog     uint    // of a table, as a power of two
	defaultLog uint    // of the table that needs no description
	defaults   []int16 // its counts; -1: less than one
}

var alphabets = [kinds]alphabet{
	literalLengths: {9, 6, []int16{
		4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
	}},
	offsets: {8, 5, []int16{
		1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
	}},
	matchLengths: {9, 6, []int16{
		1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
	}},
}

// The codes of lengths: below the tables' ends by table, above by logarithm.
var (
	literalCodes [64]uint8
	matchCodes   [128]uint8
	literalBits  [64]span
	matchBits    [64]span
)

// span is the lengths of a code: extra bits tell which from base on.
type span struct {
	base  uint32
	extra uint8
}

// Baselines of the codes whose lengths have extra bits (RFC 8878, 3.1.1.3.2.1.1).
var (
	literalBases = [...]uint32{16, 18, 20, 22, 24, 28, 32, 40, 48, 64}
	matchBases   = [...]uint32{32, 34, 36, 38, 40, 44, 48, 56, 64, 80, 96, 128} // less 3
)

func init() {
	fillCodes(literalCodes[:], literalBits[:36], literalBases[:])
	fillCodes(matchCodes[:], matchBits[:53], matchBases[:])
}

func fillCodes(codes []uint8, spans []span, bases []uint32) {
	first := int(bases[0])
	for i := range spans {
		switch {
		case i < first:
			spans[i].base = uint32(i)
		case i < first+len(bases):
			spans[i].base = bases[i-first]
		default:
			spans[i].base = 2 * spans[i-1].base
		}
	}
	for i := range spans {
		end := 2 * spans[i].base
		if i+1 < len(spans) {
			end = spans[i+1].base
		}
		spans[i].extra = uint8(bits.Len32(end-spans[i].base) - 1)
		for v := spans[i].base; v < min(end, uint32(len(codes))); v++ {
			codes[v] = uint8(i)
		}
	}
}

func literalCode(n uint32) uint8 {
	if n < uint32(len(literalCodes)) {
		return literalCodes[n]
	}
	return uint8(bits.Len32(n) + 18)
}

func matchCode(n uint32) uint8 {
	if n < uint32(len(matchCodes)) {
		return matchCodes[n]
	}
	return uint8(bits.Len32(n) + 35)
}

func offsetCode(n uint32) uint8 { return uint8(bits.Len32(n) - 1) }

// appendSequences appends the sequences section. The result tells whether it has
// sequences, and so tables that the next block may use again.
func (e *Encoder) appendSequences(dst []byte) (out []byte, any bool) {
	n := e.seqs
	switch {
	case n == 0:
		return append(dst, 0), false
	case n < 128:
		dst = append(dst, byte(n))
	case n < 0x7f00:
		dst = append(dst, byte(n>>8)+128, byte(n))
	default:
		dst = append(dst, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	var counts [kinds][64]uint32
	e.split(&counts)
	modes := len(dst)
	dst = append(dst, 0)
	for i := range e.codes {
		var mode byte
		mode, dst = e.codes[i].choose(dst, &alphabets[i], counts[i][:], n)
		dst[modes] |= mode << (6 - 2*i)
	}
	return append(dst, e.encode()...), true
}

// split takes each sequence apart: seqCodes get its codes, of literals, match and
// offset in one byte each from the lowest on, and above them how many bits the codes
// leave open; seq keeps those bits, at most 56, in the order they are written in.
func (e *Encoder) split(counts *[kinds][64]uint32) {
	seq, codes := e.seq[:e.seqs], e.seqCodes[:e.seqs]
	for i, s := range seq {
		literals, match, offset := s.literals(), s.match(), s.offset()
		l, m, o := literalCode(literals)&63, matchCode(match)&63, offsetCode(offset)&63
		counts[literalLengths][l]++
		counts[offsets][o]++
		counts[matchLengths][m]++
		ll, ml := &literalBits[l], &matchBits[m]
		seq[i] = sequence(literals-ll.base) |
			sequence(match-ml.base)<<(ll.extra&63) |
			sequence(offset^1<<(o&31))<<(ml.extra+ll.extra&63)
		codes[i] = uint32(l) | uint32(m)<<8 | uint32(o)<<16 | uint32(ll.extra+ml.extra+o)<<24
	}
}

// encode writes the bits of all sequences, from the last to the first, since the
// decoder reads them from the end (RFC 8878, 3.1.1.3.2.1.3). It stops where they are
// more than a block, which is then left raw.
func (e *Encoder) encode() []byte {
	out := &e.bits
	seq, codes := e.seq[:e.seqs], e.seqCodes[:e.seqs]
	ll, of, ml := &e.codes[literalLengths].now, &e.codes[offsets].now, &e.codes[matchLengths].now
	last := len(seq) - 1
	c := codes[last]
	stateL, stateM, stateO := ll.start(c), ml.start(c>>8), of.start(c>>16)
	acc, n, at := uint64(seq[last]), c>>24, 0
	for i := last - 1; i >= 0 && at <= maxBlock; i-- {
		c := codes[i]
		// This leaves at most 7 bits, and states give 26.
		binary.LittleEndian.PutUint64(out[at:at+8], acc)
		at += int(n >> 3)
		acc >>= n &^ 7 & 63
		n &= 7

		to, tm, tl := &of.symbols[c>>16&63], &ml.symbols[c>>8&63], &ll.symbols[c&63]
		nO, nM, nL := (stateO+to.bits)>>16, (stateM+tm.bits)>>16, (stateL+tl.bits)>>16
		restO, restM, restL := stateO>>(nO&31), stateM>>(nM&31), stateL>>(nL&31)
		v := stateO ^ restO<<(nO&31)
		v |= (stateM ^ restM<<(nM&31)) << (nO & 31)
		v |= (stateL ^ restL<<(nL&31)) << ((nO + nM) & 31)
		stateO = uint32(of.next[(restO+to.find)&511])
		stateM = uint32(ml.next[(restM+tm.find)&511])
		stateL = uint32(ll.next[(restL+tl.find)&511])
		acc |= uint64(v) << (n & 63)
		n += nO + nM + nL
		if n+c>>24 > 63 {
			binary.LittleEndian.PutUint64(out[at:at+8], acc)
			at += int(n >> 3)
			acc >>= n &^ 7 & 63
			n &= 7
		}
		acc |= uint64(seq[i]) << (n & 63)
		n += c >> 24
	}
	w := bitWriter{out: out[:], acc: acc, n: uint(n), at: at}
	w.flush()
	w.add(uint64(stateM)&(1<<ml.log-1), ml.log)
	w.add(uint64(stateO)&(1<<of.log-1), of.log)
	w.add(uint64(stateL)&(1<<ll.log-1), ll.log)
	w.add(1, 1) // marks the end
	w.flush()
	if w.n > 0 {
		w.at++
	}
	return e.bits[:w.at]
}

// bitWriter writes bits from the lowest on. It is emptied before it can overflow.
type bitWriter struct {
	acc uint64
	n   uint
	out []byte
	at  int
}

func (w *bitWriter) add(v uint64, n uint) {
	w.acc |= v << (w.n & 63)
	w.n += n
}

// flush leaves at most 7 bits.
func (w *bitWriter) flush() {
	binary.LittleEndian.PutUint64(w.out[w.at:], w.acc)
	w.at += int(w.n >> 3)
	w.acc >>= w.n &^ 7 & 63
	w.n &= 7
}
