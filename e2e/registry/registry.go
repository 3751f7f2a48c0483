// Package registry runs a registry on the loopback interface: the reference
// implementation of the distribution specification, in this process, behind a layer
// that counts what crosses the wire and can make it slow or make it wait.
//
// It listens on 127.0.0.1 without encryption or passwords and is for tests and for
// the demonstration only.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	// The drivers register themselves.
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/sirupsen/logrus"
)

// Limits make the registry look as far away as it usually is.
type Limits struct {
	Latency time.Duration // before the first byte of each answer
	Rate    int64         // bytes a second of all answers together; 0 is no limit
}

// Traffic counts what one kind of request has caused.
type Traffic struct {
	Requests int
	Bytes    int64 // of response bodies
}

// Registry is a running registry.
type Registry struct {
	Host string // "127.0.0.1:port": the first part of a reference

	server  *http.Server
	app     http.Handler
	stopped chan struct{}
	cancel  context.CancelFunc

	mu      sync.Mutex
	limits  Limits
	free    time.Time // when the wire has sent all that was given to it
	blobs   map[string]Traffic
	inspect func(*http.Request)
}

// Start starts a registry that keeps its content in dir, or in memory when dir is "".
func Start(dir string) (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Registry{Host: l.Addr().String(), cancel: cancel, stopped: make(chan struct{}), blobs: map[string]Traffic{}}
	// The application logs each request with the logger of the whole process.
	logrus.SetLevel(logrus.PanicLevel)
	logrus.SetOutput(io.Discard)
	r.app = handlers.NewApp(ctx, config(dir))
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(r.stopped)
		_ = r.server.Serve(l)
	}()
	return r, nil
}

func config(dir string) *configuration.Configuration {
	c := &configuration.Configuration{Storage: configuration.Storage{
		"inmemory":    configuration.Parameters{},
		"cache":       configuration.Parameters{"blobdescriptor": "inmemory"},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	if dir != "" {
		delete(c.Storage, "inmemory")
		c.Storage["filesystem"] = configuration.Parameters{"rootdirectory": dir}
	}
	c.HTTP.Secret = "only on loopback"
	return c
}

// Close ends the registry and its connections.
func (r *Registry) Close() error {
	err := r.server.Close()
	<-r.stopped
	r.cancel()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// SetLimits changes the limits for what comes from now on.
func (r *Registry) SetLimits(l Limits) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits = l
}

// Inspect makes f see each request before it is answered; f may wait. Nil ends that.
func (r *Registry) Inspect(f func(*http.Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inspect = f
}

// Reset sets all counters to zero.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.blobs)
}

// Blobs returns the traffic of reading the blobs with these digests, "sha256:...".
func (r *Registry) Blobs(digests ...string) Traffic {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sum Traffic
	for _, d := range digests {
		sum.Requests += r.blobs[d].Requests
		sum.Bytes += r.blobs[d].Bytes
	}
	return sum
}

// ServeHTTP answers one request of the registry's clients.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	limits, inspect := r.limits, r.inspect
	r.mu.Unlock()
	if inspect != nil {
		inspect(req)
	}
	if !pause(req.Context(), limits.Latency) {
		return
	}
	blob := ""
	if req.Method == http.MethodGet {
		blob = blobOf(req.URL.Path)
	}
	if blob != "" {
		r.count(blob, Traffic{Requests: 1})
	}
	r.app.ServeHTTP(&wire{ResponseWriter: w, r: r, ctx: req.Context(), blob: blob}, req)
}

// blobOf returns the digest in /v2/NAME/blobs/DIGEST.
func blobOf(path string) string {
	_, digest, found := strings.Cut(path, "/blobs/")
	if !found || !strings.Contains(digest, ":") || strings.Contains(digest, "/") {
		return ""
	}
	return digest
}

func (r *Registry) count(blob string, t Traffic) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.blobs[blob]
	sum.Requests += t.Requests
	sum.Bytes += t.Bytes
	r.blobs[blob] = sum
}

// reserve returns how long n bytes have to wait for the wire.
func (r *Registry) reserve(n int, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limits.Rate <= 0 {
		return 0
	}
	if r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(int64(n) * int64(time.Second) / r.limits.Rate))
	return r.free.Sub(now)
}

// wire is a response that takes its time and is counted.
type wire struct {
	http.ResponseWriter
	r    *Registry
	ctx  context.Context
	blob string
}

// packet is what may go out at once.
const packet = 16 << 10

func (w *wire) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), packet)]
		if !pause(w.ctx, w.r.reserve(len(part), time.Now())) {
			return written, fmt.Errorf("registry: %w", context.Cause(w.ctx))
		}
		n, err := w.ResponseWriter.Write(part)
		written += n
		if w.blob != "" {
			w.r.count(w.blob, Traffic{Bytes: int64(n)})
		}
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

// pause reports whether the client is still there afterwards.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
