package verify

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/image"
)

func hashOf(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// made is an image in the making, in an OCI layout.
type made struct {
	t        testing.TB
	dir      string
	dst      store.Target
	manifest v1.Manifest
	config   map[string]any
	diffIDs  []string
}

func newMade(t testing.TB) *made {
	t.Helper()
	m := &made{t: t, dir: t.TempDir()}
	var err error
	if m.dst, err = store.OpenTarget(t.Context(), "oci:"+m.dir, artifact.Options{}, store.Push{}); err != nil {
		t.Fatal(err)
	}
	m.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	m.config = map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/init"}}}
	return m
}

func (m *made) blob(mediaType types.MediaType, data []byte, annotations map[string]string) v1.Descriptor {
	m.t.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: hashOf(data), Size: int64(len(data)), Annotations: annotations}
	_, err := m.dst.Blob(m.t.Context(), d, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[from:])), nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

func (m *made) layer(mediaType types.MediaType, data []byte, diffID v1.Hash, annotations map[string]string) {
	m.t.Helper()
	m.manifest.Layers = append(m.manifest.Layers, m.blob(mediaType, data, annotations))
	m.diffIDs = append(m.diffIDs, diffID.String())
}

func (m *made) finish() store.Source {
	m.t.Helper()
	m.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": m.diffIDs}
	raw, err := json.Marshal(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	m.manifest.Config = m.blob(types.OCIConfigJSON, raw, nil)
	if raw, err = json.Marshal(m.manifest); err != nil {
		m.t.Fatal(err)
	}
	if err := m.dst.Tag(m.t.Context(), store.NewDocument(types.OCIManifestSchema1, raw)); err != nil {
		m.t.Fatal(err)
	}
	src, err := store.OpenSource(m.t.Context(), "oci:"+m.dir, artifact.Options{}, "")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = src.Close() })
	return src
}

func ociImage(t testing.TB, tars ...[]byte) store.Source {
	t.Helper()
	m := newMade(t)
	for _, data := range tars {
		m.layer(types.OCILayer, pack(t, data), hashOf(data), nil)
	}
	return m.finish()
}

func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func fixture(t testing.TB, parts ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{testenv.Fixtures(t), "nydus-made"}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// rafsImage packs an image that nydus-image made.
func rafsImage(t testing.TB, name string) *made {
	t.Helper()
	m := newMade(t)
	boot := fixture(t, "images", name, "image.boot")
	im, err := image.New(boot)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	for _, b := range im.Blobs() {
		data := fixture(t, "blobs", b.ID)
		m.layer(artifact.MediaTypeBlob, data, hashOf(data), map[string]string{artifact.AnnotationBlob: "true"})
	}
	m.bootstrap(boot, im.Super().Version)
	return m
}

func (m *made) bootstrap(boot []byte, version int) {
	m.t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: artifact.BootstrapFile, Mode: 0o444, Size: int64(len(boot))}); err != nil {
		m.t.Fatal(err)
	}
	if _, err := w.Write(boot); err != nil {
		m.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.layer(types.OCILayer, pack(m.t, out.Bytes()), hashOf(out.Bytes()), map[string]string{
		artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: string(rune('0' + version)),
	})
}

func verified(t testing.TB, o Options) *Report {
	t.Helper()
	o.Platform = v1.Platform{OS: "linux", Architecture: "amd64"}
	o.WorkDir = t.TempDir()
	r, err := Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(o.WorkDir); len(left) > 0 {
		t.Errorf("%v remains in the work folder", left)
	}
	return r
}

// What nydus-image made of a tar is the same as the tar.
func TestNydusMade(t *testing.T) {
	everything := [][]byte{fixture(t, "tars", "everything.tar")}
	tarable := [][]byte{fixture(t, "tars", "tarable.tar")}
	layers := [][]byte{fixture(t, "tars", "layer1.tar"), fixture(t, "tars", "layer2.tar"), fixture(t, "tars", "layer3.tar")}
	for name, tars := range map[string][][]byte{
		"v6-zstd-blake3": everything, "v5-lz4_block-sha256": everything, "v6-none-sha256": everything, "v6-chunk-4k": everything,
		"v6-tar-rafs": tarable, "v5-tar-rafs": tarable, "v6-targz-rafs": tarable,
		"v6-layers": layers, "v5-layers": layers,
	} {
		t.Run(name, func(t *testing.T) {
			target := rafsImage(t, name).finish()
			r := verified(t, Options{Target: target, Source: ociImage(t, tars...)})
			want := map[string]string{}
			if len(tars) == 1 && &tars[0] == &everything[0] {
				want["/special/sock"] = "no such entry" // no tar holds a socket
			}
			expect(t, r, maps.Clone(want))
			if r.Files == 0 || r.Bytes == 0 || r.Entries < 20 || r.Blobs == 0 {
				t.Errorf("looked at %d files of %d bytes, %d entries, %d blobs", r.Files, r.Bytes, r.Entries, r.Blobs)
			}
			if fast := verified(t, Options{Target: target, Source: ociImage(t, tars...), SkipData: true}); len(fast.Findings) != len(want) || fast.Entries != r.Entries || fast.Bytes != 0 {
				t.Errorf("without data: %+v", fast)
			}
		})
	}
}

// tarOf makes a tar of headers; regular files have their name as content unless a
// PAX record "content" says otherwise.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		content := h.Name
		if h.Gname != "" {
			content, h.Gname = h.Gname, ""
		}
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
		}
		h.Format = tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// expect wants findings about places, in any order, and no others.
func expect(t testing.TB, r *Report, want map[string]string) {
	t.Helper()
	for _, f := range r.Findings {
		part, ok := want[f.Where]
		if !ok || !strings.Contains(f.What, part) {
			t.Errorf("found %s, want %q", f, part)
		}
		delete(want, f.Where)
	}
	for where, what := range want {
		t.Errorf("did not find %s: %s", where, what)
	}
}

// A source that differs in one thing is found out in it.
func TestDifferences(t *testing.T) {
	target := rafsImage(t, "v6-layers").finish()
	base := [][]byte{fixture(t, "tars", "layer1.tar"), fixture(t, "tars", "layer2.tar"), fixture(t, "tars", "layer3.tar")}
	r := verified(t, Options{Target: target, Source: ociImage(t, base[:2]...)})
	if r.OK() {
		t.Error("a source without its last layer is found equal")
	}
	more := tarOf(t, tar.Header{Name: "zz-new"})
	expect(t, verified(t, Options{Target: target, Source: ociImage(t, append(base, more)...)}), map[string]string{"/zz-new": "is missing"})
	if r := verified(t, Options{Target: target, Source: ociImage(t, base[2]), Max: 3}); len(r.Findings) != 3 || r.More == 0 {
		t.Errorf("%d findings and %d more, want 3 and some", len(r.Findings), r.More)
	}
}

// A damaged blob is found by its digest and by the files in it; one that is not
// there by its name.
func TestDamagedBlob(t *testing.T) {
	m := rafsImage(t, "v6-tar-rafs")
	target := m.finish()
	d := m.manifest.Layers[0]
	path := filepath.Join(m.dir, "blobs", "sha256", d.Digest.Hex)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	source := ociImage(t, fixture(t, "tars", "tarable.tar"))
	r := verified(t, Options{Target: target, Source: source})
	if len(r.Findings) < 2 || r.Findings[0].Part != Blob || !strings.Contains(r.Findings[0].What, "digest mismatch") || r.Findings[1].Part != Files {
		t.Errorf("found %v, want the blob and a file", r.Findings)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, skip := range []bool{true, false} {
		if r := verified(t, Options{Target: target, SkipData: skip}); len(r.Findings) != 1 || r.Findings[0].What != "is not there" {
			t.Errorf("without the blob (skip %t): %v", skip, r.Findings)
		}
	}
}

// Each rule of a manifest has a name.
func TestManifestRules(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*made)
		want   map[string]string
	}{
		{"media type", func(m *made) { m.manifest.Layers[0].MediaType = types.OCILayer }, map[string]string{"layer 1": "media type"}},
		{"annotation of a blob", func(m *made) { m.manifest.Layers[0].Annotations = nil }, map[string]string{"layer 1": artifact.AnnotationBlob}},
		{"version", func(m *made) { m.manifest.Layers[1].Annotations[artifact.AnnotationFSVersion] = "5" }, map[string]string{"bootstrap layer": "the bootstrap is of version 6"}},
		{"diff ids", func(m *made) { m.diffIDs[0] = m.diffIDs[1] }, map[string]string{"rootfs.diff_ids[0]": "want the digest of the blob"}},
		{"last diff id", func(m *made) { m.diffIDs[1] = m.diffIDs[0] }, map[string]string{"rootfs.diff_ids": "the bootstrap layer unpacks to"}},
		{"too few diff ids", func(m *made) { m.diffIDs = m.diffIDs[1:] }, map[string]string{"rootfs.diff_ids": "1, the manifest has 2"}},
		{"command", func(m *made) { m.config["config"] = map[string]any{"Cmd": []string{"/other"}} }, map[string]string{"config": "/other"}},
		{"architecture", func(m *made) { m.config["architecture"] = "arm64" }, map[string]string{"architecture": "arm64"}},
		{"reference", func(m *made) { m.manifest.Layers[0].Annotations[artifact.AnnotationRef] = "sha256:x" }, map[string]string{"layer 1": artifact.AnnotationRef}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := rafsImage(t, "v6-tar-rafs")
			tc.change(m)
			want := map[string]string{}
			for where, what := range tc.want {
				if where == "layer 1" {
					where += " (" + m.manifest.Layers[0].Digest.String() + ")"
				}
				want[where] = what
			}
			expect(t, verified(t, Options{Target: m.finish(), Source: ociImage(t, fixture(t, "tars", "tarable.tar")), SkipData: true}), want)
		})
	}
}
