package reverse

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert/verify"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
)

func hashOf(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func fixture(t testing.TB, parts ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{testenv.Fixtures(t), "nydus-made"}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// part is a layer of an image in the making.
type part struct {
	mediaType   types.MediaType
	data        []byte
	diffID      v1.Hash
	annotations map[string]string
}

func put(t testing.TB, dst store.Target, mediaType types.MediaType, data []byte) v1.Descriptor {
	t.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: hashOf(data), Size: int64(len(data))}
	_, err := dst.Blob(t.Context(), d, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[from:])), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pack makes an image of layers, in a layout, with further blobs beside them.
func pack(t testing.TB, parts []part, others ...[]byte) string {
	t.Helper()
	name := "oci:" + t.TempDir()
	dst := open(t, name)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Annotations: map[string]string{"kept": "yes"}}
	ids, history := []string{}, []map[string]any{{"created_by": "ENV", "empty_layer": true}}
	for _, p := range parts {
		d := put(t, dst, p.mediaType, p.data)
		d.Annotations = p.annotations
		m.Layers = append(m.Layers, d)
		ids = append(ids, p.diffID.String())
		history = append(history, map[string]any{"created_by": "layer"})
	}
	history[len(history)-1]["comment"] = "Nydus Bootstrap Layer"
	for _, data := range others {
		put(t, dst, types.OCILayer, data)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "unknown": "kept", "history": history,
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Config = put(t, dst, types.OCIConfigJSON, config)
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := dst.Tag(t.Context(), store.NewDocument(types.OCIManifestSchema1, raw)); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t testing.TB, name string) store.Target {
	t.Helper()
	dst, err := store.OpenTarget(t.Context(), name, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dst.Close() })
	return dst
}

func source(t testing.TB, name string) store.Source {
	t.Helper()
	src, err := store.OpenSource(t.Context(), name, artifact.Options{}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

func bootstrapPart(t testing.TB, boot []byte) part {
	t.Helper()
	var out, packed bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: artifact.BootstrapFile, Mode: 0o444, Size: int64(len(boot))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(boot); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return part{types.OCILayer, packed.Bytes(), hashOf(out.Bytes()), map[string]string{
		artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: "6",
	}}
}

// rafsParts are the layers of an image that nydus-image made.
func rafsParts(t testing.TB, name string) []part {
	t.Helper()
	boot := fixture(t, "images", name, "image.boot")
	im, err := image.New(boot)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	var parts []part
	for _, b := range im.Blobs() {
		data := fixture(t, "blobs", b.ID)
		parts = append(parts, part{artifact.MediaTypeBlob, data, hashOf(data), map[string]string{artifact.AnnotationBlob: "true"}})
	}
	return append(parts, bootstrapPart(t, boot))
}

func same(t testing.TB, oci, rafs string) {
	t.Helper()
	r, err := verify.Image(t.Context(), verify.Options{
		Source: source(t, oci), Target: source(t, rafs), WorkDir: t.TempDir(), SkipData: strings.Contains(rafs, "no-data"),
		Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Part == verify.Files {
			t.Errorf("%s", f)
		}
	}
	if r.Files == 0 {
		t.Error("no file was compared")
	}
}

// What comes out is an OCI image with the same files, in whatever compression, and
// the same bytes each time.
func TestWhole(t *testing.T) {
	for _, name := range []string{"v6-tar-rafs", "v5-tar-rafs", "v6-layers"} {
		rafs := pack(t, rafsParts(t, name))
		for _, c := range []export.Compression{export.Gzip, export.Zstd, export.Uncompressed} {
			oci := "oci:" + t.TempDir()
			got, err := Image(t.Context(), Options{Source: source(t, rafs), Target: open(t, oci), Compression: c, WorkDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			if got.Images != 1 || got.Layers != 1 || got.Whole != 1 {
				t.Errorf("%s: %+v, want one image of one layer", name, got)
			}
			same(t, oci, rafs)
			again, err := Image(t.Context(), Options{Source: source(t, rafs), Target: open(t, "oci:"+t.TempDir()), Compression: c})
			if err != nil || again.Root.Digest != got.Root.Digest {
				t.Errorf("%s: second run: %v, %v, want %s", name, again, err, got.Root.Digest)
			}
			checkConfig(t, source(t, oci), got.Root, c.MediaType())
		}
	}
}

// checkConfig wants a configuration that fits its manifest and keeps what it had.
func checkConfig(t testing.TB, src store.Source, doc *store.Document, mediaType types.MediaType) {
	t.Helper()
	m, err := doc.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := store.Bytes(t.Context(), src, m.Config, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, h := range config.History {
		if !h.EmptyLayer {
			full++
		}
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) || full != len(m.Layers) {
		t.Errorf("%d layers, %d diff ids, history of %d", len(m.Layers), len(config.RootFS.DiffIDs), full)
	}
	if !strings.Contains(string(raw), `"unknown":"kept"`) || m.Annotations["kept"] != "yes" {
		t.Errorf("config %s, annotations %v: what was there is gone", raw, m.Annotations)
	}
	for _, d := range m.Layers {
		if d.MediaType != mediaType || len(d.Annotations) > 0 {
			t.Errorf("layer %+v, want %s without annotations", d, mediaType)
		}
	}
}

// An image that only indexes an OCI layer gives that layer back.
func TestReferenced(t *testing.T) {
	var packed bytes.Buffer
	plain := fixture(t, "tars", "layer1.tar")
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	index := []byte("the index of a layer")
	rafs := pack(t, []part{
		{artifact.MediaTypeBlob, index, hashOf(index), map[string]string{artifact.AnnotationBlob: "true", artifact.AnnotationRef: hashOf(packed.Bytes()).String()}},
		bootstrapPart(t, fixture(t, "images", "v6-tar-rafs", "image.boot")),
	}, packed.Bytes())
	oci := "oci:" + t.TempDir()
	got, err := Image(t.Context(), Options{Source: source(t, rafs), Target: open(t, oci)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := got.Root.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != 1 || m.Layers[0].Digest != hashOf(packed.Bytes()) || got.Whole != 0 {
		t.Errorf("layers %v, want %s", m.Layers, hashOf(packed.Bytes()))
	}
	checkConfig(t, source(t, oci), got.Root, types.OCILayer)
}

func TestRefused(t *testing.T) {
	plain := fixture(t, "tars", "layer3.tar")
	oci := pack(t, []part{{types.OCIUncompressedLayer, plain, hashOf(plain), nil}})
	if _, err := Image(t.Context(), Options{Source: source(t, oci), Target: open(t, "oci:"+t.TempDir())}); err == nil || !strings.Contains(err.Error(), "not a RAFS image") {
		t.Errorf("an OCI image: got %v, want a refusal", err)
	}
	parts := rafsParts(t, "v6-tar-rafs")
	parts[0].data = slices.Clone(parts[0].data)
	rafs := pack(t, parts)
	path := filepath.Join(strings.TrimPrefix(rafs, "oci:"), "blobs", "sha256", hashOf(parts[0].data).Hex)
	parts[0].data[200] ^= 1
	if err := os.WriteFile(path, parts[0].data, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Image(t.Context(), Options{Source: source(t, rafs), Target: open(t, "oci:"+dir)}); err == nil || !strings.Contains(err.Error(), "digest mismatch") {
		t.Errorf("a damaged blob: got %v, want a digest mismatch", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		t.Error("a damaged blob: there is an image")
	}
}
