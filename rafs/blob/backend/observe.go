package backend

import (
	"context"
	"sync/atomic"
	"time"
)

// Sample is one finished call to a source.
type Sample struct {
	// Blob is the blob's id.
	Blob string
	// Offset and Bytes are the range; Bytes is 0 for a question of size.
	Offset int64
	Bytes  int
	// Took is how long the call ran.
	Took time.Duration
	// Err is how it ended.
	Err error
}

// Observe tells sink of each call to b, from the goroutine that made it. Put it
// inside Retry to see single tries, outside to see what came of them.
func Observe(b Backend, sink func(Sample)) Backend { return &observed{b, sink} }

type observed struct {
	Backend
	sink func(Sample)
}

func (o *observed) Open(id string) (Reader, error) {
	in, err := o.Backend.Open(id)
	if err != nil {
		return nil, err
	}
	return &observedReader{in, id, o.sink}, nil
}

type observedReader struct {
	inner Reader
	id    string
	sink  func(Sample)
}

func (r *observedReader) Size(ctx context.Context) (int64, error) {
	start := time.Now()
	n, err := r.inner.Size(ctx)
	r.sink(Sample{Blob: r.id, Took: time.Since(start), Err: err})
	return n, err
}

func (r *observedReader) ReadRange(ctx context.Context, p []byte, off int64) error {
	start := time.Now()
	err := r.inner.ReadRange(ctx, p, off)
	r.sink(Sample{Blob: r.id, Offset: off, Bytes: len(p), Took: time.Since(start), Err: err})
	return err
}

// Stats counts calls since the start.
type Stats struct {
	// Requests counts finished calls, Errors those of them that failed.
	Requests, Errors uint64
	// Bytes counts bytes of calls that succeeded.
	Bytes uint64
	// Seconds sums the time of all calls.
	Seconds float64
}

// Meter adds samples up. Its Add is a sink for Observe.
type Meter struct {
	requests, errors, bytes, nanos atomic.Uint64
}

// Add counts one sample.
func (m *Meter) Add(s Sample) {
	m.requests.Add(1)
	m.nanos.Add(uint64(s.Took))
	if s.Err != nil {
		m.errors.Add(1)
		return
	}
	m.bytes.Add(uint64(s.Bytes))
}

// Stats is what was counted so far.
func (m *Meter) Stats() Stats {
	return Stats{
		Requests: m.requests.Load(),
		Errors:   m.errors.Load(),
		Bytes:    m.bytes.Load(),
		Seconds:  time.Duration(m.nanos.Load()).Seconds(),
	}
}
