package registry_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/faultserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
)

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// Each wrong answer is an error of the right kind, never a wrong byte, and the
// next read is right again.
func TestWrongAnswers(t *testing.T) {
	type F = faultserver.Fault
	for name, c := range map[string]struct {
		fault F
		want  error
	}{
		"400":                {F{Kind: faultserver.Status, Status: 400}, backend.ErrDenied},
		"403":                {F{Kind: faultserver.Status, Status: 403}, backend.ErrDenied},
		"404":                {F{Kind: faultserver.Status, Status: 404}, backend.ErrNotFound},
		"416":                {F{Kind: faultserver.Status, Status: 416}, backend.ErrRange},
		"429":                {F{Kind: faultserver.Status, Status: 429}, backend.ErrUnavailable},
		"500":                {F{Kind: faultserver.Status, Status: 500}, backend.ErrUnavailable},
		"503":                {F{Kind: faultserver.Status, Status: 503}, backend.ErrUnavailable},
		"204":                {F{Kind: faultserver.Status, Status: 204}, backend.ErrUnavailable},
		"304":                {F{Kind: faultserver.Status, Status: 304}, backend.ErrUnavailable},
		"reset":              {F{Kind: faultserver.Reset}, backend.ErrUnavailable},
		"truncated at 0":     {F{Kind: faultserver.Truncate, At: 0}, backend.ErrUnavailable},
		"truncated":          {F{Kind: faultserver.Truncate, At: 9_999}, backend.ErrUnavailable},
		"range says other":   {F{Kind: faultserver.Shift, At: 1}, backend.ErrUnavailable},
		"other range":        {F{Kind: faultserver.Other, At: 512}, backend.ErrUnavailable},
		"no range":           {F{Kind: faultserver.NoRange}, backend.ErrUnavailable},
		"short range":        {F{Kind: faultserver.Short, At: 1}, backend.ErrUnavailable},
		"long body":          {F{Kind: faultserver.Long, At: 1}, backend.ErrUnavailable},
		"redirect loop":      {F{Kind: faultserver.Redirect, Location: "/v2/r/blobs/sha256:loop"}, backend.ErrUnavailable},
		"redirect nowhere":   {F{Kind: faultserver.Redirect, Location: ""}, backend.ErrUnavailable},
		"redirect to file":   {F{Kind: faultserver.Redirect, Location: "file:///etc/passwd"}, backend.ErrDenied},
		"redirect not a url": {F{Kind: faultserver.Redirect, Location: "http://[::secret/"}, backend.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := faultserver.New()
			ts := httptest.NewUnstartedServer(s)
			ts.Config.ErrorLog = quiet()
			ts.Start()
			defer ts.Close()
			data := backendtest.Data(50_000, 1)
			r := open(t, registry.Options{Host: host(t, ts.URL), Repo: "r", Keychain: anonymous}, s.Put(data))
			remove := s.Inject(c.fault)
			if err := read(t, r, data, 20_000, 10_000); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := len(s.Requests()); got > 6 {
				t.Errorf("%d requests, want at most 6", got)
			}
			remove()
			if err := read(t, r, data, 20_000, 10_000); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// The whole blob for a range is taken where that costs little, else refused.
func TestServerWithoutRanges(t *testing.T) {
	s, o := serve(t)
	data := backendtest.Data(3<<20, 1)
	r := open(t, o, s.Put(data))
	s.Inject(faultserver.Fault{Kind: faultserver.Whole})
	for _, c := range []struct {
		off, n int
		want   error
	}{
		{0, len(data), nil}, {0, 10, nil}, {1 << 20, 4096, nil}, {1<<20 + 1, 4096, backend.ErrUnavailable},
	} {
		if err := read(t, r, data, c.off, c.n); !errors.Is(err, c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", c.n, c.off, err, c.want)
		}
	}
}

func TestRedirects(t *testing.T) {
	s, o := serve(t)
	cdn := faultserver.New()
	ts := httptest.NewServer(cdn)
	defer ts.Close()
	s.RequireToken("me", "pw")
	o.Auth = auth("me", "pw")
	data := backendtest.Data(50_000, 1)
	id := s.Put(data)
	cdn.Put(data)
	s.SetRedirect(ts.URL)
	r := open(t, o, id)
	for range 5 {
		if err := read(t, r, data, 100, 1000); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range cdn.Requests() {
		if q.Authorization != "" {
			t.Errorf("the other host got Authorization %q", q.Authorization)
		}
	}
	// One refused request for want of a token, one redirected; then straight.
	if got := len(s.BlobRequests()); got != 2 {
		t.Errorf("%d requests to the registry, want 2", got)
	}
	// The target expires: back to the registry, once, and the read is right.
	cdn.Inject(faultserver.Fault{Kind: faultserver.Status, Status: 403, Times: 1})
	if err := read(t, r, data, 100, 1000); err != nil {
		t.Errorf("expired target: %v", err)
	}
	if got := len(s.BlobRequests()); got != 3 {
		t.Errorf("%d requests to the registry after a target expired, want 3", got)
	}
	// A fresh read does not use what is remembered.
	if err := r.ReadRange(backend.Fresh(t.Context()), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	if got := s.BlobRequests(); len(got) != 4 || got[3].CacheControl != "no-cache" {
		t.Errorf("%d requests to the registry after a fresh read, want 4, the last without caches", len(got))
	}
	// A target that is down costs that read; the next one asks the registry, which
	// may know another.
	cdn.Inject(faultserver.Fault{Kind: faultserver.Status, Status: 503, Times: 1})
	before := len(s.BlobRequests())
	if err := read(t, r, data, 100, 1000); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("target that is down: %v, want ErrUnavailable", err)
	}
	if err := read(t, r, data, 100, 1000); err != nil {
		t.Error(err)
	}
	if got := len(s.BlobRequests()) - before; got != 1 {
		t.Errorf("%d requests to the registry after a target was down, want 1", got)
	}
	// A target that refuses for good is an error that does not tell its signature.
	cdn.Inject(faultserver.Fault{Kind: faultserver.Status, Status: 403})
	err := read(t, r, data, 100, 1000)
	if !errors.Is(err, backend.ErrDenied) || strings.Contains(err.Error(), "secret") {
		t.Errorf("refusing target: %v, want ErrDenied without the signature", err)
	}
}

func TestNeverFromHTTPSToHTTP(t *testing.T) {
	plain, _ := serve(t)
	data := backendtest.Data(1000, 1)
	id := plain.Put(data)
	cdn := httptest.NewServer(plain)
	defer cdn.Close()
	s := faultserver.New()
	s.Put(data)
	s.SetRedirect(cdn.URL)
	ts := httptest.NewTLSServer(s)
	defer ts.Close()
	o := registry.Options{Host: host(t, ts.URL), Repo: "r", Scheme: "https", SkipVerify: true, Keychain: anonymous}
	if err := read(t, open(t, o, id), data, 0, 10); !errors.Is(err, backend.ErrDenied) {
		t.Errorf("redirect to http: %v, want ErrDenied", err)
	}
	if n := len(plain.Requests()); n != 0 {
		t.Errorf("the server of http saw %d requests, want 0", n)
	}
	o.RedirectScheme = "http" // as the operator says
	if err := read(t, open(t, o, id), data, 0, 10); err != nil {
		t.Errorf("redirect to http that was configured: %v", err)
	}
}

// Slow answers are given up; the times are those of the options, by a fake clock.
func TestSlowAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		fault faultserver.Fault
		want  time.Duration
		ok    bool
	}{
		"late":              {faultserver.Fault{Kind: faultserver.Late, Delay: 9 * time.Second}, 9 * time.Second, true},
		"no first byte":     {faultserver.Fault{Kind: faultserver.Late, Delay: time.Hour}, 10 * time.Second, false},
		"stall at once":     {faultserver.Fault{Kind: faultserver.Stall}, 5 * time.Second, false},
		"stall in the body": {faultserver.Fault{Kind: faultserver.Stall, At: 40_000}, 10 * time.Second, false},
		"drip":              {faultserver.Fault{Kind: faultserver.Drip, Delay: 10 * time.Millisecond}, 5 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := faultserver.New()
				data := backendtest.Data(100_000, 1)
				r := open(t, registry.Options{
					Host: "registry.test", Repo: "r", Scheme: "http", Keychain: anonymous,
					Dial: faultserver.Serve(t, s),
				}, s.Put(data))
				s.Inject(c.fault)
				start := time.Now()
				err := read(t, r, data, 0, 80_000)
				if c.ok != (err == nil) || err != nil && !errors.Is(err, backend.ErrUnavailable) {
					t.Errorf("got %v, want success: %v", err, c.ok)
				}
				if took := time.Since(start); took != c.want {
					t.Errorf("took %v, want %v", took, c.want)
				}
			})
		})
	}
}

// A reader that leaves does not wait for the source.
func TestCancelDuringRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultserver.New()
		data := backendtest.Data(100_000, 1)
		r := open(t, registry.Options{
			Host: "registry.test", Repo: "r", Scheme: "http", Keychain: anonymous, Dial: faultserver.Serve(t, s),
		}, s.Put(data))
		s.Inject(faultserver.Fault{Kind: faultserver.Stall, At: 100})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := r.ReadRange(ctx, make([]byte, 5000), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v, want 1s", took)
		}
	})
}

// A token with a known life is renewed before its end, not by a refusal.
func TestTokenLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultserver.New()
		s.RequireToken("", "")
		s.SetTokenLife(60)
		data := backendtest.Data(1000, 1)
		r := open(t, registry.Options{
			Host: "registry.test", Repo: "r", Scheme: "http", Keychain: anonymous, Dial: faultserver.Serve(t, s),
		}, s.Put(data))
		for _, c := range []struct {
			after  time.Duration
			tokens int
		}{{0, 1}, {49 * time.Second, 1}, {2 * time.Second, 2}} {
			time.Sleep(c.after)
			if err := read(t, r, data, 0, 10); err != nil {
				t.Fatal(err)
			}
			if got := s.TokensIssued(); got != c.tokens {
				t.Errorf("%v later: %d tokens, want %d", c.after, got, c.tokens)
			}
		}
		refused := 0
		for _, q := range s.BlobRequests() {
			if q.Status == http.StatusUnauthorized {
				refused++
			}
		}
		if refused != 1 {
			t.Errorf("%d requests were refused, want 1, the first", refused)
		}
	})
}

// Some registries say 403 to a token that expired: an old one is renewed, a new
// one is not.
func TestForbiddenOldToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultserver.New()
		s.RequireToken("", "")
		data := backendtest.Data(1000, 1)
		r := open(t, registry.Options{
			Host: "registry.test", Repo: "r", Scheme: "http", Keychain: anonymous, Dial: faultserver.Serve(t, s),
		}, s.Put(data))
		for _, c := range []struct {
			after  time.Duration
			ok     bool
			tokens int
		}{{0, true, 1}, {time.Second, false, 1}, {time.Minute, true, 2}} {
			time.Sleep(c.after)
			if c.after > 0 {
				s.Inject(faultserver.Fault{Kind: faultserver.Status, Status: 403, Times: 1})
			}
			err := read(t, r, data, 0, 10)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, backend.ErrDenied) {
				t.Errorf("%v later: %v, want success: %v", c.after, err, c.ok)
			}
			if got := s.TokensIssued(); got != c.tokens {
				t.Errorf("%v later: %d tokens, want %d", c.after, got, c.tokens)
			}
		}
	})
}

// A source of credentials that is down is an outage, not a refusal.
func TestKeychainDown(t *testing.T) {
	s, o := serve(t)
	s.RequireToken("me", "pw")
	o.Keychain = brokenKeychain{}
	data := backendtest.Data(1000, 1)
	err := read(t, open(t, o, s.Put(data)), data, 0, 10)
	if !errors.Is(err, backend.ErrUnavailable) || backend.Permanent(err) {
		t.Errorf("got %v, want a transient ErrUnavailable", err)
	}
}

type brokenKeychain struct{}

func (brokenKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return nil, errors.New("helper: exit status 1")
}
