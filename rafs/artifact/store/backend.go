package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// Backend reads the blobs of a source in places. The source must stay open.
func Backend(s Source) backend.Backend { return blobs{s} }

type blobs struct{ src Source }

func (b blobs) Open(id string) (backend.Reader, error) {
	d := v1.Descriptor{Digest: v1.Hash{Algorithm: "sha256", Hex: id}}
	if err := checkDescriptor(d); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadID, err)
	}
	return object{b.src, d.Digest}, nil
}

// Close leaves the source, which has another owner, alone.
func (blobs) Close() error { return nil }

type object struct {
	src    Source
	digest v1.Hash
}

func (o object) Size(ctx context.Context) (int64, error) {
	size, err := o.src.Stat(ctx, o.digest)
	return size, classify(err)
}

func (o object) ReadRange(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return classify(o.src.Range(ctx, o.digest, p, off))
}

// classify says whether another try makes sense.
func classify(err error) error {
	var status *transport.Error
	errors.As(err, &status)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound), status != nil && status.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %w", backend.ErrNotFound, err)
	case status != nil && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return fmt.Errorf("%w: %w", backend.ErrDenied, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		status != nil && status.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: %w", backend.ErrRange, err)
	}
	return err
}
