// Package layout holds what RAFS v5 and v6 share on disk: the flags of a file
// system, the features of a blob and the record of a chunk. The two versions
// have a package each beneath it.
//
// The layout packages turn bytes into structs and back, little-endian, one
// struct at a time. They check lengths and nothing else: whether a number makes
// sense is for rafs/image to say. They do no I/O, and a decoded struct keeps no
// reference to the bytes it came from.
package layout

import "strings"

// Flags are the properties of a file system, in both superblocks
// (RafsSuperFlags, nydus rafs/src/metadata/mod.rs).
type Flags uint64

// The flags of the format.
const (
	FlagCompressorNone      Flags = 0x1
	FlagCompressorLZ4Block  Flags = 0x2
	FlagDigesterBlake3      Flags = 0x4
	FlagDigesterSHA256      Flags = 0x8
	FlagExplicitUIDGID      Flags = 0x10
	FlagHasXattr            Flags = 0x20
	FlagCompressorGzip      Flags = 0x40
	FlagCompressorZstd      Flags = 0x80
	FlagInlinedChunkDigest  Flags = 0x100
	FlagTarfs               Flags = 0x200
	FlagEncryptionNone      Flags = 0x0100_0000
	FlagEncryptionAES128XTS Flags = 0x0200_0000

	// FlagsCompat are reserved bits that a reader must accept and ignore.
	FlagsCompat Flags = 0xfc00_0000

	// FlagsCompressor and FlagsDigester each name one algorithm: exactly one
	// bit of either is set.
	FlagsCompressor = FlagCompressorNone | FlagCompressorLZ4Block | FlagCompressorGzip | FlagCompressorZstd
	FlagsDigester   = FlagDigesterBlake3 | FlagDigesterSHA256

	// FlagsKnown are all bits that may be set.
	FlagsKnown = FlagsCompressor | FlagsDigester | FlagExplicitUIDGID | FlagHasXattr |
		FlagInlinedChunkDigest | FlagTarfs | FlagEncryptionNone | FlagEncryptionAES128XTS | FlagsCompat
)

// Features are the properties of a blob (BlobFeatures, nydus
// storage/src/device.rs).
type Features uint32

// The features of the format.
const (
	FeatureAligned            Features = 0x1 // uncompressed offsets of chunks are multiples of 4096
	FeatureInlinedFSMeta      Features = 0x2 // the bootstrap lies inside this blob
	FeatureChunkInfoV2        Features = 0x4
	FeatureZran               Features = 0x8
	FeatureSeparate           Features = 0x10 // data and metadata are two objects
	FeatureInlinedChunkDigest Features = 0x20 // a blob.digest section exists
	FeatureTarfs              Features = 0x40
	FeatureBatch              Features = 0x80
	FeatureEncrypted          Features = 0x100
	FeatureChunkDictGenerated Features = 0x200
	FeatureSeparatePrefetch   Features = 0x400
	FeatureExternal           Features = 0x800
	FeatureHasTarHeader       Features = 0x1000_0000 // a tar header follows each section
	FeatureHasTOC             Features = 0x2000_0000
	FeatureCapTarTOC          Features = 0x4000_0000 // made by nydus-image 2.2 or later
	FeatureV5NoExtBlobTable   Features = 0x8000_0000 // never on disk

	// FeaturesIncompat are the bits that a reader must know to read the blob.
	FeaturesIncompat Features = 0xffff
	// FeaturesKnown are the bits of FeaturesIncompat that have a meaning.
	FeaturesKnown Features = 0x0fff
)

var flagNames = [...]struct {
	bit  Flags
	name string
}{
	{FlagCompressorNone, "none"},
	{FlagCompressorLZ4Block, "lz4_block"},
	{FlagDigesterBlake3, "blake3"},
	{FlagDigesterSHA256, "sha256"},
	{FlagExplicitUIDGID, "explicit-uidgid"},
	{FlagHasXattr, "xattr"},
	{FlagCompressorGzip, "gzip"},
	{FlagCompressorZstd, "zstd"},
	{FlagInlinedChunkDigest, "inlined-chunk-digest"},
	{FlagTarfs, "tarfs"},
	{FlagEncryptionNone, "encryption-none"},
	{FlagEncryptionAES128XTS, "aes128xts"},
}

// String names the bits of f that have a name, separated by commas.
func (f Flags) String() string {
	var names []string
	for _, n := range flagNames {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

var featureNames = [...]struct {
	bit  Features
	name string
}{
	{FeatureAligned, "aligned"},
	{FeatureInlinedFSMeta, "inlined-meta"},
	{FeatureChunkInfoV2, "chunk-info-v2"},
	{FeatureZran, "zran"},
	{FeatureSeparate, "separate"},
	{FeatureInlinedChunkDigest, "inlined-chunk-digest"},
	{FeatureTarfs, "tarfs"},
	{FeatureBatch, "batch"},
	{FeatureEncrypted, "encrypted"},
	{FeatureChunkDictGenerated, "chunk-dict-generated"},
	{FeatureSeparatePrefetch, "separate-prefetch"},
	{FeatureExternal, "external"},
	{FeatureHasTarHeader, "tar-header"},
	{FeatureHasTOC, "toc"},
	{FeatureCapTarTOC, "cap-tar-toc"},
}

// String names the bits of f that have a name, separated by commas.
func (f Features) String() string {
	var names []string
	for _, n := range featureNames {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}
