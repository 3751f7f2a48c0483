package zran

// A Huffman table maps the next bits of the input to an entry. Codes of up to
// root bits are found at once; longer ones by a second table behind the first.
const (
	litRoot  = 11
	distRoot = 8
	lenRoot  = 7

	// The most entries that any set of codes needs, second tables included
	// (zlib's examples/enough.c, for 288 and 32 symbols of up to 15 bits).
	litEntries  = 2342
	distEntries = 402
	lenEntries  = 1 << lenRoot

	maxCodeLen = 15
)

// An entry holds, from its lowest bit: the bits to consume, those of the code and
// its extra bits (8); the bits of the code alone (4); flags (4); a value (15); and
// whether it is a literal (1).
type entry = uint32

const (
	entryUsed    = 0xff
	entryCode    = 8 // shift
	entryValue   = 16
	entrySpecial = 0x1000 // one of the next three, or no code at all
	entryEnd     = 0x2000 // end of block
	entrySecond  = 0x4000 // value is the second table, code the width of its index
	entryLiteral = 1 << 31
)

// value is what e stands for.
func value(e entry) int { return int(e >> entryValue & 0x7fff) }

var (
	litSymbols  [288]entry
	distSymbols [32]entry
	lenSymbols  [19]entry
	fixedLit    [litEntries]entry
	fixedDist   [distEntries]entry
)

// RFC 1951, 3.2.5: the lengths of symbols 257 to 285 and the distances, by the
// number of their extra bits.
func init() {
	for i := range litSymbols {
		litSymbols[i] = entrySpecial
		if i < 256 {
			litSymbols[i] = entryLiteral | entry(i)<<entryValue
		}
	}
	litSymbols[256] = entrySpecial | entryEnd
	length := 3
	for i := range 28 {
		extra := max(i/4-1, 0)
		litSymbols[257+i] = entry(length)<<entryValue | entry(extra)
		length += 1 << extra
	}
	litSymbols[285] = 258 << entryValue
	dist := 1
	for i := range distSymbols {
		distSymbols[i] = entrySpecial
		if i < 30 {
			extra := max(i/2-1, 0)
			distSymbols[i] = entry(dist)<<entryValue | entry(extra)
			dist += 1 << extra
		}
	}
	for i := range lenSymbols {
		lenSymbols[i] = entry(i) << entryValue
	}
	var lens [320]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		case i < 288:
			lens[i] = 8
		default:
			lens[i] = 5
		}
	}
	if !build(fixedLit[:], litRoot, lens[:288], litSymbols[:]) || !build(fixedDist[:], distRoot, lens[288:], distSymbols[:]) {
		panic("zran: the fixed codes are no codes")
	}
}

// build fills a table from the lengths of the codes of all symbols, 0 meaning
// that there is none. It returns false if these lengths are no prefix code, or
// one that leaves bits without meaning; but no code, or a single one of one bit,
// will do (RFC 1951, 3.2.7, and what zlib accepts).
func build(table []entry, root uint, lens []uint8, symbols []entry) bool {
	var count, next [maxCodeLen + 2]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	longest, left := 0, 1
	for l := 1; l <= maxCodeLen; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		if count[l] > 0 {
			longest = l
		}
		next[l+1] = next[l] + count[l]
	}
	if longest <= 1 && left > 0 {
		for i := range table[:1<<root] {
			table[i] = entrySpecial
		}
	} else if left > 0 {
		return false
	}
	var order [288]uint16 // symbols by code
	for s, l := range lens {
		if l != 0 {
			order[next[l]] = uint16(s)
			next[l]++
		}
	}
	return fill(table, root, &count, order[:next[longest]], symbols)
}

// fill enters the symbols, which are in the order of their codes.
func fill(table []entry, root uint, count *[maxCodeLen + 2]int, order []uint16, symbols []entry) bool {
	code, length := uint(0), uint(1) // the code with its first bit lowest
	free := 1 << root                // where the next second table goes
	prefix, width, at := uint(1<<root), uint(0), 0
	left := count[1]
	for _, s := range order {
		for left == 0 {
			length++
			left = count[length]
		}
		left--
		e := symbols[s]
		if length <= root {
			e += entry(length)<<entryCode | entry(length)
			for i := code; i < 1<<root; i += 1 << length {
				table[i] = e
			}
		} else {
			if p := code & (1<<root - 1); p != prefix {
				prefix, at = p, free
				width = second(count, root, length, left+1) - root
				free += 1 << width
				if free > len(table) {
					return false
				}
				table[p] = entrySpecial | entrySecond | entry(at)<<entryValue | entry(width)<<entryCode | entry(root)
			}
			e += entry(length-root)<<entryCode | entry(length-root)
			for i := code >> root; i < 1<<width; i += 1 << (length - root) {
				table[at+int(i)] = e
			}
		}
		// The next code of this length; going on to a longer one appends zeros.
		bit := uint(1) << (length - 1)
		for code&bit != 0 {
			bit >>= 1
		}
		code = code&(bit-1) | bit
	}
	return true
}

// second is the length of the longest code that shares its first root bits with
// one of this length, the first of left of them. The codes are complete: what
// those leave of the room, longer ones fill.
func second(count *[maxCodeLen + 2]int, root, length uint, left int) uint {
	room := 1<<(length-root) - left
	for room > 0 && length < maxCodeLen {
		length++
		room = room<<1 - count[length]
	}
	return length
}
