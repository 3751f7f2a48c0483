// Package blob holds the nouns of image data: blobs, chunks, digests and the
// algorithms that a RAFS image names by number. It does no I/O.
//
// A blob is one object of a registry or a store. It is cut into chunks, each of
// which is compressed on its own, or with others in a unit. A chunk has two addresses: where its
// compressed bytes lie in the blob, and where its uncompressed bytes lie in the
// blob's uncompressed space, which is also the layout of a cache file.
//
// Values of this package that come out of rafs/image have been validated there:
// ranges lie inside the blob, sizes are within the limits below.
package blob

// Limits of the format (nydus storage/src/lib.rs, rafs/src/metadata/mod.rs).
const (
	// MinChunkSize is the smallest chunk size an image may name, in bytes.
	MinChunkSize = 4 << 10
	// DefaultChunkSize is what converters use unless told otherwise.
	DefaultChunkSize = 1 << 20
	// MaxChunkSize bounds one chunk, compressed and uncompressed.
	MaxChunkSize = 16 << 20
	// MaxChunks bounds the chunks of one blob: a chunk index has 24 bits.
	MaxChunks = 1 << 24
	// MaxIDLen bounds a blob id in bytes; ids are normally 64 hex digits.
	MaxIDLen = 64
	// MaxCompressedSize bounds a blob object: compressed offsets have 40 bits.
	MaxCompressedSize = 1 << 40
	// MaxUnitSize bounds what chunks that share a unit are together, uncompressed,
	// and half of what they are compressed: as much as nydusd takes
	// (storage/src/cache/mod.rs).
	MaxUnitSize = MaxChunkSize
	// MaxUncompressedSize bounds a blob's uncompressed space.
	MaxUncompressedSize = 1 << 44
)

// Info describes one blob of an image. It is immutable.
type Info struct {
	// Index is the blob's position in the image's blob table.
	Index uint32
	// ID names the blob: for a registry the hex SHA-256 of the object.
	ID string
	// Features are the bits of layout.BlobFeatures as the image has them.
	Features uint32
	// Compressor is the algorithm of the blob's compressed chunks.
	Compressor Compressor
	// Digester is the algorithm of the blob's chunk digests.
	Digester Digester
	// ChunkSize is the nominal size of a chunk in bytes.
	ChunkSize uint32
	// ChunkCount is the number of chunks; 0 in old v5 images, which do not say.
	ChunkCount uint32
	// CompressedSize is the size of the blob object in bytes; 0 if not known.
	CompressedSize uint64
	// UncompressedSize is the size of the uncompressed space in bytes; 0 if not known.
	UncompressedSize uint64
	// Cipher tells how the blob's encrypted chunks are encrypted; Key means nothing
	// without one.
	Cipher Cipher
	Key    Key
	// ChunkInfo is the table of chunks that the blob carries about itself, v6 only.
	// It matters where chunks share a unit: see Chunk.Shared.
	ChunkInfo Section
	// MetaID names the object that holds ChunkInfo and what else the blob tells of
	// itself: ID, but for blobs whose data is an object of its own (a layer that
	// somebody else made).
	MetaID string
	// MetaSize is the size of the object MetaID in bytes where that is not ID; 0 if
	// not known.
	MetaSize uint64
	// TOCDigest is the SHA-256 of the table of contents at the end of MetaID with
	// its tar header, TOCSize bytes in all; 0 bytes if the image does not say.
	TOCDigest [32]byte
	TOCSize   uint32
	// PrefetchOffset and PrefetchSize are what v5 images say of bytes to read ahead.
	PrefetchOffset, PrefetchSize uint32
	// ListedChunks is ChunkCount as the blob table has it. They differ where the
	// table counts other chunks than those that the image uses.
	ListedChunks uint32
	// MappedBlock is the block of the blob in a flat disk, v6 only.
	MappedBlock uint32
}

// Section is a part of a blob object that may be compressed. Sizes and offset are
// in bytes; a size of 0 means that there is none.
type Section struct {
	Compressor       Compressor
	Offset           uint64
	CompressedSize   uint64
	UncompressedSize uint64
}

// Chunk is one unit of fetch, verification and caching.
type Chunk struct {
	// Blob is the blob that the chunk lies in.
	Blob *Info
	// Index numbers the chunk inside its blob, from 0.
	Index uint32
	// Compressed tells whether the bytes in the blob are compressed.
	Compressed bool
	// Encrypted tells whether they are encrypted, after that.
	Encrypted bool
	// Shared tells that the chunk lies in a unit that is compressed as a whole, with
	// other chunks: a batch, or a stretch of a gzip stream. Which and where in it
	// only the blob's chunk information says; the range in the blob means nothing.
	Shared bool
	// CompressedOffset and CompressedSize are the range in the blob object.
	CompressedOffset uint64
	CompressedSize   uint32
	// UncompressedOffset and UncompressedSize are the range in the blob's
	// uncompressed space, and in a cache file.
	UncompressedOffset uint64
	UncompressedSize   uint32
	// Digest is Blob.Digester over the uncompressed bytes. In a blob that is a plain
	// tar file (layout.FeatureTarfs) it is zero: there ID is the SHA-256 of all of it.
	Digest Digest
}

// Segment is the part of a chunk that one read wants.
type Segment struct {
	Chunk Chunk
	// Offset is where the wanted bytes start inside the uncompressed chunk.
	Offset uint32
	// Length is how many bytes are wanted, at least 1.
	Length uint32
}
