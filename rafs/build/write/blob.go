// Package write emits RAFS images: data blobs, and the v5 or v6 bootstrap that
// describes the tree over them.
//
// A blob is written as a stream, chunk data first and its tables after it. A
// bootstrap is planned first, which is pure computation of offsets and numbers,
// and then emitted from start to end. Both are functions of their input alone.
//
// The package trusts the tree and the records it is given: they were made by
// rafs/build/tree and rafs/build/chunk, which refuse what the format cannot
// hold. It does no I/O but on the writers it is handed and on unnamed files
// (rafs/build/spill), where it keeps what grows with the number of inodes. Tables
// of chunks are read and written in passing, but for the chunk information of an
// encrypted blob, which the cipher takes as a whole.
package write

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// UnknownID is what a bootstrap inside its blob calls that blob, whose id is not
// known before the bootstrap is written (nydus builder/src/lib.rs, dump_bootstrap).
var UnknownID = strings.Repeat("x", blob.MaxIDLen)

// Format holds the choices of an image that every blob and the bootstrap share.
type Format struct {
	ChunkSize  uint32 // bytes; a power of two from blob.MinChunkSize to blob.MaxChunkSize
	Compressor blob.Compressor
	Digester   blob.Digester
}

// Check refuses a format that no image can have.
func (f Format) Check() error {
	switch {
	case f.ChunkSize < blob.MinChunkSize || f.ChunkSize > blob.MaxChunkSize || f.ChunkSize&(f.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size %d: want a power of two from %d to %d", f.ChunkSize, blob.MinChunkSize, blob.MaxChunkSize)
	case !f.Compressor.Valid():
		return fmt.Errorf("compressor %v: want none, lz4_block, gzip or zstd", f.Compressor)
	case !f.Digester.Valid():
		return fmt.Errorf("digester %v: want blake3 or sha256", f.Digester)
	}
	return nil
}

// Cipher is the key of an encrypted blob. The bootstrap holds it in clear.
type Cipher struct {
	Key [xts.KeySize]byte
	IV  [xts.IVSize]byte
}

// BlobOptions say which sections a blob has and in what form.
type BlobOptions struct {
	Format
	// Version is 5 or 6; 0 means 6. A v5 blob has no tables of its own.
	Version int
	// TOC adds tar headers, the digests of the chunks and a table of contents
	// (nydus-image --features blob-toc). Without digests nydusd cannot verify.
	TOC bool
	// InlineMeta puts a bootstrap into the blob (nydus-image --blob-inline-meta).
	InlineMeta bool
	// Packed says that uncompressed offsets of a v5 blob are not aligned.
	Packed bool
	// V2 asks for chunk information with checksums, which Batch, Zran, Separate
	// and Cipher have anyway. It cannot hold an incompressible chunk of 16 MiB.
	V2 bool
	// Batch and Zran say what kind of contexts follow the chunk information.
	Batch, Zran bool
	// Separate says that the data is in an object of its own, such as a layer of an
	// OCI image, and what is written are its tables.
	Separate bool
	// Cipher encrypts the chunk information. The chunks have been encrypted with it
	// before they are written; nil: nothing is encrypted.
	Cipher *Cipher
	// ID is the blob's id; empty: the SHA-256 of all that is written.
	ID string
}

// Check refuses sections that no reader expects together.
func (o *BlobOptions) Check() error {
	if err := o.Format.Check(); err != nil {
		return err
	}
	tables := o.TOC || o.V2 || o.Batch || o.Zran || o.Separate || o.Cipher != nil
	switch {
	case o.Version != 0 && o.Version != 5 && o.Version != 6:
		return fmt.Errorf("version %d: want 5 or 6", o.Version)
	case o.Version == 5 && tables:
		return errors.New("a v5 blob has neither chunk information nor a table of contents, contexts or a cipher")
	case o.Version != 5 && o.Packed:
		return errors.New("chunks of a v6 blob are aligned")
	case o.Zran && (!o.Separate || o.Batch):
		return errors.New("zran contexts are for data in a separate object, and exclude batches")
	case o.Separate && (o.Batch || o.Cipher != nil):
		return errors.New("data in a separate object has neither batches nor a cipher")
	case o.Compressor == blob.CompressorGzip && !o.Separate:
		return errors.New("compressor gzip: only for data in a separate object")
	}
	return nil
}

// features are those of a blob with chunks (nydus builder/src/core/context.rs).
func (o *BlobOptions) features() layout.Features {
	f := layout.FeatureCapTarTOC
	for _, x := range []struct {
		set bool
		add layout.Features
	}{
		{o.Version != 5, layout.FeatureAligned},
		{o.InlineMeta, layout.FeatureInlinedFSMeta | layout.FeatureHasTarHeader},
		{o.TOC, layout.FeatureHasTOC | layout.FeatureHasTarHeader | layout.FeatureInlinedChunkDigest},
		{o.V2 || o.Batch || o.Zran || o.Separate || o.Cipher != nil, layout.FeatureChunkInfoV2},
		{o.Batch, layout.FeatureBatch},
		{o.Zran, layout.FeatureZran},
		{o.Separate, layout.FeatureSeparate},
		{o.Cipher != nil, layout.FeatureEncrypted},
	} {
		if x.set {
			f |= x.add
		}
	}
	return f
}

// Object is a stored object: its id, which is the hex SHA-256 if a registry has
// it, and its size in bytes.
type Object struct {
	ID   string
	Size int64
}

// Contents is what a blob is finished with.
type Contents struct {
	// Table lists the chunks. It stays in use as BlobInfo.Table.
	Table Table
	// Contexts are the batch or zran contexts; nil without BlobOptions.Batch and Zran.
	Contexts Contexts
	// Data is the object with the data if BlobOptions.Separate is set.
	Data Object
	// Bootstrap writes the bootstrap of a blob with BlobOptions.InlineMeta. info is
	// what the bootstrap must say of the blob itself, nil if that has no chunks and
	// must not be listed.
	Bootstrap func(w io.Writer, info *BlobInfo) error
}

// Blob writes one blob. The chunk data is written to it first; Finish then
// appends the tables. The first error of the writer beneath is kept.
type Blob struct {
	w    io.Writer
	sum  hash.Hash // of everything so far
	size uint64
	opts BlobOptions
	key  *xts.Key
	toc  []v6.TOCEntry
	err  error
}

// NewBlob starts a blob on w.
func NewBlob(w io.Writer, o BlobOptions) (*Blob, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	b := &Blob{w: w, sum: sha256.New(), opts: o}
	if o.Cipher != nil {
		var err error
		if b.key, err = xts.NewKey(o.Cipher.Key, o.Cipher.IV); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Write appends to the section at the end of the blob. Before Finish it takes
// the chunk data; there is none where the data is in a separate object.
func (b *Blob) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.w.Write(p)
	b.sum.Write(p[:n])
	b.size += uint64(n)
	b.err = err
	return n, err
}

// Finish writes what follows the chunk data. A blob without chunks has nothing
// but its bootstrap, and is refused if it has none: no image can refer to it.
func (b *Blob) Finish(c Contents) (*BlobInfo, error) {
	if err := b.checkContents(&c); err != nil {
		return nil, err
	}
	info, err := b.describe(&c)
	if err != nil {
		return nil, err
	}
	if c.Table.Len() > 0 {
		b.finishData(info)
		if err := b.finishTables(info); err != nil {
			return nil, err
		}
	}
	if b.opts.InlineMeta {
		if err := b.finishBootstrap(info, c.Bootstrap); err != nil {
			return nil, fmt.Errorf("bootstrap inside the blob: %w", err)
		}
	}
	if b.opts.TOC {
		b.finishTOC(info)
	}
	if b.err != nil {
		return nil, b.err
	}
	b.seal(info)
	return info, nil
}

func (b *Blob) checkContents(c *Contents) error {
	contexts := b.opts.Batch || b.opts.Zran
	switch {
	case c.Table.Len() == 0 && !b.opts.InlineMeta:
		return errors.New("blob without a chunk")
	case contexts != (c.Contexts != nil):
		return fmt.Errorf("contexts given: %t, options want them: %t", c.Contexts != nil, contexts)
	case b.opts.InlineMeta != (c.Bootstrap != nil):
		return fmt.Errorf("bootstrap given: %t, options want it inside: %t", c.Bootstrap != nil, b.opts.InlineMeta)
	case b.opts.Separate && b.size != 0:
		return fmt.Errorf("%d bytes of data written, options want it in a separate object", b.size)
	case b.opts.Separate && blob.CheckID(c.Data.ID) != nil:
		return fmt.Errorf("separate data: %w", blob.CheckID(c.Data.ID))
	}
	return nil
}

// describe makes what is known of a blob before its tables are written.
func (b *Blob) describe(c *Contents) (*BlobInfo, error) {
	info := &BlobInfo{ID: b.opts.ID, Table: c.Table, Contexts: c.Contexts, Entry: v6.BlobEntry{
		ChunkSize:      b.opts.ChunkSize,
		ChunkCount:     c.Table.Len(),
		Compressor:     uint32(b.opts.Compressor),
		Digester:       uint32(b.opts.Digester),
		Features:       uint32(b.opts.features()),
		CompressedSize: b.size,
	}}
	if b.opts.Separate {
		info.ID, info.Entry.CompressedSize = c.Data.ID, uint64(c.Data.Size)
	}
	if k := b.opts.Cipher; k != nil {
		// Key and IV take the place of what only separate data needs.
		info.Entry.Cipher, info.Entry.MetaDigest = uint32(blob.CipherAES128XTS), k.Key
		info.Entry.MetaSize = binary.LittleEndian.Uint64(k.IV[:8])
		info.Entry.MetaReserved = binary.LittleEndian.Uint64(k.IV[8:])
	}
	if n := c.Table.Len(); n > 0 {
		last, err := c.Table.Record(n - 1)
		if err != nil {
			return nil, fmt.Errorf("chunk %d: %w", n-1, err)
		}
		info.Entry.UncompressedSize = last.UncompressedOffset + uint64(last.UncompressedSize)
		if !b.opts.Packed {
			info.Entry.UncompressedSize = alignBlock(info.Entry.UncompressedSize)
		}
	}
	return info, nil
}

// seal sets what is known only of a finished blob.
func (b *Blob) seal(info *BlobInfo) {
	sum := [32]byte(b.sum.Sum(nil))
	info.Object = Object{ID: hex.EncodeToString(sum[:]), Size: int64(b.size)}
	info.Entry.Features &^= uint32(layout.FeatureInlinedFSMeta)
	if b.opts.Separate {
		info.Entry.MetaDigest, info.Entry.MetaSize = sum, b.size
		return
	}
	info.Entry.CompressedSize = b.size
	if info.ID = b.opts.ID; info.ID == "" {
		info.ID = info.Object.ID
	}
}

func alignBlock(n uint64) uint64 { return (n + v6.BlockSize - 1) &^ (v6.BlockSize - 1) }
