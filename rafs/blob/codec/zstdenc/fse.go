package zstdenc

import (
	"math"
	"math/bits"
)

// How a block says what table an alphabet has (RFC 8878, 3.1.1.3.2.1).
const (
	modeDefault = 0
	modeRLE     = 1
	modeTable   = 2
	modeRepeat  = 3
)

// table encodes symbols with finite state entropy (RFC 8878, 4.1).
type table struct {
	log uint
	// norm are the shares of the symbols of 1<<log; -1 is one that is less than one
	// share.
	norm [maxSymbols]int16
	// next are states, those that encode one symbol together.
	next [1 << 9]uint16
	// symbols say how each is encoded.
	symbols [64]transition
}

// transition encodes one symbol. A state plus bits, shifted right by 16, is how many
// bits of the state are written; what is left of it plus find is the place of the
// next state.
type transition struct {
	bits uint32
	find uint32 // may be negative
}

// coder is an alphabet in a frame.
type coder struct {
	now      table
	previous table
	// repeatable: the decoder has the table of the block before.
	repeatable bool
}

func (c *coder) forget() { c.repeatable = false }

// keep notes that the decoder will see the block that was just encoded.
func (c *coder) keep() {
	c.previous.log, c.previous.norm = c.now.log, c.now.norm
	c.repeatable = c.now.log > 0
}

// start is the state before the last symbol.
func (t *table) start(symbol uint32) uint32 {
	tr := t.symbols[symbol&63]
	n := (tr.bits + 1<<15) >> 16
	v := n<<16 - tr.bits
	return uint32(t.next[(v>>(n&31)+tr.find)&511])
}

// single makes t the table of one symbol, which takes no bits.
func (t *table) single(symbol int) {
	t.log = 0
	t.symbols[symbol] = transition{}
	t.next[0] = 0
}

// choose picks the cheapest way to encode symbols that occur so often, n in all,
// makes now the table for it and appends its description to dst.
func (c *coder) choose(dst []byte, a *alphabet, counts []uint32, n int) (byte, []byte) {
	top := 0
	for s, count := range counts {
		if int(count) == n {
			c.now.single(s)
			return modeRLE, append(dst, byte(s))
		}
		if count > 0 {
			top = s
		}
	}
	counts = counts[:top+1]
	best, mode := never, byte(modeDefault)
	if top < len(a.defaults) {
		best = cost(a.defaultLog, a.defaults, counts)
	}
	if c.repeatable {
		if again := cost(c.previous.log, c.previous.norm[:], counts); again <= best {
			best, mode = again, modeRepeat
		}
	}
	var own table
	own.normalize(counts, n, a.maxLog)
	start := len(dst)
	dst = own.appendDescription(dst, top)
	if cost(own.log, own.norm[:], counts)+uint64(len(dst)-start)<<(3+logFraction) < best {
		c.now.log, c.now.norm = own.log, own.norm
		c.now.build()
		return modeTable, dst
	}
	dst = dst[:start]
	if mode == modeRepeat {
		c.now.log, c.now.norm = c.previous.log, c.previous.norm
	} else {
		c.now.log, c.now.norm = a.defaultLog, [maxSymbols]int16{}
		copy(c.now.norm[:], a.defaults)
	}
	c.now.build()
	return mode, dst
}

// logFraction is how many bits of a logarithm lie behind the point. Costs are
// integers, since floating point may come out otherwise on another processor, and
// with it the choice of a table.
const logFraction = 16

// log2s are the logarithms of what a share can be.
var log2s = func() (t [1<<9 + 1]uint64) {
	const point = 31
	for i := range t {
		n := bits.Len(uint(max(i, 1))) - 1
		log := uint64(n)
		// Squaring doubles a logarithm, which moves its next bit before the point.
		for x, b := uint64(max(i, 1))<<(point-n), 0; b < logFraction; b++ {
			x = x * x >> point
			log <<= 1
			if x >= 2<<point {
				x >>= 1
				log |= 1
			}
		}
		t[i] = log
	}
	return t
}()

// log2 is the logarithm of n, a little less for one that is large.
func log2(n uint32) uint64 {
	k := max(0, bits.Len32(n)-9)
	return uint64(k)<<logFraction + log2s[n>>k]
}

// never is more than anything costs.
const never uint64 = math.MaxUint64

// cost is how many bits, times 1<<logFraction, symbols take that occur so often.
func cost(log uint, norm []int16, counts []uint32) (sum uint64) {
	for s, count := range counts {
		if count == 0 {
			continue
		}
		if norm[s] == 0 {
			return never
		}
		sum += uint64(count) * (uint64(log)<<logFraction - log2s[max(norm[s], 1)])
	}
	return sum
}

// normalize shares 1<<log states among the symbols so that the result is short: each
// gets what it has, rounded down but at least one, and what is left goes where
// one more saves most.
func (t *table) normalize(counts []uint32, n int, maxLog uint) {
	symbols := 0
	for _, c := range counts {
		if c > 0 {
			symbols++
		}
	}
	log := min(maxLog, uint(max(bits.Len(uint(n-1))-2, 1)))
	log = max(5, min(log, maxLog), uint(bits.Len(uint(symbols))))
	t.log = log
	t.norm = [maxSymbols]int16{}
	left := 1 << log
	for s, c := range counts {
		if c > 0 {
			share := max(1, int(uint64(c)<<log/uint64(n)))
			t.norm[s] = int16(share)
			left -= share
		}
	}
	for ; left > 0; left-- {
		t.norm[t.widest(counts, 1)]++
	}
	for ; left < 0; left++ {
		t.norm[t.widest(counts, -1)]--
	}
}

// widest is the symbol whose cost changes best if its share grows by d.
func (t *table) widest(counts []uint32, d int) int {
	best, at := int64(math.MinInt64), 0
	for s, c := range counts {
		share := int(t.norm[s])
		if c == 0 || share+d < 1 {
			continue
		}
		if gain := int64(c) * int64(log2s[share+d]-log2s[share]); gain > best {
			best, at = gain, s
		}
	}
	return at
}

// appendDescription appends the shares as RFC 8878, 4.1.1 has them.
func (t *table) appendDescription(dst []byte, top int) []byte {
	acc, n := uint64(t.log-5), uint(4)
	put := func(v uint64, bits uint) {
		acc |= v << n
		for n += bits; n >= 8; n -= 8 {
			dst = append(dst, byte(acc))
			acc >>= 8
		}
	}
	left := 1<<t.log + 1 // shares that are still open, and one
	for s := 0; s <= top && left > 1; s++ {
		share := int(t.norm[s])
		// Values are 0 to left: few bits for the small ones.
		width := uint(bits.Len(uint(left)))
		small := 1<<width - 1 - left
		v := share + 1
		switch {
		case v < small:
			put(uint64(v), width-1)
		case v < 1<<(width-1):
			put(uint64(v), width)
		default:
			put(uint64(v+small), width)
		}
		left -= max(share, -share)
		if share != 0 {
			continue
		}
		// How many more zeros follow.
		zeros := 0
		for s+1+zeros <= top && t.norm[s+1+zeros] == 0 {
			zeros++
		}
		s += zeros
		for ; zeros >= 3; zeros -= 3 {
			put(3, 2)
		}
		put(uint64(zeros), 2)
	}
	if n > 0 {
		dst = append(dst, byte(acc))
	}
	return dst
}

// build makes next and symbols of norm (RFC 8878, 4.1.1: the spread of symbols).
func (t *table) build() {
	size := 1 << t.log
	var order [1 << 9]uint8
	high := size
	var first [maxSymbols + 1]int32
	for s, share := range t.norm {
		if share < 0 {
			high--
			order[high] = uint8(s)
			share = 1
		}
		first[s+1] = first[s] + int32(share)
	}
	at, step := 0, size>>1+size>>3+3
	for s, share := range t.norm {
		for range max(share, 0) {
			order[at] = uint8(s)
			for at = (at + step) & (size - 1); at >= high; {
				at = (at + step) & (size - 1)
			}
		}
	}
	for s, share := range t.norm {
		if share = max(share, -share); share == 0 {
			continue
		}
		// A state without its n lowest bits is share to 2*share-1; n is one less for
		// states below share<<n.
		n := uint32(t.log)
		if share > 1 {
			n = uint32(int(t.log) + 1 - bits.Len(uint(share-1)))
		}
		t.symbols[s] = transition{bits: n<<16 - uint32(share)<<n, find: uint32(first[s] - int32(share))}
	}
	for u := range size {
		s := order[u]
		t.next[first[s]] = uint16(size + u)
		first[s]++
	}
}
