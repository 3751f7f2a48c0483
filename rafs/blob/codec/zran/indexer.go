package zran

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// When a new context starts at the next chunk, given that a block has ended since
// the last one started (nydus utils/src/compress/zlib_random.rs, with the numbers
// of storage/src/meta/zran.rs).
const (
	spanIn  = 512 << 10 // bytes of input since it started
	spanOut = 2 << 20   // bytes of output since it started, the chunk to come included
	gapMin  = 512 << 10 // the chunk is far behind the last one of a context of so much input
)

const (
	window = v6.MaxZranDict
	// outputSize is the room for what was inflated and not read yet.
	outputSize = 128 << 10
)

// Place is where a chunk of the inflated stream lies.
type Place struct {
	Context  uint32 // number of the context
	Offset   uint32 // in the output of the context
	InOffset uint64 // of the chunk in the stream, roughly: from here on its symbols begin
	InLen    uint32 // up to the last byte with bits of it
}

// Indexer inflates a gzip stream and notes contexts for the chunks that its reader
// announces. A stream of several members is one.
type Indexer struct {
	z    inflater
	o    output
	rd   int    // next byte of o.buf to return
	base uint64 // offset of o.buf[0] in the inflated stream
	crc  uint32 // of the member so far
	size uint32
	err  error // for good; io.EOF at the end

	plain    bool     // nobody asks for contexts
	block    boundary // the last one that was met
	dict     []byte   // before block, if that is no longer in o
	emit     func(*Context) error
	count    uint32 // contexts so far
	current  Context
	chunkIn  int64
	chunkOut uint64
}

// boundary is a place in the stream where inflating can start.
type boundary struct {
	in      int64
	out     uint64
	member  uint64 // offset of the member's first byte in the inflated stream
	byte    uint8
	bits    uint8
	spilled bool // dict holds what was before it
}

// NewIndexer starts to inflate r. Each context goes to emit, in the order of their
// numbers, when all its chunks are known; it is valid during the call only.
func NewIndexer(r io.Reader, emit func(*Context) error) (*Indexer, error) {
	x := &Indexer{emit: emit, dict: make([]byte, 0, window)}
	x.current.Dict = make([]byte, 0, window)
	x.o.buf = make([]byte, window+outputSize+slack)
	x.z.in.reset(r, nil)
	if err := x.z.readHeader(); err != nil {
		if err == io.EOF {
			err = fmt.Errorf("gzip header: %w", io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	x.note()
	return x, nil
}

// NewReader inflates a gzip stream of any number of members, one after the other,
// and checks their checksums. It knows the errors of an Indexer.
func NewReader(r io.Reader) (io.Reader, error) {
	x, err := NewIndexer(r, nil)
	if err != nil {
		return nil, err
	}
	x.plain = true
	return struct{ io.Reader }{x}, nil
}

// Read inflates. It takes no more of the stream than it needs for len(p) bytes, but
// for what its buffer holds: a chunk starts where the last Read has ended. The
// checksums of members are checked.
func (x *Indexer) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for x.rd == x.o.w {
		if x.err != nil {
			return 0, x.err
		}
		x.err = x.inflate(len(p))
	}
	n := copy(p, x.o.buf[x.rd:x.o.w])
	x.rd += n
	return n, nil
}

// inflate goes on to the next block boundary, or for n bytes.
func (x *Indexer) inflate(n int) error {
	o := &x.o
	n = min(n, outputSize)
	if o.w+n+slack > len(o.buf) {
		x.slide()
	}
	from := o.w
	ev, err := x.z.run(o, o.w+n)
	if err != nil {
		return err
	}
	x.crc = crc32.Update(x.crc, crc32.IEEETable, o.buf[from:o.w])
	x.size += uint32(o.w - from)
	switch ev {
	case eventBlock:
		x.note()
	case eventEnd:
		return x.nextMember()
	}
	return nil
}

// slide makes room behind the window. All output has been read.
func (x *Indexer) slide() {
	o := &x.o
	keep := max(o.start, o.w-window)
	if b := &x.block; !b.spilled && !x.plain {
		x.dict = append(x.dict[:0], x.before(b)...)
		b.spilled = true
	}
	copy(o.buf, o.buf[keep:o.w])
	o.w -= keep
	o.start = max(0, o.start-keep)
	x.base += uint64(keep)
	x.rd = o.w
}

// before is the dictionary of a boundary that is in the buffer.
func (x *Indexer) before(b *boundary) []byte {
	end := int(b.out - x.base)
	start := max(end-window, 0)
	if b.member > x.base {
		start = max(start, int(b.member-x.base))
	}
	return x.o.buf[start:end]
}

func (x *Indexer) note() {
	last, bits := x.z.in.pending()
	x.block = boundary{
		in: x.z.in.bytePos(), out: x.base + uint64(x.o.w), member: x.block.member, byte: last, bits: bits,
	}
}

func (x *Indexer) nextMember() error {
	t, err := x.z.readTrailer()
	if err != nil {
		return err
	}
	if t.crc != x.crc || t.size != x.size {
		return fmt.Errorf("%w: gzip member before byte %d: CRC-32 %#x of %d bytes, want %#x of %d",
			errFormat, x.z.in.bytePos(), x.crc, x.size, t.crc, t.size)
	}
	if err := x.z.readHeader(); err != nil {
		return err
	}
	x.crc, x.size, x.o.start = 0, 0, x.o.w
	x.block.member = x.base + uint64(x.o.w)
	x.note()
	return nil
}

// skipEnds goes beyond the ends of blocks and members that lie between what was
// read and what comes next, so that a chunk that starts a block, or a member, does
// not depend on the one before.
func (x *Indexer) skipEnds() error {
	for x.rd == x.o.w && x.err == nil {
		if end, err := x.z.atBlockEnd(); err != nil || !end {
			return err
		}
		x.err = x.inflate(1)
	}
	if x.err != nil && x.err != io.EOF {
		return x.err
	}
	return nil
}

// Begin announces that the next bytes to be read are a chunk. size is that of the
// largest chunks.
func (x *Indexer) Begin(size uint32) error {
	if err := x.skipEnds(); err != nil {
		return err
	}
	x.chunkIn, x.chunkOut = x.z.in.bytePos(), x.Offset()
	c := &x.current
	in, out := uint64(x.chunkIn)-c.InOffset, x.chunkOut-c.OutOffset
	first := x.block.in == int64(c.InOffset) // block of the context
	if x.count == 0 || !first && (in >= spanIn || out+uint64(size) >= spanOut || in > 2*uint64(c.InLen) && c.InLen > gapMin) {
		if err := x.start(); err != nil {
			return err
		}
	}
	switch {
	case x.block.out == x.chunkOut:
		x.chunkIn = x.block.in
	case x.rd != x.o.w:
		// A match goes beyond what was read; no symbol has more than 48 bits.
		x.chunkIn = max(x.chunkIn-6, int64(c.InOffset))
	}
	return nil
}

// start makes the last boundary a context.
func (x *Indexer) start() error {
	if err := x.flush(); err != nil {
		return err
	}
	b := &x.block
	dict := x.dict
	if !b.spilled {
		dict = x.before(b)
	}
	x.current = Context{
		InOffset: uint64(b.in), OutOffset: b.out, Byte: b.byte, Bits: b.bits,
		Dict: append(x.current.Dict[:0], dict...),
	}
	x.count++
	return nil
}

// flush emits the context that is being made.
func (x *Indexer) flush() error {
	if x.count == 0 {
		return nil
	}
	return x.emit(&x.current)
}

var errSpan = errors.New("a deflate block is too long to be read from its middle; convert the data instead")

// End announces that the chunk which was begun has been read.
func (x *Indexer) End() (Place, error) {
	c := &x.current
	end, out := x.z.in.bytePos(), x.Offset()
	in := end
	// zlib, unlike us, goes on where the end of the member lies in the last byte,
	// and then wants the next header and a byte behind it.
	if err := x.skipEnds(); err != nil {
		return Place{}, err
	}
	if x.err == nil && x.block.member == out && x.rd == x.o.w {
		in = x.block.in + 1
	}
	if out-c.OutOffset > MaxSpan || uint64(in)-c.InOffset > 2*MaxSpan {
		return Place{}, fmt.Errorf("chunk at %d, %d bytes after the start of a context, limit %d: %w",
			x.chunkOut, out-c.OutOffset, MaxSpan, errSpan)
	}
	c.OutLen, c.InLen = uint32(out-c.OutOffset), uint32(in-int64(c.InOffset))
	return Place{
		Context: x.count - 1, Offset: uint32(x.chunkOut - c.OutOffset),
		InOffset: uint64(x.chunkIn), InLen: uint32(end - x.chunkIn),
	}, nil
}

// Offset is that of the next byte that Read returns, in the inflated stream.
func (x *Indexer) Offset() uint64 { return x.base + uint64(x.rd) }

// Finish emits the last context.
func (x *Indexer) Finish() error {
	err := x.flush()
	x.emit = func(*Context) error { return errors.New("zran: a context after Finish") }
	x.current.Dict = slices.Clip(x.current.Dict[:0])
	return err
}
