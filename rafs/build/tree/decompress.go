package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
)

// maxWindow bounds the memory that a zstd frame may ask for: what zstd takes at
// its highest level, and so what registries hold.
const maxWindow = 128 << 20

// Decompress returns the tar stream in r, which may be plain or compressed by
// gzip or zstd: the bytes tell, since media types are often wrong.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	var magic [4]byte
	n, err := io.ReadFull(r, magic[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(magic[:n]), r)
	switch {
	case bytes.HasPrefix(magic[:n], []byte{0x1f, 0x8b}):
		z, err := zran.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return io.NopCloser(z), nil
	// zstd frames, and the skippable frames that may come before them (RFC 8878).
	case n == 4 && (magic == [4]byte{0x28, 0xb5, 0x2f, 0xfd} || magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
