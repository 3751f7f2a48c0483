package zran

const (
	maxMatch = 258
	// slack is the room that fast wants behind its output: what literals and a
	// match take, the latter copied by words.
	slack = runUp + maxMatch + 7
	// ahead is how much input fast wants in the buffer: two loads of a word.
	ahead = 16
	// runUp is how many literals fast takes in one go with the symbol after them.
	runUp = 2
)

// codes inflates within a block that has codes, and takes no symbol more than it
// needs to reach limit. It returns true when the block has ended.
func (z *inflater) codes(o *output, limit int) (ended bool, err error) {
	for o.w < limit {
		if o.w < limit-runUp && o.w+slack <= len(o.buf) && z.in.pos+ahead <= len(z.in.buf) {
			ended, err = z.fast(o, min(limit-runUp, len(o.buf)-slack+1))
		} else {
			ended, err = z.slow(o)
		}
		if ended || err != nil {
			return ended, err
		}
	}
	return false, nil
}

// slow inflates one symbol, with any input and room.
func (z *inflater) slow(o *output) (ended bool, err error) {
	e, err := z.symbol(z.lit[:], litRoot)
	switch {
	case err != nil:
		return false, err
	case e&entryLiteral != 0:
		o.buf[o.w] = byte(e >> entryValue)
		o.w++
		return false, nil
	case e&entrySpecial != 0:
		return z.special(e)
	}
	length, err := z.extra(e)
	if err != nil {
		return false, err
	}
	if e, err = z.symbol(z.dist[:], distRoot); err != nil {
		return false, err
	}
	if e&entrySpecial != 0 {
		return false, z.bad("unknown distance")
	}
	dist, err := z.extra(e)
	if err != nil {
		return false, err
	}
	return false, z.match(o, length, dist)
}

// extra reads the extra bits of a symbol and returns what both stand for.
func (z *inflater) extra(e entry) (int, error) {
	k := uint(e&entryUsed - e>>entryCode&15)
	if !z.in.need(k) {
		return 0, z.short()
	}
	return value(e) + int(z.in.take(k)), nil
}

// match copies length bytes from dist bytes back, as far as there is room.
func (z *inflater) match(o *output, length, dist int) error {
	length = min(length, len(o.buf)-o.w)
	if before := dist - (o.w - o.start); before > 0 {
		if before > len(o.dict) {
			return z.bad("distance %d, with %d bytes before", dist, o.w-o.start+len(o.dict))
		}
		n := copy(o.buf[o.w:o.w+length], o.dict[len(o.dict)-before:])
		o.w += n
		length -= n
	}
	for ; length > 0; length-- {
		o.buf[o.w] = o.buf[o.w-dist]
		o.w++
	}
	return nil
}

// fast inflates until limit, or runUp symbols beyond, as long as there is plenty of
// input. The room behind limit is at least slack.
func (z *inflater) fast(o *output, limit int) (ended bool, err error) {
	lit, dists := z.lit, z.dist
	src, pos, hold, n := z.in.buf, z.in.pos, z.in.hold, z.in.n
	buf, w := o.buf, o.w
	end := len(src) - ahead
	for w < limit && pos <= end {
		// At least 56 bits: what hold has beyond n already, the load repeats.
		hold |= load64(src, pos) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		e := lit[hold&(1<<litRoot-1)]
		if e&entryLiteral != 0 {
			hold, n = hold>>(e&63), n-uint(e&entryUsed)
			buf[w] = byte(e >> entryValue)
			w++
			if e = lit[hold&(1<<litRoot-1)]; e&entryLiteral != 0 {
				hold, n = hold>>(e&63), n-uint(e&entryUsed)
				buf[w] = byte(e >> entryValue)
				w++
				e = lit[hold&(1<<litRoot-1)]
			}
			hold |= load64(src, pos) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		if e&entrySecond != 0 {
			hold, n = hold>>litRoot, n-litRoot
			e = lit[value(e)+int(hold&(1<<(e>>entryCode&15)-1))]
		}
		code, used := e>>entryCode&15, e&63
		bits := hold & (1<<used - 1)
		hold, n = hold>>used, n-uint(used)
		if e&entryLiteral != 0 {
			buf[w] = byte(e >> entryValue)
			w++
			continue
		}
		if e&entrySpecial != 0 {
			z.in.pos, z.in.hold, z.in.n, o.w = pos, hold, n, w
			return z.special(e)
		}
		length := value(e) + int(bits>>code)
		e = dists[hold&(1<<distRoot-1)]
		if e&entrySecond != 0 {
			hold, n = hold>>distRoot, n-distRoot
			e = dists[value(e)+int(hold&(1<<(e>>entryCode&15)-1))]
		}
		code, used = e>>entryCode&15, e&63
		dist := value(e) + int(hold&(1<<used-1)>>code)
		hold, n = hold>>used, n-uint(used)
		if from := w - dist; e&entrySpecial == 0 && from >= o.start {
			w = copyMatch(buf, w, from, length)
			continue
		}
		z.in.pos, z.in.hold, z.in.n, o.w = pos, hold, n, w
		return false, z.far(o, e, length, dist)
	}
	z.in.pos, z.in.hold, z.in.n, o.w = pos, hold, n, w
	return false, nil
}

// special is what fast does at a symbol that is no literal and no length.
func (z *inflater) special(e entry) (ended bool, err error) {
	if e&entryEnd == 0 {
		return false, z.bad("unknown length")
	}
	return true, nil
}

// far is what fast does at a distance that is none or goes into the dictionary.
func (z *inflater) far(o *output, e entry, length, dist int) error {
	if e&entrySpecial != 0 {
		return z.bad("unknown distance")
	}
	return z.match(o, length, dist)
}

// copyMatch copies length bytes within buf from an earlier place to w, and up to
// 7 bytes more. It returns where they end.
func copyMatch(buf []byte, w, from, length int) int {
	end := w + length
	switch dist := w - from; {
	case dist >= 8:
		for ; w < end; w, from = w+8, from+8 {
			store64(buf, w, load64(buf, from))
		}
	case dist == 1:
		word := uint64(buf[from]) * 0x0101_0101_0101_0101
		for ; w < end; w += 8 {
			store64(buf, w, word)
		}
	default:
		for ; w < end; w++ {
			buf[w] = buf[w-dist]
		}
	}
	return end
}
