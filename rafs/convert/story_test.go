package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

var layerTars = []string{"layer1.tar", "layer2.tar", "layer3.tar"}

// expected reads the manifest of a fixture tree. Sockets are not in tars.
func expected(t testing.TB, tree string) []rafstest.Entry {
	t.Helper()
	entries := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", tree))
	return slices.DeleteFunc(entries, func(e rafstest.Entry) bool { return e.Path == "/special/sock" })
}

func TestTreesAreKept(t *testing.T) {
	reg := newRegistry(t)
	for _, tc := range []struct {
		name, tree  string
		compression compression
		tars        []string
		format      Format
	}{
		{"everything", "everything.ndjson", "gzip", []string{"everything.tar"}, Format{}},
		{"everything-4k", "everything.ndjson", "", []string{"everything.tar"}, Format{ChunkSize: 4096}},
		{"tarable", "tarable.ndjson", "zstd", []string{"tarable.tar"}, Format{Digester: 1}},
		{"layers-gzip", "layers.ndjson", "gzip", layerTars, Format{}},
		{"layers-zstd", "layers.ndjson", "zstd", layerTars, Format{}},
		{"layers-plain", "layers.ndjson", "", layerTars, Format{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src, dst := reg.host+"/src/"+tc.name+":v1", reg.host+"/dst/"+tc.name+":v1"
			newImage(t, tc.compression, fixtureTars(t, tc.tars...)...).push(t, src)
			result, err := Convert(context.Background(), Options{Source: src, Target: dst, Format: tc.format, WorkDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			a := pulled(t, dst, expected(t, tc.tree))
			if got, want := a.Digest, result.Digest; got != want {
				t.Errorf("pulled manifest %s, convert says %s", got, want)
			}
			if diff := cmp.Diff(result.Blobs, a.BlobIDs); diff != "" {
				t.Errorf("blobs differ (-result +manifest):\n%s", diff)
			}
		})
	}
}

// The packaging is what nydus-snapshotter and nydusify make and look for.
func TestPackaging(t *testing.T) {
	reg := newRegistry(t)
	src, dst := reg.host+"/src:v1", reg.host+"/dst:v1"
	// The second layer has no data, and the last none that the first has not.
	empty, tars := tarOf(t, dirEntry("etc")), fixtureTars(t, "layer1.tar")
	source := newImage(t, "gzip", tars[0], empty, tars[0])
	source.manifest.Annotations = map[string]string{"org.example": "kept"}
	source.push(t, src)
	if _, err := Convert(context.Background(), Options{Source: src, Target: dst}); err != nil {
		t.Fatal(err)
	}
	ref, err := artifact.Options{}.Parse(dst)
	if err != nil {
		t.Fatal(err)
	}
	m, err := artifact.FetchManifest(context.Background(), ref, artifact.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(m.Layers), 2; got != want {
		t.Fatalf("%d layers, want %d: one blob and the bootstrap", got, want)
	}
	if got := m.Layers[0]; got.MediaType != "application/vnd.oci.image.layer.nydus.blob.v1" ||
		!cmp.Equal(got.Annotations, map[string]string{"containerd.io/snapshot/nydus-blob": "true"}) {
		t.Errorf("blob descriptor: got %+v", got)
	}
	if got := m.Layers[1]; got.MediaType != types.OCILayer || !cmp.Equal(got.Annotations, map[string]string{
		"containerd.io/snapshot/nydus-bootstrap": "true", "containerd.io/snapshot/nydus-fs-version": "6",
	}) {
		t.Errorf("bootstrap descriptor: got %+v", got)
	}
	if got := m.Annotations["org.example"]; got != "kept" {
		t.Errorf("annotation of the source manifest: got %q, want it kept", got)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	checkConfig(t, img, m)
	checkBootstrapLayer(t, img, m)
}

func checkConfig(t *testing.T, img v1.Image, m *artifact.Manifest) {
	t.Helper()
	raw, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Unknown string `json:"unknown.field"`
		Config  v1.Config
		RootFS  v1.RootFS
		History []v1.History
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if config.Unknown != "kept" || config.Config.User != "5:6" || config.Config.WorkingDir != "/work" {
		t.Errorf("config lost something: %s", raw)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := layers[1].DiffID() // unpacks the layer
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]v1.Hash{m.Layers[0].Digest, plain}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("diff ids (-want +got):\n%s", diff)
	}
	var items []bool
	for _, h := range config.History {
		items = append(items, h.EmptyLayer)
	}
	if diff := cmp.Diff([]bool{true, false, true, true, false}, items); diff != "" {
		t.Errorf("history items without a layer (-want +got):\n%s", diff)
	}
}

func checkBootstrapLayer(t *testing.T, img v1.Image, m *artifact.Manifest) {
	t.Helper()
	layer, err := img.LayerByDigest(m.Layers[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	r, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	files := tar.NewReader(r)
	for {
		hdr, err := files.Next()
		if err != nil {
			break
		}
		got = append(got, hdr.FileInfo().Mode().String()+" "+hdr.Name)
	}
	want := []string{"drwxr-xr-x image/", "-r--r--r-- image/image.boot", "-r--r--r-- image/" + m.Layers[0].Digest.Hex + ".blob.meta"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bootstrap layer (-want +got):\n%s", diff)
	}
}

func TestSameBytesAtAnyParallelism(t *testing.T) {
	tars := append(fixtureTars(t, layerTars...), fixtureTars(t, "everything.tar")...)
	source := t.TempDir()
	newImage(t, "gzip", tars...).layout(t, source, "")
	var want v1.Hash
	for _, p := range []struct{ workers, layers int }{{1, 1}, {1, 4}, {2, 2}, {7, 1}, {16, 4}} {
		result, err := Convert(context.Background(), Options{
			Source: source, Target: "oci:" + t.TempDir(), Workers: p.workers, Layers: p.layers,
		})
		if err != nil {
			t.Fatal(err)
		}
		if want == (v1.Hash{}) {
			want = result.Digest
		}
		if result.Digest != want {
			t.Errorf("%d workers, %d layers at a time: manifest %s, want %s", p.workers, p.layers, result.Digest, want)
		}
	}
}

// layout writes the image as an OCI layout.
func (i *testImage) layout(t testing.TB, dir, tag string) {
	t.Helper()
	name := "oci:" + dir
	if tag != "" {
		name += ":" + tag
	}
	target, err := store.OpenTarget(t.Context(), name, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	for _, d := range append(slices.Clone(i.manifest.Layers), i.manifest.Config) {
		data := i.blobs[d.Digest]
		if hashBytes(data) != d.Digest { // a layout cannot be made so; a test has put it there
			continue
		}
		_, err := target.Blob(t.Context(), d, func(_ context.Context, from int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[from:])), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Tag(t.Context(), store.NewDocument(types.OCIManifestSchema1, i.raw(t))); err != nil {
		t.Fatal(err)
	}
}

// The same image converts to the same bytes wherever it comes from.
func TestSources(t *testing.T) {
	reg := newRegistry(t)
	source := newImage(t, "gzip", fixtureTars(t, layerTars...)...)
	plain := newImage(t, "", fixtureTars(t, layerTars...)...)
	dir := t.TempDir()
	source.push(t, reg.host+"/src:v1")
	source.layout(t, filepath.Join(dir, "layout"), "")
	source.layout(t, filepath.Join(dir, "two"), "one")
	newImage(t, "gzip").layout(t, filepath.Join(dir, "two"), "other")
	packDir(t, filepath.Join(dir, "layout"), filepath.Join(dir, "oci.tar"))
	plain.dockerArchive(t, filepath.Join(dir, "docker.tar"))

	var want string
	for _, src := range []string{
		reg.host + "/src:v1",
		filepath.Join(dir, "layout"),
		"oci:" + filepath.Join(dir, "layout"),
		"oci:" + filepath.Join(dir, "two") + ":one",
		filepath.Join(dir, "oci.tar"),
		"oci-archive:" + filepath.Join(dir, "oci.tar"),
		"docker-archive:" + filepath.Join(dir, "docker.tar"),
		"docker-archive:" + filepath.Join(dir, "docker.tar") + ":v1",
	} {
		t.Run(strings.ReplaceAll(src, dir, ""), func(t *testing.T) {
			dst := t.TempDir()
			result, err := Convert(context.Background(), Options{Source: src, Target: "oci:" + dst + ":x"})
			if err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = result.Digest.Hex
			}
			if got := result.Digest.Hex; got != want {
				t.Errorf("manifest %s, want %s", got, want)
			}
			if _, err := Convert(context.Background(), Options{Source: dst, Target: "oci:" + t.TempDir()}); err == nil || !strings.Contains(err.Error(), "RAFS image already") {
				t.Errorf("converting the result: got %v, want a refusal", err)
			}
		})
	}
}

// packDir makes a tar of a folder.
func packDir(t *testing.T, dir, file string) {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dockerArchive writes the image as docker save did before it knew of OCI.
func (i *testImage) dockerArchive(t *testing.T, file string) {
	t.Helper()
	m := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: "config.json", RepoTags: []string{"example:v1"}}
	entries := []entry{{Header: tar.Header{Name: "config.json"}, data: string(i.config)}}
	for n, d := range i.manifest.Layers {
		name := string(rune('a'+n)) + "/layer.tar"
		m.Layers = append(m.Layers, name)
		if n == 1 { // as a symlink, as docker wrote what it had already
			entries = append(entries, entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "../real/layer.tar"}})
			name = "real/layer.tar"
		}
		entries = append(entries, entry{Header: tar.Header{Name: name}, data: string(i.blobs[d.Digest])})
	}
	raw, err := json.Marshal([]any{m})
	if err != nil {
		t.Fatal(err)
	}
	entries = append(entries, entry{Header: tar.Header{Name: "manifest.json"}, data: string(raw)})
	if err := os.WriteFile(file, tarOf(t, entries...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// entry is an entry of a tar that a test makes.
type entry struct {
	tar.Header
	data string
}

func dirEntry(name string) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if e.Typeflag == 0 {
			e.Typeflag, e.Mode = tar.TypeReg, 0o644
		}
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
