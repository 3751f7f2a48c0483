package httprange

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// TransportOptions say how to reach a source. Times and counts must be set.
type TransportOptions struct {
	// CAFiles are PEM files of certificate authorities to trust besides the
	// system's. SkipVerify trusts any certificate.
	CAFiles    []string
	SkipVerify bool
	// ConnectTimeout bounds dialling and the TLS handshake, each.
	ConnectTimeout time.Duration
	// FirstByteTimeout bounds the wait for an answer's header once the request has
	// been sent; 0 leaves that to the caller.
	FirstByteTimeout time.Duration
	// Connections is how many idle connections to a host are kept.
	Connections int
	// Dial makes connections; nil is the network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// NewTransport is the one connection pool of a backend. It speaks HTTP/1.1: a
// connection for each range in flight, so that a stalled one stops no other.
func NewTransport(o TransportOptions) (*http.Transport, error) {
	roots, err := RootCAs(o.CAFiles)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerify, RootCAs: roots},
		TLSHandshakeTimeout:   o.ConnectTimeout,
		ResponseHeaderTimeout: o.FirstByteTimeout,
		// Below what load balancers keep, so that we close first.
		IdleConnTimeout:     55 * time.Second,
		MaxIdleConnsPerHost: o.Connections,
		DisableCompression:  true, // a range is of the object's own bytes
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if o.Dial != nil {
		t.DialContext = o.Dial
		t.Proxy = nil
	}
	return t, nil
}

// errStalled ends a request whose body came too slowly.
var errStalled = fmt.Errorf("%w: body below the minimum rate", backend.ErrUnavailable)

// watched is the body of an answer. It cancels its request when fewer than least
// bytes arrive in a window, and ends the request's context when it is closed.
type watched struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	least   int64
	window  time.Duration
	timer   *time.Timer
	arrived atomic.Int64
	seen    int64 // of arrived, by the timer only
}

// Watch wraps the body of an answer. The request, whose context is ctx, is
// cancelled when less than minRate bytes a second arrive for as long as window, and
// when the body is closed.
func Watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, window time.Duration, minRate int64) io.ReadCloser {
	w := &watched{ReadCloser: body, ctx: ctx, cancel: cancel, window: window}
	w.least = max(1, int64(window.Seconds()*float64(minRate)))
	w.timer = time.AfterFunc(math.MaxInt64, w.check)
	w.timer.Reset(w.window) // only now: check uses timer
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.arrived.Add(int64(n))
	if err != nil && err != io.EOF {
		err = Cause(w.ctx, err)
	}
	return n, err
}

func (w *watched) check() {
	n := w.arrived.Load()
	if n-w.seen < w.least {
		w.cancel(errStalled)
		return
	}
	w.seen = n
	w.timer.Reset(w.window)
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

// Cause prefers the reason why a context ended over what the transport made of it.
func Cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && err != nil && !errors.Is(err, c) {
		return fmt.Errorf("%w (%v)", c, err)
	}
	return err
}

// Denied reports errors of TLS that another try does not mend: it fails closed.
func Denied(err error) bool {
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &cert) || errors.As(err, &alert) || errors.As(err, &header)
}

// Sort gives an error of a read one of the kinds of package backend. The end of the
// caller's context, parent, is passed on as it is; what nobody has sorted is a
// failure of the source. The request ran under ctx.
func Sort(parent, ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case parent.Err() != nil:
		return parent.Err()
	}
	err = Cause(ctx, err)
	for _, kind := range [...]error{
		backend.ErrNotFound, backend.ErrDenied, backend.ErrRange, backend.ErrClosed, backend.ErrUnavailable,
	} {
		if errors.Is(err, kind) {
			return err
		}
	}
	if Denied(err) {
		return fmt.Errorf("%w: %w", backend.ErrDenied, err)
	}
	return fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
}
