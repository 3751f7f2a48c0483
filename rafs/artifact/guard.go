package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"time"
)

// Errors of a registry that does not end or does not go on.
var (
	// ErrTooLarge means that a manifest has more than MaxManifest bytes.
	ErrTooLarge = errors.New("manifest too large")
	// ErrStalled means that an answer, or the rest of one, did not come.
	ErrStalled = errors.New("registry does not answer")
)

// patience is how long a registry may send nothing while something is read.
const patience = 30 * time.Second

// guard bounds what a registry may do to those who read from it. It refuses plain
// http to hosts for which it was not asked: go-containerregistry falls back to it
// for every host in a private network. Manifests, which go-containerregistry reads
// into memory, end at MaxManifest, and answers that stall end.
type guard struct {
	next  http.RoundTripper
	plain bool
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain && !loopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s offers plain http only, which was not allowed for it", req.URL.Host)
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return g.next.RoundTrip(req) // what is pushed may take a store its time
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(patience, func() { cancel(ErrStalled) })
	res, err := g.next.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		err = stalledOr(ctx, err)
		cancel(nil)
		return nil, err
	}
	b := &body{ReadCloser: res.Body, ctx: ctx, cancel: cancel, left: math.MaxInt64}
	if strings.Contains(req.URL.Path, "/manifests/") {
		b.left = MaxManifest + 1
	}
	res.Body = b
	return res, nil
}

// body is the body of an answer. It ends the request's context when it is closed.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	left   int64
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxManifest)
	}
	timer := time.AfterFunc(patience, func() { b.cancel(ErrStalled) })
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	timer.Stop()
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		err = stalledOr(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// stalledOr is err, or what really ended the request.
func stalledOr(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), ErrStalled) {
		return fmt.Errorf("%w for %v", ErrStalled, patience)
	}
	return err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
