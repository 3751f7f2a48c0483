package write

import (
	"io"
	"iter"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Table lists the chunks of a blob by index: a *chunk.Table, or what an image
// that exists says of its chunks.
type Table interface {
	Len() uint32
	Record(i uint32) (chunk.Record, error)
	All() iter.Seq2[chunk.Record, error]
}

// Contexts are the batch or zran contexts of a blob as they are on disk, with
// their dictionaries. WriteTo writes the same bytes each time it is called.
type Contexts interface {
	Count() uint32
	Size() uint64 // bytes that WriteTo writes
	io.WriterTo
}

// BlobInfo describes a finished blob, or one of an image that exists.
type BlobInfo struct {
	// ID is what bootstraps call the blob: its hex SHA-256 unless another was asked
	// for; of separate data that of the data.
	ID string
	// Object is what was written, its ID always the SHA-256. Where the data is
	// separate, it has the tables only. Empty for a blob that was not written here.
	Object Object
	// Table has the chunks of the blob.
	Table Table
	// Contexts has the contexts of a blob with batches or zran; nil where they are
	// not known, which the bootstrap does not need.
	Contexts Contexts
	// Entry is all that the blob table says of the blob but its ID and Index. A v5
	// bootstrap takes chunk count, features and sizes from it.
	Entry v6.BlobEntry
	// Foreign is set for a blob that others made. Of its table only the chunks that
	// files refer to are read, one by one, and none of them stands for a chunk of
	// another blob.
	Foreign bool
	// PrefetchSize is how many bytes at the start of a v5 blob to fetch ahead.
	PrefetchSize uint32
}

// UncompressedSize is the size of the blob's uncompressed space in bytes.
func (b *BlobInfo) UncompressedSize() uint64 { return b.Entry.UncompressedSize }

func (b *BlobInfo) has(f layout.Features) bool { return layout.Features(b.Entry.Features)&f != 0 }

// ciEntrySize is the size of one entry of the chunk information in bytes.
func (b *BlobInfo) ciEntrySize() uint64 {
	if b.has(layout.FeatureChunkInfoV2) {
		return v6.ChunkInfoV2Size
	}
	return v6.ChunkInfoV1Size
}

// ciSize is the size of the chunk information with its contexts in bytes.
func (b *BlobInfo) ciSize() uint64 {
	size := uint64(b.Entry.ChunkCount) * b.ciEntrySize()
	if b.Contexts != nil {
		size += b.Contexts.Size()
	}
	return size
}

// metaHeader is the header that follows the chunk information.
func (b *BlobInfo) metaHeader() []byte {
	e := &b.Entry
	h := v6.MetaHeader{
		Features: e.Features, CICompressor: e.CICompressor, Entries: e.ChunkCount, CIOffset: e.CIOffset,
		CICompressedSize: e.CICompressedSize, CIUncompressedSize: e.CIUncompressedSize,
	}
	if b.Contexts != nil {
		h.ZranOffset = uint64(e.ChunkCount) * b.ciEntrySize()
		h.ZranSize, h.ZranCount = b.Contexts.Size(), b.Contexts.Count()
	}
	return h.Append(nil)
}

// MetaSize is how many bytes WriteMeta writes.
func (b *BlobInfo) MetaSize() int64 {
	return int64(alignBlock(b.ciSize())) + v6.MetaHeaderSize
}

// WriteMeta writes the chunk information in the form in which a node keeps it
// (nydus' BLOB.blob.meta): plain, padded to blocks, then its header.
func (b *BlobInfo) WriteMeta(w io.Writer) error {
	if err := b.writeCI(w); err != nil {
		return err
	}
	if _, err := w.Write(zeroBlock[:alignBlock(b.ciSize())-b.ciSize()]); err != nil {
		return err
	}
	_, err := w.Write(b.metaHeader())
	return err
}

// BatchContexts are the contexts of the batches of a blob, in their order.
type BatchContexts []chunk.Batch

// Count is the number of batches.
func (c BatchContexts) Count() uint32 { return uint32(len(c)) }

// Size is the size of the contexts in bytes.
func (c BatchContexts) Size() uint64 { return uint64(len(c)) * v6.BatchContextSize }

// WriteTo writes the contexts.
func (c BatchContexts) WriteTo(w io.Writer) (int64, error) {
	var n int64
	buf := make([]byte, 0, v6.BatchContextSize)
	for _, batch := range c {
		context := v6.BatchContext{CompressedSize: batch.CompressedSize, UncompressedSize: batch.UncompressedSize}
		m, err := w.Write(context.Append(buf))
		n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
