package convert

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/targz"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
)

// layer is a source layer that was converted.
type layer struct {
	tree     *tree.Layer     // until the layers are merged
	table    *chunk.Table    // of the blob; nil if the layer has no data
	info     *write.BlobInfo // nil likewise
	file     *os.File        // the blob; nil likewise
	contexts io.Closer       // of info, if they are spilled
	inline   *image.Image    // that info is about, if the blob has a bootstrap inside
	cached   *piece          // the blob, if a cache has it

	entries, droppedXattrs int
	bytes                  int64
	resumed                bool
}

func (l *layer) close() {
	if l.tree != nil {
		_ = l.tree.Close() // temporary files
	}
	if l.inline != nil {
		_ = l.inline.Close()
	}
	l.closeBlob()
}

func (l *layer) closeBlob() {
	if l.table != nil {
		_ = l.table.Close()
	}
	if l.file != nil {
		if strings.HasPrefix(filepath.Base(l.file.Name()), unfinished) {
			_ = os.Remove(l.file.Name()) // fails if it has got another name
		}
		_ = l.file.Close()
	}
	if l.contexts != nil {
		_ = l.contexts.Close()
	}
	l.table, l.file, l.contexts = nil, nil, nil
}

// piece is something to store whose digest is known.
type piece struct {
	desc v1.Descriptor
	open store.Opener
}

// blob is the layer's blob as it is stored.
func (l *layer) blob() *piece {
	if l.cached != nil {
		return l.cached
	}
	digest := v1.Hash{Algorithm: "sha256", Hex: l.info.Object.ID}
	return filePiece(l.file, v1.Descriptor{MediaType: artifact.MediaTypeBlob, Digest: digest, Size: l.info.Object.Size})
}

func filePiece(f io.ReaderAt, d v1.Descriptor) *piece {
	return &piece{d, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, from, d.Size-from)), nil
	}}
}

// convertLayers converts all layers, several at a time.
func (c *conversion) convertLayers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.opts.Layers)
	for i := range c.source.layers {
		group.Go(func() error {
			l, err := c.convertLayer(ctx, i)
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				err = fmt.Errorf("%w (the work folder needs room for the finished image; %s)", err, again)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(c.layers), c.source.layers[i].desc.Digest, err)
			}
			c.layers[i] = l
			return nil
		})
	}
	return group.Wait()
}

func (c *conversion) closeLayers() {
	for _, l := range c.layers {
		if l != nil {
			l.close()
		}
	}
}

// attempts is how often a layer is read when its transport breaks off.
const attempts = 3

// convertLayer converts a layer, unless that was done before, and pushes its blob
// if the target takes blobs ahead of their image.
func (c *conversion) convertLayer(ctx context.Context, i int) (*layer, error) {
	l, err := c.resume(i)
	if l == nil && err == nil {
		l, err = c.cached(ctx, i)
	}
	if err != nil {
		return nil, err
	}
	inline := c.cache != nil
	for n := 1; l == nil; n++ {
		l, err = c.readLayer(ctx, i, inline)
		if inline && errors.Is(err, errLeans) {
			inline, n = false, n-1
			continue
		}
		if err != nil && (n == attempts || !transient(ctx, err)) {
			return nil, err
		}
	}
	size := int64(0)
	if l.info != nil {
		size = l.info.Object.Size
		if store.Shared(c.dst) && !c.opts.elsewhere() {
			if err := c.push(ctx, i, l.blob()); err != nil {
				l.close()
				return nil, err
			}
		}
	}
	c.tell(Event{Layer: i, Digest: c.source.layers[i].desc.Digest.String(), Stage: StageDone, Done: size, Total: size})
	return l, nil
}

// push stores a blob and tells how it goes.
func (c *conversion) push(ctx context.Context, i int, p *piece) error {
	passed := c.progress(i, StagePush, p.desc.Size)
	_, err := c.dst.Blob(ctx, p.desc, func(ctx context.Context, from int64) (io.ReadCloser, error) {
		r, err := p.open(ctx, from)
		if err != nil {
			return nil, err
		}
		return &countCloser{countReader{r, passed}, r}, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w (%s)", c.opts.Target, err, again)
	}
	return nil
}

// transient tells whether reading a layer again may help. What is wrong with the
// layer or with the disk stays wrong.
func transient(ctx context.Context, err error) bool {
	var wrong *wrongLayer
	return ctx.Err() == nil && !errors.Is(err, tree.ErrRefused) && !errors.As(err, &wrong) &&
		!errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT)
}

// wrongLayer is a layer whose bytes are not what its image says.
type wrongLayer struct{ err error }

func (e *wrongLayer) Error() string { return e.err.Error() }

func (e *wrongLayer) Unwrap() error { return e.err }

// progressStep is how many bytes pass between two events.
const progressStep = 256 << 10

// progress returns what to call with the bytes that passed.
func (c *conversion) progress(i int, stage Stage, total int64) func(int) {
	done, told := int64(0), int64(0)
	return func(n int) {
		done += int64(n)
		if done-told >= progressStep || done == total && told < total {
			told = done
			c.tell(Event{Layer: i, Digest: c.digest(i), Stage: stage, Done: done, Total: total})
		}
	}
}

// readLayer reads a layer once, all the way, and writes its blob, with the layer's
// bootstrap inside if inline.
func (c *conversion) readLayer(ctx context.Context, i int, inline bool) (*layer, error) {
	src := &c.source.layers[i]
	raw, err := store.Verified(ctx, c.src, src.desc)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	stored := &countReader{r: raw, passed: c.progress(i, StageRead, src.desc.Size)}
	l, got, err := c.cut(ctx, i, stored, inline)
	if err == nil || transient(ctx, err) {
		err = finish(stored, raw, err)
	}
	if err == nil && got != "" && got != src.diffID.Hex {
		err = &wrongLayer{fmt.Errorf("unpacked digest sha256:%s, the image's configuration says %s", got, src.diffID)}
	}
	if err == nil {
		err = c.keep(i, l)
	}
	if err != nil {
		if l != nil {
			l.close()
		}
		return nil, err
	}
	return l, nil
}

// cut makes a layer of a stream. The second result is the digest of what it
// unpacks to, if that was computed.
func (c *conversion) cut(ctx context.Context, i int, stored io.Reader, inline bool) (*layer, string, error) {
	if c.opts.Reference {
		l, err := c.indexLayer(ctx, i, stored)
		return l, "", err
	}
	plain, err := tree.Decompress(bufio.NewReaderSize(stored, 128<<10))
	if err != nil {
		return nil, "", err
	}
	defer plain.Close()
	diff := sha256.New()
	l, err := c.cutLayer(ctx, i, io.TeeReader(plain, diff), inline)
	return l, hex.EncodeToString(diff.Sum(nil)), err
}

// finish reads the rest of a layer. If the layer is not what the manifest says,
// that is the error, whatever its tar seemed to be.
func finish(rest io.Reader, raw *artifact.Blob, err error) error {
	if _, drainErr := io.Copy(io.Discard, rest); drainErr != nil {
		return errors.Join(err, drainErr)
	}
	if verifyErr := raw.Verify(); verifyErr != nil {
		return &wrongLayer{verifyErr}
	}
	return err
}

type countReader struct {
	r      io.Reader
	passed func(int)
}

func (r *countReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.passed(n)
	return n, err
}

type countCloser struct {
	countReader
	io.Closer
}

// cutLayer turns a tar stream into a tree and a blob. It reads the stream to its
// end, beyond that of the archive.
func (c *conversion) cutLayer(ctx context.Context, i int, tar io.Reader, inline bool) (l *layer, err error) {
	file, err := c.blobFile()
	if err != nil {
		return nil, err
	}
	l = &layer{file: file}
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	o := &c.opts
	out := bufio.NewWriterSize(file, 128<<10)
	blob, err := write.NewBlob(out, write.BlobOptions{
		Format: o.format(), Version: o.Format.Version, TOC: o.Format.Version == 6, Packed: o.packed(), Batch: o.Format.BatchSize > 0,
		InlineMeta: inline,
	})
	if err != nil {
		return l, err
	}
	cutter, err := chunk.NewCutter(ctx, c.pool, blob, chunk.Options{
		Blob: c.number(i), Compressor: *o.Format.Compressor, Digester: o.Format.Digester, ChunkSize: o.Format.ChunkSize,
		Packed: o.packed(), BatchSize: o.Format.BatchSize, Dict: c.dict.lookup(), TempDir: o.WorkDir,
	})
	if err != nil {
		return l, err
	}
	buffered := bufio.NewReaderSize(tar, 128<<10)
	var readErr, closeErr error
	var batches []chunk.Batch
	l.tree, readErr = tree.ReadTar(ctx, buffered, cutter, tree.ReadOptions{Limits: o.Limits, TempDir: o.WorkDir, Whiteouts: whiteouts(inline)})
	l.table, batches, closeErr = cutter.Close()
	err = readErr
	if !errors.Is(readErr, closeErr) { // a failed write has often reached the reader
		err = errors.Join(readErr, closeErr)
	}
	if err != nil {
		return l, err
	}
	if _, err = io.Copy(io.Discard, buffered); err != nil {
		return l, err
	}
	contents := write.Contents{Table: l.table}
	if o.Format.BatchSize > 0 {
		contents.Contexts = write.BatchContexts(batches)
	}
	if inline {
		return l, c.finishInline(ctx, i, l, blob, contents, out)
	}
	if err = l.finish(blob, contents); err != nil {
		return l, err
	}
	return l, out.Flush()
}

// finish ends the blob of a layer, if it has any data.
func (l *layer) finish(b *write.Blob, contents write.Contents) (err error) {
	l.entries, l.bytes, l.droppedXattrs = l.tree.Entries, l.tree.Bytes, l.tree.DroppedXattrs
	if l.table.Len() == 0 {
		l.closeBlob()
		return nil
	}
	l.info, err = b.Finish(contents)
	return err
}

// indexLayer makes a tree of a layer, and a blob that lets a reader find the files
// in the layer as it is.
func (c *conversion) indexLayer(ctx context.Context, i int, stored io.Reader) (l *layer, err error) {
	o := &c.opts
	read, err := targz.Read(ctx, stored, targz.Options{
		Blob: c.number(i), ChunkSize: o.Format.ChunkSize, Dict: c.dict.lookup(), Limits: o.Limits, TempDir: o.WorkDir,
	})
	if err != nil {
		return nil, err
	}
	l = &layer{tree: read.Tree, table: read.Table}
	if read.Contexts != nil {
		l.contexts = read.Contexts
	}
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	if l.file, err = c.blobFile(); err != nil {
		return l, err
	}
	out := bufio.NewWriterSize(l.file, 128<<10)
	blob, err := write.NewBlob(out, write.BlobOptions{
		Format: o.format(), TOC: true, Separate: true, Zran: read.Contexts != nil,
	})
	if err != nil {
		return l, err
	}
	contents := write.Contents{Table: l.table, Data: write.Object{ID: read.ID, Size: read.Size}}
	if read.Contexts != nil {
		contents.Contexts = read.Contexts
	}
	if err = l.finish(blob, contents); err != nil {
		return l, err
	}
	return l, out.Flush()
}
