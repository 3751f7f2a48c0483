package rafsfs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/blob"
)

// maxPooledSegments keeps the pool from holding what one odd read needed: 1 MiB
// out of 4 KiB chunks.
const maxPooledSegments = 257

// segments lends out the list that a read is cut into.
var segments = sync.Pool{New: func() any { s := make([]blob.Segment, 0, 8); return &s }}

func release(s *[]blob.Segment) {
	if cap(*s) <= maxPooledSegments {
		*s = (*s)[:0]
		segments.Put(s)
	}
}

// ReadNow reads file data at off into dst, which may be guest memory, if every
// chunk of the range is Ready. ok is false if it is not: nothing was written
// then, and ReadWait has to do it. The count ends at the end of the file.
func (f *FS) ReadNow(node, off uint64, dst [][]byte) (n int, status fuse.Status, ok bool) {
	s := segments.Get().(*[]blob.Segment)
	defer release(s)
	segs, err := f.image.Segments(*s, node, off, length(dst))
	if err != nil {
		return 0, f.status("read", node, err), true
	}
	*s = segs
	for i := range segs {
		if segs[i].Chunk.Blob != nil && !f.store.Ready(&segs[i].Chunk) {
			return 0, fuse.OK, false
		}
	}
	n, err = f.readReady(segs, dst)
	if err != nil {
		// The cache lost what it had: the slow way fetches it again.
		return 0, fuse.OK, false
	}
	f.stats.readNow.Add(1)
	f.stats.readBytes.Add(uint64(n))
	return n, fuse.OK, true
}

// ReadWait is ReadNow for a range that may have to be fetched: it blocks until
// the bytes are there and verified, or ctx ends.
func (f *FS) ReadWait(ctx context.Context, node, off uint64, dst [][]byte) (int, fuse.Status) {
	s := segments.Get().(*[]blob.Segment)
	defer release(s)
	segs, err := f.image.Segments(*s, node, off, length(dst))
	if err != nil {
		return 0, f.status("read", node, err)
	}
	*s = segs
	f.stats.readWait.Add(1)
	n, err := f.store.Read(ctx, segs, dst)
	if err != nil {
		f.stats.readErrors.Add(1)
		return 0, f.status("read", node, err)
	}
	f.stats.readBytes.Add(uint64(n))
	return n, fuse.OK
}

// readReady reads ready segments, one call for each run that is adjacent in the
// blob's uncompressed space.
func (f *FS) readReady(segs []blob.Segment, dst [][]byte) (int, error) {
	w := window{dst: dst}
	total := 0
	for i := 0; i < len(segs); {
		if segs[i].Chunk.Blob == nil {
			w.zero(int(segs[i].Length))
			total += int(segs[i].Length)
			i++
			continue
		}
		run, want := adjacent(segs[i:])
		first := &segs[i]
		off := int64(first.Chunk.UncompressedOffset) + int64(first.Offset)
		if _, err := f.store.ReadReady(first.Chunk.Blob, w.next(want), off); err != nil {
			return total, err
		}
		total += want
		i += run
	}
	return total, nil
}

// adjacent counts the segments at the start of segs that follow one another
// without a gap in one blob's uncompressed space, and their bytes.
func adjacent(segs []blob.Segment) (run, bytes int) {
	first := &segs[0]
	end := first.Chunk.UncompressedOffset + uint64(first.Offset)
	for run < len(segs) {
		s := &segs[run]
		if s.Chunk.Blob != first.Chunk.Blob || s.Chunk.UncompressedOffset+uint64(s.Offset) != end {
			break
		}
		end += uint64(s.Length)
		bytes += int(s.Length)
		run++
	}
	return run, bytes
}

// Read answers READ for callers that come through go-fuse (a mount on the host)
// and not through a device that uses ReadNow and ReadWait.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	dst := [][]byte{buf}
	n, status, ok := f.ReadNow(in.NodeId, in.Offset, dst)
	if !ok {
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		go func() {
			select {
			case <-cancel:
				stop()
			case <-ctx.Done():
			}
		}()
		n, status = f.ReadWait(ctx, in.NodeId, in.Offset, dst)
	}
	return fuse.ReadResultData(buf[:n]), status
}
