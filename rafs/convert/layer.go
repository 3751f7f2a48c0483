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
	"syscall"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// layer is a source layer that was converted.
type layer struct {
	tree  *tree.Layer     // until the layers are merged
	table *chunk.Table    // of the blob; nil if the layer has no data
	info  *write.BlobInfo // nil likewise
	file  *os.File        // the blob; nil likewise

	entries, droppedXattrs int
	bytes                  int64
}

func (l *layer) close() {
	if l.tree != nil {
		l.tree.Close()
	}
	l.closeBlob()
}

func (l *layer) closeBlob() {
	if l.table != nil {
		l.table.Close()
	}
	if l.file != nil {
		l.file.Close()
	}
	l.table, l.file = nil, nil
}

// attempts is how often a layer is read when its transport breaks off.
const attempts = 3

// convertLayer converts a layer and pushes its blob.
func (c *conversion) convertLayer(ctx context.Context, i int) (*layer, error) {
	var l *layer
	for n := 1; ; n++ {
		var err error
		if l, err = c.readLayer(ctx, i); err == nil {
			break
		}
		if n == attempts || !transient(ctx, err) {
			return nil, err
		}
	}
	size := int64(0)
	if l.info != nil {
		size = l.info.Object.Size
		b := l.content()
		b.progress = c.progress(i, StagePush, size)
		if err := c.target.blob(ctx, b); err != nil {
			l.close()
			return nil, fmt.Errorf("push blob %s to %s: %w (run it again: blobs that have arrived are not sent twice)", b.digest, c.opts.Target, err)
		}
	}
	c.report(Event{Layer: i, Digest: c.source.layers[i].name(), Stage: StageDone, Done: size, Total: size})
	return l, nil
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
			c.report(Event{Layer: i, Digest: c.source.layers[i].name(), Stage: stage, Done: done, Total: total})
		}
	}
}

// readLayer reads a layer once, all the way, and writes its blob.
func (c *conversion) readLayer(ctx context.Context, i int) (*layer, error) {
	src := &c.source.layers[i]
	raw, err := src.open(ctx)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	stored := &countReader{r: raw, passed: c.progress(i, StageRead, src.size)}
	plain, err := tree.Decompress(bufio.NewReaderSize(stored, 128<<10))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	diff := sha256.New()
	l, err := c.cutLayer(ctx, i, io.TeeReader(plain, diff))
	if err == nil || transient(ctx, err) {
		err = finish(stored, raw, err)
	}
	if got := hex.EncodeToString(diff.Sum(nil)); err == nil && got != src.diffID.Hex {
		err = &wrongLayer{fmt.Errorf("unpacked digest sha256:%s, the image's configuration says %s", got, src.diffID)}
	}
	if err != nil {
		if l != nil {
			l.close()
		}
		return nil, err
	}
	return l, nil
}

// finish reads the rest of a layer. If the layer is not what the manifest says,
// that is the error, whatever its tar seemed to be.
func finish(rest io.Reader, raw verified, err error) error {
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

// cutLayer turns a tar stream into a tree and a blob. It reads the stream to its
// end, beyond that of the archive.
func (c *conversion) cutLayer(ctx context.Context, i int, tar io.Reader) (l *layer, err error) {
	file, err := c.opts.tempFile()
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
	out := bufio.NewWriterSize(file, 128<<10)
	format := c.opts.format()
	blob, err := write.NewBlob(out, write.BlobOptions{Format: format, TOC: true})
	if err != nil {
		return l, err
	}
	cutter, err := chunk.NewCutter(ctx, c.pool, blob, chunk.Options{
		Blob: uint32(i), Compressor: format.Compressor, Digester: format.Digester, TempDir: c.opts.WorkDir,
	})
	if err != nil {
		return l, err
	}
	buffered := bufio.NewReaderSize(tar, 128<<10)
	var readErr, closeErr error
	l.tree, readErr = tree.ReadTar(ctx, buffered, cutter, tree.ReadOptions{Limits: c.opts.Limits, TempDir: c.opts.WorkDir})
	l.table, _, closeErr = cutter.Close()
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
	l.entries, l.bytes, l.droppedXattrs = l.tree.Entries, l.tree.Bytes, l.tree.DroppedXattrs
	if l.table.Len() == 0 {
		l.closeBlob()
		return l, nil
	}
	if l.info, err = blob.Finish(write.Contents{Table: l.table}); err != nil {
		return l, err
	}
	return l, out.Flush()
}
