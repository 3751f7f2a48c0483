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

// maxSequenceBytes bounds what one sequence takes: three states of at most 9 bits,
// lengths of at most 16 bits each and an offset of at most 30.
const maxSequenceBytes = 12

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
	literalExtra [36]uint8
	matchExtra   [53]uint8
)

// Baselines of the codes whose lengths have extra bits (RFC 8878, 3.1.1.3.2.1.1).
var (
	literalBases = [...]int{16, 18, 20, 22, 24, 28, 32, 40, 48, 64}
	matchBases   = [...]int{32, 34, 36, 38, 40, 44, 48, 56, 64, 80, 96, 128} // less 3
)

func init() {
	fillCodes(literalCodes[:], literalExtra[:], literalBases[:])
	fillCodes(matchCodes[:], matchExtra[:], matchBases[:])
}

func fillCodes(codes, extra []uint8, bases []int) {
	first := bases[0]
	for v := range codes {
		codes[v] = uint8(min(v, first))
		for i, base := range bases {
			if v >= base {
				codes[v] = uint8(first + i)
			}
		}
	}
	for i := range bases[:len(bases)-1] {
		extra[first+i] = uint8(bits.Len(uint(bases[i+1]-bases[i])) - 1)
	}
	// From the last one on each covers twice what the one before does.
	for c, n := first+len(bases)-1, bits.Len(uint(bases[len(bases)-1]))-1; c < len(extra); c++ {
		extra[c] = uint8(n)
		n++
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
	n := len(e.seqs)
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
	for _, s := range e.seqs {
		counts[literalLengths][literalCode(s.literals)&63]++
		counts[offsets][offsetCode(s.offset)&63]++
		counts[matchLengths][matchCode(s.match)&63]++
	}
	modes := len(dst)
	dst = append(dst, 0)
	for i := range e.codes {
		var mode byte
		mode, dst = e.codes[i].choose(dst, &alphabets[i], counts[i][:], n)
		dst[modes] |= mode << (6 - 2*i)
	}
	return append(dst, e.encode()...), true
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

// encode writes the bits of all sequences, from the last to the first, since the
// decoder reads them from the end (RFC 8878, 3.1.1.3.2.1.3).
func (e *Encoder) encode() []byte {
	w := bitWriter{out: e.bits}
	ll, of, ml := &e.codes[literalLengths].now, &e.codes[offsets].now, &e.codes[matchLengths].now
	last := e.seqs[len(e.seqs)-1]
	stateM := ml.start(matchCode(last.match))
	stateO := of.start(offsetCode(last.offset))
	stateL := ll.start(literalCode(last.literals))
	w.extra(last)
	for i := len(e.seqs) - 2; i >= 0; i-- {
		s := e.seqs[i]
		stateO = of.step(&w, stateO, offsetCode(s.offset))
		stateM = ml.step(&w, stateM, matchCode(s.match))
		stateL = ll.step(&w, stateL, literalCode(s.literals))
		w.flush()
		w.extra(s)
	}
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

// extra writes what the codes of a sequence leave open: at most 16, 16 and 30 bits, on
// top of 7 that were left.
func (w *bitWriter) extra(s sequence) {
	l, m, o := literalCode(s.literals), matchCode(s.match), offsetCode(s.offset)
	nl, nm := uint(literalExtra[l]), uint(matchExtra[m])
	w.add(uint64(s.literals)&(1<<nl-1), nl)
	w.add(uint64(s.match)&(1<<nm-1), nm)
	if nl+nm > 24 {
		w.flush()
	}
	w.add(uint64(s.offset)&(1<<o-1), uint(o))
	w.flush()
}
