package write

import (
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

var zeroBlock [v6.BlockSize]byte

// counter counts the bytes that are written to it.
type counter uint64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// piece is how many bytes of small records are gathered before they are written.
const piece = 64 << 10

// pieces gathers small records. Its first error is kept.
type pieces struct {
	w   io.Writer
	buf []byte
	err error
}

func newPieces(w io.Writer) *pieces { return &pieces{w: w, buf: make([]byte, 0, piece+1024)} }

func (p *pieces) put(b []byte) {
	if p.buf = append(p.buf, b...); len(p.buf) >= piece {
		p.flush()
	}
}

func (p *pieces) flush() error {
	if p.err == nil {
		_, p.err = p.w.Write(p.buf)
	}
	p.buf = p.buf[:0]
	return p.err
}

// window is the window of a zstd frame that is written as a stream, in bytes. It
// bounds the memory of both ends.
const window = 1 << 20

// streams holds idle encoders for streams. With a concurrency of 1 the output is
// a function of the bytes alone, however they are split into writes.
var streams = sync.Pool{New: func() any {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(window),
		zstd.WithEncoderCRC(false)) // each stream has a digest beside it
	if err != nil {
		panic("write: " + err.Error()) // the options are constants
	}
	return e
}}

// zstdStream compresses what emit writes into one frame on w, with its size in
// the frame's header if that is not negative.
func zstdStream(w io.Writer, size int64, emit func(io.Writer) error) error {
	e := streams.Get().(*zstd.Encoder)
	if size < 0 {
		e.Reset(w)
	} else {
		e.ResetContentSize(w, size)
	}
	err := emit(e)
	if closeErr := e.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		streams.Put(e)
	}
	return err
}
