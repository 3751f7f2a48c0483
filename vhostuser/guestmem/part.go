package guestmem

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Part is a piece of guest memory that lies in one region, such as one of the
// three parts of a split ring. Offsets are in bytes and, like indexes of a slice,
// panic outside of the part. The zero Part has no bytes.
type Part struct{ b []byte }

// Len is the number of bytes.
func (p Part) Len() int { return len(p.b) }

// Bytes is the memory itself, for copies.
func (p Part) Bytes() []byte { return p.b }

// addr is where the part lies in our address space. Precondition: Len() > 0.
func (p Part) addr() uintptr {
	// SAFETY: the pointer is only turned into a number, to look at its alignment.
	return uintptr(unsafe.Pointer(&p.b[0]))
}

// word returns the aligned 32-bit word that holds the 16 bits at off, and by how
// many bits they are shifted in it. Precondition: the address of off is even.
func (p Part) word(off int) (*uint32, uint) {
	b := unsafe.Pointer(&p.b[off : off+2][0])
	in := uintptr(b) & 3
	// SAFETY: an aligned word never crosses a page, and the page of byte off is
	// mapped, as Part lies in a mapping of whole pages. Two bytes of the word may
	// lie outside the part; they are loaded and thrown away, never stored.
	return (*uint32)(unsafe.Add(b, -int(in))), uint(in) * 8
}

// Load16 loads 16 bits; nothing that follows in the program is done before it.
// Go has no 16-bit atomics, so it loads the word around them. Precondition: the
// address of off is even.
func (p Part) Load16(off int) uint16 {
	w, shift := p.word(off)
	return uint16(atomic.LoadUint32(w) >> shift)
}

// Store16 stores 16 bits, in one piece but in no order: a Fence must follow where
// the order matters. Precondition: the address of off is even.
func (p Part) Store16(off int, v uint16) { binary.LittleEndian.PutUint16(p.b[off:], v) }

// Store32 stores 32 bits after everything that precedes in the program.
// Precondition: the address of off is a multiple of 4.
func (p Part) Store32(off int, v uint32) {
	// SAFETY: the slice expression checks that all four bytes lie in the part, and
	// so in its mapping; the caller vouches for the alignment.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p.b[off : off+4][0])), v)
}

// Get16 reads 16 bits that the other side does not write meanwhile, or whose
// order does not matter.
func (p Part) Get16(off int) uint16 { return binary.LittleEndian.Uint16(p.b[off:]) }

// Get64 is Get16 for 64 bits.
func (p Part) Get64(off int) uint64 { return binary.LittleEndian.Uint64(p.b[off:]) }

// Put64 stores 64 bits in no order.
func (p Part) Put64(off int, v uint64) { binary.LittleEndian.PutUint64(p.b[off:], v) }

// Get8 reads a byte.
func (p Part) Get8(off int) byte { return p.b[off] }

// Put8 stores a byte in no order.
func (p Part) Put8(off int, v byte) { p.b[off] = v }

// Fence is a full memory barrier, on a word of its owner's own. The zero value is
// ready.
type Fence struct{ word uint32 }

// Full orders all loads and stores before it with all loads and stores after it,
// a store with a later load included: a locked add does, on every machine.
func (f *Fence) Full() { atomic.AddUint32(&f.word, 1) }
