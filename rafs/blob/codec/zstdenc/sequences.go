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

// span says of a length its code, how many bits the code leaves open, from bit 8 on,
// and those bits, from bit 16 on.
type span uint32

// Lengths below the ends of these have their spans by table, those above by logarithm.
var (
	literalSpans [64]span
	matchSpans   [128]span // of lengths less 3
)

// Baselines of the codes whose lengths have extra bits (RFC 8878, 3.1.1.3.2.1.1).
var (
	literalBases = [...]uint32{16, 18, 20, 22, 24, 28, 32, 40, 48, 64}
	matchBases   = [...]uint32{32, 34, 36, 38, 40, 44, 48, 56, 64, 80, 96, 128} // less 3
)

func init() {
	fillSpans(literalSpans[:], literalBases[:])
	fillSpans(matchSpans[:], matchBases[:])
}

func fillSpans(spans []span, bases []uint32) {
	first := int(bases[0])
	for i := range first {
		spans[i] = span(i)
	}
	for i, base := range bases {
		end := 2 * base
		if i+1 < len(bases) {
			end = bases[i+1]
		}
		extra := span(bits.Len32(end-base) - 1)
		for v := base; v < min(end, uint32(len(spans))); v++ {
			spans[v] = span(first+i) | extra<<8 | span(v-base)<<16
		}
	}
}

func literalSpan(n uint32) span {
	if n < uint32(len(literalSpans)) {
		return literalSpans[n]
	}
	return logSpan(n, 19)
}

func matchSpan(n uint32) span {
	if n < uint32(len(matchSpans)) {
		return matchSpans[n]
	}
	return logSpan(n, 36)
}

// logSpan is the span of a length below 1<<17, of which the code is its logarithm and code.
func logSpan(n, code uint32) span {
	log := uint32(bits.Len32(n) - 1)
	return span(log + code | log<<8 | (n^1<<(log&31))<<16)
}

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
		l, m, offset := literalSpan(s.literals()), matchSpan(s.match()), s.offset()
		o := uint32(bits.Len32(offset) - 1)
		counts[literalLengths][l&63]++
		counts[matchLengths][m&63]++
		counts[offsets][o&63]++
		openL, openM := uint32(l>>8&31), uint32(m>>8&31)
		seq[i] = sequence(l>>16) | sequence(m>>16)<<openL | sequence(offset^1<<(o&31))<<((openL+openM)&63)
		codes[i] = uint32(l&63) | uint32(m&63)<<8 | o<<16 | (openL+openM+o)<<24
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
