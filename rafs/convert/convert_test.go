package convert

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// fakeRegistry is a registry on the loopback that counts requests.
type fakeRegistry struct {
	host string

	mu       sync.Mutex
	requests []string // METHOD PATH, in order
	refuse   func(*http.Request) bool
}

func newRegistry(t testing.TB) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		refused := f.refuse != nil && f.refuse(r)
		f.mu.Unlock()
		if refused {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.host = strings.TrimPrefix(server.URL, "http://")
	return f
}

// count counts requests that start with a method and contain a part of a path.
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

// compression is how a layer of a test image is stored.
type compression string

func (c compression) pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testImage is an OCI image in memory.
type testImage struct {
	manifest v1.Manifest
	config   []byte
	blobs    map[v1.Hash][]byte
}

func hashBytes(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// newImage makes an image of tars, with what a configuration may have, and more.
func newImage(t testing.TB, c compression, tars ...[]byte) *testImage {
	t.Helper()
	config := map[string]any{
		"architecture": "amd64", "os": "linux", "unknown.field": "kept",
		"config": map[string]any{
			"Env": []string{"PATH=/bin", "A=b"}, "User": "5:6", "Entrypoint": []string{"/init"},
			"Cmd": []string{"-v"}, "WorkingDir": "/work",
		},
	}
	var diffs []string
	history := []map[string]any{{"created_by": "ENV A=b", "empty_layer": true}}
	i := &testImage{blobs: map[v1.Hash][]byte{}}
	for n, tar := range tars {
		stored := c.pack(t, tar)
		diffs = append(diffs, hashBytes(tar).String())
		history = append(history, map[string]any{"created_by": fmt.Sprintf("layer %d", n+1)})
		d := v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(stored)), Digest: hashBytes(stored)}
		i.manifest.Layers = append(i.manifest.Layers, d)
		i.blobs[d.Digest] = stored
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": diffs}
	config["history"] = history
	var err error
	if i.config, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	i.manifest.SchemaVersion, i.manifest.MediaType = 2, types.OCIManifestSchema1
	i.manifest.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(i.config)), Digest: hashBytes(i.config)}
	i.blobs[i.manifest.Config.Digest] = i.config
	return i
}

func (i *testImage) raw(t testing.TB) []byte {
	t.Helper()
	raw, err := json.Marshal(i.manifest)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type rawManifest struct {
	data      []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.data, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// push puts the image into a registry.
func (i *testImage) push(t testing.TB, ref string) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range i.blobs {
		if err := remote.WriteLayer(r.Context(), static.NewLayer(data, types.OCILayer)); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Put(r, rawManifest{i.raw(t), types.OCIManifestSchema1}); err != nil {
		t.Fatal(err)
	}
}

func fixtureTars(t testing.TB, names ...string) [][]byte {
	t.Helper()
	var tars [][]byte
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), "nydus-made", "tars", name))
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, data)
	}
	return tars
}

// registryBlobs reads blobs of a repository whole, for the comparison of trees.
func registryBlobs(t testing.TB, a *artifact.Artifact) rafstest.Blobs {
	t.Helper()
	dir := t.TempDir()
	for _, id := range a.BlobIDs {
		l, err := remote.Layer(a.Repo.Digest("sha256:" + id))
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if err := os.WriteFile(filepath.Join(dir, id), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return rafstest.Blobs{dir}
}

// pulled fetches a RAFS image and compares its tree with a manifest.
func pulled(t testing.TB, ref string, want []rafstest.Entry) *artifact.Artifact {
	t.Helper()
	a, err := artifact.Pull(context.Background(), ref, artifact.Options{}, t.TempDir())
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	im, err := image.Open(a.BootstrapPath, image.Options{SHA256: &a.BootstrapSHA256})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer im.Close()
	rafstest.Compare(t, want, rafstest.Tree(im, registryBlobs(t, a)))
	return a
}
