package export

import (
	"context"
	"fmt"
	"iter"
	"log/slog"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	"github.com/rafsd/rafsd/rafs/image"
)

// Data is the bytes of an image's chunks, for tools that go through them from
// start to end: verified, read ahead, kept nowhere. It takes about
// 16 MiB, and with chunks of the largest size three of these.
type Data struct {
	im     *image.Image
	engine *fetch.Engine
}

// NewData makes a reader over a backend that has the image's blobs. Retries are
// the backend's matter (backend.Retry). log may be nil.
func NewData(im *image.Image, b backend.Backend, log *slog.Logger) (*Data, error) {
	return newData(im, im.Blobs(), b, log)
}

func newData(im *image.Image, blobs []*blob.Info, b backend.Backend, log *slog.Logger) (*Data, error) {
	e, err := fetch.New(fetch.Options{
		Blobs: blobs, Catalog: im, Backend: b, Log: log,
		MemoryLimit: 8 << 20, Recent: 2 << 20, Amplify: -1,
	})
	if err != nil {
		return nil, err
	}
	return &Data{im: im, engine: e}, nil
}

// Stream gives the bytes of segments one after the other; see fetch.Engine.Stream.
func (d *Data) Stream(ctx context.Context, segs iter.Seq2[blob.Segment, error]) *fetch.Stream {
	return d.engine.Stream(ctx, segs)
}

// Stats is what was fetched so far.
func (d *Data) Stats() fetch.Stats { return d.engine.Stats() }

// Close ends all streams. The backend stays open.
func (d *Data) Close() error { return d.engine.Close() }

// FileSegments yields the segments of a regular file from start to end.
func FileSegments(im *image.Image, node uint64) iter.Seq2[blob.Segment, error] {
	return func(yield func(blob.Segment, error) bool) {
		a, err := im.Attr(node)
		if err != nil {
			yield(blob.Segment{}, fmt.Errorf("inode %d: %w", node, err))
			return
		}
		yieldFile(im, node, a.Size, nil, yield)
	}
}

// yieldFile yields the segments of a file, false when that is to end. scratch is
// used for lists of segments.
func yieldFile(im *image.Image, node, size uint64, scratch *[]blob.Segment, yield func(blob.Segment, error) bool) bool {
	if scratch == nil {
		scratch = new([]blob.Segment)
	}
	// A multiple of any chunk size, so that no chunk is wanted twice.
	const step = blob.MaxChunkSize
	for off := uint64(0); off < size; off += step {
		segs, err := im.Segments((*scratch)[:0], node, off, step)
		*scratch = segs
		want := min(step, size-off)
		for i := range segs {
			want -= uint64(segs[i].Length)
		}
		if err == nil && want != 0 {
			err = fmt.Errorf("chunks at %d lack %d of %d bytes: %w", off, want, size, image.ErrCorrupt)
		}
		if err != nil {
			yield(blob.Segment{}, fmt.Errorf("inode %d: %w", node, err))
			return false
		}
		for i := range segs {
			if !yield(segs[i], nil) {
				return false
			}
		}
	}
	return true
}

// ChunkSegments yields all chunks of a blob that the image knows, each whole, in
// the order of their numbers, which is that of the blob.
func ChunkSegments(im *image.Image, blobIndex uint32) iter.Seq2[blob.Segment, error] {
	return func(yield func(blob.Segment, error) bool) {
		for c := range im.BlobChunks(blobIndex) {
			if !yield(blob.Segment{Chunk: c, Length: c.UncompressedSize}, nil) {
				return
			}
		}
	}
}
