package backend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
)

// script is a backend whose reads end as told, the last error for ever.
type script struct {
	mu    sync.Mutex
	errs  []error
	calls []time.Duration // since start
	start time.Time
	block bool // wait for the end of the context instead
}

func (s *script) Open(string) (backend.Reader, error) { return s, nil }
func (s *script) Close() error                        { return nil }
func (s *script) Size(ctx context.Context) (int64, error) {
	return 42, s.ReadRange(ctx, nil, 0)
}

func (s *script) ReadRange(ctx context.Context, _ []byte, _ int64) error {
	if s.block {
		<-ctx.Done()
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.start.IsZero() {
		s.start = time.Now()
	}
	s.calls = append(s.calls, time.Since(s.start))
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	if len(s.errs) > 1 {
		s.errs = s.errs[1:]
	}
	return err
}

func read(t *testing.T, b backend.Backend) error {
	t.Helper()
	r, err := b.Open("id")
	if err != nil {
		t.Fatal(err)
	}
	return r.ReadRange(t.Context(), make([]byte, 8), 0)
}

func status(code int, after time.Duration) error {
	return fmt.Errorf("blob x: %w", &backend.StatusError{Method: "GET", URL: "u", Status: code, RetryAfter: after})
}

func TestPermanent(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{status(404, 0), true}, {status(401, 0), true}, {status(403, 0), true}, {status(416, 0), true},
		{status(400, 0), true}, {status(410, 0), true}, {status(408, 0), false}, {status(429, 0), false},
		{status(500, 0), false}, {status(503, 0), false}, {status(302, 0), false},
		{errors.New("anything"), false}, {backend.ErrClosed, true}, {context.Canceled, true},
		{context.DeadlineExceeded, false},
	} {
		if got := backend.Permanent(c.err); got != c.want {
			t.Errorf("Permanent(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestRetry(t *testing.T) {
	policy := backend.RetryPolicy{Deadline: 10 * time.Second, Base: 100 * time.Millisecond, Max: time.Second}
	for name, c := range map[string]struct {
		errs  []error
		tries int // 0: as many as fit
		want  error
		least time.Duration // that all of it takes
		most  time.Duration
	}{
		"works":         {[]error{nil}, 1, nil, 0, 0},
		"works later":   {[]error{status(503, 0), status(500, 0), nil}, 3, nil, 150 * time.Millisecond, 300 * time.Millisecond},
		"not found":     {[]error{status(404, 0)}, 1, backend.ErrNotFound, 0, 0},
		"never":         {[]error{status(502, 0)}, 0, backend.ErrUnavailable, 10 * time.Second, 10 * time.Second},
		"retry after":   {[]error{status(429, 3*time.Second), nil}, 2, nil, 3 * time.Second, 3 * time.Second},
		"after too far": {[]error{status(429, time.Minute), nil}, 1, backend.ErrUnavailable, 10 * time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{errs: c.errs}
				start := time.Now()
				err := read(t, backend.Retry(s, policy))
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if took := time.Since(start); took < c.least || took > c.most {
					t.Errorf("took %v, want %v to %v", took, c.least, c.most)
				}
				if c.tries > 0 && len(s.calls) != c.tries {
					t.Errorf("%d tries, want %d", len(s.calls), c.tries)
				}
				for i := 1; i < len(s.calls) && c.tries == 0; i++ {
					if d := s.calls[i] - s.calls[i-1]; d < 50*time.Millisecond || d > time.Second {
						t.Errorf("pause %d was %v, want 50ms to 1s", i, d)
					}
				}
			})
		})
	}
}

func TestRetryAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{errs: []error{status(503, 0)}}
		if err := read(t, backend.Retry(s, backend.RetryPolicy{Attempts: 3})); !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		if len(s.calls) != 3 {
			t.Errorf("%d tries, want 3", len(s.calls))
		}
	})
}

// A source that asked to be left alone is left alone by every reader.
func TestRetryAfterHoldsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{errs: []error{status(429, 4*time.Second), nil}}
		b := backend.Retry(s, backend.RetryPolicy{})
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 500 * time.Millisecond)
				if err := read(t, b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, at := range s.calls[1:] {
			if at < 4*time.Second {
				t.Errorf("call %d came after %v, want 4s or more", i+1, at)
			}
		}
	})
}

// The end of the caller's context ends the pauses and is what the caller gets.
func TestRetryCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, s := range []*script{{errs: []error{status(503, time.Hour)}}, {block: true}} {
			r, err := backend.Retry(s, backend.RetryPolicy{Deadline: time.Hour}).Open("id")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			start := time.Now()
			if _, err := r.Size(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, backend.ErrUnavailable) {
				t.Errorf("got %v, want DeadlineExceeded", err)
			}
			if took := time.Since(start); took != 700*time.Millisecond {
				t.Errorf("took %v, want 700ms", took)
			}
			cancel()
		}
	})
}

func TestObserve(t *testing.T) {
	s := &script{errs: []error{status(503, 0), nil}}
	var m backend.Meter
	var samples []backend.Sample
	b := backend.Observe(s, func(x backend.Sample) { samples = append(samples, x); m.Add(x) })
	if err := read(t, b); err == nil {
		t.Error("first read: no error")
	}
	if err := read(t, b); err != nil {
		t.Error(err)
	}
	if len(samples) != 2 || samples[0].Err == nil || samples[1].Bytes != 8 || samples[1].Blob != "id" {
		t.Errorf("samples %+v", samples)
	}
	if got := m.Stats(); got.Requests != 2 || got.Errors != 1 || got.Bytes != 8 {
		t.Errorf("stats %+v, want 2 requests, 1 error, 8 bytes", got)
	}
}

func TestFresh(t *testing.T) {
	if backend.IsFresh(t.Context()) || !backend.IsFresh(backend.Fresh(t.Context())) {
		t.Error("a context is fresh exactly if it comes from Fresh")
	}
}

// A stream is the object from an offset on, in pieces, and ends with an error of them.
func TestStream(t *testing.T) {
	data := backendtest.Data(2<<20+5, 1)
	for _, off := range []int64{0, 1, 1 << 20, 2<<20 + 5} {
		got, err := io.ReadAll(backend.Stream(t.Context(), bytesReader(data), off, int64(len(data))))
		if err != nil || !bytes.Equal(got, data[off:]) {
			t.Errorf("from %d: %d bytes, %v, want %d", off, len(got), err, int64(len(data))-off)
		}
	}
	if got, err := io.ReadAll(backend.Stream(t.Context(), bytesReader(data[:1<<20]), 0, 2<<20)); !errors.Is(err, backend.ErrRange) || len(got) != 1<<20 {
		t.Errorf("object that is too short: %d bytes, %v, want 1 MiB and ErrRange", len(got), err)
	}
}

type bytesReader []byte

func (b bytesReader) Size(context.Context) (int64, error) { return int64(len(b)), nil }

func (b bytesReader) ReadRange(_ context.Context, p []byte, off int64) error {
	if off+int64(len(p)) > int64(len(b)) {
		return backend.ErrRange
	}
	copy(p, b[off:])
	return nil
}
