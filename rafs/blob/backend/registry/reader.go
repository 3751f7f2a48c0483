package registry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
)

const (
	// maxRedirects bounds the hops of one request.
	maxRedirects = 5
	// redirectLife is how long a redirect's target is used without asking the
	// registry again; stores sign them for minutes.
	redirectLife = time.Minute
)

// reader reads one blob. It implements backend.Reader.
type reader struct {
	b  *Backend
	id string
	// target is where the registry last sent us; nil if nowhere.
	target atomic.Pointer[target]
}

type target struct {
	url   *url.URL // immutable
	until time.Time
}

// Size implements backend.Reader.
func (r *reader) Size(ctx context.Context) (n int64, err error) {
	err = r.do(ctx, httprange.Header(0, 1), func(res *http.Response) error {
		n, err = httprange.Size(res)
		return err
	})
	return n, err
}

// ReadRange implements backend.Reader.
func (r *reader) ReadRange(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return fmt.Errorf("blob %s: %w: offset %d", r.id, backend.ErrRange, off)
	}
	if len(p) == 0 {
		return ctx.Err()
	}
	return r.do(ctx, httprange.Header(off, len(p)), func(res *http.Response) error {
		_, err := httprange.Read(res, p, off, backend.Progress(ctx))
		return err
	})
}

// do sends one GET for a range and gives the answer to use. What a remembered
// redirect refuses is asked of the registry again, and one that failed otherwise is
// forgotten: the registry may know another target by the next try.
func (r *reader) do(parent context.Context, rng string, use func(*http.Response) error) error {
	ctx, end, err := r.b.begin(parent)
	if err != nil {
		return fmt.Errorf("blob %s: %w", r.id, err)
	}
	defer end()
	if t := r.target.Load(); t != nil {
		usable := time.Now().Before(t.until) && !backend.IsFresh(ctx)
		if usable {
			if err = r.once(ctx, t.url, rng, use); err == nil {
				return nil
			}
		}
		r.target.CompareAndSwap(t, nil)
		if usable && !errors.Is(err, backend.ErrDenied) && !errors.Is(err, backend.ErrNotFound) {
			return r.fail(parent, ctx, err)
		}
	}
	return r.fail(parent, ctx, r.once(ctx, nil, rng, use))
}

// fail words an error. The end of the caller's context is passed on as it is.
func (r *reader) fail(parent, ctx context.Context, err error) error {
	if err = httprange.Sort(parent, ctx, err); err == nil || parent.Err() != nil {
		return err
	}
	return fmt.Errorf("blob %s: %w", r.id, err)
}

// once asks start, or the registry if that is nil, and follows redirects.
func (r *reader) once(ctx context.Context, start *url.URL, rng string, use func(*http.Response) error) error {
	at := start
	if at == nil {
		u, err := url.Parse(r.b.base + r.id)
		if err != nil {
			return err
		}
		at = u
	}
	for hop := 0; ; hop++ {
		res, err := r.ask(ctx, at, rng)
		if err != nil {
			return err
		}
		if next, err := r.redirected(res, at); next != nil || err != nil {
			httprange.Close(res)
			if err != nil {
				return err
			}
			if hop == maxRedirects {
				return fmt.Errorf("%w: more than %d redirects", backend.ErrUnavailable, maxRedirects)
			}
			at = next
			continue
		}
		return r.finish(res, at, hop > 0, use)
	}
}

// finish uses the last answer and remembers where it came from.
func (r *reader) finish(res *http.Response, at *url.URL, moved bool, use func(*http.Response) error) error {
	err := use(res)
	httprange.Close(res)
	if err == nil && moved {
		r.target.Store(&target{url: at, until: time.Now().Add(redirectLife)})
	}
	return err
}

// ask sends one request. To the registry's own host it carries the grant, and
// when that is refused, once more with a new one.
func (r *reader) ask(ctx context.Context, at *url.URL, rng string) (*http.Response, error) {
	own := at.Scheme == r.b.opts.Scheme && at.Host == r.b.host
	if !own {
		return r.send(ctx, at, rng, nil, false)
	}
	g, err := r.b.auth.get(ctx)
	if err != nil {
		return nil, err
	}
	res, err := r.send(ctx, at, rng, g, true)
	if err != nil || !g.stale(res.StatusCode) {
		return res, err
	}
	httprange.Close(res)
	if g, err = r.b.auth.renew(ctx, g); err != nil {
		return nil, err
	}
	return r.send(ctx, at, rng, g, true)
}

func (r *reader) send(ctx context.Context, at *url.URL, rng string, g *grant, own bool) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req := (&http.Request{Method: http.MethodGet, URL: at, Host: at.Host, Header: http.Header{}}).WithContext(ctx)
	if own {
		for k, v := range r.b.opts.Header {
			req.Header[k] = v
		}
	}
	req.Header.Set("User-Agent", "rafsd")
	req.Header.Set("Range", rng)
	req.Header.Set("Accept-Encoding", "identity")
	if backend.IsFresh(ctx) {
		req.Header.Set("Cache-Control", "no-cache")
	}
	if g != nil && g.header != "" {
		req.Header.Set("Authorization", g.header)
	}
	res, err := r.b.http.RoundTrip(req)
	if err != nil {
		err = httprange.Cause(ctx, httprange.RedactError(err))
		cancel(nil)
		return nil, fmt.Errorf("GET %s: %w", httprange.Redact(at), err)
	}
	res.Body = httprange.Watch(ctx, cancel, res.Body, r.b.opts.StallTimeout, r.b.opts.MinRate)
	return res, nil
}

// redirected returns where an answer sends us, nil if it is no redirect.
func (r *reader) redirected(res *http.Response, from *url.URL) (*url.URL, error) {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	loc, err := url.Parse(res.Header.Get("Location"))
	if err != nil || res.Header.Get("Location") == "" {
		return nil, fmt.Errorf("%w: redirect of %s without a usable location", backend.ErrUnavailable, httprange.Redact(from))
	}
	to := from.ResolveReference(loc)
	o := &r.b.opts
	if o.RedirectHost != "" {
		to.Host = o.RedirectHost
	}
	if o.RedirectScheme != "" {
		to.Scheme = o.RedirectScheme
	}
	to.User, to.Fragment = nil, ""
	switch {
	case to.Host == "" || to.Scheme != "http" && to.Scheme != "https":
		return nil, fmt.Errorf("%w: redirect of %s to scheme %.10q", backend.ErrDenied, httprange.Redact(from), to.Scheme)
	case from.Scheme == "https" && to.Scheme == "http" && o.RedirectScheme != "http":
		return nil, fmt.Errorf("%w: redirect of %s from https to http", backend.ErrDenied, httprange.Redact(from))
	}
	return to, nil
}
