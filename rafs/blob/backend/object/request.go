package object

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

// Error is a refusal of a store, with what it says of the reason.
type Error struct {
	backend.StatusError
	// Code and Message are the store's words; both may be empty.
	Code, Message string
}

func (e *Error) Error() string {
	s := e.StatusError.Error()
	if e.Code != "" {
		s += ": " + e.Code
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Unwrap sorts the refusal. One that sends us elsewhere is final: where a bucket is
// must be configured.
func (e *Error) Unwrap() []error {
	if e.Status < 400 {
		return []error{backend.ErrDenied, &e.StatusError}
	}
	return []error{&e.StatusError}
}

const (
	// maxAnswer bounds the documents of a store, in bytes.
	maxAnswer = 1 << 20
	// maxWords bounds what is quoted of a store's own words.
	maxWords = 200
)

// errSilent ends a request that its store takes too long for.
var errSilent = fmt.Errorf("%w: the store is silent", backend.ErrUnavailable)

// request is one to a store.
type request struct {
	method, key string
	// query is encoded, its keys sorted.
	query  string
	header http.Header
	body   *body // nil: none
	// patience is how long the store may neither take nor say anything.
	patience time.Duration
}

// body is what a request sends, as often as it takes.
type body struct {
	r         io.ReaderAt
	off, size int64
	sum       []byte
	// passed is called with the number of bytes that have been taken, if not nil.
	passed func(n int)
}

// send begins to send the body; alive is called when some of it has been taken.
func (b *body) send(alive func()) *sending {
	return &sending{r: io.NewSectionReader(b.r, b.off, b.size), passed: func(n int) {
		alive()
		if b.passed != nil && n > 0 {
			b.passed(n)
		}
	}}
}

// sending is a body on its way. A transport may go on reading one after it has given
// an answer, or an error: end keeps it from that.
type sending struct {
	mu     sync.Mutex
	r      *io.SectionReader
	passed func(n int)
	over   bool
}

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, io.ErrClosedPipe
	}
	n, err := s.r.Read(p)
	s.passed(n)
	return n, err
}

func (s *sending) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

func (s *sending) Close() error {
	s.end()
	return nil
}

// escapePath encodes a path as both signatures want it: all but letters, digits, "-",
// ".", "_", "~" and slashes.
func escapePath(p string) string {
	var out strings.Builder
	for i := range len(p) {
		c := p[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

func (b *Bucket) url(key, query string) (*url.URL, error) {
	u := b.c.Scheme + "://" + b.d.Host + b.d.Path + "/" + escapePath(key)
	if query != "" {
		u += "?" + query
	}
	return url.Parse(u)
}

// send sends a request and returns its answer, whatever that is. Closing the body
// of the answer ends the request.
func (b *Bucket) send(ctx context.Context, q *request) (*http.Response, error) {
	at, err := b.url(q.key, q.query)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrDenied, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	silence := time.AfterFunc(q.patience, func() { cancel(errSilent) })
	req := (&http.Request{
		Method: q.method, URL: at, Host: at.Host, Header: q.header.Clone(), ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", "rafsd")
	req.Header.Set("Accept-Encoding", "identity")
	var sum []byte
	body := new(sending)
	if q.body != nil {
		sum = q.body.sum
		body = q.body.send(func() { silence.Reset(q.patience) })
		req.Body, req.ContentLength = body, q.body.size
		if q.body.size == 0 { // or its length would not be sent
			req.Body = http.NoBody
		}
	}
	b.d.SetSum(req.Header, sum)
	if err := b.d.Sign(ctx, req, q.key); err != nil {
		silence.Stop()
		err = httprange.Cause(ctx, err)
		cancel(nil)
		return nil, fmt.Errorf("credentials for %s: %w", b, err)
	}
	if req.ContentLength > 1<<20 {
		req.Header.Set("Expect", "100-continue") // a refusal comes before all is sent
	}
	res, err := b.http.RoundTrip(req)
	body.end()
	silence.Stop()
	if err != nil {
		err = httprange.Cause(ctx, httprange.RedactError(err))
		cancel(nil)
		return nil, fmt.Errorf("%s %s: %w", q.method, httprange.Redact(at), err)
	}
	res.Request = req
	if q.method == http.MethodGet {
		res.Body = httprange.Watch(ctx, cancel, res.Body, b.c.StallTimeout, b.c.MinRate)
	} else {
		// A store that thinks sends a space now and then (S3's CompleteMultipartUpload).
		res.Body = httprange.Watch(ctx, cancel, res.Body, q.patience, 0)
	}
	return res, nil
}

// call sends a request and returns the header and the document of its answer, which
// must be 200 or 204.
func (b *Bucket) call(ctx context.Context, q *request) (http.Header, []byte, error) {
	res, err := b.send(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	defer httprange.Close(res)
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNoContent {
		return nil, nil, refusal(res)
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", q.method, httprange.Redact(res.Request.URL), err)
	}
	return res.Header, doc, nil
}

// words is a store's own text, fit to be quoted.
func words(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "..."
	}
	return strings.TrimSpace(s)
}

// errorDocument is the body of a refusal. What else it has may quote the request
// with its signature, and is left out.
type errorDocument struct {
	XMLName xml.Name
	Code    string
	Message string
}

// refusal makes an error of an answer that is no success.
func refusal(res *http.Response) error {
	e := &Error{}
	if s, ok := httprange.Status(res).(*backend.StatusError); ok {
		e.StatusError = *s
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	var doc errorDocument
	if err == nil && xml.Unmarshal(raw, &doc) == nil && doc.XMLName.Local == "Error" {
		e.Code, e.Message = words(doc.Code), words(doc.Message)
	}
	if e.Status < 400 {
		if region := res.Header.Get("X-Amz-Bucket-Region"); region != "" {
			e.Message = strings.TrimSpace(e.Message + " (the bucket is in region " + words(region) + ")")
		}
	}
	if e.Code == "RequestTimeout" { // S3 says 400 when a body came too slowly
		e.Status = http.StatusRequestTimeout
	}
	return e
}

// decode reads a document whose root has a name. Stores send errors with status 200
// when they have begun to answer too early (S3's CompleteMultipartUpload).
func decode(q *request, at *Bucket, doc []byte, root string, into any) error {
	var head errorDocument
	where, _ := at.url(q.key, "")
	if err := xml.Unmarshal(doc, &head); err != nil {
		return fmt.Errorf("%w: %s %s: the answer is no XML: %w", backend.ErrUnavailable, q.method, where, err)
	}
	switch head.XMLName.Local {
	case root:
		if err := xml.Unmarshal(doc, into); err != nil {
			return fmt.Errorf("%w: %s %s: %w", backend.ErrUnavailable, q.method, where, err)
		}
		return nil
	case "Error":
		return &Error{
			backend.StatusError{Method: q.method, URL: httprange.Redact(where), Status: http.StatusInternalServerError},
			words(head.Code), words(head.Message),
		}
	}
	return fmt.Errorf("%w: %s %s: the answer is %.40q, want %s", backend.ErrUnavailable, q.method, where, head.XMLName.Local, root)
}
