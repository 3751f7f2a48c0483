// Package check looks for everything that is wrong with an image: what
// rafs/image refuses, and beyond that what a reader can live with but a builder
// must not write, such as wrong link counts, tables that do not agree, or chunks
// that nobody uses. It lists every violation with its offset, not only the first,
// also in images that rafs/image refuses to open.
//
// It trusts nothing in the bootstrap, and walks it by itself over the structs of
// rafs/layout: where one part is broken the others are still looked at. Time is
// linear in the size of the bootstrap, which is read by parts; memory is a few MB,
// a bit or two for each slot an inode can be in, and 12 bytes for each chunk.
// Blobs are read only where they are asked for.
package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// DefaultMax is how many violations are listed unless Options say otherwise.
const DefaultMax = 1000

// Options tell what to check. The zero Options check a bootstrap alone.
type Options struct {
	// Max is how many violations, and how many notes, are listed before they are
	// only counted; 0 means DefaultMax.
	Max int
	// Blobs gives the blobs of the image, whose metadata is then held against the
	// bootstrap; nil leaves blobs alone.
	Blobs Blobs
	// InlineBlobID is the id of the blob that the bootstrap was taken out of, which
	// it cannot name itself; empty where it is not known.
	InlineBlobID string
	// Data asks for all data as well: every chunk is decoded and its digest
	// compared. It needs Blobs.
	Data bool
	// TempDir takes the bootstrap of a blob while it is checked; os.TempDir by
	// default.
	TempDir string
}

// Violation is one rule that an image breaks.
type Violation struct {
	// Offset is where in the bootstrap the wrong number stands, or, where Where
	// names a blob's object, where in the blob. Bytes.
	Offset uint64
	// Where is a path in the image, or a part of the bootstrap.
	Where string
	// What says what is there and what was wanted.
	What string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s (offset %#x)", v.Where, v.What, v.Offset)
}

// Report is what a check found.
type Report struct {
	// Version is 5 or 6, 0 for what is no RAFS bootstrap.
	Version int
	// Inodes and Names count what the walk from the root found: hard links once,
	// and each name but the root's.
	Inodes, Names uint64
	// Compressor is that of the image, and Blobs are its blobs as it describes them.
	Compressor blob.Compressor
	Blobs      []BlobFacts
	// Violations are the rules that are broken, in the order of the parts of a
	// bootstrap; More is how many there are beyond those listed.
	Violations []Violation
	More       int
	// Notes are oddities of other builders that every reader lives with, and
	// MoreNotes is how many there are beyond those listed.
	Notes     []Violation
	MoreNotes int
}

// BlobFacts are what an image says of a blob. Sizes are in bytes.
type BlobFacts struct {
	ID                               string
	CompressedSize, UncompressedSize uint64
	ChunkSize, ChunkCount            uint32
	Features                         layout.Features
}

// Err is nil for an image without violations, else an *Error.
func (r *Report) Err() error {
	if len(r.Violations) == 0 {
		return nil
	}
	return &Error{Violations: r.Violations, More: r.More}
}

// Error lists violations. It wraps image.ErrCorrupt.
type Error struct {
	Violations []Violation
	// More is how many there are beyond those listed.
	More int
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Violations)+1)
	for _, v := range e.Violations {
		lines = append(lines, v.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return fmt.Sprintf("%d violations: %s", len(e.Violations)+e.More, strings.Join(lines, "; "))
}

// Unwrap makes an image with violations a corrupt one.
func (e *Error) Unwrap() error { return image.ErrCorrupt }

// Image checks the bootstrap in a file. The error is an *Error if the bootstrap
// is wrong, and something else if it could not be read.
func Image(ctx context.Context, file string) error {
	r, err := File(ctx, file, Options{})
	if err != nil {
		return err
	}
	return r.Err()
}

// File checks the image whose bootstrap is in a file, or in a blob in a file. The error is about reading:
// what is wrong with the image is in the report.
func File(ctx context.Context, file string, opts Options) (*Report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return Reader(ctx, f, st.Size(), opts)
}

// Reader is File over a bootstrap of size bytes that may be anywhere.
func Reader(ctx context.Context, r io.ReaderAt, size int64, opts Options) (*Report, error) {
	if opts.Max <= 0 {
		opts.Max = DefaultMax
	}
	c := &checker{ctx: ctx, src: newSource(r, size), opts: opts, report: &Report{}}
	c.xattrs = c.src.size
	c.run()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.src.err != nil {
		return nil, c.src.err
	}
	return c.report, c.err
}

// checker is what both versions need.
type checker struct {
	ctx    context.Context
	src    *source
	opts   Options
	report *Report
	claims *claims
	err    error // of reading blobs
	inside bool  // the bootstrap was found in a blob
	whole  Blob  // that blob
	// xattrs is how many bytes of xattrs may still be read: they are looked at before
	// it is known that they belong to one inode only.
	xattrs uint64
}

func (c *checker) run() {
	var magic [4]byte
	if c.src.size > image.MaxBootstrap {
		c.fail(0, "bootstrap", "%d bytes, limit %d", c.src.size, image.MaxBootstrap)
		return
	}
	if c.endsAsBlob() && c.inlined() {
		return
	}
	if c.src.read(magic[:], v6.SuperOffset) && binary.LittleEndian.Uint32(magic[:]) == v6.Magic {
		c.report.Version = 6
		(&v6Check{checker: c}).run()
		return
	}
	if c.src.read(magic[:], 0) && binary.LittleEndian.Uint32(magic[:]) == v5.Magic {
		c.report.Version = 5
		(&v5Check{checker: c}).run()
		return
	}
	if c.src.err == nil && !c.inlined() {
		c.fail(0, "bootstrap", "%d bytes without the magic of RAFS v5 or v6", c.src.size)
	}
}

// endsAsBlob tells whether the last bytes are a tar header, as those of a blob with
// sections are. One without data may begin with its bootstrap.
func (c *checker) endsAsBlob() bool {
	var b [v6.TarHeaderSize]byte
	if c.inside || c.src.size < uint64(len(b)) || !c.src.read(b[:], c.src.size-uint64(len(b))) {
		return false
	}
	_, err := v6.DecodeTarHeader(b[:])
	return err == nil
}

// inlined looks for a bootstrap inside a blob. Offsets are then those in the
// bootstrap.
func (c *checker) inlined() bool {
	if c.inside {
		return false
	}
	log := spill.NewLog(c.opts.TempDir, extractMemory)
	defer log.Close()
	err := image.ExtractBootstrap(log, c.src.r, int64(c.src.size))
	var full *spill.Error
	if errors.As(err, &full) {
		c.err = err
	}
	if err != nil {
		return false
	}
	c.whole = &readerBlob{c.src.r, int64(c.src.size)}
	c.src, c.inside = newSource(logReader{log}, log.Len()), true
	c.xattrs = c.src.size
	c.run()
	return true
}

// extractMemory is what a bootstrap that was taken out of its blob has of memory,
// in bytes, beside the pages of its source.
const extractMemory = 256 << 10

// logReader reads a log as a file.
type logReader struct{ log *spill.Log }

func (r logReader) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(r.log.Len()-off, 0)))
	if err := r.log.Read(p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// done tells whether to stop early: the caller gave up or the source failed.
func (c *checker) done() bool { return c.src.err != nil || c.err != nil || c.ctx.Err() != nil }

// fail lists a violation. where is printed, so that a place that takes work to
// name costs only where something is wrong.
func (c *checker) fail(off uint64, where any, format string, args ...any) {
	if len(c.report.Violations) >= c.opts.Max {
		c.report.More++
		return
	}
	c.report.Violations = append(c.report.Violations, Violation{off, fmt.Sprint(where), fmt.Sprintf(format, args...)})
}

func (c *checker) note(off uint64, where any, format string, args ...any) {
	if len(c.report.Notes) >= c.opts.Max {
		c.report.MoreNotes++
		return
	}
	c.report.Notes = append(c.report.Notes, Violation{off, fmt.Sprint(where), fmt.Sprintf(format, args...)})
}

// reserved fails unless n bytes at off are zero.
func (c *checker) reserved(off, n uint64, where any) {
	if at, ok := c.src.zero(off, n); !ok {
		c.fail(at, where, "a reserved byte is not zero")
	}
}

// takeXattrs tells whether so many bytes of xattrs may be read.
func (c *checker) takeXattrs(off, n uint64, where any) bool {
	if n > c.xattrs {
		c.fail(off, where, "xattrs of %d bytes, all others together leave %d", n, c.xattrs)
		return false
	}
	c.xattrs -= n
	return true
}

// table is a range of the bootstrap.
type table struct {
	name     string
	field    uint64 // where the bootstrap tells of it
	off, len uint64
	align    uint64
}

// tables fails for what is not inside the bootstrap, not aligned, or not apart
// from what came before, and tells which tables can be read.
func (c *checker) tables(tables []table) []bool {
	ok := make([]bool, len(tables))
	for i, t := range tables {
		if t.len == 0 {
			continue
		}
		end := t.off + t.len
		switch {
		case end < t.off || end > c.src.size:
			c.fail(t.field, t.name, "%d bytes at %#x end beyond the bootstrap of %d", t.len, t.off, c.src.size)
			continue
		case t.off%t.align != 0:
			c.fail(t.field, t.name, "at %#x, want a multiple of %d", t.off, t.align)
			if t.off%8 != 0 {
				continue
			}
		}
		ok[i] = true
		if at, free := c.claims.take(t.off, t.len); !free {
			c.fail(t.field, t.name, "%d bytes at %#x overlap another part at %#x", t.len, t.off, at)
		}
	}
	return ok
}

// gaps notes bytes that are not zero and belong to nothing that the walk found.
func (c *checker) gaps(whole bool) {
	if !whole || c.done() {
		return
	}
	for start := uint64(0); start < c.src.size && !c.done(); {
		u := start / c.claims.unit
		if c.claims.set.has(u) {
			start = (u + 1) * c.claims.unit
			continue
		}
		end := start
		for end < c.src.size && !c.claims.set.has(end/c.claims.unit) {
			end += c.claims.unit
		}
		end = min(end, c.src.size)
		if at, ok := c.src.zero(start, end-start); !ok {
			c.note(at, "bootstrap", "%d bytes at %#x belong to nothing and are not zero", end-start, start)
		}
		start = end
	}
}

// flagRules checks the flags of a superblock and returns the digester's bit.
func (c *checker) flagRules(off uint64, f layout.Flags) {
	if bad := f &^ layout.FlagsKnown; bad != 0 {
		c.fail(off, "superblock", "unknown flags %#x", uint64(bad))
	}
	if n := f & layout.FlagsCompressor; n == 0 || n&(n-1) != 0 {
		c.fail(off, "superblock", "flags %#x name no compressor, or several", uint64(f))
	}
	if n := f & layout.FlagsDigester; n == 0 || n&(n-1) != 0 {
		c.fail(off, "superblock", "flags %#x name no digester, or several", uint64(f))
	}
	if f&layout.FlagEncryptionNone != 0 && f&layout.FlagEncryptionAES128XTS != 0 {
		c.fail(off, "superblock", "flags %#x name two encryptions", uint64(f))
	}
}

func (c *checker) chunkSizeRule(off uint64, where string, size uint32) bool {
	if size < minChunkSize || size > maxChunkSize || size&(size-1) != 0 {
		c.fail(off, where, "chunk size %#x, want a power of two, %#x to %#x", size, minChunkSize, maxChunkSize)
		return false
	}
	return true
}
