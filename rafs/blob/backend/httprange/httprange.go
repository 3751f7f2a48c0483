// Package httprange asks for a range of an object by HTTP and checks that the
// answer is that range and nothing else.
//
// Servers, proxies and peers answer ranges in many wrong ways (the whole object,
// another range, fewer bytes); each is an error here, never a byte to the caller.
package httprange

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// Range is a parsed Content-Range of the unit bytes (RFC 9110 §14.4).
type Range struct {
	// First and Last are the positions of the first and the last byte; both are
	// -1 in the form that a 416 carries, "bytes */N".
	First, Last int64
	// Total is the object's size in bytes, -1 if the server does not say.
	Total int64
}

// ParseContentRange reads the value of a Content-Range header. A range that is
// empty, backwards or outside its total is an error.
func ParseContentRange(s string) (Range, error) {
	bad := func(why string) (Range, error) {
		return Range{}, fmt.Errorf("content-range %.80q: %s", s, why)
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad("unit is not bytes")
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return bad("no total")
	}
	r := Range{First: -1, Last: -1, Total: -1}
	if total != "*" {
		if r.Total, ok = number(total); !ok {
			return bad("bad total")
		}
	}
	if span == "*" {
		if r.Total < 0 {
			return bad("neither range nor total")
		}
		return r, nil
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return bad("no range")
	}
	var ok1, ok2 bool
	r.First, ok1 = number(first)
	r.Last, ok2 = number(last)
	switch {
	case !ok1 || !ok2:
		return bad("bad number")
	case r.First > r.Last:
		return bad("range is backwards")
	case r.Total >= 0 && r.Last >= r.Total:
		return bad("range ends outside the total")
	}
	return r, nil
}

// String is the header's value; ParseContentRange reads it back.
func (r Range) String() string {
	span, total := "*", "*"
	if r.First >= 0 {
		span = fmt.Sprintf("%d-%d", r.First, r.Last)
	}
	if r.Total >= 0 {
		total = strconv.FormatInt(r.Total, 10)
	}
	return "bytes " + span + "/" + total
}

// number parses digits only: no sign, no space, at most 18 of them.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Header is the value of the Range header for n bytes from off; n is at least 1.
func Header(off int64, n int) string {
	return fmt.Sprintf("bytes=%d-%d", off, off+int64(n)-1)
}

// maxSkip bounds how many bytes of an answer that ignores the range are read and
// thrown away to reach the wanted ones: about what one more request would cost.
const maxSkip = 1 << 20

// Read fills p with the object's bytes from off, out of the answer to a request
// with Header(off, len(p)). It returns the object's size if the answer tells it,
// else -1. On the way it tells progress of bytes of p. The caller closes the body.
func Read(res *http.Response, p []byte, off int64, progress func(n int)) (total int64, err error) {
	switch res.StatusCode {
	case http.StatusPartialContent:
		if total, err = checkPartial(res, off, len(p)); err != nil {
			return total, err
		}
	case http.StatusOK:
		total = res.ContentLength
		if total >= 0 && off+int64(len(p)) > total {
			return total, fmt.Errorf("%w: %d bytes at %d of %d", backend.ErrRange, len(p), off, total)
		}
		if off > maxSkip {
			return total, fmt.Errorf("%w: status 200 to a range at %d: the server ignores ranges",
				backend.ErrUnavailable, off)
		}
		if n, err := io.CopyN(io.Discard, res.Body, off); err != nil {
			return total, fmt.Errorf("%w: body ends after %d bytes, before the range at %d: %w",
				backend.ErrUnavailable, n, off, noEOF(err))
		}
	default:
		return -1, Status(res)
	}
	if n, err := readFull(res.Body, p, progress); err != nil {
		return total, fmt.Errorf("%w: body ends after %d of %d bytes: %w", backend.ErrUnavailable, n, len(p), noEOF(err))
	}
	if res.StatusCode != http.StatusPartialContent {
		return total, nil
	}
	// A body without a length may go on, which is another range than it says.
	var more [1]byte
	if n, err := io.ReadFull(res.Body, more[:]); n != 0 || err != io.EOF {
		return total, fmt.Errorf("%w: body is longer than its %d bytes or does not end: %v",
			backend.ErrUnavailable, len(p), err)
	}
	return total, nil
}

// readFull is io.ReadFull that tells how far it is.
func readFull(r io.Reader, p []byte, progress func(n int)) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		if n += k; k > 0 && n < len(p) {
			progress(n)
		}
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func checkPartial(res *http.Response, off int64, n int) (total int64, err error) {
	if e := res.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return -1, fmt.Errorf("%w: content-encoding %.40q of a range", backend.ErrUnavailable, e)
	}
	r, err := ParseContentRange(res.Header.Get("Content-Range"))
	last := off + int64(n) - 1
	switch {
	case err != nil:
		return -1, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	case r.First == off && r.Last < last && r.Last == r.Total-1:
		// Servers cut a range at the object's end (RFC 9110 §14.1.2).
		return r.Total, fmt.Errorf("%w: %d bytes at %d of %d", backend.ErrRange, n, off, r.Total)
	case r.First != off || r.Last != last:
		return -1, fmt.Errorf("%w: %q, want %d to %d", backend.ErrUnavailable, r, off, last)
	case res.ContentLength >= 0 && res.ContentLength != int64(n):
		return -1, fmt.Errorf("%w: content-length %d of a range of %d", backend.ErrUnavailable, res.ContentLength, n)
	}
	return r.Total, nil
}

// Size finds the object's size in the answer to a request for its first byte.
func Size(res *http.Response) (int64, error) {
	switch res.StatusCode {
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		r, err := ParseContentRange(res.Header.Get("Content-Range"))
		if err == nil && r.Total >= 0 {
			return r.Total, nil
		}
		if res.StatusCode == http.StatusPartialContent {
			return 0, fmt.Errorf("%w: no size in the answer: %w", backend.ErrUnavailable, err)
		}
	case http.StatusOK:
		if res.ContentLength >= 0 {
			return res.ContentLength, nil
		}
		return 0, fmt.Errorf("%w: status 200 without content-length", backend.ErrUnavailable)
	}
	return 0, Status(res)
}

// Status is the error for an answer with an unwanted status.
func Status(res *http.Response) error {
	e := &backend.StatusError{Status: res.StatusCode, RetryAfter: retryAfter(res)}
	if res.Request != nil {
		e.Method, e.URL = res.Request.Method, Redact(res.Request.URL)
	}
	return e
}

// maxRetryAfter bounds what we honour of a Retry-After. Every read of a source waits
// for it, so one odd answer must not close the source for longer than a read lasts.
const maxRetryAfter = 30 * time.Second

// retryAfter reads Retry-After, seconds or a date (RFC 9110 §10.2.3).
func retryAfter(res *http.Response) time.Duration {
	v := res.Header.Get("Retry-After")
	if n, ok := number(v); ok {
		return time.Duration(min(n, int64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	return 0
}

// maxDrain bounds what is read of a body that nobody wants, to keep its
// connection for the next request.
const maxDrain = 64 << 10

// Close ends an answer. Where little of the body can be left it is read to its
// end, so that its connection can be used again.
func Close(res *http.Response) {
	if res.ContentLength <= maxDrain {
		_, _ = io.CopyN(io.Discard, res.Body, maxDrain)
	}
	_ = res.Body.Close()
}
