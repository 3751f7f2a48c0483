package artifact

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/blob"
)

// shelf is a registry whose contents a test sets byte by byte.
type shelf struct {
	host  string
	blobs map[string][]byte // by digest: what is sent for it, right or wrong
	tags  map[string]v1.Descriptor
	asked map[string]int // GETs by path
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{blobs: map[string][]byte{}, tags: map[string]v1.Descriptor{}, asked: map[string]int{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked[r.URL.Path]++
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if d, ok := s.tags[name]; ok {
		w.Header().Set("Content-Type", string(d.MediaType))
		name = d.Digest.String()
	}
	for _, d := range s.tags {
		if d.Digest.String() == name {
			w.Header().Set("Content-Type", string(d.MediaType))
		}
	}
	if data, ok := s.blobs[name]; ok {
		w.Write(data)
		return
	}
	if r.URL.Path != "/v2/" {
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *shelf) put(mediaType types.MediaType, data []byte) v1.Descriptor {
	sum := sha256.Sum256(data)
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	s.blobs[d.Digest.String()] = data
	return d
}

func (s *shelf) putJSON(t *testing.T, mediaType types.MediaType, v any) v1.Descriptor {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.put(mediaType, raw)
}

// tag puts a manifest under a name and under its digest.
func (s *shelf) tag(name string, d v1.Descriptor) v1.Descriptor {
	s.tags[name] = d
	return d
}

type member struct{ name, data string }

func layerOf(t *testing.T, compressed bool, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&out)
	if !compressed {
		w = nopCloser{&out}
	}
	files := tar.NewWriter(w)
	for _, m := range members {
		if err := files.WriteHeader(&tar.Header{Name: m.name, Size: int64(len(m.data)), Mode: 0o444, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(files, m.data); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []io.Closer{files, w} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// image puts a RAFS image whose bootstrap layer is this on the shelf.
func (s *shelf) image(t *testing.T, layer []byte) v1.Manifest {
	t.Helper()
	config := s.putJSON(t, types.OCIConfigJSON, v1.ConfigFile{Architecture: "amd64", OS: "linux", Config: v1.Config{
		Env: []string{"A=b"}, User: "5", Entrypoint: []string{"/init"}, Cmd: []string{"x"}, WorkingDir: "/w",
	}})
	data := s.put(MediaTypeBlob, []byte("data"))
	data.Annotations = map[string]string{AnnotationBlob: "true"}
	boot := s.put(types.OCILayer, layer)
	boot.Annotations = map[string]string{AnnotationBootstrap: "true", AnnotationFSVersion: "6"}
	return v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{data, boot}}
}

func TestPull(t *testing.T) {
	for _, compressed := range []bool{true, false} {
		s, dir := newShelf(t), filepath.Join(t.TempDir(), "cache")
		layer := layerOf(t, compressed, member{"image/abc.blob.meta", "meta"}, member{"./image/image.boot", "the bootstrap"}, member{"other", ""})
		m := s.tag("v1", s.putJSON(t, types.OCIManifestSchema1, s.image(t, layer)))
		ref := s.host + "/a/b:v1"
		a, err := Pull(context.Background(), ref, Options{}, dir)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(a.BootstrapPath)
		if err != nil || string(data) != "the bootstrap" || a.BootstrapSHA256 != sha256.Sum256(data) {
			t.Errorf("bootstrap: got %q, %v, sha256 %x", data, err, a.BootstrapSHA256)
		}
		dataSum := sha256.Sum256([]byte("data"))
		if diff := cmp.Diff([]string{hex.EncodeToString(dataSum[:])}, a.BlobIDs); diff != "" {
			t.Errorf("blobs (-want +got):\n%s", diff)
		}
		if a.Digest != m.Digest || a.FSVersion != "6" || a.Repo.RegistryStr() != s.host || a.Repo.RepositoryStr() != "a/b" {
			t.Errorf("got %+v", a)
		}
		if c := a.Config.Config; c.User != "5" || c.WorkingDir != "/w" || len(c.Entrypoint)+len(c.Cmd)+len(c.Env) != 3 {
			t.Errorf("config: got %+v", c)
		}
		checkReuse(t, s, a, ref, dir, layer)
	}
}

// checkReuse pulls again: nothing is fetched that is there, and what is damaged
// is fetched anew.
func checkReuse(t *testing.T, s *shelf, a *Artifact, ref, dir string, layer []byte) {
	t.Helper()
	sum := sha256.Sum256(layer)
	path := "/v2/a/b/blobs/sha256:" + hex.EncodeToString(sum[:])
	for _, want := range []int{1, 2} {
		again, err := Pull(context.Background(), ref, Options{}, dir)
		if err != nil {
			t.Fatal(err)
		}
		if again.BootstrapPath != a.BootstrapPath || again.BootstrapSHA256 != a.BootstrapSHA256 {
			t.Errorf("second pull: got %s, want %s", again.BootstrapPath, a.BootstrapPath)
		}
		if got := s.asked[path]; got != want {
			t.Errorf("layer was fetched %d times, want %d", got, want)
		}
		if data, err := os.ReadFile(a.BootstrapPath); err != nil || string(data) != "the bootstrap" {
			t.Errorf("bootstrap: got %q, %v", data, err)
		}
		if err := os.WriteFile(a.BootstrapPath, []byte("the bootstrap?"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("cache has %v, %v; want the bootstrap, the manifest and the configuration", entries, err)
	}
}

func TestPullRefuses(t *testing.T) {
	boot := member{BootstrapFile, "the bootstrap"}
	other := []byte("something else")
	for _, tc := range []struct {
		name, want string
		is         error
		change     func(s *shelf, m *v1.Manifest)
		layer      []byte
	}{
		{"no such tag", "404", nil, func(s *shelf, _ *v1.Manifest) { delete(s.tags, "v1") }, nil},
		{"ordinary image", "no annotation", ErrNotRAFS, func(_ *shelf, m *v1.Manifest) { m.Layers[1].Annotations = nil }, nil},
		{"no layers", "no annotation", ErrNotRAFS, func(_ *shelf, m *v1.Manifest) { m.Layers = nil }, nil},
		{"wrong config", "digest mismatch", blob.ErrDigest, func(s *shelf, m *v1.Manifest) {
			s.blobs[m.Config.Digest.String()] = bytes.Replace(s.blobs[m.Config.Digest.String()], []byte("A=b"), []byte("A=c"), 1)
		}, nil},
		{"config too large", "limit", nil, func(_ *shelf, m *v1.Manifest) { m.Config.Size = MaxConfig + 1 }, nil},
		{"config shorter than it says", "EOF", nil, func(_ *shelf, m *v1.Manifest) { m.Config.Size += 5 }, nil},
		{"config longer than it says", "more than", nil, func(_ *shelf, m *v1.Manifest) { m.Config.Size -= 5 }, nil},
		{"bootstrap layer too large", "limit", nil, func(_ *shelf, m *v1.Manifest) { m.Layers[1].Size = MaxBootstrap + 1 }, nil},
		{"bootstrap layer of another image", "sha256", nil, func(s *shelf, m *v1.Manifest) {
			s.blobs[m.Layers[1].Digest.String()] = layerOf(t, true, member{BootstrapFile, "evil"})
		}, nil},
		{"digest that is a path", "non-hex", nil, func(_ *shelf, m *v1.Manifest) { m.Layers[1].Digest.Hex = "../../etc/passwd" }, nil},
		{"layer without a bootstrap", "no image/image.boot", nil, nil, layerOf(t, true, member{"image/image.boo", ""})},
		{"two bootstraps", "two files", nil, nil, layerOf(t, true, boot, boot)},
		{"no tar", "", nil, nil, other},
		{"cut off", "EOF", nil, nil, layerOf(t, true, boot)[:60]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, dir := newShelf(t), t.TempDir()
			if tc.layer == nil {
				tc.layer = layerOf(t, true, boot)
			}
			m := s.image(t, tc.layer)
			s.tag("v1", v1.Descriptor{})
			if tc.change != nil {
				tc.change(s, &m)
			}
			if _, there := s.tags["v1"]; there {
				s.tag("v1", s.putJSON(t, types.OCIManifestSchema1, m))
			}
			_, err := Pull(context.Background(), s.host+"/a/b:v1", Options{}, dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("cache has %v, want nothing", left)
			}
		})
	}
}

func TestPullChoosesFromIndex(t *testing.T) {
	s := newShelf(t)
	add := func(name string, p *v1.Platform, artifactType string) v1.Descriptor {
		d := s.putJSON(t, types.OCIManifestSchema1, s.image(t, layerOf(t, true, member{BootstrapFile, name})))
		s.tag("by-"+name, d)
		d.Platform, d.ArtifactType = p, artifactType
		return d
	}
	oci := add("oci-amd64", &v1.Platform{OS: "linux", Architecture: "amd64"}, "")
	rafs := add("rafs-amd64", &v1.Platform{OS: "linux", Architecture: "amd64", OSFeatures: []string{OSFeature}}, "")
	arm := add("rafs-arm64", &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, ArtifactType)
	attestation := add("attestation", &v1.Platform{OS: "unknown", Architecture: "unknown"}, "")
	alone := add("alone", nil, "")
	amd64 := v1.Platform{OS: "linux", Architecture: "amd64"}
	for _, tc := range []struct {
		name, want string
		platform   v1.Platform
		in         []v1.Descriptor
	}{
		{"marked by its platform", "rafs-amd64", amd64, []v1.Descriptor{attestation, oci, rafs, arm}},
		{"marked by its type", "rafs-arm64", v1.Platform{Architecture: "arm64"}, []v1.Descriptor{oci, rafs, arm}},
		{"not marked", "oci-amd64", amd64, []v1.Descriptor{attestation, arm, oci}},
		{"alone and without a platform", "alone", amd64, []v1.Descriptor{alone}},
		{"none", "", v1.Platform{Architecture: "riscv64"}, []v1.Descriptor{attestation, oci, rafs, arm}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.tag("v1", s.putJSON(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: tc.in}))
			a, err := Pull(context.Background(), s.host+"/a:v1", Options{Platform: tc.platform}, t.TempDir())
			if tc.want == "" {
				if err == nil || !strings.Contains(err.Error(), "linux/riscv64") {
					t.Errorf("got %v, want the platform in it", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(a.BootstrapPath); string(got) != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// A host that is not on the loopback gets no plain http, wherever it stands and
// whatever it redirects to.
func TestNoPlainHTTP(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	asked := 0
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme == "https" {
			return nil, errors.New("no TLS here")
		}
		asked++
		w := httptest.NewRecorder()
		inner.ServeHTTP(w, r)
		return w.Result(), nil
	})
	for _, tc := range []struct {
		host  string
		plain bool
		ok    bool
	}{
		{"192.168.1.5:5000", false, false}, {"registry.example", false, false}, {"10.0.0.1", false, false},
		{"registry.example", true, true}, {"127.0.0.1:5000", false, true}, {"localhost:5000", false, true},
	} {
		asked = 0
		_, err := Pull(context.Background(), tc.host+"/a:v1", Options{Transport: transport, PlainHTTP: tc.plain}, t.TempDir())
		if err == nil {
			t.Errorf("%s: got an image out of an empty registry", tc.host)
		}
		if got := asked > 0; got != tc.ok {
			t.Errorf("%s, plain http allowed = %t: asked %d times; %v", tc.host, tc.plain, asked, err)
		}
	}
}

// A manifest above the limit is not read to its end, and an answer that stops
// coming, before its header or in its body, ends the pull.
func TestPullIsBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(r *http.Request) (*http.Response, error)
		want   error
	}{
		"endless manifest": {func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: -1, Body: io.NopCloser(endless{})}, nil
		}, ErrTooLarge},
		"no header": {func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, ErrStalled},
		"body stalls": {func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: 100, Body: stalled{r.Context()}}, nil
		}, ErrStalled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent = 0
				transport := roundTrip(func(r *http.Request) (*http.Response, error) {
					if r.URL.Path == "/v2/" {
						return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
					}
					res, err := tc.answer(r)
					if res != nil {
						res.Request = r
						res.Header = http.Header{"Content-Type": {string(types.OCIManifestSchema1)}}
					}
					return res, err
				})
				start := time.Now()
				_, err := Pull(t.Context(), "registry.example/a:v1", Options{Transport: transport}, t.TempDir())
				if !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if took := time.Since(start); took > 5*time.Minute {
					t.Errorf("took %v, want at most 5m", took)
				}
				if sent > MaxManifest+1<<20 {
					t.Errorf("%d bytes of a manifest were read, limit %d", sent, MaxManifest)
				}
			})
		})
	}
}

var sent int

type endless struct{}

func (endless) Read(p []byte) (int, error) { sent += len(p); return len(p), nil }

type stalled struct{ ctx context.Context }

func (s stalled) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }
func (stalled) Close() error               { return nil }

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzExtractBootstrap(f *testing.F) {
	f.Add([]byte("\x1f\x8b"))
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	w.WriteHeader(&tar.Header{Name: BootstrapFile, Size: 4, Mode: 0o444, Typeflag: tar.TypeReg})
	io.WriteString(w, "boot")
	w.Close()
	f.Add(plain.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if err := ExtractBootstrap(&out, bytes.NewReader(data)); err != nil {
			return
		}
		// What is accepted must be in the plain layer as it is.
		r, err := gunzip(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		all, _ := io.ReadAll(io.LimitReader(r, 64<<20))
		if len(all) < 64<<20 && out.Len() < 4096 && !bytes.Contains(all, out.Bytes()) {
			t.Errorf("%q comes from nowhere", out.Bytes())
		}
	})
}
