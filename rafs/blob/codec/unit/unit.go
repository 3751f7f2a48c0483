// Package unit reads the chunk information of a blob, where chunks share the
// compressed bytes they lie in: batches, which are small chunks compressed as
// one, and zran, the stretches of a gzip stream that somebody else made.
//
// The bootstrap says of such a chunk what it holds and where in the uncompressed
// space it belongs, but not where in the blob it is; a blob's chunk information
// does. That is trusted with nothing: a number of it is checked when it is used,
// against the bootstrap and the limits of the format, and what is decoded by it
// is verified by the bootstrap's digests. Wrong chunk information costs an error.
//
// Tables are not read into memory: an entry is decoded when somebody asks for it,
// so that the largest takes no more room than the smallest.
package unit

import (
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// Unit is what is compressed as one. Units of one blob are equal if they are the
// same.
type Unit struct {
	Number uint32
	// Offset and Size are the range in the blob object.
	Offset uint64
	Size   uint32
	// OutSize is how many bytes it decodes to.
	OutSize uint32
}

// Place is where a chunk is.
type Place struct {
	Unit   Unit
	Offset uint32 // of the chunk in the unit's output
}

// Table finds the chunks of a blob in its units. It is immutable and safe for
// concurrent use as far as what it reads from is.
type Table struct {
	info    *blob.Info
	ci      io.ReaderAt
	zran    bool
	entries uint32
	units   uint32
	// offsets in ci, and where it ends
	contexts, dicts, end uint64
}

// HeaderSize is the size of the header that follows chunk information, in bytes.
const HeaderSize = v6.MetaHeaderSize

// FileSize is the size of the file in which a node or a bootstrap layer keeps the
// chunk information of a blob: it is plain there, padded to a block, and followed
// by its header.
func FileSize(info *blob.Info) int64 { return headerAt(info) + HeaderSize }

func headerAt(info *blob.Info) int64 {
	const block = 4096
	return int64((info.ChunkInfo.UncompressedSize + block - 1) &^ (block - 1))
}

// Check says whether the blob can have chunks that share units, and its chunk
// information a size that a reader takes. The errors of this package wrap
// blob.ErrCorrupt, or are those of reading.
func Check(info *blob.Info) error {
	f, s := layout.Features(info.Features), &info.ChunkInfo
	// As much as an entry and the context of a batch for each chunk take. Of a gzip
	// stream nydus-image keeps contexts whose chunks it has found to be others, too.
	most := uint64(info.ListedChunks) * (v6.ChunkInfoV2Size + v6.BatchContextSize)
	if f&layout.FeatureZran != 0 {
		most = maxSize
	}
	switch {
	case f&(layout.FeatureZran|layout.FeatureBatch) == 0 || f&layout.FeatureChunkInfoV2 == 0:
		return corrupt(info, "features %s", f)
	case f&layout.FeatureChunkDictGenerated == 0 &&
		(s.UncompressedSize < uint64(info.ListedChunks)*v6.ChunkInfoV2Size || s.UncompressedSize > most):
		return corrupt(info, "%d bytes for %d chunks", s.UncompressedSize, info.ListedChunks)
	case s.UncompressedSize > maxSize || s.CompressedSize == 0 || s.CompressedSize > s.UncompressedSize:
		return corrupt(info, "%d bytes from %d, limit %d", s.UncompressedSize, s.CompressedSize, int64(maxSize))
	case s.Offset > blob.MaxCompressedSize:
		return corrupt(info, "at %#x, limit %#x", s.Offset, int64(blob.MaxCompressedSize))
	}
	return nil
}

// maxSize bounds chunk information: that of a blob with all of 1<<24 chunks, or
// that of 64 GiB of gzip.
const maxSize = 2 << 30

// ReadFile is New for a file of FileSize bytes.
func ReadFile(info *blob.Info, f io.ReaderAt) (*Table, error) {
	if err := Check(info); err != nil {
		return nil, err
	}
	var header [HeaderSize]byte
	if err := readAt(f, header[:], headerAt(info)); err != nil {
		return nil, corrupt(info, "header: %v", err)
	}
	return New(info, header[:], f)
}

// New makes a table of a blob's chunk information, decompressed and decrypted,
// with the header that follows it. The header must say what the bootstrap does.
func New(info *blob.Info, header []byte, ci io.ReaderAt) (*Table, error) {
	if err := Check(info); err != nil {
		return nil, err
	}
	h, err := v6.DecodeMetaHeader(header)
	if err != nil {
		return nil, corrupt(info, "%v", err)
	}
	f, s := layout.Features(info.Features), &info.ChunkInfo
	end := h.ZranOffset + h.ZranSize
	switch {
	case h.Entries != info.ListedChunks && f&layout.FeatureChunkDictGenerated == 0:
		return nil, corrupt(info, "header has %d chunks, blob table %d", h.Entries, info.ListedChunks)
	case h.CICompressor != uint32(s.Compressor) || h.CIOffset != s.Offset || h.CICompressedSize != s.CompressedSize || h.CIUncompressedSize != s.UncompressedSize:
		return nil, corrupt(info, "header has %d bytes from %d at %#x by compressor %d, blob table %d from %d at %#x by %d", h.CIUncompressedSize,
			h.CICompressedSize, h.CIOffset, h.CICompressor, s.UncompressedSize, s.CompressedSize, s.Offset, uint32(s.Compressor))
	case h.ZranOffset != uint64(h.Entries)*v6.ChunkInfoV2Size || end < h.ZranOffset || end > s.UncompressedSize:
		return nil, corrupt(info, "contexts at %#x+%#x behind %d chunks, %d bytes in all", h.ZranOffset, h.ZranSize, h.Entries, s.UncompressedSize)
	case f&layout.FeatureZran == 0 && h.ZranCount > h.Entries || uint64(h.ZranCount)*v6.ZranContextSize > h.ZranSize:
		return nil, corrupt(info, "%d contexts for %d chunks in %d bytes", h.ZranCount, h.Entries, h.ZranSize)
	}
	return &Table{
		info: info, ci: ci, zran: f&layout.FeatureZran != 0, entries: h.Entries, units: h.ZranCount,
		contexts: h.ZranOffset, dicts: h.ZranOffset + uint64(h.ZranCount)*v6.ZranContextSize, end: end,
	}, nil
}

// Find tells where a chunk is.
func (t *Table) Find(c *blob.Chunk) (Place, error) {
	if c.Index >= t.entries {
		return Place{}, corrupt(t.info, "chunk %d of %d", c.Index, t.entries)
	}
	var b [v6.ChunkInfoV2Size]byte
	if err := readAt(t.ci, b[:], int64(c.Index)*v6.ChunkInfoV2Size); err != nil {
		return Place{}, corrupt(t.info, "chunk %d: %v", c.Index, err)
	}
	e, err := v6.DecodeChunkInfoV2(b[:])
	if err != nil {
		return Place{}, corrupt(t.info, "chunk %d: %v", c.Index, err)
	}
	if e.UncompressedOffset != c.UncompressedOffset || e.UncompressedSize != c.UncompressedSize || e.Flags&t.flag() == 0 {
		return Place{}, corrupt(t.info, "chunk %d with flags %#x is %d bytes at %#x, in the bootstrap %d at %#x", c.Index, e.Flags,
			e.UncompressedSize, e.UncompressedOffset, c.UncompressedSize, c.UncompressedOffset)
	}
	n, off := v6.ZranPlace(e.Data)
	u, err := t.unit(n, e.CompressedOffset)
	if err != nil {
		return Place{}, err
	}
	if off > u.OutSize || c.UncompressedSize > u.OutSize-off {
		return Place{}, corrupt(t.info, "chunk %d is %d bytes at %d of a unit of %d", c.Index, c.UncompressedSize, off, u.OutSize)
	}
	return Place{Unit: u, Offset: off}, nil
}

// flag marks the chunks that lie in units.
func (t *Table) flag() uint8 {
	if t.zran {
		return v6.ChunkInfoZran
	}
	return v6.ChunkInfoBatch
}

// unit is a unit by number. Where a batch begins, its chunks say.
func (t *Table) unit(n uint32, off uint64) (Unit, error) {
	u := Unit{Number: n, Offset: off}
	b, err := t.context(n)
	if err != nil {
		return u, err
	}
	if t.zran {
		c, err := v6.DecodeZranContext(b[:])
		if err != nil {
			return u, corrupt(t.info, "context %d: %v", n, err)
		}
		u.Offset, u.Size, u.OutSize = c.InOffset, c.InLen, c.OutLen
	} else {
		c, err := v6.DecodeBatchContext(b[:])
		if err != nil {
			return u, corrupt(t.info, "context %d: %v", n, err)
		}
		u.Size, u.OutSize = c.CompressedSize, c.UncompressedSize
	}
	limit := t.info.CompressedSize
	if limit == 0 {
		limit = blob.MaxCompressedSize
	}
	if u.Size == 0 || u.Size > 2*blob.MaxUnitSize || u.OutSize == 0 || u.OutSize > blob.MaxUnitSize ||
		u.Offset > limit || uint64(u.Size) > limit-u.Offset {
		return u, corrupt(t.info, "context %d is %d bytes from %d at %#x, blob has %#x", n, u.OutSize, u.Size, u.Offset, limit)
	}
	if most := t.most(u.Size); uint64(u.OutSize) > most {
		return u, corrupt(t.info, "context %d is %d bytes from %d, which cannot be more than %d", n, u.OutSize, u.Size, most)
	}
	return u, nil
}

// most is how much n bytes of a unit can decode to: who promises more gets no memory
// for it. A match of deflate is 258 bytes in 2 bits, and a context lends up to 7
// bits; a byte of lz4 makes a match 255 longer. There is no such bound for zstd.
func (t *Table) most(n uint32) uint64 {
	switch {
	case t.zran:
		return (uint64(n) + 1) * 4 * 258
	case t.info.Compressor == blob.CompressorLZ4Block:
		return (uint64(n) + 1) * 256
	}
	return blob.MaxUnitSize
}

// context reads the record of a unit.
func (t *Table) context(n uint32) (b [v6.ZranContextSize]byte, err error) {
	if n >= t.units {
		return b, corrupt(t.info, "context %d of %d", n, t.units)
	}
	if err := readAt(t.ci, b[:], int64(t.contexts)+int64(n)*v6.ZranContextSize); err != nil {
		return b, corrupt(t.info, "context %d: %v", n, err)
	}
	return b, nil
}

// maxNeighbours bounds how far Neighbours looks in either direction.
const maxNeighbours = 4096

// Neighbours yields the numbers of other chunks that lie in the unit of a chunk,
// those behind it first, until yield returns false. Converters number the chunks
// of a unit in one run.
func (t *Table) Neighbours(u *Unit, chunk uint32, yield func(chunk uint32) bool) {
	const many = 64
	var buf [many * v6.ChunkInfoV2Size]byte
	for first := chunk + 1; first < t.entries && first-chunk <= maxNeighbours; first += many {
		n := min(many, t.entries-first)
		k := t.run(buf[:], u, first, n)
		for i := range k {
			if !yield(first + i) {
				return
			}
		}
		if k < n {
			break
		}
	}
	for end := min(chunk, t.entries); end > 0 && chunk-end < maxNeighbours; {
		n := min(many, end)
		k := t.runBack(buf[:], u, end-n, n)
		for i := range k {
			if !yield(end - 1 - i) {
				return
			}
		}
		if k < n {
			return
		}
		end -= n
	}
}

// run counts how many of n chunks from first on, one after the other, are in u.
func (t *Table) run(buf []byte, u *Unit, first, n uint32) (k uint32) {
	buf = buf[:n*v6.ChunkInfoV2Size]
	if readAt(t.ci, buf, int64(first)*v6.ChunkInfoV2Size) != nil {
		return 0
	}
	for k < n && t.in(buf[k*v6.ChunkInfoV2Size:], u) {
		k++
	}
	return k
}

// runBack counts how many of n chunks from first on, from the last back, are in u.
func (t *Table) runBack(buf []byte, u *Unit, first, n uint32) (k uint32) {
	buf = buf[:n*v6.ChunkInfoV2Size]
	if readAt(t.ci, buf, int64(first)*v6.ChunkInfoV2Size) != nil {
		return 0
	}
	for k < n && t.in(buf[(n-1-k)*v6.ChunkInfoV2Size:], u) {
		k++
	}
	return k
}

// in tells whether the entry at the start of b is of a chunk in u.
func (t *Table) in(b []byte, u *Unit) bool {
	e, err := v6.DecodeChunkInfoV2(b)
	if err != nil || e.Flags&t.flag() == 0 {
		return false
	}
	n, _ := v6.ZranPlace(e.Data)
	return n == u.Number && (t.zran || e.CompressedOffset == u.Offset)
}

// Decode decodes a unit into dst, which has u.OutSize bytes. src is its range of
// the blob, decrypted. Both are private memory and do not overlap. A decoder that
// panics over a stranger's bytes is an error.
func (t *Table) Decode(u *Unit, dst, src []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = corrupt(t.info, "unit %d: decoder panicked: %v", u.Number, v)
		}
	}()
	if !t.zran {
		if len(src) == len(dst) {
			return codec.Decode(blob.CompressorNone, dst, src) // it would not shrink
		}
		return codec.Decode(t.info.Compressor, dst, src)
	}
	b, err := t.context(u.Number)
	if err != nil {
		return err
	}
	c, err := v6.DecodeZranContext(b[:])
	if err != nil {
		return corrupt(t.info, "context %d: %v", u.Number, err)
	}
	size := uint64(c.DictSize)
	if size > v6.MaxZranDict || c.DictOffset > t.end-t.dicts || size > t.end-t.dicts-c.DictOffset {
		return corrupt(t.info, "dictionary of context %d is %d bytes at %#x of %#x", u.Number, c.DictSize, c.DictOffset, t.end-t.dicts)
	}
	dict := make([]byte, size)
	if err := readAt(t.ci, dict, int64(t.dicts+c.DictOffset)); err != nil {
		return corrupt(t.info, "dictionary of context %d: %v", u.Number, err)
	}
	z := zran.Context{
		InOffset: c.InOffset, OutOffset: c.OutOffset, InLen: c.InLen, OutLen: c.OutLen,
		Byte: c.CtxByte, Bits: c.CtxBits, Dict: dict,
	}
	return zran.Decode(dst, &z, src)
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func corrupt(info *blob.Info, format string, args ...any) error {
	return fmt.Errorf("%w: chunk information of blob %s: %s", blob.ErrCorrupt, info.ID, fmt.Sprintf(format, args...))
}
