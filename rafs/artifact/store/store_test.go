package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirupsen/logrus"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob/backend"
)

// fakeRegistry is a registry on the loopback that notes requests and can fail.
type fakeRegistry struct {
	host string

	mu       sync.Mutex
	requests []string // METHOD PATH?QUERY, in order
	breakAt  func(r *http.Request) (bytes int64, broken bool)
}

// serve puts a registry behind the notes.
func serve(t testing.TB, inner http.Handler) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
		limit, broken := int64(0), false
		if f.breakAt != nil {
			limit, broken = f.breakAt(r)
		}
		f.mu.Unlock()
		if !broken {
			inner.ServeHTTP(w, r)
			return
		}
		// What a registry keeps of a connection that broke is what had arrived.
		r.Body, r.ContentLength = io.NopCloser(io.LimitReader(r.Body, limit)), limit
		r.Header.Del("Content-Range")
		inner.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	f.host = strings.TrimPrefix(server.URL, "http://")
	return f
}

// small is go-containerregistry's registry, which knows referrers but no mounts
// and does not tell how far an upload is.
func small(t testing.TB, o ...registry.Option) *fakeRegistry {
	return serve(t, registry.New(append(o, registry.Logger(log.New(io.Discard, "", 0)))...))
}

// full is distribution's, which can do all that but referrers.
func full(t testing.TB) *fakeRegistry {
	t.Helper()
	logrus.SetLevel(logrus.PanicLevel)
	logrus.SetOutput(io.Discard)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c := &configuration.Configuration{Storage: configuration.Storage{
		"inmemory":    configuration.Parameters{},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.HTTP.Secret = "only on loopback"
	return serve(t, handlers.NewApp(ctx, c))
}

func (f *fakeRegistry) count(method, part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.HasPrefix(r, method+" ") && strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func (f *fakeRegistry) fail(at func(r *http.Request) (int64, bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.breakAt = at
}

// fixture is an image or an index in memory, as a Source.
type fixture struct {
	root  *Document
	docs  map[v1.Hash]*Document
	blobs map[v1.Hash][]byte
}

func newFixture() *fixture {
	return &fixture{docs: map[v1.Hash]*Document{}, blobs: map[v1.Hash][]byte{}}
}

func (f *fixture) add(mediaType types.MediaType, data []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: hashOf(data), Size: int64(len(data))}
	f.blobs[d.Digest] = data
	return d
}

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func (f *fixture) document(t testing.TB, mediaType types.MediaType, v any) *Document {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc := NewDocument(mediaType, raw)
	f.docs[doc.Digest] = doc
	f.root = doc
	return doc
}

// image adds an image of layers of these sizes.
func (f *fixture) image(t testing.TB, seed uint64, subject *v1.Descriptor, sizes ...int) *Document {
	t.Helper()
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Subject: subject}
	m.Config = f.add(types.OCIConfigJSON, []byte(`{"architecture":"amd64","os":"linux","seed":"`+string(rune('a'+seed))+`"}`))
	for i, size := range sizes {
		m.Layers = append(m.Layers, f.add(types.OCILayer, noise(seed<<8+uint64(i), size)))
	}
	return f.document(t, types.OCIManifestSchema1, m)
}

// index adds an index of two platforms and of what has none.
func (f *fixture) index(t testing.TB) *Document {
	t.Helper()
	amd, arm, other := f.image(t, 1, nil, 1000, 0), f.image(t, 2, nil, 2000), f.image(t, 3, nil, 10)
	at := func(doc *Document, arch string) v1.Descriptor {
		d := doc.Descriptor
		if arch != "" {
			d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		}
		return d
	}
	return f.document(t, types.OCIImageIndex, map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIImageIndex, "unknown": "kept",
		"manifests": []v1.Descriptor{at(amd, "amd64"), at(arm, "arm64"), at(other, "")},
	})
}

func (f *fixture) Root() *Document { return f.root }

func (f *fixture) Document(_ context.Context, d v1.Descriptor) (*Document, error) {
	return newDocument(d, f.docs[d.Digest].Raw)
}

func (f *fixture) Blob(_ context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.blobs[d.Digest][from:])), nil
}

func (f *fixture) Range(_ context.Context, digest v1.Hash, p []byte, off int64) error {
	copy(p, f.blobs[digest][off:])
	return nil
}

func (f *fixture) Stat(_ context.Context, digest v1.Hash) (int64, error) {
	if _, ok := f.blobs[digest]; !ok {
		return 0, ErrNotFound
	}
	return int64(len(f.blobs[digest])), nil
}

func (f *fixture) Referrers(_ context.Context, digest v1.Hash) ([]v1.Descriptor, error) {
	var found []v1.Descriptor
	for _, doc := range f.docs {
		if m, err := doc.Manifest(); err == nil && m.Subject != nil && m.Subject.Digest == digest {
			found = append(found, doc.Descriptor)
		}
	}
	return found, nil
}

func (f *fixture) Close() error { return nil }

func target(t testing.TB, name string, p Push) Target {
	t.Helper()
	p.RetryDelay = 1
	dst, err := OpenTarget(t.Context(), name, artifact.Options{}, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dst.Close() })
	return dst
}

func source(t testing.TB, name string) Source {
	t.Helper()
	src, err := OpenSource(t.Context(), name, artifact.Options{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func copyTo(t testing.TB, name string, src Source, p Push, o CopyOptions) *Copied {
	t.Helper()
	got, err := Copy(t.Context(), target(t, name, p), src, o)
	if err != nil {
		t.Fatalf("copy to %s: %v", name, err)
	}
	return got
}

// equal compares all of two images, byte by byte.
func equal(t testing.TB, want, got Source, d v1.Descriptor) {
	t.Helper()
	a, err := want.Document(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	b, err := got.Document(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Raw, b.Raw) {
		t.Errorf("%s: got %s, want %s", d.Digest, b.Raw, a.Raw)
	}
	if index, err := a.Index(); err == nil {
		for _, child := range index.Manifests {
			equal(t, want, got, child)
		}
		return
	}
	m, err := a.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range append(m.Layers, m.Config) {
		x, err := Bytes(t.Context(), want, l, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		y, err := Bytes(t.Context(), got, l, 1<<30)
		if err != nil || !bytes.Equal(x, y) {
			t.Errorf("blob %s of %d bytes differs: %v", l.Digest, l.Size, err)
		}
	}
}

func gzipFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Through every kind of place, one after the other, an index stays what it is.
func TestEveryPlace(t *testing.T) {
	f, dir := newFixture(), t.TempDir()
	root := f.index(t)
	reg, dist := small(t), full(t)
	var src Source = f
	for _, name := range []string{
		reg.host + "/a/image:v1", "oci:" + dir + "/layout:v1", dist.host + "/b/image:v1",
		"oci-archive:" + dir + "/archive.tar:v1", "file://" + dir + "/file.tar", "oci:" + dir + "/again",
	} {
		got := copyTo(t, name, src, Push{}, CopyOptions{})
		if got.Root.Digest != root.Digest || got.Images != 3 {
			t.Errorf("%s: %d images of %s, want 3 of %s", name, got.Images, got.Root.Digest, root.Digest)
		}
		src = source(t, name)
		equal(t, f, src, root.Descriptor)
	}
	gzipFile(t, dir+"/file.tar", dir+"/file.tar.gz")
	equal(t, f, source(t, dir+"/file.tar.gz"), root.Descriptor)
	first, err := os.ReadFile(dir + "/file.tar")
	if err != nil {
		t.Fatal(err)
	}
	copyTo(t, "file://"+dir+"/second.tar", source(t, dir+"/file.tar"), Push{}, CopyOptions{Parallel: 1})
	if second, _ := os.ReadFile(dir + "/second.tar"); !bytes.Equal(first, second) {
		t.Logf("archives may differ in the order of blobs that were copied side by side")
	}
}

func TestPlatforms(t *testing.T) {
	f := newFixture()
	root := f.index(t)
	index, err := root.Index()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		list   string
		want   v1.Hash // zero: an index that is new
		images int
	}{
		{"linux/amd64", index.Manifests[0].Digest, 1},
		{"linux/arm64", index.Manifests[1].Digest, 1},
		{"linux/amd64,linux/arm64", v1.Hash{}, 2},
	} {
		p, err := ParsePlatforms(tc.list)
		if err != nil {
			t.Fatal(err)
		}
		name := "oci:" + t.TempDir()
		got := copyTo(t, name, f, Push{}, CopyOptions{Platforms: p})
		if got.Images != tc.images || tc.want.Hex != "" && got.Root.Digest != tc.want {
			t.Errorf("%s: %d images, root %s, want %d, %s", tc.list, got.Images, got.Root.Digest, tc.images, tc.want)
		}
		if tc.want.Hex == "" {
			if !got.Root.MediaType.IsIndex() || !strings.Contains(string(got.Root.Raw), `"unknown":"kept"`) {
				t.Errorf("%s: %s, want an index with all its fields", tc.list, got.Root.Raw)
			}
		}
	}
	p, _ := ParsePlatforms("linux/s390x")
	_, err = Copy(t.Context(), target(t, "oci:"+t.TempDir(), Push{}), f, CopyOptions{Platforms: p})
	if err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("no such platform: got %v, want what there is", err)
	}
	if _, err := ParsePlatforms("linux"); err == nil {
		t.Error("platform without an architecture is accepted")
	}
}

// A second copy sends nothing; one into another repository of the same registry
// is mounted there.
func TestNothingTwice(t *testing.T) {
	f, reg := newFixture(), full(t)
	f.image(t, 1, nil, 5000, 70000)
	first := copyTo(t, reg.host+"/one:v1", f, Push{}, CopyOptions{})
	if first.Blobs != 3 || first.Bytes == 0 {
		t.Errorf("first: %+v, want 3 blobs sent", first)
	}
	if again := copyTo(t, reg.host+"/one:v2", f, Push{}, CopyOptions{}); again.Blobs != 0 || again.Present != 3 {
		t.Errorf("again: %+v, want 3 blobs present", again)
	}
	patches := reg.count(http.MethodPatch, "")
	src := source(t, reg.host+"/one:v1")
	if mounted := copyTo(t, reg.host+"/two:v1", src, Push{From: src}, CopyOptions{}); mounted.Blobs != 0 {
		t.Errorf("other repository: %+v, want nothing sent", mounted)
	}
	if got := reg.count(http.MethodPatch, ""); got != patches || reg.count(http.MethodPost, "mount=") != 3 {
		t.Errorf("%d more PATCH, %d mounts, want 0, 3", got-patches, reg.count(http.MethodPost, "mount="))
	}
	equal(t, f, source(t, reg.host+"/two:v1"), f.root.Descriptor)
}

func TestChunkedPush(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *fakeRegistry{"small": func(t testing.TB) *fakeRegistry { return small(t) }, "full": full} {
		t.Run(name, func(t *testing.T) {
			f, reg := newFixture(), make(t)
			f.image(t, 1, nil, 10_000_000)
			copyTo(t, reg.host+"/x:v1", f, Push{ChunkSize: 3 << 20}, CopyOptions{})
			if got := reg.count(http.MethodPatch, ""); got != 4+1 {
				t.Errorf("%d PATCH, want 4 of the layer and 1 of the config", got)
			}
			equal(t, f, source(t, reg.host+"/x:v1"), f.root.Descriptor)
		})
	}
}

// A push that breaks off goes on at what has arrived, where the registry tells;
// elsewhere it begins anew.
func TestPushBreaksOff(t *testing.T) {
	const size, arrived = 9_500_000, 6_000_000
	for _, tc := range []struct {
		name  string
		make  func(testing.TB) *fakeRegistry
		posts int
	}{{"full", full, 1}, {"small", func(t testing.TB) *fakeRegistry { return small(t) }, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			f, reg := newFixture(), tc.make(t)
			layer := f.add(types.OCILayer, noise(1, size))
			broken := false
			reg.fail(func(r *http.Request) (int64, bool) {
				if r.Method != http.MethodPatch || broken {
					return 0, false
				}
				broken = true
				return arrived, true
			})
			dst := target(t, reg.host+"/x:v1", Push{})
			sent, err := dst.Blob(t.Context(), layer, func(ctx context.Context, from int64) (io.ReadCloser, error) { return f.Blob(ctx, layer, from) })
			if err != nil || !sent || !broken {
				t.Fatalf("sent %t, broken %t: %v", sent, broken, err)
			}
			if got := reg.count(http.MethodPost, "uploads"); got != tc.posts {
				t.Errorf("%d uploads begun, want %d", got, tc.posts)
			}
		})
	}
}

// A blob that is not what its descriptor says goes nowhere.
func TestWrongBlob(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{small(t).host + "/x:v1", full(t).host + "/x:v1", "oci:" + dir + "/l", "file://" + dir + "/a.tar"} {
		for what, change := range map[string]func([]byte) []byte{
			"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"longer":    func(b []byte) []byte { return append(b, 0) },
			"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		} {
			f := newFixture()
			doc := f.image(t, 1, nil, 300)
			m, err := doc.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			h := m.Layers[0].Digest
			f.blobs[h] = change(slices.Clone(f.blobs[h]))
			dst := target(t, name, Push{Retries: -1})
			_, err = Copy(t.Context(), dst, f, CopyOptions{})
			if err := dst.Close(); err != nil {
				t.Error(err)
			}
			if err == nil || !strings.Contains(err.Error(), h.String()) {
				t.Errorf("%s to %s: got %v, want an error with the digest", what, name, err)
			}
			if _, err := OpenSource(t.Context(), name, artifact.Options{}, ""); err == nil {
				t.Errorf("%s to %s: there is an image", what, name)
			}
		}
	}
	if left, _ := filepath.Glob(dir + "/.tmp*"); len(left) > 0 {
		t.Errorf("%v remains", left)
	}
}

// Referrers come along, also from and to registries that know none.
func TestReferrers(t *testing.T) {
	f, dir := newFixture(), t.TempDir()
	image := f.image(t, 1, nil, 100)
	subject := image.Descriptor
	sbom := f.image(t, 2, &subject, 50)
	about := sbom.Descriptor
	f.image(t, 3, &about, 20) // a signature of the first one
	f.root = image
	var src Source = f
	for _, name := range []string{small(t).host + "/a:v1", full(t).host + "/b:v1", "oci:" + dir + "/layout:v1", "file://" + dir + "/x.tar", small(t, registry.WithReferrersSupport(true)).host + "/c:v1"} {
		got := copyTo(t, name, src, Push{}, CopyOptions{Referrers: true})
		if got.Referrers != 2 || got.Images != 3 {
			t.Errorf("%s: %d referrers, %d images, want 2, 3", name, got.Referrers, got.Images)
		}
		src = source(t, name)
		if src.Root().Digest != image.Digest {
			t.Errorf("%s: root %s, want %s", name, src.Root().Digest, image.Digest)
		}
		found, err := src.Referrers(t.Context(), image.Digest)
		if err != nil || len(found) != 1 || found[0].Digest != sbom.Digest {
			t.Errorf("%s: referrers %v, %v, want %s", name, found, err, sbom.Digest)
		}
	}
}

// The data of an image that only indexes OCI layers comes along.
func TestReferencedLayers(t *testing.T) {
	f := newFixture()
	oci := f.add(types.OCILayer, noise(9, 4000))
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: f.add(types.OCIConfigJSON, []byte(`{}`))}
	d := f.add(artifact.MediaTypeBlob, noise(8, 100))
	d.Annotations = map[string]string{artifact.AnnotationRef: oci.Digest.String()}
	m.Layers = []v1.Descriptor{d}
	f.document(t, types.OCIManifestSchema1, m)
	reg := full(t)
	copyTo(t, reg.host+"/x:v1", f, Push{}, CopyOptions{})
	if size, err := source(t, reg.host+"/x:v1").Stat(t.Context(), oci.Digest); err != nil || size != oci.Size {
		t.Errorf("OCI layer: %d bytes, %v, want %d", size, err, oci.Size)
	}
	delete(f.blobs, oci.Digest)
	if _, err := Copy(t.Context(), target(t, reg.host+"/y:v1", Push{}), f, CopyOptions{}); err == nil || !strings.Contains(err.Error(), oci.Digest.Hex) {
		t.Errorf("without the OCI layer: got %v, want an error that names it", err)
	}
}

// Downloads go on where a connection broke.
func TestDownloadBreaksOff(t *testing.T) {
	f := newFixture()
	f.image(t, 1, nil, 1_000_000)
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var mu sync.Mutex // over breaks; blobs come side by side
	breaks := 0
	reg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			mu.Lock()
			defer mu.Unlock()
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && breaks < 2 {
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			if body := rec.Body.Bytes(); len(body) > 1000 {
				breaks++
				w.Write(body[:len(body)/2])
				panic(http.ErrAbortHandler)
			}
			w.Write(rec.Body.Bytes())
			return
		}
		inner.ServeHTTP(w, r)
	}))
	copyTo(t, reg.host+"/x:v1", f, Push{}, CopyOptions{})
	copyTo(t, "oci:"+t.TempDir(), source(t, reg.host+"/x:v1"), Push{}, CopyOptions{})
	if breaks != 2 || reg.count(http.MethodGet, "/blobs/") != 4 {
		t.Errorf("%d breaks, %d requests, want 2, 4: the config, the layer in three parts", breaks, reg.count(http.MethodGet, "/blobs/"))
	}
}

// Blobs are read in places, too, from wherever they are.
func TestBackend(t *testing.T) {
	f, dir := newFixture(), t.TempDir()
	doc := f.image(t, 1, nil, 5000)
	m, err := doc.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	id, want := m.Layers[0].Digest.Hex, f.blobs[m.Layers[0].Digest]
	for _, name := range []string{small(t).host + "/a:v1", full(t).host + "/b:v1", "oci:" + dir + "/layout:v1", "file://" + dir + "/x.tar"} {
		copyTo(t, name, f, Push{}, CopyOptions{})
		b := Backend(source(t, name))
		r, err := b.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		if size, err := r.Size(t.Context()); size != 5000 || err != nil {
			t.Errorf("%s: %d bytes, %v, want 5000", name, size, err)
		}
		for _, at := range []int{0, 1, 4000, 4999} {
			p := make([]byte, min(1000, 5000-at))
			if err := r.ReadRange(t.Context(), p, int64(at)); err != nil || !bytes.Equal(p, want[at:at+len(p)]) {
				t.Errorf("%s: bytes at %d differ: %v", name, at, err)
			}
		}
		if err := r.ReadRange(t.Context(), make([]byte, 2), 4999); err == nil {
			t.Errorf("%s: bytes beyond the end", name)
		}
		if r, err = b.Open(strings.Repeat("0", 64)); err != nil {
			t.Fatal(err)
		}
		if err := r.ReadRange(t.Context(), make([]byte, 1), 0); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%s: no such blob: %v, want %v", name, err, backend.ErrNotFound)
		}
	}
}
