package registry

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// push pushes an image of one layer and returns that layer's address and digest.
func push(t *testing.T, r *Registry, text []byte) (url, digest string) {
	t.Helper()
	layer := static.NewLayer(text, types.OCIUncompressedLayer)
	image, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	ref, err := name.ParseReference(r.Host + "/some/image:v1")
	must(t, err)
	must(t, remote.Write(ref, image))
	d, err := layer.Digest()
	must(t, err)
	return "http://" + r.Host + "/v2/some/image/blobs/" + d.String(), d.String()
}

func get(t *testing.T, url, span string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	if span != "" {
		req.Header.Set("Range", span)
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return text
}

func TestTraffic(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		r, err := Start(dir)
		must(t, err)
		text := bytes.Repeat([]byte("0123456789"), 10_000)
		url, digest := push(t, r, text)
		if got := r.Blobs(digest); got != (Traffic{}) {
			t.Errorf("after a push: %+v, want no reads", got)
		}
		if got := get(t, url, ""); !bytes.Equal(got, text) {
			t.Errorf("blob has %d bytes, want the %d pushed ones", len(got), len(text))
		}
		if got := get(t, url, "bytes=10-19"); string(got) != "0123456789" {
			t.Errorf("range 10-19 is %q, want 0123456789", got)
		}
		if got, want := r.Blobs(digest), (Traffic{2, 100_010}); got != want {
			t.Errorf("traffic %+v, want %+v", got, want)
		}
		r.Reset()
		if got := r.Blobs(digest); got != (Traffic{}) {
			t.Errorf("after Reset: %+v, want none", got)
		}
		must(t, r.Close())
		http.DefaultClient.CloseIdleConnections()
	}
}

func TestReserve(t *testing.T) {
	r := &Registry{}
	now := time.Unix(1000, 0)
	if got := r.reserve(1<<30, now); got != 0 {
		t.Errorf("without a limit a write waits %v, want nothing", got)
	}
	r.SetLimits(Limits{Rate: 1000})
	for _, step := range []struct {
		after time.Duration
		bytes int
		want  time.Duration
	}{
		{0, 500, 500 * time.Millisecond},
		{0, 500, time.Second},
		{200 * time.Millisecond, 100, 900 * time.Millisecond},
		{time.Minute, 1, time.Millisecond},
	} {
		now = now.Add(step.after)
		if got := r.reserve(step.bytes, now); got != step.want {
			t.Errorf("%d bytes at %v wait %v, want %v", step.bytes, now, got, step.want)
		}
	}
}

func TestInspectAndLatency(t *testing.T) {
	r, err := Start("")
	must(t, err)
	defer r.Close()
	url, digest := push(t, r, []byte("text"))
	r.SetLimits(Limits{Latency: time.Millisecond})
	reached, release := make(chan string), make(chan struct{})
	r.Inspect(func(req *http.Request) {
		reached <- blobOf(req.URL.Path)
		<-release
	})
	done := make(chan []byte)
	go func() { done <- get(t, url, "") }()
	if got := <-reached; got != digest {
		t.Errorf("inspected a request for %q, want %q", got, digest)
	}
	if got := r.Blobs(digest); got.Requests != 0 {
		t.Errorf("a request that waits is counted: %+v", got)
	}
	close(release)
	if got := <-done; string(got) != "text" {
		t.Errorf("got %q, want %q", got, "text")
	}
}
