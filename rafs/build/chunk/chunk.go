// Package chunk cuts files into chunks and turns them into the data of a blob.
//
// A Cutter takes the files of one layer in order: it cuts them at the chunk
// size, digests each piece, and stores a piece that neither the blob nor a
// dictionary has. Pieces are compressed, and encrypted if wanted, by the workers
// of a Pool, which all layers share, and written in the order of the files, so
// that the same files give the same blob however many workers there are.
//
// Chunks are the same if their digests are, all 32 bytes of them, and only
// digests that were computed from the bytes themselves count: a dictionary
// answers for its own. Memory is bounded by the buffers of the pool and by the
// caches of tables, which are spilled. The package writes to the writers it is
// given and to unnamed files, and nowhere else.
package chunk

import (
	"fmt"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"io"
)

// Align is what the uncompressed offset of a chunk is a multiple of, in bytes,
// unless the blob is packed: the block of EROFS (layout.FeatureAligned).
const Align = 4096

// maxPerBlob is the most chunks that nydus-image puts into a blob; readers
// refuse more.
const maxPerBlob = blob.MaxChunks - 2

// Ref names a chunk: the blob by the number that its Cutter was given, and the
// chunk's index in the blob.
type Ref struct{ Blob, Index uint32 }

// Record is what a blob's tables say of one chunk.
type Record struct {
	Digest             blob.Digest
	CompressedOffset   uint64 // in the blob; of a batch chunk, that of the batch
	UncompressedOffset uint64 // in the blob's uncompressed space
	CompressedSize     uint32 // in the blob; 0 of a batch chunk
	UncompressedSize   uint32
	Flags              uint32 // layout.ChunkCompressed, ChunkEncrypted, ChunkBatch, ChunkHasCRC32
	CRC32              uint32 // Castagnoli, over the uncompressed bytes, where Flags say so
	Unit               uint32 // number of the batch, or of the zran context
	UnitOffset         uint32 // of the chunk in what the unit unpacks to
}

// Batch is a unit of several small chunks that were compressed together.
type Batch struct{ CompressedSize, UncompressedSize uint32 }

// List are the chunks of one file. Where they are kept is the business of who
// made the list; rafs/build/tree reads them out.
type List struct {
	Count  uint32
	First  Ref   // the only one, where Count is 1
	Offset int64 // of all of them, where Count is more
	Log    uint32
}

// N is the number of chunks.
func (l List) N() int { return int(l.Count) }

// Dict knows chunks of other blobs, by digests that were computed from their
// bytes. It is asked by one goroutine at a time for each Cutter.
type Dict interface {
	// Lookup finds a chunk with a digest and an uncompressed size.
	Lookup(digest blob.Digest, size uint32) (Ref, bool, error)
}

// Options say how a Cutter makes chunks.
type Options struct {
	Blob       uint32 // the number that refs get
	Compressor blob.Compressor
	Digester   blob.Digester
	ChunkSize  uint32 // bytes; the pool's if 0
	// Packed puts chunks one behind the other in the uncompressed space, as v5
	// images without aligned chunks have them.
	Packed bool
	// BatchSize, if not 0, is how many bytes of small files are compressed
	// together at most: files shorter than half of it. It is at most ChunkSize.
	BatchSize uint32
	// Cipher encrypts what was compressed, if not nil.
	Cipher *xts.Key
	// CRC notes a checksum of each chunk that is not in a batch.
	CRC bool
	// Dict is asked for chunks before the blob itself, if not nil.
	Dict Dict
	// CacheOut takes the chunks uncompressed, at their uncompressed offsets, if not
	// nil. The gaps between are not written.
	CacheOut io.WriterAt
	// TempDir takes what is spilled; os.TempDir if empty.
	TempDir string
}

// check fills in defaults and refuses what cannot be.
func (o *Options) check(pool *Pool) error {
	if o.ChunkSize == 0 {
		o.ChunkSize = uint32(pool.chunkSize)
	}
	if o.ChunkSize > uint32(pool.chunkSize) {
		return fmt.Errorf("chunk size %d, the pool has buffers of %d", o.ChunkSize, pool.chunkSize)
	}
	if o.BatchSize > o.ChunkSize {
		return fmt.Errorf("batch size %d: want at most the chunk size, %d", o.BatchSize, o.ChunkSize)
	}
	return nil
}
