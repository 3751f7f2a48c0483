package zran

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// The layout of a gzip member (RFC 1952, 2.3).
const (
	headerSize  = 10
	trailerSize = 8
	magic       = 0x8b1f
	methodFlate = 8

	flagHCRC     = 0x02
	flagExtra    = 0x04
	flagName     = 0x08
	flagComment  = 0x10
	flagsUnknown = 0xe0

	// maxString bounds the name and the comment of a member.
	maxString = 64 << 10
)

// trailer is what follows the deflate data of a member.
type trailer struct {
	crc  uint32 // CRC-32 of the inflated bytes
	size uint32 // and their number, modulo 1<<32
}

// readTrailer reads the trailer of the member whose last block has ended.
func (z *inflater) readTrailer() (trailer, error) {
	var b [trailerSize]byte
	z.in.align()
	if z.in.bytes(b[:]) < len(b) {
		return trailer{}, z.memberShort("trailer")
	}
	return trailer{binary.LittleEndian.Uint32(b[0:]), binary.LittleEndian.Uint32(b[4:])}, nil
}

// readHeader reads the header of a member and makes z start with its data. The
// error is io.EOF where there is no byte.
func (z *inflater) readHeader() error {
	var b [headerSize]byte
	start := z.in.bytePos()
	if n := z.in.bytes(b[:]); n == 0 && z.in.err == io.EOF {
		return io.EOF
	} else if n < len(b) {
		return z.memberShort("header")
	}
	flags := b[3]
	switch {
	case binary.LittleEndian.Uint16(b[0:]) != magic:
		return fmt.Errorf("%w: gzip header at byte %d: magic %#x", errFormat, start, b[:2])
	case b[2] != methodFlate:
		return fmt.Errorf("%w: gzip header at byte %d: method %d", errFormat, start, b[2])
	case flags&flagsUnknown != 0:
		return fmt.Errorf("%w: gzip header at byte %d: flags %#x", errFormat, start, flags)
	}
	if err := z.readOptional(flags, crc32.ChecksumIEEE(b[:])); err != nil {
		return err
	}
	z.restart()
	return nil
}

// readOptional reads the fields of a header that its flags announce. sum is the
// CRC-32 of what comes before them.
func (z *inflater) readOptional(flags byte, sum uint32) error {
	var b [2]byte
	if flags&flagExtra != 0 {
		if z.in.bytes(b[:]) < 2 {
			return z.memberShort("header")
		}
		sum = crc32.Update(sum, crc32.IEEETable, b[:])
		if !z.skip(int(binary.LittleEndian.Uint16(b[:])), &sum) {
			return z.memberShort("header")
		}
	}
	for _, flag := range [...]byte{flagName, flagComment} {
		if flags&flag != 0 {
			if err := z.skipString(&sum); err != nil {
				return err
			}
		}
	}
	if flags&flagHCRC == 0 {
		return nil
	}
	if z.in.bytes(b[:]) < 2 {
		return z.memberShort("header")
	}
	if want := binary.LittleEndian.Uint16(b[:]); want != uint16(sum) {
		return fmt.Errorf("%w: gzip header before byte %d: checksum %#x, want %#x", errFormat, z.in.bytePos(), uint16(sum), want)
	}
	return nil
}

func (z *inflater) memberShort(part string) error {
	if err := z.in.err; err != nil && err != io.EOF {
		return err
	}
	return fmt.Errorf("gzip %s ends at byte %d: %w", part, z.in.bytePos(), io.ErrUnexpectedEOF)
}

// skip skips n bytes and adds them to sum.
func (z *inflater) skip(n int, sum *uint32) bool {
	var b [256]byte
	for n > 0 {
		k := z.in.bytes(b[:min(n, len(b))])
		if k == 0 {
			return false
		}
		*sum = crc32.Update(*sum, crc32.IEEETable, b[:k])
		n -= k
	}
	return true
}

// skipString skips a string with the NUL that ends it and adds both to sum.
func (z *inflater) skipString(sum *uint32) error {
	var b [1]byte
	for range maxString {
		if z.in.bytes(b[:]) == 0 {
			return z.memberShort("header")
		}
		*sum = crc32.Update(*sum, crc32.IEEETable, b[:])
		if b[0] == 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: gzip header at byte %d: a string of %d bytes, or more", errFormat, z.in.bytePos(), maxString)
}
