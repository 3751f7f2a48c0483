// Package zran reads a gzip stream from its middle, and makes the index that
// this takes.
//
// A context is a block boundary of the deflate data, with the bits and the 32 KiB
// before it: from there a stretch can be inflated alone. [Decode] does that; an
// [Indexer] inflates a whole stream and notes contexts on the way.
//
// Neither trusts the stream or the context. Output is bounded by what the caller
// asks for, time by the input, and memory by constants of this package. What
// Decode returns may be the wrong bytes of a damaged stream: a gzip checksum
// covers a whole member, so the caller checks digests of its own.
package zran

import (
	"fmt"
	"sync"

	"github.com/rafsd/rafsd/rafs/blob"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// MaxSpan bounds the output of a context in bytes, and half of its input. nydusd
// refuses more (storage/src/cache/mod.rs). A context cannot end before a deflate
// block does: the largest that common encoders make, of 32,768 longest matches,
// are about half of this.
const MaxSpan = blob.MaxChunkSize

// Context is one stretch of a gzip stream (v6.ZranContext with its dictionary).
type Context struct {
	InOffset, OutOffset uint64 // of the stretch, in the stream and in what it inflates to
	InLen, OutLen       uint32
	Byte, Bits          uint8  // the byte before InOffset; its upper Bits bits, at most 7, come first
	Dict                []byte // what was inflated before, at most v6.MaxZranDict bytes
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// Decode inflates the stretch c of a gzip stream into dst, which has c.OutLen
// bytes. src are the c.InLen bytes at c.InOffset of the stream. The end of a gzip
// member and the header of the next may lie within. The error wraps
// blob.ErrCorrupt; dst holds nothing of use then. dst must be private memory and
// not overlap src.
func Decode(dst []byte, c *Context, src []byte) error {
	if err := c.check(len(dst), len(src)); err != nil {
		return fmt.Errorf("%w: zran context: %v", blob.ErrCorrupt, err)
	}
	z := inflaters.Get().(*inflater)
	defer inflaters.Put(z)
	z.in.reset(nil, src)
	if c.Bits != 0 {
		z.in.hold, z.in.n = uint64(c.Byte>>(8-c.Bits)), uint(c.Bits)
	}
	z.restart()
	err := z.decode(&output{buf: dst, dict: c.Dict})
	z.in = input{} // src is the caller's
	if err != nil {
		return fmt.Errorf("%w: zran context of %d bytes from %d at %d: %v", blob.ErrCorrupt, len(dst), len(src), c.InOffset, err)
	}
	return nil
}

func (c *Context) check(dst, src int) error {
	switch {
	case uint64(dst) != uint64(c.OutLen) || c.OutLen > MaxSpan:
		return fmt.Errorf("output of %d bytes into %d, limit %d", c.OutLen, dst, MaxSpan)
	case uint64(src) != uint64(c.InLen) || c.InLen > 2*MaxSpan:
		return fmt.Errorf("input of %d bytes from %d, limit %d", c.InLen, src, 2*MaxSpan)
	case c.Bits > 7:
		return fmt.Errorf("%d bits of a byte", c.Bits)
	case len(c.Dict) > v6.MaxZranDict:
		return fmt.Errorf("dictionary of %d bytes, limit %d", len(c.Dict), v6.MaxZranDict)
	}
	return nil
}

// decode fills o.
func (z *inflater) decode(o *output) error {
	for o.w < len(o.buf) {
		ev, err := z.run(o, len(o.buf))
		if err != nil {
			return err
		}
		if ev != eventEnd || o.w == len(o.buf) {
			continue
		}
		if _, err := z.readTrailer(); err != nil {
			return err
		}
		if err := z.readHeader(); err != nil {
			return fmt.Errorf("%d bytes of output missing: %w", len(o.buf)-o.w, err)
		}
		o.start, o.dict = o.w, nil
	}
	return nil
}

// DecodeMember inflates the start of the gzip member at the start of src into dst,
// which it has to fill. What the member has beyond that, and what follows it, is
// nobody's business: an eStargz has tar headers there (nydus
// storage/src/cache/mod.rs, legacy stargz). Errors and memory are as for Decode.
func DecodeMember(dst, src []byte) error {
	if len(dst) > MaxSpan || len(src) > 2*MaxSpan {
		return fmt.Errorf("%w: gzip member of %d bytes from %d, limits %d and %d", blob.ErrCorrupt, len(dst), len(src), MaxSpan, 2*MaxSpan)
	}
	z := inflaters.Get().(*inflater)
	defer inflaters.Put(z)
	z.in.reset(nil, src)
	err := z.decodeMember(&output{buf: dst})
	z.in = input{}
	if err != nil {
		return fmt.Errorf("%w: gzip member of %d bytes from %d: %v", blob.ErrCorrupt, len(dst), len(src), err)
	}
	return nil
}

func (z *inflater) decodeMember(o *output) error {
	if err := z.readHeader(); err != nil {
		return err
	}
	for o.w < len(o.buf) {
		ev, err := z.run(o, len(o.buf))
		if err != nil {
			return err
		}
		if ev == eventEnd && o.w < len(o.buf) {
			return fmt.Errorf("it has %d bytes", o.w)
		}
	}
	return nil
}
