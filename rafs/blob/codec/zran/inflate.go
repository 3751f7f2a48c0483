package zran

import (
	"errors"
	"fmt"
	"io"
)

// event is why run returned.
type event uint8

const (
	eventFull  event = iota // the output that was asked for is there
	eventBlock              // a deflate block ended; another one follows
	eventEnd                // the last block ended
)

type blockState uint8

const (
	inHeader blockState = iota // before the header of a block
	inStored
	inCodes
	atEnd
)

// inflater inflates raw deflate data (RFC 1951). Unlike compress/flate it stops
// at the boundary of every block and knows to the bit where it is, and it starts
// in the middle of a stream.
type inflater struct {
	in     input
	state  blockState
	final  bool
	stored int // bytes left of a stored block
	lit    *[litEntries]entry
	dist   *[distEntries]entry

	ownLit  [litEntries]entry
	ownDist [distEntries]entry
}

// output is where run writes. What it looks back at is before w: buf from start,
// and before that dict.
type output struct {
	buf   []byte
	w     int
	start int
	dict  []byte
}

// restart makes the next bits those of the header of a first block.
func (z *inflater) restart() {
	z.state, z.final, z.stored = inHeader, false, 0
}

// run inflates until the output has reached limit or a block has ended. It may
// write past limit, to the end of o.buf; a match that goes even further is cut
// off, so a limit that is not the last has room for maxMatch bytes after it.
func (z *inflater) run(o *output, limit int) (event, error) {
	for {
		switch z.state {
		case inHeader:
			if o.w >= limit {
				return eventFull, nil
			}
			if err := z.header(); err != nil {
				return 0, err
			}
		case inStored:
			if z.stored == 0 {
				return z.endBlock(), nil
			}
			if o.w >= limit {
				return eventFull, nil
			}
			n := z.in.bytes(o.buf[o.w:min(limit, o.w+z.stored)])
			o.w += n
			z.stored -= n
			if z.stored > 0 && o.w < limit {
				return 0, z.short()
			}
		case inCodes:
			if o.w >= limit {
				return eventFull, nil
			}
			ended, err := z.codes(o, limit)
			if err != nil {
				return 0, err
			}
			if ended {
				return z.endBlock(), nil
			}
		case atEnd:
			return eventEnd, nil
		}
	}
}

func (z *inflater) endBlock() event {
	if z.final {
		z.state = atEnd
		return eventEnd
	}
	z.state = inHeader
	return eventBlock
}

// short is the error of an input that ends too early.
func (z *inflater) short() error {
	if err := z.in.err; err != nil && err != io.EOF {
		return err
	}
	return fmt.Errorf("deflate data ends at byte %d: %w", z.in.bytePos(), io.ErrUnexpectedEOF)
}

// bad is the error of data that is no deflate data.
func (z *inflater) bad(format string, a ...any) error {
	return fmt.Errorf("%w: deflate data at byte %d: %s", errFormat, z.in.bytePos(), fmt.Sprintf(format, a...))
}

var errFormat = errors.New("malformed")

// header reads the header of a block.
func (z *inflater) header() error {
	if !z.in.need(3) {
		return z.short()
	}
	z.final = z.in.take(1) == 1
	switch kind := z.in.take(2); kind {
	case 0:
		return z.storedHeader()
	case 1:
		z.lit, z.dist = &fixedLit, &fixedDist
	case 2:
		if err := z.dynamicHeader(); err != nil {
			return err
		}
		z.lit, z.dist = &z.ownLit, &z.ownDist
	default:
		return z.bad("block type 3")
	}
	z.state = inCodes
	return nil
}

func (z *inflater) storedHeader() error {
	z.in.drop(z.in.n & 7)
	if !z.in.need(32) {
		return z.short()
	}
	size, inverse := z.in.take(16), z.in.take(16)
	if size != inverse^0xffff {
		return z.bad("stored block of %#x bytes, inverse %#x", size, inverse)
	}
	z.in.align()
	z.stored, z.state = int(size), inStored
	return nil
}

// lenOrder is the order in which the lengths of the code for lengths are stored
// (RFC 1951, 3.2.7).
var lenOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

const (
	maxLit  = 286
	maxDist = 30
)

// dynamicHeader reads the codes of a block that brings its own.
func (z *inflater) dynamicHeader() error {
	if !z.in.need(14) {
		return z.short()
	}
	nlit, ndist, nlen := int(z.in.take(5))+257, int(z.in.take(5))+1, int(z.in.take(4))+4
	if nlit > maxLit || ndist > maxDist {
		return z.bad("codes for %d symbols and %d distances", nlit, ndist)
	}
	var lens [19]uint8
	for _, s := range lenOrder[:nlen] {
		if !z.in.need(3) {
			return z.short()
		}
		lens[s] = uint8(z.in.take(3))
	}
	var table [lenEntries]entry
	if !build(table[:], lenRoot, lens[:], lenSymbols[:]) {
		return z.bad("no code for code lengths")
	}
	var all [maxLit + maxDist]uint8
	if err := z.codeLengths(all[:nlit+ndist], &table); err != nil {
		return err
	}
	if all[256] == 0 {
		return z.bad("no code for the end of the block")
	}
	if !build(z.ownLit[:], litRoot, all[:nlit], litSymbols[:]) {
		return z.bad("no code for literals and lengths")
	}
	if !build(z.ownDist[:], distRoot, all[nlit:nlit+ndist], distSymbols[:]) {
		return z.bad("no code for distances")
	}
	return nil
}

// codeLengths reads the lengths of two codes, run-length encoded.
func (z *inflater) codeLengths(lens []uint8, table *[lenEntries]entry) error {
	for i := 0; i < len(lens); {
		e, err := z.symbol(table[:], lenRoot)
		if err != nil {
			return err
		}
		s := value(e)
		if s < 16 {
			lens[i] = uint8(s)
			i++
			continue
		}
		extra, least, fill := [...]uint{2, 3, 7}[s-16], [...]int{3, 3, 11}[s-16], uint8(0)
		if s == 16 {
			if i == 0 {
				return z.bad("repeats a code length before the first")
			}
			fill = lens[i-1]
		}
		if !z.in.need(extra) {
			return z.short()
		}
		n := least + int(z.in.take(extra))
		if n > len(lens)-i {
			return z.bad("%d code lengths where %d are left", n, len(lens)-i)
		}
		for range n {
			lens[i] = fill
			i++
		}
	}
	return nil
}

// symbol reads one symbol without its extra bits.
func (z *inflater) symbol(table []entry, root uint) (entry, error) {
	e, code, err := z.peek(table, root)
	if err == nil {
		z.in.drop(code)
	}
	return e, err
}

// peek finds the next symbol and the number of bits of its code. It loads no byte
// that it does not need: the input may end with it.
func (z *inflater) peek(table []entry, root uint) (e entry, code uint, err error) {
	for {
		e = table[z.in.hold&(1<<root-1)]
		code = 0
		if e&entrySecond != 0 {
			code = root
			e = table[value(e)+int(z.in.hold>>root&(1<<(e>>entryCode&15)-1))]
		}
		if e == entrySpecial && z.in.n > 0 {
			// Only codes with no symbol of more than one bit leave such gaps.
			return 0, 0, z.bad("bits without a meaning")
		}
		if code += uint(e >> entryCode & 15); e != entrySpecial && code <= z.in.n {
			return e, code, nil
		}
		if !z.in.need(z.in.n + 1) {
			return 0, 0, z.short()
		}
	}
}

// atBlockEnd tells whether nothing but the end of the block comes next. At the
// start of a block it reads its header.
func (z *inflater) atBlockEnd() (bool, error) {
	if z.state == inHeader {
		if err := z.header(); err != nil {
			return false, err
		}
	}
	switch z.state {
	case inStored:
		return z.stored == 0, nil
	case inCodes:
		e, _, err := z.peek(z.lit[:], litRoot)
		return err == nil && e&entryEnd != 0, err
	}
	return false, nil
}
