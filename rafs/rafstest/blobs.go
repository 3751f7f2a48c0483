package rafstest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Blobs is folders with blobs in files named by their ids.
type Blobs []string

var zstdReader, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(blob.MaxChunkSize))

// Read returns the bytes of a segment. The chunk is read, decoded and verified
// for each call.
func (dirs Blobs) Read(s *blob.Segment) ([]byte, error) {
	c := &s.Chunk
	if c.Blob == nil {
		return make([]byte, s.Length), nil
	}
	data, err := dirs.chunk(c)
	if err != nil {
		return nil, fmt.Errorf("chunk %d of blob %s: %w", c.Index, c.Blob.ID, err)
	}
	if uint64(s.Offset)+uint64(s.Length) > uint64(len(data)) {
		return nil, fmt.Errorf("chunk %d of blob %s: segment %d+%d of %d bytes", c.Index, c.Blob.ID, s.Offset, s.Length, len(data))
	}
	return data[s.Offset:][:s.Length], nil
}

func (dirs Blobs) chunk(c *blob.Chunk) ([]byte, error) {
	data, err := dirs.content(c)
	if err != nil {
		return nil, err
	}
	if len(data) != int(c.UncompressedSize) {
		return nil, fmt.Errorf("%d bytes, want %d", len(data), c.UncompressedSize)
	}
	if layout.Features(c.Blob.Features)&layout.FeatureTarfs != 0 {
		return data, dirs.checkWhole(c.Blob.ID)
	}
	if got := c.Blob.Digester.Sum(data); !bytes.Equal(got[:], c.Digest[:]) {
		return nil, fmt.Errorf("%w: %s, want %s", blob.ErrDigest, got, c.Digest)
	}
	return data, nil
}

// content is the bytes of a chunk, not verified.
func (dirs Blobs) content(c *blob.Chunk) ([]byte, error) {
	if c.Shared {
		return dirs.shared(c)
	}
	raw := make([]byte, c.CompressedSize)
	if err := dirs.readAt(c.Blob.ID, raw, int64(c.CompressedOffset)); err != nil {
		return nil, err
	}
	if c.Encrypted {
		var err error
		if raw, err = decrypt(c.Blob, raw); err != nil {
			return nil, err
		}
		if !c.Compressed && len(raw) > int(c.UncompressedSize) {
			raw = raw[:c.UncompressedSize]
		}
	}
	if !c.Compressed {
		return raw, nil
	}
	return decode(c.Blob.Compressor, raw, int(c.UncompressedSize))
}

func decode(how blob.Compressor, raw []byte, size int) ([]byte, error) {
	dst := make([]byte, size)
	switch how {
	case blob.CompressorNone:
		return raw, nil
	case blob.CompressorZstd:
		return zstdReader.DecodeAll(raw, dst[:0])
	case blob.CompressorLZ4Block:
		n, err := lz4.UncompressBlock(raw, dst)
		return dst[:max(n, 0)], err
	case blob.CompressorGzip: // of an eStargz: the start of a member, what follows is not the chunk's
		r, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		_, err = io.ReadFull(r, dst)
		return dst, err
	}
	return nil, fmt.Errorf("compressor %s", how)
}

func (dirs Blobs) readAt(id string, p []byte, off int64) error {
	var last error
	for _, dir := range dirs {
		f, err := os.Open(filepath.Join(dir, id))
		if err != nil {
			last = err
			continue
		}
		defer f.Close()
		_, err = f.ReadAt(p, off)
		return err
	}
	return last
}
