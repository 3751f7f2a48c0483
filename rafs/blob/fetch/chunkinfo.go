package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

const (
	// metaPiece is how much of chunk information is read at once.
	metaPiece = 1 << 20
	// metaInMemory is how long chunk information is kept in memory, and metaMemory how
	// much of all blobs; what is longer or more lies in files without a name.
	metaInMemory = 1 << 20
	metaMemory   = 8 << 20
	// metaWhole bounds what can be decoded in one go only.
	metaWhole = blob.MaxChunkSize
	// metaWindow bounds what zstd may look back. nydus-image takes 2 MiB.
	metaWindow = 8 << 20
)

// metaRead reads the chunk information of a blob out of the object that has it.
type metaRead struct {
	e      *Engine
	s      *store
	ctx    context.Context
	object backend.Reader
	// Digests by the table of contents; nil where the image does not vouch for one.
	info, header *v6.TOCEntry
}

// readTable reads chunk information from the blob, or from the object beside it.
func (e *Engine) readTable(s *store, fresh bool) (*table, error) {
	if err := unit.Check(s.info); err != nil {
		return nil, err
	}
	r := &metaRead{e: e, s: s, ctx: e.ctx, object: s.source}
	if fresh {
		r.ctx = backend.Fresh(r.ctx)
	}
	if s.info.MetaID != s.info.ID {
		if s.info.MetaID == "" {
			return nil, fmt.Errorf("%w: blob %s does not name the object that has it", blob.ErrCorrupt, s.info.ID)
		}
		var err error
		if r.object, err = e.opts.Backend.Open(s.info.MetaID); err != nil {
			return nil, err
		}
	}
	if err := r.readTOC(); err != nil {
		return nil, err
	}
	header, err := r.readHeader()
	if err != nil {
		return nil, err
	}
	keep, err := e.kept.spool(int64(s.info.ChunkInfo.UncompressedSize))
	if err != nil {
		return nil, err
	}
	err = r.readInfo(keep)
	var t *unit.Table
	if err == nil {
		t, err = unit.New(s.info, header, keep)
	}
	if err != nil {
		keep.close()
		return nil, err
	}
	return &table{Table: t, close: keep.close}, nil
}

// readTOC reads the table of contents where the image has a digest of it: that
// vouches for the chunk information then.
func (r *metaRead) readTOC() error {
	info := r.s.info
	if info.TOCSize == 0 || info.TOCDigest == [32]byte{} {
		return nil
	}
	if info.TOCSize < v6.TarHeaderSize || info.TOCSize > v6.MaxTOCSize {
		return fmt.Errorf("%w: table of contents of %d bytes, want %d to %d", blob.ErrCorrupt, info.TOCSize, v6.TarHeaderSize, v6.MaxTOCSize)
	}
	size, err := r.object.Size(r.ctx)
	if err != nil {
		return err
	}
	b := make([]byte, info.TOCSize)
	if size < int64(len(b)) {
		return fmt.Errorf("%w: object of %d bytes has no table of contents of %d", blob.ErrCorrupt, size, len(b))
	}
	if err := r.e.readPiece(r.ctx, r.object, b, uint64(size)-uint64(len(b))); err != nil {
		return err
	}
	if got := sha256.Sum256(b); got != info.TOCDigest {
		return fmt.Errorf("%w: table of contents has sha256 %x, want %x", blob.ErrDigest, got, info.TOCDigest)
	}
	toc, err := v6.DecodeTOC(b[:len(b)-v6.TarHeaderSize])
	if err != nil {
		return fmt.Errorf("%w: %w", blob.ErrCorrupt, err)
	}
	for i := range toc {
		switch toc[i].Name {
		case v6.SectionMeta:
			r.info = &toc[i]
		case v6.SectionMetaHeader:
			r.header = &toc[i]
		}
	}
	return nil
}

// readHeader reads the header behind the chunk information.
func (r *metaRead) readHeader() ([]byte, error) {
	b := make([]byte, unit.HeaderSize)
	ci := &r.s.info.ChunkInfo
	if err := r.e.readPiece(r.ctx, r.object, b, ci.Offset+ci.CompressedSize); err != nil {
		return nil, err
	}
	if r.s.key != nil {
		var err error
		if b, err = r.s.key.Decrypt(nil, b); err != nil {
			return nil, fmt.Errorf("%w: %w", blob.ErrCorrupt, err)
		}
	}
	if r.header != nil && sha256.Sum256(b) != r.header.Digest {
		return nil, fmt.Errorf("%w: header of chunk information is not that of the table of contents", blob.ErrDigest)
	}
	return b, nil
}

// readInfo reads the chunk information, decodes it and keeps it.
func (r *metaRead) readInfo(keep *spool) error {
	ci := &r.s.info.ChunkInfo
	var in io.Reader = &ranges{r: r, at: ci.Offset, left: ci.CompressedSize}
	if r.s.key != nil {
		in = r.s.key.Reader(in)
	}
	if ci.Compressor == blob.CompressorLZ4Block {
		whole, err := r.whole(in)
		if err != nil {
			return err
		}
		in = bytes.NewReader(whole)
	}
	switch ci.Compressor {
	case blob.CompressorNone, blob.CompressorLZ4Block:
	case blob.CompressorZstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(metaWindow))
		if err != nil {
			return err
		}
		defer z.Close()
		in = z
	default:
		return fmt.Errorf("chunk information by %v: %w", ci.Compressor, errors.ErrUnsupported)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(keep, hashOr(sum, r.info != nil)), io.LimitReader(in, int64(ci.UncompressedSize)+1))
	switch {
	case err != nil && backendError(err):
		return err
	case err != nil || uint64(n) != ci.UncompressedSize:
		return fmt.Errorf("%w: chunk information of %d bytes, want %d: %v", blob.ErrCorrupt, n, ci.UncompressedSize, err)
	case r.info != nil && string(sum.Sum(nil)) != string(r.info.Digest[:]):
		return fmt.Errorf("%w: chunk information is not that of the table of contents", blob.ErrDigest)
	}
	return nil
}

func hashOr(h hash.Hash, wanted bool) io.Writer {
	if wanted {
		return h
	}
	return io.Discard
}

// whole decodes what can be decoded in one go only.
func (r *metaRead) whole(in io.Reader) ([]byte, error) {
	ci := &r.s.info.ChunkInfo
	if ci.UncompressedSize > metaWhole {
		return nil, fmt.Errorf("chunk information of %d bytes in one piece, limit %d: %w", ci.UncompressedSize, metaWhole, errors.ErrUnsupported)
	}
	packed, err := io.ReadAll(in)
	if err != nil && !backendError(err) {
		err = fmt.Errorf("%w: %w", blob.ErrCorrupt, err)
	}
	if err != nil {
		return nil, err
	}
	plain := make([]byte, ci.UncompressedSize)
	return plain, codec.Decode(ci.Compressor, plain, packed)
}

// backendFailure marks an error of the source, so that it is not taken for one of
// the decoder that it went through.
type backendFailure struct{ error }

func (f backendFailure) Unwrap() error { return f.error }

func backendError(err error) bool {
	var f backendFailure
	return errors.As(err, &f)
}

// ranges is a part of an object as a stream.
type ranges struct {
	r        *metaRead
	at, left uint64
	buf      []byte
	rest     []byte
}

func (g *ranges) Read(p []byte) (int, error) {
	if len(g.rest) == 0 {
		if g.left == 0 {
			return 0, io.EOF
		}
		n := min(g.left, metaPiece)
		if g.buf == nil {
			g.buf = make([]byte, n)
		}
		g.rest = g.buf[:n]
		if err := g.r.e.readPiece(g.r.ctx, g.r.object, g.rest, g.at); err != nil {
			g.rest = nil
			return 0, backendFailure{err}
		}
		g.at, g.left = g.at+n, g.left-n
	}
	n := copy(p, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// spools counts what the spools of all blobs hold, in bytes: each blob of an image
// may say that its chunk information is long.
type spools struct {
	limit     int64 // of what lies in files
	mem, file atomic.Int64
}

// spool keeps bytes to be read in places: in memory, or where they are many in a
// file that has no name any more.
type spool struct {
	mem   []byte
	file  *os.File
	held  atomic.Int64 // of count
	count *atomic.Int64
}

func (k *spools) spool(size int64) (*spool, error) {
	s := &spool{}
	if size <= metaInMemory && s.take(&k.mem, size, metaMemory) {
		s.mem = make([]byte, 0, size)
		return s, nil
	}
	if !s.take(&k.file, size, k.limit) {
		return nil, fmt.Errorf("%d bytes of chunk information besides %d of other blobs, limit %d: %w", size, k.file.Load(), k.limit, errors.ErrUnsupported)
	}
	f, err := os.CreateTemp("", "rafsd-chunks-")
	if err == nil {
		s.file, err = f, os.Remove(f.Name())
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("room for %d bytes of chunk information: %w", size, err)
	}
	return s, nil
}

func (s *spool) take(count *atomic.Int64, size, limit int64) bool {
	if count.Add(size) > limit {
		count.Add(-size)
		return false
	}
	s.count = count
	s.held.Store(size)
	return true
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file != nil {
		return s.file.Write(p)
	}
	s.mem = append(s.mem, p...)
	return len(p), nil
}

func (s *spool) ReadAt(p []byte, off int64) (int, error) {
	if s.file != nil {
		return s.file.ReadAt(p, off)
	}
	return bytes.NewReader(s.mem).ReadAt(p, off)
}

func (s *spool) close() {
	s.count.Add(-s.held.Swap(0))
	if s.file != nil {
		_ = s.file.Close()
	}
}
