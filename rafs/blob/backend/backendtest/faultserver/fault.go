package faultserver

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Kind is a way to go wrong.
type Kind int

// The kinds. All but the first two concern answers with the content of a blob.
const (
	// Late answers rightly after Delay.
	Late Kind = iota
	// Status answers Status with Header and no content.
	Status
	// Reset closes the connection instead of an answer.
	Reset
	// Truncate announces the right length and closes the connection after At bytes.
	Truncate
	// Stall sends At bytes, then nothing more, and keeps the connection.
	Stall
	// Drip sends one byte each Delay.
	Drip
	// Flip inverts one bit of the byte at offset At of the blob.
	Flip
	// Zero sends zeros instead of the content.
	Zero
	// Whole ignores the range: status 200 and all of the blob.
	Whole
	// Shift sends the right bytes as a range that starts At bytes later.
	Shift
	// Other sends the range At bytes later, and says so.
	Other
	// NoRange sends status 206 without a Content-Range.
	NoRange
	// Short sends a range that ends At bytes early, well formed.
	Short
	// Long sends At bytes more than the range, without a length.
	Long
	// Redirect answers 307 with Location.
	Redirect
)

// Fault is one thing to go wrong. The first fault that matches a request is used.
type Fault struct {
	Kind Kind
	// Match picks requests by more than being a GET of a blob; nil picks all.
	Match func(*http.Request) bool
	// Any lets it match requests that are no GET of a blob, too.
	Any bool
	// Times is how many requests it spoils; 0 is all.
	Times int
	// Delay is a time, At a number of bytes, Status and Header parts of an answer,
	// Location a URL; see the kinds.
	Delay    time.Duration
	At       int
	Status   int
	Header   http.Header
	Location string
}

type fault struct {
	Fault
	left int
}

// Inject adds a fault behind those that are there. The function takes it away.
func (s *Server) Inject(f Fault) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &fault{Fault: f, left: f.Times}
	s.faults = append(s.faults, in)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, have := range s.faults {
			if have == in {
				s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
				return
			}
		}
	}
}

func (s *Server) pick(r *http.Request) *fault {
	isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if !isBlob && !f.Any || f.Match != nil && !f.Match(r) || f.Times > 0 && f.left == 0 {
			continue
		}
		f.left--
		return f
	}
	return nil
}

// serve goes wrong. It returns false to go on with the right answer.
func (f *fault) serve(s *Server, w *recorder, r *http.Request) (done bool) {
	switch f.Kind {
	case Late:
		return !wait(r.Context(), f.Delay)
	case Status:
		for k, v := range f.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.Status)
		return true
	case Reset:
		panic(http.ErrAbortHandler)
	case Redirect:
		w.Header().Set("Location", f.Location)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	_, digest, _ := strings.Cut(r.URL.Path, "/blobs/")
	data, ok := s.blobs.get(digest)
	if !ok {
		return false
	}
	first, last, ranged := parseRange(r.Header.Get("Range"))
	if !ranged || last >= int64(len(data)) {
		return false
	}
	f.content(w, r, data, first, last)
	return true
}

func (f *fault) content(w *recorder, r *http.Request, data []byte, first, last int64) {
	size := int64(len(data))
	body := data[first : last+1]
	head := func(status int, contentRange string, length int) {
		if contentRange != "" {
			w.Header().Set("Content-Range", contentRange)
		}
		if length >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(length))
		}
		w.WriteHeader(status)
	}
	span := func(by int64) string { return fmt.Sprintf("bytes %d-%d/%d", first+by, last+by, size) }
	at := int64(f.At)
	switch f.Kind {
	case Whole:
		head(http.StatusOK, "", len(data))
		_, _ = w.Write(data)
	case Shift:
		head(http.StatusPartialContent, span(at), len(body))
		_, _ = w.Write(body)
	case Other:
		head(http.StatusPartialContent, span(at), len(body))
		_, _ = w.Write(data[first+at : last+at+1])
	case NoRange:
		head(http.StatusPartialContent, "", len(body))
		_, _ = w.Write(body)
	case Short:
		head(http.StatusPartialContent, fmt.Sprintf("bytes %d-%d/%d", first, last-at, size), len(body)-f.At)
		_, _ = w.Write(body[:len(body)-f.At])
	case Long:
		head(http.StatusPartialContent, span(0), -1)
		_, _ = w.Write(append(body[:len(body):len(body)], make([]byte, f.At)...))
	default:
		head(http.StatusPartialContent, span(0), len(body))
		f.body(w, r, body, first)
	}
}

// body goes wrong after a right header.
func (f *fault) body(w *recorder, r *http.Request, body []byte, first int64) {
	switch f.Kind {
	case Flip:
		if i := int64(f.At) - first; i >= 0 && i < int64(len(body)) {
			body = append([]byte(nil), body...)
			body[i] ^= 0x10
		}
		_, _ = w.Write(body)
	case Zero:
		_, _ = w.Write(make([]byte, len(body)))
	case Drip:
		for i := range body {
			if _, err := w.Write(body[i : i+1]); err != nil || !flush(w) || !wait(r.Context(), f.Delay) {
				panic(http.ErrAbortHandler)
			}
		}
	case Truncate, Stall:
		_, _ = w.Write(body[:min(f.At, len(body))])
		flush(w)
		if f.Kind == Stall {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}
}

func flush(w io.Writer) bool {
	rw, ok := w.(http.ResponseWriter)
	return ok && http.NewResponseController(rw).Flush() == nil
}
