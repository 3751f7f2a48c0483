package convert

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/convert/reverse"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

func openImage(t testing.TB, name string) store.Source {
	t.Helper()
	src, err := store.OpenSource(t.Context(), name, artifact.Options{}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// verified compares an image with its source, and wants both to be the same.
func verified(t testing.TB, oci, rafs string, o verify.Options) *verify.Report {
	t.Helper()
	o.Source, o.Target, o.WorkDir, o.Platform = openImage(t, oci), openImage(t, rafs), t.TempDir(), amd64
	r, err := verify.Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("%s", f)
	}
	if r.Files == 0 || !o.SkipData && r.Bytes == 0 {
		t.Errorf("compared %d files of %d bytes", r.Files, r.Bytes)
	}
	return r
}

// every choice of a format.
var flavours = map[string]Options{
	"v6":        {},
	"lz4":       {Format: Format{Compressor: pointer(blob.CompressorLZ4Block), Digester: blob.DigesterSHA256}},
	"none":      {Format: Format{Compressor: pointer(blob.CompressorNone), ChunkSize: 64 << 10}},
	"batch":     {Format: Format{BatchSize: 128 << 10, ChunkSize: 256 << 10}},
	"v5":        {Format: Format{Version: 5}},
	"v5aligned": {Format: Format{Version: 5, Aligned: true}},
	"zran":      {Reference: true},
}

func pointer[T any](v T) *T { return &v }

// Every flavour has the files of the source and, turned back into an OCI image,
// still has them. The same options give the same digest, however many workers.
func TestFlavours(t *testing.T) {
	oci := t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	for name, o := range flavours {
		t.Run(name, func(t *testing.T) {
			rafs, back := "oci:"+t.TempDir(), "oci:"+t.TempDir()
			o.Source, o.Target, o.Workers = oci, rafs, 2
			first, err := Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			o.Target, o.Workers, o.Layers = "oci:"+t.TempDir(), 1, 1
			if second, err := Convert(t.Context(), o); err != nil || second.Digest != first.Digest {
				t.Errorf("second run: %v, %v, want %s", second, err, first.Digest)
			}
			verified(t, oci, rafs, verify.Options{})
			dst, err := store.OpenTarget(t.Context(), back, artifact.Options{}, store.Push{})
			if err != nil {
				t.Fatal(err)
			}
			defer dst.Close()
			if _, err := reverse.Image(t.Context(), reverse.Options{Source: openImage(t, rafs), Target: dst}); err != nil {
				t.Fatal(err)
			}
			verified(t, back, rafs, verify.Options{})
		})
	}
}

// Options that contradict each other are refused before anything is read.
func TestContradictions(t *testing.T) {
	for want, o := range map[string]Options{
		"a batch size needs version 6":   {Format: Format{Version: 5, BatchSize: 4096}},
		"want a power of two":            {Format: Format{BatchSize: 5000}},
		"needs version 6":                {Format: Format{Version: 5}, Reference: true},
		"has no batches":                 {Format: Format{BatchSize: 4096}, Reference: true},
		"has its blobs beside them":      {Reference: true, BlobDir: "x"},
		"to the chunk size, 4096":        {Format: Format{ChunkSize: 4096, BatchSize: 8192}},
		"chunk dictionary ./absent: ":    {Dict: "./absent", Source: fixtureLayout(t), Target: "oci:" + t.TempDir()},
		"chunk dictionary oci:x: open x": {Dict: "oci:x", Source: fixtureLayout(t), Target: "oci:" + t.TempDir()},
	} {
		if _, err := Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func fixtureLayout(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	newImage(t, "gzip", tarOf(t, entry{Header: tar.Header{Name: "f"}, data: "content"})).layout(t, dir, "")
	return dir
}

// An image with a dictionary stores only what the dictionary lacks, and lists the
// dictionary's blobs that it needs; they are in its repository, too.
func TestDictionary(t *testing.T) {
	reg := newRegistry(t)
	shared := strings.Repeat("a chunk that both have; ", 8000)
	one := newImage(t, "gzip", tarOf(t, entry{Header: tar.Header{Name: "shared"}, data: shared}, entry{Header: tar.Header{Name: "a"}, data: "one"}))
	two := newImage(t, "gzip", tarOf(t, entry{Header: tar.Header{Name: "elsewhere"}, data: shared}, entry{Header: tar.Header{Name: "b"}, data: "two"}))
	one.push(t, reg.host+"/one:oci")
	two.push(t, reg.host+"/two:oci")
	dict, err := Convert(t.Context(), Options{Source: reg.host + "/one:oci", Target: reg.host + "/one:rafs"})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Source: reg.host + "/two:oci", Target: reg.host + "/two:rafs", Dict: reg.host + "/one:rafs"}
	got, err := Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Blobs) != 2 || got.Blobs[0] != dict.Blobs[0] || got.Layers[0].Chunks != 1 {
		t.Errorf("blobs %v, %d chunks, want the dictionary's blob %s and one with 1 chunk", got.Blobs, got.Layers[0].Chunks, dict.Blobs[0])
	}
	verified(t, reg.host+"/two:oci", reg.host+"/two:rafs", verify.Options{})
	o.Format.ChunkSize = 4096
	if _, err := Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), "chunks of 1048576 bytes: want v6, 4096") {
		t.Errorf("another chunk size: got %v, want a refusal", err)
	}
}

// manifestOf reads what a name means.
func manifestOf(t testing.TB, src store.Source, d *v1.Descriptor) (*store.Document, *v1.Manifest) {
	t.Helper()
	doc := src.Root()
	if d != nil {
		var err error
		if doc, err = src.Document(t.Context(), *d); err != nil {
			t.Fatal(err)
		}
	}
	m, err := doc.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return doc, m
}

// ociIndex is an index of two platforms and of something that a builder says.
func ociIndex(t testing.TB, dir string) *store.Document {
	t.Helper()
	dst, err := store.OpenTarget(t.Context(), "oci:"+dir, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	var list []v1.Descriptor
	for i, arch := range []string{"amd64", "arm64", "unknown"} {
		img := newImage(t, "gzip", tarOf(t, entry{Header: tar.Header{Name: "f"}, data: strings.Repeat(arch, 1000*(i+1))}))
		part := t.TempDir()
		img.layout(t, part, "")
		src := openImage(t, part)
		if _, err := store.Copy(t.Context(), dst, src, store.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		d := src.Root().Descriptor
		d.Annotations = nil
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		if arch == "unknown" {
			d.Platform.OS = arch
		}
		list = append(list, d)
	}
	raw, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: list, Annotations: map[string]string{"kept": "yes"}})
	if err != nil {
		t.Fatal(err)
	}
	doc := store.NewDocument(types.OCIImageIndex, raw)
	if err := dst.Tag(t.Context(), doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// Platforms of an index become an index again, one alone an image; merged, each has
// its OCI image beside it.
func TestPlatforms(t *testing.T) {
	dir := t.TempDir()
	archive := archived(t, dir, ociIndex(t, dir))
	both, err := store.ParsePlatforms("linux/amd64,linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o      Options
		images int
		index  int // manifests; 0: no index
	}{
		"default":    {Options{SourceRegistry: artifact.Options{Platform: v1.Platform{OS: "linux", Architecture: "arm64"}}}, 1, 0},
		"one":        {Options{Platforms: both[:1]}, 1, 0},
		"two":        {Options{Platforms: both}, 2, 2},
		"all":        {Options{AllPlatforms: true}, 2, 2},
		"merged":     {Options{AllPlatforms: true, MergePlatform: true, Referrer: true}, 2, 4},
		"merged one": {Options{Platforms: both[:1], MergePlatform: true}, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			tc.o.Source, tc.o.Target = "oci-archive:"+archive, "oci:"+t.TempDir()
			got, err := Convert(t.Context(), tc.o)
			if err != nil {
				t.Fatal(err)
			}
			if got.Images != tc.images {
				t.Errorf("%d images, want %d", got.Images, tc.images)
			}
			src := openImage(t, tc.o.Target)
			if tc.index == 0 {
				manifestOf(t, src, nil)
				return
			}
			index, err := src.Root().Index()
			if err != nil {
				t.Fatal(err)
			}
			if len(index.Manifests) != tc.index || index.Annotations["kept"] != "yes" {
				t.Fatalf("%d manifests, annotations %v, want %d, kept", len(index.Manifests), index.Annotations, tc.index)
			}
			checkIndex(t, src, index, &tc.o)
		})
	}
}

// archived writes one image of a layout that has several to an archive.
func archived(t testing.TB, dir string, root *store.Document) string {
	t.Helper()
	raw, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{root.Descriptor}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	dst, err := store.OpenTarget(t.Context(), "oci-archive:"+file, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := store.Copy(t.Context(), dst, openImage(t, dir), store.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	return file
}

func checkIndex(t testing.TB, src store.Source, index *v1.IndexManifest, o *Options) {
	t.Helper()
	half := len(index.Manifests) / 2
	for i, d := range index.Manifests {
		_, m := manifestOf(t, src, &d)
		_, rafs := artifact.Bootstrap(m)
		if want := !o.MergePlatform || i >= half; rafs != want || artifact.Marked(d) != (o.MergePlatform && want) {
			t.Errorf("manifest %d: RAFS %t, marked %t, want %t", i, rafs, artifact.Marked(d), want)
		}
		if !o.MergePlatform || !rafs {
			continue
		}
		if d.ArtifactType != artifact.ArtifactType || m.Config.MediaType != artifact.ConfigType {
			t.Errorf("manifest %d: artifact type %q, config %q", i, d.ArtifactType, m.Config.MediaType)
		}
		if o.Referrer && (m.Subject == nil || m.Subject.Digest != index.Manifests[i-half].Digest || m.Subject.Platform != nil) {
			t.Errorf("manifest %d: subject %v, want %s", i, m.Subject, index.Manifests[i-half].Digest)
		}
	}
	if o.MergePlatform {
		r, err := verify.Image(t.Context(), verify.Options{Target: src, Source: src, Platform: amd64, MultiPlatform: true, WorkDir: t.TempDir()})
		if err != nil || !r.OK() || r.Files != 1 {
			t.Errorf("verify: %+v, %v", r, err)
		}
	}
}

// An image says what it is about, so that the registry can be asked.
func TestReferrer(t *testing.T) {
	reg := newRegistry(t)
	img := newImage(t, "gzip", tarOf(t, entry{Header: tar.Header{Name: "f"}, data: "content"}))
	img.push(t, reg.host+"/x:oci")
	got, err := Convert(t.Context(), Options{Source: reg.host + "/x:oci", Target: reg.host + "/x:rafs", Referrer: true})
	if err != nil {
		t.Fatal(err)
	}
	src := openImage(t, reg.host+"/x:oci")
	found, err := src.Referrers(t.Context(), src.Root().Digest)
	if err != nil || len(found) != 1 || found[0].Digest != got.Digest {
		t.Errorf("referrers %v, %v, want %s", found, err, got.Digest)
	}
}

// Blobs go into a folder; the manifest has the bootstrap alone.
func TestBlobDir(t *testing.T) {
	oci, blobs, rafs := t.TempDir(), t.TempDir(), "oci:"+t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	got, err := Convert(t.Context(), Options{Source: oci, Target: rafs, BlobDir: blobs})
	if err != nil {
		t.Fatal(err)
	}
	if _, m := manifestOf(t, openImage(t, rafs), nil); len(m.Layers) != 1 {
		t.Errorf("manifest of %d layers, want 1", len(m.Layers))
	}
	for _, id := range got.Blobs {
		if _, err := os.Stat(filepath.Join(blobs, id)); err != nil {
			t.Error(err)
		}
	}
	backend, err := localfs.New(blobs)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	verified(t, oci, rafs, verify.Options{Backend: backend})
}

// A blob folder keeps nothing that is not what its name says: not what a disk has
// damaged, nor what the place of a chunk dictionary gives in its stead.
func TestBlobDirDamaged(t *testing.T) {
	oci, blobs := t.TempDir(), t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	for range 2 {
		rafs := "oci:" + t.TempDir()
		got, err := Convert(t.Context(), Options{Source: oci, Target: rafs, BlobDir: blobs})
		if err != nil {
			t.Fatal(err)
		}
		backend, err := localfs.New(blobs)
		if err != nil {
			t.Fatal(err)
		}
		verified(t, oci, rafs, verify.Options{Backend: backend})
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
		flipAll(t, blobs, got.Blobs)
	}
	dict := t.TempDir()
	made, err := Convert(t.Context(), Options{Source: oci, Target: "oci:" + dict})
	if err != nil {
		t.Fatal(err)
	}
	flipAll(t, filepath.Join(dict, "blobs/sha256"), made.Blobs)
	blobs = t.TempDir()
	_, err = Convert(t.Context(), Options{Source: oci, Target: "oci:" + t.TempDir(), Dict: "oci:" + dict, BlobDir: blobs})
	left, _ := os.ReadDir(blobs)
	if !errors.Is(err, blob.ErrDigest) || len(left) != 0 {
		t.Errorf("a dictionary with other bytes: got %v, %v is left", err, left)
	}
}

// flipAll damages blobs.
func flipAll(t *testing.T, dir string, ids []string) {
	t.Helper()
	for _, id := range ids {
		st, err := os.Stat(filepath.Join(dir, id))
		if err == nil {
			err = flip(filepath.Join(dir, id), st.Size())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// docker's media types stay where that is asked for.
func TestDockerFormat(t *testing.T) {
	file := filepath.Join(t.TempDir(), "docker.tar")
	newImage(t, "", tarOf(t, entry{Header: tar.Header{Name: "f"}, data: "content"})).dockerArchive(t, file)
	for docker, want := range map[bool][3]types.MediaType{
		true:  {types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer},
		false: {types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer},
	} {
		name := "oci:" + t.TempDir()
		if _, err := Convert(t.Context(), Options{Source: "docker-archive:" + file, Target: name, DockerFormat: docker}); err != nil {
			t.Fatal(err)
		}
		doc, m := manifestOf(t, openImage(t, name), nil)
		if got := [3]types.MediaType{doc.MediaType, m.Config.MediaType, m.Layers[len(m.Layers)-1].MediaType}; got != want {
			t.Errorf("docker %t: media types %q, want %q", docker, got, want)
		}
		verified(t, "docker-archive:"+file, name, verify.Options{})
	}
}
