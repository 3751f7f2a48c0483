package fetch

import (
	"context"
	"io"
	"iter"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/rafsd/rafsd/rafs/blob"
)

// How far a stream reads ahead.
const (
	// streamWindow is how many bytes are read by one call, unless one segment is
	// longer.
	streamWindow = 1 << 20
	// streamSegments is how many segments are read by one call.
	streamSegments = 1024
	// streamAhead bounds the bytes of all windows; a longer one is alone.
	streamAhead = 4 << 20
	// segmentWeight is what a segment counts for beside its bytes.
	segmentWeight = 256
)

// Stream is the bytes of a sequence of segments. It belongs to one goroutine.
type Stream struct {
	e       *Engine
	ctx     context.Context
	cancel  context.CancelFunc
	room    *semaphore.Weighted
	windows chan *window // in order; closed after the last one
	working sync.WaitGroup

	cur  *window // what Next gives from
	rest []byte  // of cur
	err  error   // what ended the stream

	mu   sync.Mutex
	free [][]byte // buffers to use again
}

// window is a run of segments that one call reads.
type window struct {
	segs []blob.Segment
	size int
	buf  []byte
	done chan struct{} // closed when buf or err is set
	err  error
}

func (w *window) weight() int64 {
	return min(int64(w.size)+segmentWeight*int64(len(w.segs)), streamAhead)
}

// Stream gives the bytes of segments one after the other, for tools that go
// through an image from start to end. It reads ahead by several calls at once,
// in 4 MiB of its own, or one chunk if that is larger, beside the engine's memory. The sequence is run
// by another goroutine until it ends, yields an error, which then ends the
// stream in its place, or Close is called. ctx ends the stream.
func (e *Engine) Stream(ctx context.Context, segs iter.Seq2[blob.Segment, error]) *Stream {
	s := &Stream{e: e, room: semaphore.NewWeighted(streamAhead), windows: make(chan *window, 32)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.working.Go(func() {
		defer close(s.windows)
		s.cut(segs)
	})
	return s
}

// cut makes windows of the segments and starts to read each.
func (s *Stream) cut(segs iter.Seq2[blob.Segment, error]) {
	w := &window{}
	for seg, err := range segs {
		full := len(w.segs) == streamSegments || w.size+int(seg.Length) > streamWindow
		if w.size > 0 && (full || err != nil) {
			if !s.start(w) {
				return
			}
			w = &window{}
		}
		if err != nil {
			w.err = err
			s.start(w)
			return
		}
		w.segs = append(w.segs, seg)
		w.size += int(seg.Length)
	}
	if w.size > 0 {
		s.start(w)
	}
}

// start puts a window in line, false when the stream has ended.
func (s *Stream) start(w *window) bool {
	w.done = make(chan struct{})
	if s.room.Acquire(s.ctx, w.weight()) != nil {
		return false
	}
	if w.err != nil {
		close(w.done)
	} else {
		w.buf = s.buffer(w.size)
		s.working.Go(func() {
			defer close(w.done)
			_, w.err = s.e.Read(s.ctx, w.segs, [][]byte{w.buf})
		})
	}
	select {
	case s.windows <- w:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// buffer gives memory of n bytes.
func (s *Stream) buffer(n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.free, func(b []byte) bool { return cap(b) >= n }); i >= 0 {
		b := s.free[i]
		s.free = slices.Delete(s.free, i, i+1)
		return b[:n]
	}
	if n <= streamWindow {
		return make([]byte, n, streamWindow)
	}
	s.free = nil // too small all of them: they would come on top
	return make([]byte, n)
}

// release takes back what a window held.
func (s *Stream) release(w *window) {
	s.mu.Lock()
	held := cap(w.buf)
	for _, b := range s.free {
		held += cap(b)
	}
	if w.buf != nil && held <= max(streamAhead, cap(w.buf)) {
		s.free = append(s.free, w.buf)
	}
	s.mu.Unlock()
	s.room.Release(w.weight())
}

// Next returns the next bytes, at least 1 and at most n, of one segment or more.
// They are good until the next call. The error is io.EOF at the end; it stays.
func (s *Stream) Next(n int) ([]byte, error) {
	for len(s.rest) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		if s.err = s.advance(); s.err != nil {
			s.cancel()
			return nil, s.err
		}
	}
	p := s.rest[:min(n, len(s.rest)):min(n, len(s.rest))]
	s.rest = s.rest[len(p):]
	return p, nil
}

// advance goes to the next window.
func (s *Stream) advance() error {
	if s.cur != nil {
		s.release(s.cur)
		s.cur = nil
	}
	w, ok := <-s.windows
	if !ok {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	<-w.done
	if w.err != nil {
		return w.err
	}
	s.cur, s.rest = w, w.buf
	return nil
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := s.Next(len(p))
	return copy(p, b), err
}

// Close ends the stream and waits for the reads that run. Next then fails.
func (s *Stream) Close() error {
	s.cancel()
	s.working.Wait()
	s.rest = nil
	if s.err == nil {
		s.err = ErrClosed
	}
	return nil
}
