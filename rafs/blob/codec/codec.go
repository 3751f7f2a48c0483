// Package codec turns the compressed bytes of one chunk into its exact
// uncompressed bytes, and back for the converter.
//
// It trusts nothing in the compressed bytes: the output goes into a buffer of
// the size that the image's metadata names, never past it, and the memory that a
// decoder takes on top is bounded by constants of this package. A digest is not
// checked here; a chunk that decodes may still be the wrong one.
package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/zstdenc"
)

// maxWindow bounds the zstd window that a frame may announce. A chunk is one
// frame and at most blob.MaxChunkSize long, so no honest frame needs more.
const maxWindow = blob.MaxChunkSize

// Decode decompresses src, one chunk, into dst. It succeeds only if src decodes
// to exactly len(dst) bytes; otherwise the error wraps blob.ErrCorrupt and dst
// holds nothing of use. Gzip is found in layers that others made, where nobody
// says how long a stream is: it may have more bytes, and others may follow it
// (nydus utils/src/compress/mod.rs). dst must be private memory: decoders read back what they
// wrote there. src and dst must not overlap.
func Decode(c blob.Compressor, dst, src []byte) error {
	if len(dst) > blob.MaxChunkSize || len(src) > blob.MaxChunkSize {
		return fmt.Errorf("%w: %v chunk of %d bytes from %d, limit %d",
			blob.ErrCorrupt, c, len(dst), len(src), blob.MaxChunkSize)
	}
	n, err := decoderOf(c).decode(dst, src)
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("decode %v: %w", c, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %v chunk of %d bytes from %d: %v", blob.ErrCorrupt, c, len(dst), len(src), err)
	}
	if n != len(dst) {
		return fmt.Errorf("%w: %v chunk of %d bytes from %d: got %d bytes", blob.ErrCorrupt, c, len(dst), len(src), n)
	}
	return nil
}

// decoder decodes one chunk and returns the size of its output.
type decoder func(dst, src []byte) (int, error)

func decoderOf(c blob.Compressor) decoder {
	switch c {
	case blob.CompressorNone:
		// A longer src shows as a wrong size.
		return func(dst, src []byte) (int, error) { copy(dst, src); return len(src), nil }
	case blob.CompressorLZ4Block:
		return func(dst, src []byte) (int, error) { return lz4.UncompressBlock(src, dst) }
	case blob.CompressorZstd:
		return decodeZstd
	case blob.CompressorGzip:
		return decodeGzip
	default:
		return func([]byte, []byte) (int, error) { return 0, errors.ErrUnsupported }
	}
}

// decode turns a panic into an error: a decoder that stumbles over a stranger's
// bytes must not end the process, which serves others.
func (f decoder) decode(dst, src []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			n, err = 0, fmt.Errorf("decoder panicked: %v", v)
		}
	}()
	return f(dst, src)
}

// decoders holds idle zstd decoders. One that was only used through DecodeAll
// owns no goroutine, so the garbage collector may take those that lie idle.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(blob.MaxChunkSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("codec: " + err.Error()) // the options are constants
	}
	return d
}}

func decodeZstd(dst, src []byte) (int, error) {
	d := decoders.Get().(*zstd.Decoder)
	out, err := d.DecodeAll(src, dst[:0:len(dst)])
	decoders.Put(d) // not after a panic
	if err != nil {
		return 0, err
	}
	if len(out) == len(dst) && len(out) > 0 && &out[0] != &dst[0] {
		copy(dst, out)
	}
	return len(out), nil
}

// inflaters holds idle gzip readers.
var inflaters = sync.Pool{New: func() any { return new(gzip.Reader) }}

// decodeGzip fills dst from the first member in src.
func decodeGzip(dst, src []byte) (int, error) {
	z := inflaters.Get().(*gzip.Reader)
	if err := z.Reset(bytes.NewReader(src)); err != nil {
		return 0, err
	}
	z.Multistream(false)
	n, err := io.ReadFull(z, dst)
	inflaters.Put(z) // not after a panic
	return n, err
}

// zstdEncoders keeps idle encoders. It is no sync.Pool: an encoder has tables of more
// than a megabyte, and a collection of garbage would take those that are not at work.
var zstdEncoders = make(chan *zstdenc.Encoder, 16)

func encodeZstd(dst, src []byte) []byte {
	var e *zstdenc.Encoder
	select {
	case e = <-zstdEncoders:
	default:
		e = new(zstdenc.Encoder)
	}
	out := e.Encode(dst[:0], src)
	select {
	case zstdEncoders <- e:
	default:
	}
	return out
}

// Encode compresses src, one chunk. Where that does not make it smaller, or src
// is empty, out is src itself and compressed is false: the format tells a raw
// chunk by its equal sizes (nydus builder/src/core/node.rs). Otherwise out is in
// dst's memory if that has room, else in new memory. The same src always gives
// the same out.
func Encode(c blob.Compressor, dst, src []byte) (out []byte, compressed bool, err error) {
	if len(src) > blob.MaxChunkSize {
		return nil, false, fmt.Errorf("encode %v: chunk of %d bytes, limit %d", c, len(src), blob.MaxChunkSize)
	}
	switch c {
	case blob.CompressorNone:
		return src, false, nil
	case blob.CompressorLZ4Block:
		out, err = encodeLZ4(dst, src)
	case blob.CompressorZstd:
		out = encodeZstd(dst, src)
	default:
		return nil, false, fmt.Errorf("encode %v: %w", c, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, false, fmt.Errorf("encode %v: %w", c, err)
	}
	if len(out) == 0 || len(out) >= len(src) {
		return src, false, nil
	}
	return out, true, nil
}

// lz4Encoders keeps the match tables, which are cleared by each block.
var lz4Encoders = sync.Pool{New: func() any { return new(lz4.Compressor) }}

// encodeLZ4 returns an empty slice when the block would not shrink.
func encodeLZ4(dst, src []byte) ([]byte, error) {
	if bound := lz4.CompressBlockBound(len(src)); cap(dst) < bound {
		dst = make([]byte, bound)
	}
	e := lz4Encoders.Get().(*lz4.Compressor)
	defer lz4Encoders.Put(e)
	n, err := e.CompressBlock(src, dst[:cap(dst)])
	return dst[:n], err
}
