package object

import (
	"context"
	"fmt"
	"math"
	"net/http"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// reader reads one blob. It implements backend.Reader.
type reader struct {
	b  *Bucket
	id string
}

// Size implements backend.Reader.
func (r *reader) Size(parent context.Context) (int64, error) {
	ctx, end, err := r.b.begin(parent)
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", r.id, err)
	}
	defer end()
	n, err := r.b.stat(ctx, r.id)
	return n, r.fail(parent, ctx, err)
}

// stat asks for the size of a blob.
func (b *Bucket) stat(ctx context.Context, id string) (int64, error) {
	res, err := b.send(ctx, &request{method: http.MethodHead, key: b.c.Prefix + id, patience: b.c.FirstByteTimeout})
	if err != nil {
		return 0, err
	}
	defer httprange.Close(res)
	if res.StatusCode != http.StatusOK {
		return 0, refusal(res)
	}
	return httprange.Size(res)
}

// ReadRange implements backend.Reader.
func (r *reader) ReadRange(parent context.Context, p []byte, off int64) error {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return fmt.Errorf("blob %s: %w: offset %d", r.id, backend.ErrRange, off)
	}
	if len(p) == 0 {
		return parent.Err()
	}
	ctx, end, err := r.b.begin(parent)
	if err != nil {
		return fmt.Errorf("blob %s: %w", r.id, err)
	}
	defer end()
	return r.fail(parent, ctx, r.read(ctx, p, off))
}

func (r *reader) read(ctx context.Context, p []byte, off int64) error {
	header := http.Header{"Range": {httprange.Header(off, len(p))}}
	if backend.IsFresh(ctx) {
		header.Set("Cache-Control", "no-cache")
	}
	res, err := r.b.send(ctx, &request{
		method: http.MethodGet, key: r.b.c.Prefix + r.id, header: header, patience: r.b.c.FirstByteTimeout,
	})
	if err != nil {
		return err
	}
	defer httprange.Close(res)
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
		return refusal(res)
	}
	_, err = httprange.Read(res, p, off, backend.Progress(ctx))
	return err
}

// fail words an error. The end of the caller's context is passed on as it is.
func (r *reader) fail(parent, ctx context.Context, err error) error {
	if err = httprange.Sort(parent, ctx, err); err == nil || parent.Err() != nil {
		return err
	}
	return fmt.Errorf("blob %s: %w", r.id, err)
}
