// Package faultserver is an OCI registry in the process that can be slow, wrong
// and hostile on demand: latency, one bandwidth for all answers, refusals,
// resets, stalls, short bodies, wrong ranges, flipped bytes, redirects, tokens
// that expire. It records what it was asked.
//
// Manifests and uploads are go-containerregistry's own registry; blobs are read
// by this package. It is for tests and benchmarks only, and trusts its clients.
package faultserver

import (
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Server is the registry. It is an http.Handler, safe for concurrent use.
type Server struct {
	blobs    *store
	registry http.Handler
	auth     auth
	line     line
	latency  atomic.Int64
	redirect atomic.Pointer[string]

	mu       sync.Mutex
	faults   []*fault
	requests []Request
}

// Request is one request as the server saw it, appended when it was answered.
type Request struct {
	Method, Path string
	// Query is the raw query, Range, Authorization and CacheControl are headers.
	Query, Range, Authorization, CacheControl string
	// Status is what was answered; 0 if the connection was reset instead.
	Status int
	// Bytes is the number of body bytes that were written.
	Bytes int64
}

// Blob reports whether the request was a GET of a blob.
func (r Request) Blob() bool {
	return r.Method == http.MethodGet && strings.Contains(r.Path, "/blobs/sha256:")
}

// New is an empty registry without faults or delays that lets everybody in.
func New() *Server {
	s := &Server{blobs: newStore()}
	s.registry = registry.New(registry.WithBlobHandler(s.blobs), registry.Logger(log.New(io.Discard, "", 0)))
	return s
}

// Put stores a blob in every repository and returns the hex digits of its digest.
func (s *Server) Put(data []byte) string { return s.blobs.put(data) }

// PutAs stores a blob under an id that need not be its digest, as old converters
// made them.
func (s *Server) PutAs(id string, data []byte) { s.blobs.putAs("sha256:"+id, data) }

// SetLatency delays each answer by d before its first byte.
func (s *Server) SetLatency(d time.Duration) { s.latency.Store(int64(d)) }

// SetBandwidth bounds the bytes per second of all bodies together; 0 lifts it.
func (s *Server) SetBandwidth(bytesPerSecond int) { s.line.setRate(bytesPerSecond) }

// SetRedirect sends every GET of a blob to the same path at base (scheme and
// host) with a signature in its query. An empty base ends that.
func (s *Server) SetRedirect(base string) {
	if base == "" {
		s.redirect.Store(nil)
		return
	}
	s.redirect.Store(&base)
}

// Requests returns what was asked since the start or the last Forget.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// BlobRequests returns the GETs of blobs among Requests.
func (s *Server) BlobRequests() []Request {
	var out []Request
	for _, r := range s.Requests() {
		if r.Blob() {
			out = append(out, r)
		}
	}
	return out
}

// Forget empties Requests.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// ServeHTTP answers one request: delay, authorization, fault, content.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, line: &s.line, ctx: r.Context()}
	defer func() {
		s.mu.Lock()
		s.requests = append(s.requests, Request{
			Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Range: r.Header.Get("Range"),
			Authorization: r.Header.Get("Authorization"), CacheControl: r.Header.Get("Cache-Control"),
			Status: rec.status, Bytes: rec.bytes,
		})
		s.mu.Unlock()
	}()
	if d := time.Duration(s.latency.Load()); d > 0 && !wait(r.Context(), d) {
		return
	}
	if s.auth.serve(rec, r) {
		return
	}
	if f := s.pick(r); f != nil && f.serve(s, rec, r) {
		return
	}
	s.Content(rec, r)
}

// Content answers as a registry should: no delay, no authorization, no fault,
// nothing recorded. A second host over the same blobs may use it.
func (s *Server) Content(w http.ResponseWriter, r *http.Request) {
	_, digest, isBlob := strings.Cut(r.URL.Path, "/blobs/")
	if !isBlob || !strings.HasPrefix(digest, "sha256:") || r.Method != http.MethodGet {
		s.registry.ServeHTTP(w, r)
		return
	}
	if base := s.redirect.Load(); base != nil && !strings.Contains(r.URL.RawQuery, "X-Signature") {
		w.Header().Set("Location", *base+r.URL.Path+"?X-Signature=secret-signature")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	data, ok := s.blobs.get(digest)
	if !ok {
		s.registry.ServeHTTP(w, r) // the registry words the 404
		return
	}
	serveRange(w, r, data)
}

// recorder counts what an answer is and sends it over the slow line.
type recorder struct {
	http.ResponseWriter
	line   *line
	ctx    interface{ Done() <-chan struct{} }
	status int
	bytes  int64
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	done := 0
	for done < len(p) {
		piece := p[done:min(done+pieceSize, len(p))]
		if !r.line.pass(r.ctx, len(piece)) {
			return done, io.ErrClosedPipe
		}
		n, err := r.ResponseWriter.Write(piece)
		done += n
		r.bytes += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
