package snapshottercompat

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/containerd/nydus-snapshotter/pkg/label"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/convert"
)

var files = map[string]string{
	"etc/": "", "etc/os-release": "ID=test\n", "usr/": "", "usr/big": string(bytes.Repeat([]byte("0123456789abcdef"), 200_000)), "usr/empty": "",
}

// makeTar makes a layer of files; folders end with a slash.
func makeTar(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range []string{"etc/", "etc/os-release", "usr/", "usr/big", "usr/empty"} {
		hdr := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg}
		if name[len(name)-1] == '/' {
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t *testing.T, path string, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	if path == "" {
		return d
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// ociLayout is an OCI image of one layer.
func ociLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	blob := func(data []byte, mediaType string) ocispec.Descriptor {
		d := digest.FromBytes(data)
		write(t, filepath.Join(dir, "blobs", "sha256", d.Encoded()), data)
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	layer := blob(makeTar(t), ocispec.MediaTypeImageLayer)
	config := blob(marshal(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}), ocispec.MediaTypeImageConfig)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
	m.SchemaVersion = 2
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{blob(marshal(t, m), ocispec.MediaTypeImageManifest)}}
	index.SchemaVersion = 2
	write(t, filepath.Join(dir, "index.json"), marshal(t, index))
	return dir
}

// converted is a RAFS image of ours, and its manifest.
func converted(t *testing.T, o convert.Options) (dir string, m ocispec.Manifest) {
	t.Helper()
	dir = t.TempDir()
	o.Source, o.Target = ociLayout(t), "oci:"+dir
	result, err := convert.Convert(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", result.Digest.Hex))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func open(t *testing.T, dir string, d digest.Digest) content.ReaderAt {
	t.Helper()
	r, err := local.OpenReader(filepath.Join(dir, "blobs", "sha256", d.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// The names are the ones by which nodes and tools know an image.
func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		string(artifact.MediaTypeBlob): converter.MediaTypeNydusBlob, artifact.ArtifactType: converter.ManifestArtifactTypeNydus,
		artifact.OSFeature: converter.ManifestOSFeatureNydus, string(artifact.ConfigType): converter.ManifestConfigNydus,
		artifact.BootstrapFile: converter.BootstrapFileNameInLayer, artifact.AnnotationBlob: converter.LayerAnnotationNydusBlob,
		artifact.AnnotationBootstrap: converter.LayerAnnotationNydusBootstrap, artifact.AnnotationFSVersion: converter.LayerAnnotationFSVersion,
		artifact.AnnotationRef: label.NydusRefLayer, artifact.AnnotationEncrypted: converter.LayerAnnotationNydusEncryptedBlob,
		artifact.AnnotationSource: converter.LayerAnnotationNydusSourceDigest, artifact.AnnotationTarget: converter.LayerAnnotationNydusTargetDigest,
		artifact.AnnotationUncompressed: converter.LayerAnnotationUncompressed,
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A node takes the layers for what they are, and finds what is in the blobs.
func TestImage(t *testing.T) {
	for name, o := range map[string]convert.Options{"v6": {}, "batch": {Format: convert.Format{BatchSize: 1 << 16}}, "zran": {Reference: true}} {
		t.Run(name, func(t *testing.T) {
			dir, m := converted(t, o)
			if len(m.Layers) != 2 {
				t.Fatalf("%d layers, want 2", len(m.Layers))
			}
			data, meta := m.Layers[0], m.Layers[1]
			if !converter.IsNydusBlob(data) || converter.IsNydusBootstrap(data) || !label.IsNydusDataLayer(data.Annotations) || label.IsNydusMetaLayer(data.Annotations) {
				t.Errorf("the first layer is no data layer: %v", data.Annotations)
			}
			if !converter.IsNydusBootstrap(meta) || converter.IsNydusBlob(meta) || !label.IsNydusMetaLayer(meta.Annotations) {
				t.Errorf("the last layer is no bootstrap: %v", meta.Annotations)
			}
			if _, ok := data.Annotations[label.NydusRefLayer]; ok != o.Reference {
				t.Errorf("refers to an OCI layer: %t, want %t", ok, o.Reference)
			}
			sections := []string{converter.EntryBlobMeta, converter.EntryBlobMetaHeader, "blob.digest"}
			if !o.Reference {
				sections = append(sections, converter.EntryBlob)
			}
			for _, section := range sections {
				var out bytes.Buffer
				entry, err := converter.UnpackEntry(open(t, dir, data.Digest), section, &out)
				if err != nil {
					t.Errorf("%s: %v", section, err)
					continue
				}
				sum := sha256.Sum256(out.Bytes())
				size := entry.GetUncompressedSize()
				if section == converter.EntryBlob { // of the chunks in it, as nydus-image has it; it is not unpacked as one
					size = entry.GetCompressedSize()
				}
				if out.Len() == 0 || uint64(out.Len()) != size {
					t.Errorf("%s: %d bytes, its entry says %d", section, out.Len(), size)
				}
				if section != converter.EntryBlob && hex.EncodeToString(sum[:]) != entry.GetUncompressedDigest() {
					t.Errorf("%s: digest %x, its entry says %s", section, sum, entry.GetUncompressedDigest())
				}
			}
		})
	}
}

// builder is our binary by the name of nydus-image.
func builder(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nydus-image")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/rafsd")
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// pack runs the converter over a layer and returns the path of the blob.
func pack(t *testing.T, o converter.PackOption) (string, digest.Digest) {
	t.Helper()
	var out bytes.Buffer
	w, err := converter.Pack(context.Background(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(makeTar(t)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blob")
	return path, write(t, path, out.Bytes())
}

// The converter of nydus-snapshotter makes images with our binary: a layer, the
// merged bootstrap, and the layer's tar again.
func TestConverter(t *testing.T) {
	bin := builder(t)
	for _, version := range []string{"5", "6"} {
		t.Run("v"+version, func(t *testing.T) {
			o := converter.PackOption{WorkDir: t.TempDir(), BuilderPath: bin, FsVersion: version, Compressor: "zstd", PrefetchPatterns: "/", ChunkSize: "0x100000"}
			path, d := pack(t, o)
			blob, err := local.OpenReader(path)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			var merged bytes.Buffer
			ids, err := converter.Merge(context.Background(), []converter.Layer{{Digest: d, ReaderAt: blob}}, &merged, converter.MergeOption{
				WorkDir: t.TempDir(), BuilderPath: bin, FsVersion: version, PrefetchPatterns: "/", WithTar: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(ids) != 1 || ids[0] != d {
				t.Errorf("blobs %v, want %s", ids, d)
			}
			checkBootstrap(t, merged.Bytes())
			var back bytes.Buffer
			if err := converter.Unpack(context.Background(), blob, &back, converter.UnpackOption{WorkDir: t.TempDir(), BuilderPath: bin}); err != nil {
				t.Fatal(err)
			}
			if got := contents(t, &back); !maps.Equal(got, files) {
				t.Errorf("unpacked %d entries, want %d: %v", len(got), len(files), keys(got))
			}
		})
	}
}

func keys(m map[string]string) (out []string) {
	for k, v := range m {
		out = append(out, fmt.Sprintf("%s (%d)", k, len(v)))
	}
	return out
}

// checkBootstrap looks at the bootstrap in the tar of a bootstrap layer.
func checkBootstrap(t *testing.T, layer []byte) {
	t.Helper()
	for name, data := range contents(t, bytes.NewReader(layer)) {
		if name != artifact.BootstrapFile {
			continue
		}
		path := filepath.Join(t.TempDir(), "image.boot")
		write(t, path, []byte(data))
		if err := check.Image(context.Background(), path); err != nil {
			t.Error(err)
		}
		return
	}
	t.Errorf("no %s in the layer", artifact.BootstrapFile)
}

// contents are the files of a tar.
func contents(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for files := tar.NewReader(r); ; {
		hdr, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Clean(hdr.Name)
		if hdr.Typeflag == tar.TypeDir {
			name += "/"
		}
		if name != "./" {
			out[name] = string(data)
		}
	}
}
