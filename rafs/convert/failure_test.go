package convert

import (
	"archive/tar"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

func TestSecondRunSendsNoBlob(t *testing.T) {
	reg := newRegistry(t)
	src, dst := reg.host+"/src:v1", reg.host+"/dst:v1"
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).push(t, src)
	first, err := Convert(context.Background(), Options{Source: src, Target: dst})
	if err != nil {
		t.Fatal(err)
	}
	before := reg.count(http.MethodPost, "/dst/blobs/uploads")
	if want := len(first.Blobs) + 2; before != want {
		t.Errorf("first run: %d uploads, want %d: the blobs, the bootstrap, the config", before, want)
	}
	second, err := Convert(context.Background(), Options{Source: src, Target: dst})
	if err != nil {
		t.Fatal(err)
	}
	if got := reg.count(http.MethodPost, "/dst/blobs/uploads"); got != before {
		t.Errorf("second run: %d more uploads, want none", got-before)
	}
	if first.Digest != second.Digest {
		t.Errorf("second run: manifest %s, first had %s", second.Digest, first.Digest)
	}
}

// Wherever the target breaks off, there is no image under its name, nothing
// remains in the work folder, and the next run succeeds.
func TestNoHalfImage(t *testing.T) {
	testenv.LeakCheck(t)
	var tars [][]byte
	for _, name := range []string{"a", "b", "c"} {
		tars = append(tars, tarOf(t, entry{Header: tar.Header{Name: name}, data: strings.Repeat(name, 5000)}))
	}
	for _, where := range []struct{ method, part string }{
		{http.MethodPost, "/blobs/uploads"}, {http.MethodPatch, "/blobs/uploads"}, {http.MethodPut, "/blobs/uploads"}, {http.MethodPut, "/manifests/"},
	} {
		for nth := range 5 {
			reg := newRegistry(t)
			src, dst, work := reg.host+"/src:v1", reg.host+"/dst:v1", t.TempDir()
			newImage(t, "gzip", tars...).push(t, src)
			seen := 0
			reg.refuse = func(r *http.Request) bool {
				if r.Method == where.method && strings.Contains(r.URL.Path, where.part) && strings.Contains(r.URL.Path, "/dst/") {
					seen++
				}
				return seen > nth
			}
			o := Options{Source: src, Target: dst, WorkDir: work, Layers: 1}
			_, err := Convert(context.Background(), o)
			reg.mu.Lock()
			reg.refuse = nil
			failed := seen > nth
			reg.mu.Unlock()
			if failed == (err == nil) {
				t.Fatalf("%s %s fails the %d. time: got %v", where.method, where.part, nth+1, err)
			}
			if !failed {
				break
			}
			if _, err := artifact.Pull(context.Background(), dst, artifact.Options{}, t.TempDir()); err == nil {
				t.Errorf("%s %s fails the %d. time: there is an image", where.method, where.part, nth+1)
			}
			if left, _ := os.ReadDir(work); len(left) != 0 {
				t.Errorf("%s %s fails the %d. time: %v remains", where.method, where.part, nth+1, left)
			}
			if _, err := Convert(context.Background(), o); err != nil {
				t.Errorf("next run: %v", err)
			}
		}
	}
}

// An error says which layer, which entry, and why.
func TestBadSources(t *testing.T) {
	good := tarOf(t, entry{Header: tar.Header{Name: "f"}, data: strings.Repeat("x", 100000)})
	evil := tarOf(t, entry{Header: tar.Header{Name: "f"}}, entry{Header: tar.Header{Name: "../evil"}})
	flip := func(i *testImage, d v1.Descriptor, at int) {
		data := append([]byte(nil), i.blobs[d.Digest]...)
		data[at] ^= 1
		i.blobs[d.Digest] = data
	}
	for _, tc := range []struct {
		name string
		make func() *testImage
		want []string
	}{
		{"entry that escapes", func() *testImage { return newImage(t, "gzip", good, evil) },
			[]string{"layer 2 of 2", `"../evil"`, `".."`}},
		{"flipped bit in a plain layer", func() *testImage {
			i := newImage(t, "", good)
			flip(i, i.manifest.Layers[0], 5000)
			return i
		}, []string{"layer 1 of 1", "digest mismatch"}},
		{"flipped bit in a gzip layer", func() *testImage {
			i := newImage(t, "gzip", good)
			flip(i, i.manifest.Layers[0], 60)
			return i
		}, []string{"layer 1 of 1", "digest mismatch"}},
		{"bytes behind the archive", func() *testImage {
			i := newImage(t, "", good)
			d := i.manifest.Layers[0]
			i.blobs[d.Digest] = append(append([]byte(nil), i.blobs[d.Digest]...), 0)
			return i
		}, []string{"its descriptor says"}},
		{"flipped bit in the configuration", func() *testImage {
			i := newImage(t, "gzip", good)
			flip(i, i.manifest.Config, 3)
			return i
		}, []string{"config", "digest mismatch"}},
		{"diff id of another layer", func() *testImage {
			i := newImage(t, "gzip", good, evil)
			i.manifest.Layers[1] = i.manifest.Layers[0]
			return i
		}, []string{"layer 2 of 2", "unpacked digest"}},
		{"layers that the configuration lacks", func() *testImage {
			i := newImage(t, "gzip", good)
			i.manifest.Layers = append(i.manifest.Layers, i.manifest.Layers[0])
			return i
		}, []string{"1 layers, the manifest has 2"}},
		{"no tar", func() *testImage { return newImage(t, "", []byte(strings.Repeat("no tar at all ", 100))) },
			[]string{"layer 1 of 1", "invalid tar header"}},
		{"no gzip", func() *testImage { return newImage(t, "", []byte("\x1f\x8bno gzip at all")) },
			[]string{"layer 1 of 1", "gzip"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src, dst := t.TempDir(), t.TempDir()
			i := tc.make()
			for h, data := range i.blobs { // as they are, right or wrong
				file := filepath.Join(src, "blobs", h.Algorithm, h.Hex)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			i.layout(t, src, "")
			_, err := Convert(context.Background(), Options{Source: src, Target: "oci:" + dst})
			if err == nil {
				t.Fatal("got no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if left, _ := os.ReadDir(dst); len(left) != 0 {
				t.Errorf("target has %v", left)
			}
			if strings.Contains(tc.name, "escapes") && !errors.Is(err, tree.ErrRefused) {
				t.Errorf("got %v, want %v", err, tree.ErrRefused)
			}
		})
	}
}

// A transport that breaks off in a layer is tried again.
func TestLayerIsReadAgain(t *testing.T) {
	data := tarOf(t, entry{Header: tar.Header{Name: "f"}, data: strings.Repeat("x", 100000)})
	img := newImage(t, "", data)
	layer := img.manifest.Layers[0]
	for _, tc := range []struct {
		breaks int
		ok     bool
	}{{3, true}, {1000, false}} {
		inner, breaks := registry.New(registry.Logger(log.New(io.Discard, "", 0))), 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, layer.Digest.Hex) && breaks < tc.breaks {
				breaks++
				w.Header().Set("Content-Length", "102400")
				w.Write(data[:5000])
				panic(http.ErrAbortHandler)
			}
			inner.ServeHTTP(w, r)
		}))
		host := strings.TrimPrefix(server.URL, "http://")
		img.push(t, host+"/src:v1")
		_, err := Convert(context.Background(), Options{Source: host + "/src:v1", Target: host + "/dst:v1"})
		if (err == nil) != tc.ok {
			t.Errorf("%d breaks: got %v, want success = %t", tc.breaks, err, tc.ok)
		}
		server.Close()
	}
}

func TestCancelled(t *testing.T) {
	testenv.LeakCheck(t)
	src, dst := t.TempDir(), t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, src, "")
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Convert(ctx, Options{Source: src, Target: "oci:" + dst, Progress: func(e Event) {
		if e.Stage == StageDone {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if left, _ := os.ReadDir(dst); len(left) != 0 {
		t.Errorf("target has %v", left)
	}
}

func TestPrivateCAAndPassword(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	dst := strings.TrimPrefix(server.URL, "https://") + "/dst:v1"
	src := t.TempDir()
	newImage(t, "gzip", tarOf(t, dirEntry("d"))).layout(t, src, "")

	cas := x509.NewCertPool()
	cas.AddCert(server.Certificate())
	for _, tc := range []struct {
		name, want string
		o          artifact.Options
	}{
		{"all right", "", artifact.Options{RootCAs: cas, Keychain: keychain("me:secret")}},
		{"wrong password", "401", artifact.Options{RootCAs: cas, Keychain: keychain("me:wrong")}},
		{"unknown authority", "certificate", artifact.Options{Keychain: keychain("me:secret")}},
	} {
		_, err := Convert(context.Background(), Options{Source: src, Target: dst, TargetRegistry: tc.o})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error has the password: %v", tc.name, err)
		}
	}
}

// keychain has one password for every registry.
type keychain string

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	user, password, _ := strings.Cut(string(k), ":")
	return &authn.Basic{Username: user, Password: password}, nil
}

// Progress of each layer rises to its total, reading before pushing.
func TestProgress(t *testing.T) {
	reg := newRegistry(t)
	src := t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, src, "")
	last := map[int]Event{}
	read := map[int]int64{}
	_, err := Convert(context.Background(), Options{Source: src, Target: reg.host + "/dst:v1", Progress: func(e Event) {
		old, seen := last[e.Layer]
		if e.Layers != 3 || e.Digest == "" || seen && (e.Stage < old.Stage || e.Stage == old.Stage && e.Done < old.Done) || e.Done > e.Total {
			t.Errorf("event %+v after %+v", e, old)
		}
		if e.Stage == StageRead {
			read[e.Layer] = e.Total - e.Done
		}
		last[e.Layer] = e
	}})
	if err != nil {
		t.Fatal(err)
	}
	for layer := -1; layer < 3; layer++ {
		if e := last[layer]; e.Stage != StageDone || e.Done != e.Total || e.Done == 0 {
			t.Errorf("layer %d ended with %+v", layer, e)
		}
		if left := read[layer]; left != 0 {
			t.Errorf("layer %d: %d bytes were never reported as read", layer, left)
		}
	}
}
