package check

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Bounds of what is read of a blob apart from its data, in bytes.
const (
	// maxCI bounds chunk information: entries and contexts of a blob with all of
	// 1<<24 chunks, with dictionaries.
	maxCI = 2 << 30
	// maxCIInMemory bounds chunk information that cannot be read as a stream.
	maxCIInMemory = 512 << 20
	maxZstdWindow = 8 << 20
	// lz4Most is how many bytes a byte of lz4 decodes to at most.
	lz4Most = 255
)

// plainCI is the chunk information of a blob, uncompressed, in a file that is
// gone when it is closed.
type plainCI struct {
	*os.File
	name   string
	header [v6.MetaHeaderSize]byte
	sum    hash.Hash
}

func (p *plainCI) String() string { return p.name }
func (p *plainCI) close()         { p.File.Close() }

// readCI reads the chunk information and its header, and holds the header against
// the blob table.
func (o *v6Object) readCI() {
	e := o.entry
	if e.CIUncompressedSize > maxCI || e.CICompressedSize > uint64(o.meta.Size()) {
		o.fail(e.CIOffset, o.meta, "chunk information of %d bytes takes %d, the object has %d", e.CIUncompressedSize, e.CICompressedSize, o.meta.Size())
		return
	}
	f, err := os.CreateTemp("", "rafsd-check-*")
	if err != nil {
		o.err = err
		return
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		o.err = err
		return
	}
	ci := &plainCI{File: f, name: "chunk information of blob " + e.ID, sum: sha256.New()}
	n, err := o.unpackCI(io.MultiWriter(f, ci.sum))
	if err == nil && uint64(n) != e.CIUncompressedSize {
		err = fmt.Errorf("%d bytes, the blob table says %d", n, e.CIUncompressedSize)
	}
	if err != nil {
		f.Close()
		o.fail(e.CIOffset, o.meta, "chunk information: %v", err)
		return
	}
	if !o.meta.bytes(ci.header[:], e.CIOffset+e.CICompressedSize) {
		f.Close()
		return
	}
	o.ci = ci
	o.checkHeader()
}

// unpackCI writes the plain chunk information to w.
func (o *v6Object) unpackCI(w io.Writer) (int64, error) {
	e := o.entry
	in := io.Reader(io.NewSectionReader(o.meta, int64(e.CIOffset), int64(e.CICompressedSize)))
	limit := int64(e.CIUncompressedSize) + 1
	if o.key != nil {
		in = o.key.Reader(in)
	}
	switch blob.Compressor(e.CICompressor) {
	case blob.CompressorNone:
	case blob.CompressorZstd:
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return 0, err
		}
		defer d.Close()
		in = d
	case blob.CompressorLZ4Block:
		switch {
		case e.CIUncompressedSize > maxCIInMemory:
			return 0, errTooLarge
		case e.CIUncompressedSize/lz4Most > e.CICompressedSize:
			return 0, fmt.Errorf("%d bytes are none of %d by lz4", e.CICompressedSize, e.CIUncompressedSize)
		}
		src, err := io.ReadAll(in)
		if err != nil {
			return 0, err
		}
		dst := make([]byte, e.CIUncompressedSize)
		n, err := lz4.UncompressBlock(src, dst)
		if err != nil {
			return 0, err
		}
		in = bytes.NewReader(dst[:n])
	default:
		return 0, fmt.Errorf("%s: %w", blob.Compressor(e.CICompressor), errors.ErrUnsupported)
	}
	return io.Copy(w, io.LimitReader(in, limit))
}

var errTooLarge = fmt.Errorf("more than %d bytes, which cannot be read as a stream", maxCIInMemory)

// checkHeader holds the header behind the chunk information against the blob
// table.
func (o *v6Object) checkHeader() {
	e, at := o.entry, o.entry.CIOffset+o.entry.CICompressedSize
	raw := o.ci.header[:]
	if o.key != nil {
		plain, err := o.key.Decrypt(nil, raw)
		if err != nil {
			o.fail(at, o.meta, "header of chunk information: %v", err)
			return
		}
		copy(raw, xts.Trim(plain))
	}
	h, err := v6.DecodeMetaHeader(raw)
	if err != nil {
		o.fail(at, o.meta, "%v", err)
		return
	}
	rule := func(ok bool, off uint64, format string, args ...any) {
		if !ok {
			o.fail(at+off, o.meta, "header of chunk information: "+format, args...)
		}
	}
	free := e.has(loose)
	rule(free || h.Entries == e.ChunkCount, 12, "%d chunks, the blob table says %d", h.Entries, e.ChunkCount)
	rule(h.CICompressor == e.CICompressor, 8, "compressor %d, the blob table says %d", h.CICompressor, e.CICompressor)
	rule(h.CIOffset == e.CIOffset, 16, "at %#x, the blob table says %#x", h.CIOffset, e.CIOffset)
	rule(h.CICompressedSize == e.CICompressedSize, 24, "takes %d bytes, the blob table says %d", h.CICompressedSize, e.CICompressedSize)
	rule(h.CIUncompressedSize == e.CIUncompressedSize, 32, "%d bytes, the blob table says %d", h.CIUncompressedSize, e.CIUncompressedSize)
	const kept = layout.FeatureChunkInfoV2 | layout.FeatureZran | layout.FeatureBatch | layout.FeatureSeparate
	rule((layout.Features(h.Features)^layout.Features(e.Features))&kept == 0, 4, "features %s, the blob table has %s", layout.Features(h.Features), layout.Features(e.Features))
	for i := 60; i < v6.MetaHeaderSize-4; i++ {
		if raw[i] != 0 {
			rule(false, uint64(i), "a reserved byte is not zero")
			break
		}
	}
	if e.has(layout.FeatureBatch | layout.FeatureZran) {
		rule(h.ZranOffset == uint64(h.Entries)*v6.ChunkInfoV2Size, 40, "contexts at %#x behind %d chunks", h.ZranOffset, h.Entries)
		rule(h.ZranSize >= uint64(h.ZranCount)*v6.ZranContextSize && h.ZranOffset+h.ZranSize == e.CIUncompressedSize, 48,
			"%d contexts in %d bytes at %#x, %d in all", h.ZranCount, h.ZranSize, h.ZranOffset, e.CIUncompressedSize)
	}
}
