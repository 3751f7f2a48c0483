// Package zstdenc compresses chunks to zstd frames (RFC 8878).
//
// It exists because of what chunks are: whole in memory, 16 MiB at most, most of
// them a few kilobytes, thousands to an image. An encoder for them needs no
// streams, no dictionaries and no levels; it can size its tables by the chunk and
// need not clear them between chunks. The library that this project uses for
// everything else of zstd takes twice as long over a root file system and makes
// the result larger than nydus-image's, which calls the reference implementation at
// level 3 (docs/decisions/0010).
//
// A frame has one segment, its content size, and no checksum. The same input gives
// the same frame, whatever was compressed before. Huffman codes are huff0's; the
// matches, the sequences and their FSE codes are made here.
package zstdenc

import (
	"encoding/binary"

	"github.com/klauspost/compress/huff0"
)

const (
	// MaxInput bounds the input of one frame in bytes.
	MaxInput = 1 << 24

	magic    = 0xfd2fb528
	maxBlock = 128 << 10

	blockRaw        = 0
	blockRLE        = 1
	blockCompressed = 2
	blockHeaderSize = 3
)

// Encoder makes frames, one after the other. It holds about 1.2 MB and is for one
// goroutine at a time. The zero value is ready to use.
type Encoder struct {
	long, short places

	// What search finds in a block: sequences, and their literals in one row.
	seq      [maxSequences]sequence
	seqs     int
	literals [maxBlock + slack]byte
	lits     int
	// rep are the last two offsets.
	rep [2]int

	huff     huff0.Scratch
	codes    [kinds]coder
	seqCodes [maxSequences]uint32 // see split
	bits     [maxBlock + 32]byte  // of the sequences of a block
}

// Encode appends one frame with src in it to dst. It panics if src is longer than
// MaxInput.
func (e *Encoder) Encode(dst, src []byte) []byte {
	if len(src) > MaxInput {
		panic("zstdenc: input too long")
	}
	dst = appendHeader(dst, len(src))
	if len(src) == 0 {
		return appendBlockHeader(dst, blockRaw, 0, true)
	}
	p := paramsFor(len(src))
	e.begin(&p)
	for at := 0; at < len(src); {
		end := min(at+maxBlock, len(src))
		dst = e.block(dst, src[:end], at, &p, end == len(src))
		at = end
	}
	return dst
}

// begin forgets what an earlier frame left behind.
func (e *Encoder) begin(p *params) {
	clear(e.long[:1<<(64-p.shift)])
	clear(e.short[:1<<(64-p.shift)])
	e.rep = [2]int{1, 4} // RFC 8878, 3.1.1.5
	e.huff.Reuse = huff0.ReusePolicyNone
	for i := range e.codes {
		e.codes[i].forget()
	}
}

// appendHeader appends a frame header with a single segment (RFC 8878, 3.1.1.1).
func appendHeader(dst []byte, size int) []byte {
	const single = 1 << 5
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, magic)
	switch {
	case size < 256:
		return append(dst, single, byte(size))
	case size < 1<<16+256:
		return le.AppendUint16(append(dst, single|1<<6), uint16(size-256))
	}
	return le.AppendUint32(append(dst, single|2<<6), uint32(size))
}

func appendBlockHeader(dst []byte, kind, size int, last bool) []byte {
	h := uint32(size)<<3 | uint32(kind)<<1
	if last {
		h |= 1
	}
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// block appends the block src[at:], with what is before it as history.
func (e *Encoder) block(dst, src []byte, at int, p *params, last bool) []byte {
	body := src[at:]
	if same(body) {
		return append(appendBlockHeader(dst, blockRLE, len(body), last), body[0])
	}
	rep := e.rep
	e.find(src, at, p)
	start := len(dst)
	dst = appendBlockHeader(dst, blockCompressed, 0, last)
	dst, lit := e.appendLiterals(dst)
	dst, seq := e.appendSequences(dst)
	size := len(dst) - start - blockHeaderSize
	if size >= len(body) {
		// The decoder will not see any of it: not the offsets, not the tables.
		e.rep = rep
		e.huff.Reuse = huff0.ReusePolicyNone
		return append(appendBlockHeader(dst[:start], blockRaw, len(body), last), body...)
	}
	if lit {
		e.huff.Reuse = huff0.ReusePolicyAllow
	}
	if seq {
		for i := range e.codes {
			e.codes[i].keep()
		}
	}
	appendBlockHeader(dst[:start], blockCompressed, size, last)
	return dst
}

// same tells whether all bytes of b are the same.
func same(b []byte) bool {
	if len(b) < 8 || b[0] != b[len(b)-1] {
		return false
	}
	for _, c := range b {
		if c != b[0] {
			return false
		}
	}
	return true
}
