package fetch_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest/faultserver"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// overRegistry serves the image's blob from s, inside a synctest bubble.
func overRegistry(t *testing.T, s *faultserver.Server, im *image) backend.Backend {
	t.Helper()
	im.info.ID = s.Put(im.raw)
	b, err := registry.New(registry.Options{
		Host: "registry.test", Repo: "r", Scheme: "http", Keychain: authn.NewMultiKeychain(), Dial: faultserver.Serve(t, s),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return backend.Retry(b, backend.RetryPolicy{Deadline: 20 * time.Second})
}

// The rows of faults, seen by a reader of the engine: right bytes or an error, in
// bounded time, cold; and without a request once the cache is warm.
func TestFaults(t *testing.T) {
	type F = faultserver.Fault
	for name, c := range map[string]struct {
		fault F
		once  bool          // a reader gets over the fault if it happens once
		most  time.Duration // until a reader knows, if the fault stays
	}{
		"500":            {F{Kind: faultserver.Status, Status: 500}, true, 20 * time.Second},
		"503":            {F{Kind: faultserver.Status, Status: 503}, true, 20 * time.Second},
		"429":            {F{Kind: faultserver.Status, Status: 429, Header: map[string][]string{"Retry-After": {"3"}}}, true, 20 * time.Second},
		"404":            {F{Kind: faultserver.Status, Status: 404}, false, 0},
		"403":            {F{Kind: faultserver.Status, Status: 403}, false, 0},
		"401":            {F{Kind: faultserver.Status, Status: 401}, true, 0},
		"reset":          {F{Kind: faultserver.Reset}, true, 20 * time.Second},
		"stall":          {F{Kind: faultserver.Stall, At: 700}, true, 20 * time.Second},
		"drip":           {F{Kind: faultserver.Drip, Delay: 20 * time.Millisecond}, true, 20 * time.Second},
		"no first byte":  {F{Kind: faultserver.Late, Delay: time.Hour}, true, 20 * time.Second},
		"truncated":      {F{Kind: faultserver.Truncate, At: 700}, true, 20 * time.Second},
		"wrong range":    {F{Kind: faultserver.Shift, At: 1}, true, 20 * time.Second},
		"other range":    {F{Kind: faultserver.Other, At: -1}, true, 20 * time.Second},
		"no range":       {F{Kind: faultserver.NoRange}, true, 20 * time.Second},
		"long body":      {F{Kind: faultserver.Long, At: 100}, true, 20 * time.Second},
		"flipped byte":   {F{Kind: faultserver.Flip, At: 61_000}, true, 0},
		"zeros":          {F{Kind: faultserver.Zero}, true, 0},
		"whole blob":     {F{Kind: faultserver.Whole}, true, 0},
		"late":           {F{Kind: faultserver.Late, Delay: 2 * time.Second}, true, 2 * time.Second},
		"redirect loops": {F{Kind: faultserver.Redirect, Location: "/v2/r/blobs/sha256:x"}, false, 20 * time.Second},
	} {
		for _, times := range []int{1, 0} {
			t.Run(name+map[int]string{1: " once", 0: " always"}[times], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := faultserver.New()
					im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(4, 30_000)...)
					e := engine(t, im, fetch.Options{Backend: overRegistry(t, s, im), Cache: cache.New(newFolder())})
					c.fault.Times = times
					remove := s.Inject(c.fault)
					segs, want := im.whole(1, 3)
					start := time.Now()
					err := read(t, t.Context(), e, segs, want)
					if times == 1 && (err == nil) != c.once {
						t.Errorf("got %v, want success: %v", err, c.once)
					}
					if took := time.Since(start); times == 0 && took > c.most {
						t.Errorf("took %v, want at most %v", took, c.most)
					}
					remove()
					if err := read(t, t.Context(), e, segs, want); err != nil {
						t.Errorf("after the fault: %v", err)
					}
					s.Inject(c.fault)
					synctest.Wait() // requests that were given up are recorded late
					s.Forget()
					if err := read(t, t.Context(), e, segs, want); err != nil || len(s.Requests()) != 0 {
						t.Errorf("warm: %v, %d requests", err, len(s.Requests()))
					}
				})
			})
		}
	}
}

// Neighbours share a request, and short ones bring along what follows.
func TestNeighboursInOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultserver.New()
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(100, 10_000)...)
		e := engine(t, im, fetch.Options{
			Backend: overRegistry(t, s, im), Cache: cache.New(newFolder()), Amplify: 50_000, MaxRange: 200_000,
		})
		for _, c := range []struct {
			why      string
			i, j     int
			requests []string
		}{
			{"one chunk is extended to five", 0, 1, []string{"bytes=0-49999"}},
			{"the four others are there", 1, 5, nil},
			{"eight are above the extension", 10, 18, []string{"bytes=100000-179999"}},
			{"thirty are two requests, the second extended", 30, 60, []string{"bytes=300000-499999", "bytes=500000-599999"}},
			{"an extension ends before what is there", 8, 9, []string{"bytes=80000-99999"}},
			{"missing ones around what is there", 4, 20, []string{"bytes=50000-79999", "bytes=180000-229999"}},
		} {
			s.Forget()
			segs, want := im.whole(c.i, c.j)
			if err := read(t, t.Context(), e, segs, want); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			var got []string
			for _, r := range s.BlobRequests() {
				got = append(got, r.Range)
			}
			slices.Sort(got)
			slices.Sort(c.requests)
			if strings.Join(got, " ") != strings.Join(c.requests, " ") {
				t.Errorf("%s: requests %q, want %q", c.why, got, c.requests)
			}
		}
	})
}

// Several requests are under way at once, as many as Connections says.
func TestRequestsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := faultserver.New()
		s.SetLatency(100 * time.Millisecond)
		im := newImage(t, blob.CompressorNone, blob.DigesterBlake3, repeat(32, 100_000)...)
		e := engine(t, im, fetch.Options{
			Backend: overRegistry(t, s, im), MaxRange: 1, Amplify: -1, Connections: 8,
		})
		segs, want := im.whole(0, 32)
		start := time.Now()
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 400*time.Millisecond {
			t.Errorf("32 requests of 100ms, 8 at once, took %v, want 400ms", took)
		}
	})
}

// A registry that is gone: what is in the cache is served, the rest is an error.
func TestRegistryGone(t *testing.T) {
	testenv.LeakCheck(t)
	s := faultserver.New()
	ts := httptest.NewServer(s)
	im := newImage(t, blob.CompressorZstd, blob.DigesterSHA256, repeat(8, 200_000)...)
	im.info.ID = s.Put(im.raw)
	b, err := registry.New(registry.Options{
		Host: strings.TrimPrefix(ts.URL, "http://"), Repo: "r", Keychain: authn.NewMultiKeychain(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	c, err := cache.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := fetch.Options{Backend: b, Cache: c, Amplify: -1}
	warm := engine(t, im, o)
	segs, want := im.whole(0, 4)
	if err := read(t, t.Context(), warm, segs, want); err != nil {
		t.Fatal(err)
	}
	ts.Close()
	for _, e := range []*fetch.Engine{warm, engine(t, im, o)} {
		if err := read(t, t.Context(), e, segs, want); err != nil {
			t.Errorf("cached: %v", err)
		}
		rest, bytes := im.whole(4, 8)
		if err := read(t, context.Background(), e, rest, bytes); !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("not cached: %v, want ErrUnavailable", err)
		}
	}
}
