package v6

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// TarHeaderSize is the size of a TarHeader on disk in bytes.
const TarHeaderSize = 512

// Offsets in a GNU tar header (POSIX.1-1988 ustar).
const (
	tarNameSize  = 100
	tarSizeAt    = 124
	tarTimeAt    = 136
	tarSumAt     = 148
	tarTypeAt    = 156
	tarMagicAt   = 257
	tarMagic     = "ustar  \x00"
	tarSizeWidth = 12
	tarSumWidth  = 8

	// maxTarOctal is the largest size that 11 octal digits hold; what is larger
	// is stored as a big-endian number with the top bit set, as GNU tar does.
	maxTarOctal = 1<<33 - 1
)

// TarHeader names a section of a blob. In a blob it comes *after* the section,
// with no padding between, so that a blob can be written as a stream.
type TarHeader struct {
	Name string // at most 100 bytes
	Size uint64 // at most 1<<63 - 1
}

// DecodeTarHeader decodes the header at the start of b. The magic, the type (a
// regular file) and the checksum must be right.
func DecodeTarHeader(b []byte) (TarHeader, error) {
	if len(b) < TarHeaderSize {
		return TarHeader{}, short("tar header", len(b), TarHeaderSize)
	}
	p := (*[TarHeaderSize]byte)(b)
	if m := p[tarMagicAt : tarMagicAt+len(tarMagic)]; string(m) != tarMagic {
		return TarHeader{}, fmt.Errorf("v6 tar header: magic %q, want %q", m, tarMagic)
	}
	if t := p[tarTypeAt]; t != '0' {
		return TarHeader{}, fmt.Errorf("v6 tar header: type %q, want '0'", t)
	}
	want, err := parseOctal(p[tarSumAt : tarSumAt+tarSumWidth])
	if err != nil {
		return TarHeader{}, fmt.Errorf("v6 tar header: checksum: %w", err)
	}
	if got := tarSum(p); got != want {
		return TarHeader{}, fmt.Errorf("v6 tar header: checksum %#o, header says %#o", got, want)
	}
	size, err := parseTarSize(p[tarSizeAt : tarSizeAt+tarSizeWidth])
	if err != nil {
		return TarHeader{}, fmt.Errorf("v6 tar header: size: %w", err)
	}
	name, _, _ := bytes.Cut(p[:tarNameSize], []byte{0})
	return TarHeader{Name: string(name), Size: size}, nil
}

// Append appends the header to b; mode and owner stay NUL bytes and the time is
// 0, as nydus-image 2.4 has them. It panics if the name is too long.
func (h *TarHeader) Append(b []byte) []byte {
	start := len(b)
	b = zeros(appendPadded(b, h.Name, tarNameSize), TarHeaderSize-tarNameSize)
	p := (*[TarHeaderSize]byte)(b[start:])
	size := p[tarSizeAt : tarSizeAt+tarSizeWidth]
	if h.Size <= maxTarOctal {
		copy(size, fmt.Sprintf("%011o", h.Size))
	} else {
		size[0] = 0x80
		binary.BigEndian.PutUint64(size[tarSizeWidth-8:], h.Size)
	}
	copy(p[tarTimeAt:], "00000000000")
	p[tarTypeAt] = '0'
	copy(p[tarMagicAt:], tarMagic)
	copy(p[tarSumAt:], fmt.Sprintf("%07o", tarSum(p)))
	return b
}

// tarSum adds the bytes of a header, those of the checksum as spaces.
func tarSum(p *[TarHeaderSize]byte) uint64 {
	sum := uint64(0)
	for i, c := range p {
		if i >= tarSumAt && i < tarSumAt+tarSumWidth {
			c = ' '
		}
		sum += uint64(c)
	}
	return sum
}

func parseTarSize(b []byte) (uint64, error) {
	if b[0]&0x80 == 0 {
		return parseOctal(b)
	}
	for i, c := range b[:len(b)-8] {
		if c&^0x80 != 0 || i > 0 && c != 0 {
			return 0, fmt.Errorf("%x does not fit in 64 bits", b)
		}
	}
	n := binary.BigEndian.Uint64(b[len(b)-8:])
	if n>>63 != 0 {
		return 0, fmt.Errorf("%x does not fit in 63 bits", b)
	}
	return n, nil
}

// parseOctal reads octal digits up to a NUL or a space; spaces may lead.
func parseOctal(b []byte) (uint64, error) {
	b = bytes.TrimLeft(b, " ")
	n, digits := uint64(0), 0
	for _, c := range b {
		if c == 0 || c == ' ' {
			break
		}
		if c < '0' || c > '7' {
			return 0, fmt.Errorf("%q is not octal", b)
		}
		n = n<<3 | uint64(c-'0')
		digits++
	}
	if digits == 0 {
		return 0, fmt.Errorf("%q has no digit", b)
	}
	return n, nil
}
