package zstdenc

import (
	"github.com/klauspost/compress/huff0"
)

// The types of a literals section (RFC 8878, 3.1.1.3.1).
const (
	literalsRaw        = 0
	literalsRLE        = 1
	literalsCompressed = 2
	literalsTreeless   = 3
)

const (
	// minHuffman is how many literals a Huffman code is tried for.
	minHuffman = 32
	// fourStreams is from how many on they are split, which decoders are faster at.
	fourStreams = 1 << 10
	// certain is from how many on huff0 knows noise by the count of its commonest byte.
	certain = 1 << 13
	// symbolCost is about the least that a symbol takes in the description of a table
	// of many, as a cost.
	symbolCost = 1 << logFraction
)

// appendLiterals appends the literals section. The result tells whether it has a
// Huffman table that the next block may use again.
func (e *Encoder) appendLiterals(dst []byte) (out []byte, table bool) {
	lit := e.literals[:e.lits]
	if len(lit) < minHuffman || hopeless(lit) {
		return append(appendSimple(dst, literalsRaw, len(lit)), lit...), false
	}
	var packed []byte
	var reused bool
	var err error
	single := len(lit) < fourStreams
	if single {
		packed, reused, err = huff0.Compress1X(lit, &e.huff)
	} else {
		packed, reused, err = huff0.Compress4X(lit, &e.huff)
	}
	switch {
	case err == huff0.ErrUseRLE:
		return append(appendSimple(dst, literalsRLE, len(lit)), lit[0]), false
	case err != nil || len(packed) >= len(lit):
		return append(appendSimple(dst, literalsRaw, len(lit)), lit...), false
	}
	kind := uint64(literalsCompressed)
	if reused {
		kind = literalsTreeless
	}
	return append(appendSizes(dst, kind, len(lit), len(packed), single), packed...), true
}

// hopeless tells whether lit is so short and mixed that no Huffman code, with its
// table, makes it shorter. huff0 is as sure of what is longer, but of this only when it
// is done, and short noise takes it long: sorting 256 symbols most of all.
func hopeless(lit []byte) bool {
	n := uint64(len(lit))
	if n >= certain {
		return false
	}
	var counts [256]uint32
	for _, c := range lit {
		counts[c]++
	}
	var symbols, saved uint64
	for _, c := range counts {
		if c > 0 {
			symbols++
			saved += uint64(c) * log2(c)
		}
	}
	entropy := n*log2(uint32(n)) - saved
	return entropy+symbols*symbolCost > n*8<<logFraction
}

// appendSimple appends the header of literals that are not coded.
func appendSimple(dst []byte, kind, n int) []byte {
	switch {
	case n < 1<<5:
		return append(dst, byte(kind|n<<3))
	case n < 1<<12:
		return append(dst, byte(kind|1<<2|n<<4), byte(n>>4))
	}
	return append(dst, byte(kind|3<<2|n<<4), byte(n>>4), byte(n>>12))
}

// appendSizes appends the header of coded literals.
func appendSizes(dst []byte, kind uint64, n, packed int, single bool) []byte {
	format, width := uint64(1), uint(10)
	switch {
	case single:
		format = 0
	case max(n, packed) >= 1<<14:
		format, width = 3, 18
	case max(n, packed) >= 1<<10:
		format, width = 2, 14
	}
	h := kind | format<<2 | uint64(n)<<4 | uint64(packed)<<(4+width)
	for bytes := (4 + 2*width + 7) / 8; bytes > 0; bytes-- {
		dst = append(dst, byte(h))
		h >>= 8
	}
	return dst
}
