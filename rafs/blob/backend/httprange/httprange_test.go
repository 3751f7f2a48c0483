package httprange_test

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

func TestParseContentRange(t *testing.T) {
	for in, want := range map[string]httprange.Range{
		"bytes 0-0/1":         {First: 0, Last: 0, Total: 1},
		"bytes 5-9/10":        {First: 5, Last: 9, Total: 10},
		"bytes 5-9/*":         {First: 5, Last: 9, Total: -1},
		"Bytes 0-1/2":         {First: 0, Last: 1, Total: 2},
		"bytes */0":           {First: -1, Last: -1, Total: 0},
		"bytes */12345678901": {First: -1, Last: -1, Total: 12345678901},
	} {
		if got, err := httprange.ParseContentRange(in); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "bytes", "bytes ", "bytes 0-0", "bytes /1", "bytes 0-/1", "bytes -1/2", "bytes 1-0/2", "bytes 0-1/1",
		"bytes */*", "bytes 0-1/", "bytes +0-1/2", "bytes 0 -1/2", "items 0-1/2", "bytes 0-1/2/3", "bytes 0-1-2/3",
		"bytes 0-9999999999999999999/*", "bytes 0x0-1/2", "bytes=0-1/2",
	} {
		if got, err := httprange.ParseContentRange(in); err == nil {
			t.Errorf("%q: got %+v, want an error", in, got)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Add("bytes */100")
	f.Add("bytes 7-8/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := httprange.ParseContentRange(s)
		if err != nil {
			return
		}
		again, err := httprange.ParseContentRange(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %+v, and %q is %+v, %v", s, r, r.String(), again, err)
		}
		if r.First > r.Last || r.Total >= 0 && r.Last >= r.Total || r.First < -1 || r.First < 0 && r.Total < 0 {
			t.Fatalf("%q gives the impossible %+v", s, r)
		}
	})
}

// FuzzRead gives answers of any shape: whatever Read accepts is the asked length
// out of the body, from the place that the answer claims.
func FuzzRead(f *testing.F) {
	f.Add(206, "bytes 2-5/10", int64(4), "2345", int64(2), 4)
	f.Add(200, "", int64(10), "0123456789", int64(2), 4)
	f.Add(206, "bytes 2-5/*", int64(-1), "23456", int64(2), 4)
	f.Fuzz(func(t *testing.T, status int, contentRange string, length int64, body string, off int64, n int) {
		if off < 0 || off > 1<<40 || n < 1 || n > 1<<16 || length < -1 {
			return
		}
		res := &http.Response{
			StatusCode: status, Header: http.Header{"Content-Range": {contentRange}},
			ContentLength: length, Body: io.NopCloser(strings.NewReader(body)),
		}
		p := make([]byte, n)
		told := 0
		progress := func(k int) {
			if k <= told || k >= n {
				t.Errorf("progress %d after %d of %d", k, told, n)
			}
			told = k
		}
		if _, err := httprange.Read(res, p, off, progress); err != nil {
			return
		}
		want := body
		if status == http.StatusOK {
			want = body[off : off+int64(n)]
		}
		if string(p) != want {
			t.Fatalf("read %q, want %q", p, want)
		}
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, err := url.Parse("https://user:pw@host.example/v2/r/blobs/x?sig=secret#f")
		if err != nil {
			t.Fatal(err)
		}
		for header, want := range map[string]time.Duration{
			"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999": 30 * time.Second,
			time.Now().UTC().Add(30 * time.Second).Format(http.TimeFormat): 30 * time.Second,
			time.Now().UTC().Add(-time.Minute).Format(http.TimeFormat):     0,
		} {
			res := &http.Response{
				StatusCode: 429, Header: http.Header{"Retry-After": {header}},
				Request: &http.Request{Method: "GET", URL: u},
			}
			err := httprange.Status(res)
			var se *backend.StatusError
			if !errors.As(err, &se) || !errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("%v is no StatusError of ErrUnavailable", err)
			}
			if se.RetryAfter != want {
				t.Errorf("retry-after %q: got %v, want %v", header, se.RetryAfter, want)
			}
			if s := err.Error(); strings.Contains(s, "secret") || strings.Contains(s, "pw") || !strings.Contains(s, "host.example/v2/r") {
				t.Errorf("error %q: want the URL without its secrets", s)
			}
		}
	})
}

func TestRedactError(t *testing.T) {
	in := &url.Error{Op: "Get", URL: "https://h/?sig=secret", Err: io.ErrUnexpectedEOF}
	if got := httprange.RedactError(in); strings.Contains(got.Error(), "secret") || !errors.Is(got, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want the cause without the URL", got)
	}
}
