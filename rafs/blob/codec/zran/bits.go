package zran

import (
	"encoding/binary"
	"io"
)

const (
	inputSize = 64 << 10
	// keepBack is how much of what was consumed stays in the buffer: a context
	// wants the byte before it, and hold may have 8 bytes that lie before pos.
	keepBack = 16
)

// input is a stream of bits, the lowest of a byte first (RFC 1951, 3.1.1).
type input struct {
	r    io.Reader // nil if buf has everything
	buf  []byte
	pos  int    // next byte of buf to load into hold
	hold uint64 // the next n bits; what is above them is zero or the bits that follow
	n    uint
	base int64 // offset of buf[0] in the stream
	err  error // of r, for good
}

// reset makes in read from r alone, or from buf where r is nil.
func (in *input) reset(r io.Reader, buf []byte) {
	if r != nil {
		if cap(in.buf) < inputSize {
			in.buf = make([]byte, 0, inputSize)
		}
		buf = in.buf[:0]
	}
	*in = input{r: r, buf: buf}
}

// bitPos is the number of bits consumed. It is negative within the bits that a
// context lends from the byte before it.
func (in *input) bitPos() int64 {
	return (in.base+int64(in.pos))*8 - int64(in.n)
}

// bytePos is the number of bytes consumed, one that was begun counting whole.
func (in *input) bytePos() int64 {
	return (in.bitPos() + 7) >> 3
}

// pending is what a context needs beside its offset: how many bits of the last
// byte that was consumed are left, and that byte if there are any.
func (in *input) pending() (last, bits uint8) {
	if bits = uint8(in.n & 7); bits != 0 {
		last = in.buf[in.bytePos()-in.base-1]
	}
	return last, bits
}

// fill reads more of the stream behind pos. It returns false at its end, with
// the reason in err.
func (in *input) fill() bool {
	if in.err == nil && in.r == nil {
		in.err = io.EOF
	}
	if in.err != nil {
		return false
	}
	if gone := in.pos - keepBack; gone > 0 {
		n := copy(in.buf, in.buf[gone:])
		in.buf = in.buf[:n]
		in.pos -= gone
		in.base += int64(gone)
	}
	for range 100 {
		n, err := in.r.Read(in.buf[len(in.buf):cap(in.buf)])
		in.buf = in.buf[:len(in.buf)+n]
		in.err = err
		if n > 0 {
			return true
		}
		if err != nil {
			return false
		}
	}
	in.err = io.ErrNoProgress
	return false
}

// need makes sure of k bits, at most 56. It returns false where the input has
// fewer.
func (in *input) need(k uint) bool {
	for in.n < k {
		if in.pos == len(in.buf) && !in.fill() {
			return false
		}
		in.hold |= uint64(in.buf[in.pos]) << (in.n & 63)
		in.pos++
		in.n += 8
	}
	return true
}

// drop consumes k bits that are there.
func (in *input) drop(k uint) {
	in.hold >>= k & 63
	in.n -= k
}

// take consumes k bits that are there and returns them.
func (in *input) take(k uint) uint32 {
	v := uint32(in.hold & (1<<(k&63) - 1))
	in.drop(k)
	return v
}

// align drops the rest of a byte that was begun and gives the whole bytes in
// hold back to buf.
func (in *input) align() {
	in.n &^= 7
	in.pos -= int(in.n >> 3)
	in.hold, in.n = 0, 0
}

// bytes copies whole bytes to p. align comes before it. It returns less than
// len(p) at the end of the input.
func (in *input) bytes(p []byte) int {
	done := 0
	for done < len(p) {
		if in.pos == len(in.buf) && !in.fill() {
			break
		}
		n := copy(p[done:], in.buf[in.pos:])
		in.pos += n
		done += n
	}
	return done
}

func load64(b []byte, i int) uint64     { return binary.LittleEndian.Uint64(b[i:]) }
func store64(b []byte, i int, v uint64) { binary.LittleEndian.PutUint64(b[i:], v) }
