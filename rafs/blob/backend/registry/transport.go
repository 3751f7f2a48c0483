package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// newTransport is the one connection pool of a backend. It speaks HTTP/1.1: a
// connection for each range in flight, so that a stalled one stops no other.
func newTransport(o Options) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerify}
	if len(o.CAFiles) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, path := range o.CAFiles {
			pem, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("certificate authority: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("certificate authority %s: no certificate in it", path)
			}
		}
		config.RootCAs = pool
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       config,
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

func (o *Options) watch(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser) io.ReadCloser {
	w := &watched{ReadCloser: body, ctx: ctx, cancel: cancel, window: o.StallTimeout}
	w.least = max(1, int64(w.window.Seconds()*float64(o.MinRate)))
	w.timer = time.AfterFunc(math.MaxInt64, w.check)
	w.timer.Reset(w.window) // only now: check uses timer
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.arrived.Add(int64(n))
	if err != nil && err != io.EOF {
		err = cause(w.ctx, err)
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

// denied reports errors of TLS that another try does not mend: it fails closed.
func denied(err error) bool {
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	var header tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &cert) || errors.As(err, &alert) || errors.As(err, &header)
}
