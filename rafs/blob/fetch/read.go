package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// Read fills the start of dst with the segments, one after the other, and returns
// their length. It blocks for what is not ready, at most until ctx ends; others
// who wait for the same chunks go on. A segment of a hole reads as zeros. After
// an error dst holds some verified bytes and some that it held before.
func (e *Engine) Read(ctx context.Context, segs []blob.Segment, dst [][]byte) (int, error) {
	if err := e.begin(); err != nil {
		return 0, err
	}
	defer e.running.Done()
	r := reading{e: e, segs: segs, dst: dst}
	total, err := r.check()
	if err != nil {
		return 0, err
	}
	r.arrived = make(chan *waiter, len(segs))
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// Also when a copy to dst faults: its memory may be gone.
	defer r.leave()
	r.join()
	if err := r.copyReady(); err != nil {
		return 0, err
	}
	for r.left > 0 {
		select {
		case w := <-r.arrived:
			if w.err != nil && w.late && !final(w.err) {
				w.late, w.again, w.flight, w.err = false, true, nil, nil
				r.launch()
				continue
			}
			r.left--
			if w.err != nil {
				return 0, w.err
			}
			r.copy(w)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return total, nil
}

// reading is one call of Read.
type reading struct {
	e    *Engine
	segs []blob.Segment
	dst  [][]byte

	// at is where each segment goes in dst.
	at []int
	// pending tells of each segment whether it waits for its chunk.
	pending []bool
	// waiters are those segments that are not ready, left of them not yet arrived.
	waiters []*waiter
	left    int
	arrived chan *waiter
	// scratch is the list that window returns.
	scratch [][]byte
}

// waiter is one segment of a read that waits for a flight.
type waiter struct {
	seg    int
	to     chan<- *waiter // has room for all waiters of the read
	flight *flight
	// late marks one who joined a flight that others had begun, and whose time to
	// try may be up: then it tries again, once.
	late, again bool
	// page and err are the outcome, set before the waiter is sent. The page is
	// held for the waiter.
	page *page
	err  error
}

// final reports whether another flight for the same chunk would end in the same way.
func final(err error) bool {
	return backend.Permanent(err) || errors.Is(err, blob.ErrDigest) || errors.Is(err, blob.ErrCorrupt)
}

// check bounds what the segments ask for.
func (r *reading) check() (total int, err error) {
	room := length(r.dst)
	r.at = make([]int, len(r.segs))
	r.pending = make([]bool, len(r.segs))
	for i := range r.segs {
		s := &r.segs[i]
		r.at[i] = total
		if s.Chunk.Blob != nil {
			if err := r.e.checkChunk(&s.Chunk); err != nil {
				return 0, err
			}
			if uint64(s.Offset)+uint64(s.Length) > uint64(s.Chunk.UncompressedSize) {
				return 0, fmt.Errorf("blob %s: chunk %d: %d bytes at %d of %d: %w", s.Chunk.Blob.ID, s.Chunk.Index,
					s.Length, s.Offset, s.Chunk.UncompressedSize, io.ErrUnexpectedEOF)
			}
		}
		if int64(s.Length) > int64(room-total) {
			return 0, fmt.Errorf("segment %d of %d: %w for %d bytes at %d of %d",
				i, len(r.segs), io.ErrShortBuffer, s.Length, total, room)
		}
		total += int(s.Length)
	}
	return total, nil
}

// checkChunk refuses chunks that could make us reserve or ask for too much.
func (e *Engine) checkChunk(c *blob.Chunk) error {
	if e.store(c.Blob) == nil {
		return fmt.Errorf("chunk %d: blob %d of %d", c.Index, c.Blob.Index, len(e.blobs))
	}
	s := e.blobs[c.Blob.Index]
	if c.Digest == (blob.Digest{}) && s.tar == nil {
		return fmt.Errorf("blob %s: chunk %d: %w", c.Blob.ID, c.Index, ErrNoDigest)
	}
	if c.UncompressedSize == 0 || c.UncompressedSize > blob.MaxChunkSize || c.Shared && s.units == nil || c.Encrypted && s.key == nil ||
		!c.Shared && (c.CompressedSize == 0 || c.CompressedSize > blob.MaxChunkSize || c.CompressedOffset > blob.MaxCompressedSize) {
		return fmt.Errorf("blob %s: chunk %d: %d bytes from %d at %d: %w", c.Blob.ID, c.Index,
			c.UncompressedSize, c.CompressedSize, c.CompressedOffset, blob.ErrCorrupt)
	}
	return nil
}

// join gets in line for every chunk that is not ready.
func (r *reading) join() {
	for i := range r.segs {
		if c := &r.segs[i].Chunk; c.Blob != nil && !r.e.Ready(c) {
			r.want(i)
		}
	}
	r.launch()
}

// want makes segment i wait for its chunk, or takes it from memory.
func (r *reading) want(i int) {
	c := &r.segs[i].Chunk
	w := &waiter{seg: i, to: r.arrived}
	r.pending[i] = true
	r.left++
	if w.page = r.e.recent.get(keyOf(c)); w.page != nil {
		r.e.stats.recentHits.Add(1)
		r.arrived <- w
		return
	}
	r.waiters = append(r.waiters, w)
}

// launch joins or starts the flights of the waiters that have none yet. A read of
// one chunk that only has to be verified does that itself.
func (r *reading) launch() {
	var fresh []*flight
	for _, w := range r.waiters {
		if w.flight != nil {
			continue
		}
		if f := r.e.joinFlight(w, r.segs[w.seg].Chunk); f != nil {
			fresh = append(fresh, f)
		}
	}
	if len(fresh) > 0 {
		r.e.start(fresh, r.left == 1)
	}
}

// copyReady serves the segments that need no waiting, a run that is adjacent in
// the cache file at a time.
func (r *reading) copyReady() error {
	for i := 0; i < len(r.segs); {
		s := &r.segs[i]
		switch {
		case r.pending[i]:
			i++
		case s.Chunk.Blob == nil:
			for _, d := range r.window(r.at[i], int(s.Length)) {
				clear(d)
			}
			i++
		default:
			n, err := r.copyRun(i)
			if errors.Is(err, unix.EFAULT) {
				return err
			}
			if err != nil {
				r.want(i) // it is not ready any more
				n = 1
			}
			i += n
		}
	}
	r.launch()
	return nil
}

// copyRun copies segment i and those after it that lie behind it in the cache.
func (r *reading) copyRun(i int) (n int, err error) {
	first := &r.segs[i]
	start := first.Chunk.UncompressedOffset + uint64(first.Offset)
	size := uint64(first.Length)
	for n = 1; i+n < len(r.segs); n++ {
		s := &r.segs[i+n]
		if s.Chunk.Blob != first.Chunk.Blob || r.pending[i+n] ||
			s.Chunk.UncompressedOffset+uint64(s.Offset) != start+size {
			break
		}
		size += uint64(s.Length)
	}
	_, err = r.e.ReadReady(first.Chunk.Blob, r.window(r.at[i], int(size)), int64(start))
	return n, err
}

// copy moves the bytes of a segment that arrived to where they are wanted.
func (r *reading) copy(w *waiter) {
	s := &r.segs[w.seg]
	defer w.page.drop()
	data := w.page.data[s.Offset : s.Offset+s.Length]
	for _, d := range r.window(r.at[w.seg], len(data)) {
		data = data[copy(d, data):]
	}
}

// window is the part of dst at off; valid until the next call.
func (r *reading) window(off, n int) [][]byte {
	out := r.scratch[:0]
	for _, d := range r.dst {
		if n == 0 {
			break
		}
		if off >= len(d) {
			off -= len(d)
			continue
		}
		d = d[off:]
		off = 0
		if len(d) > n {
			d = d[:n]
		}
		n -= len(d)
		out = append(out, d)
	}
	r.scratch = out
	return out
}

// leave gives up what still waits, and what arrived and was not used.
func (r *reading) leave() {
	for _, w := range r.waiters {
		if w.flight != nil {
			r.e.leaveFlight(w)
		}
	}
	for {
		select {
		case w := <-r.arrived:
			if w.page != nil {
				w.page.drop()
			}
		default:
			return
		}
	}
}
