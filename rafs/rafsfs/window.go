package rafsfs

// window hands out the parts of a scatter list one after the other.
type window struct {
	dst  [][]byte
	used int // bytes of dst[0] that are handed out
}

// next returns the following n bytes as a list that shares memory with dst. Where
// they are whole elements, which is the common case, nothing is allocated.
func (w *window) next(n int) [][]byte {
	if w.used == 0 {
		if k, exact := whole(w.dst, n); exact {
			out := w.dst[:k]
			w.dst = w.dst[k:]
			return out
		}
	}
	var out [][]byte
	for n > 0 && len(w.dst) > 0 {
		part := w.dst[0][w.used:]
		if len(part) > n {
			part = part[:n]
		}
		w.used += len(part)
		if w.used == len(w.dst[0]) {
			w.dst, w.used = w.dst[1:], 0
		}
		if len(part) > 0 {
			out = append(out, part)
		}
		n -= len(part)
	}
	return out
}

func (w *window) zero(n int) {
	for _, part := range w.next(n) {
		clear(part)
	}
}

// whole returns how many elements at the start of dst hold exactly n bytes.
func whole(dst [][]byte, n int) (int, bool) {
	for k := range dst {
		if n == 0 {
			return k, true
		}
		n -= len(dst[k])
		if n < 0 {
			return 0, false
		}
	}
	return len(dst), n == 0
}

// length is the number of bytes in dst. A device caps a read far below 4 GiB.
func length(dst [][]byte) uint32 {
	n := 0
	for _, part := range dst {
		n += len(part)
	}
	return uint32(n)
}
