package convert

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build"
	"github.com/rafsd/rafsd/rafs/convert/verify"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// optimizable is an image of a registry, OCI and RAFS.
func optimizable(t *testing.T, reg *fakeRegistry, version int) (oci, rafs string) {
	t.Helper()
	oci = t.TempDir()
	newImage(t, "gzip",
		tarOf(t, folderEntry("etc"), fileEntry("etc/first", strings.Repeat("first", 100_000)), fileEntry("etc/other", "other")),
		tarOf(t, fileEntry("last", strings.Repeat("last", 200_000)), fileEntry("empty", "")),
	).layout(t, oci, "")
	rafs = reg.host + "/app:rafs"
	if _, err := Convert(t.Context(), Options{Source: oci, Target: rafs, Format: Format{Version: version}}); err != nil {
		t.Fatal(err)
	}
	return oci, rafs
}

func target(t *testing.T, name string) store.Target {
	t.Helper()
	dst, err := store.OpenTarget(t.Context(), name, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dst.Close() })
	return dst
}

// An optimized image is the same image, with a blob of what is wanted first.
func TestOptimize(t *testing.T) {
	reg := newRegistry(t)
	for _, version := range []int{5, 6} {
		oci, rafs := optimizable(t, reg, version)
		done := reg.host + "/other:done"
		const list = `{"version":"v1","files":[{"path":"/last"},{"path":"/etc/first"},{"path":"/nothing"}]}`
		o := OptimizeOptions{
			Source: openImage(t, rafs), Target: target(t, done), Platform: amd64, List: list, Host: build.Host{TempDir: t.TempDir()},
		}
		r, err := Optimize(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(o.Host.TempDir); len(left) != 0 {
			t.Errorf("%v remains in the work folder", left)
		}
		// Nothing is left in the blob of the second layer.
		if len(r.Blobs) != 2 || !slices.Contains(r.Blobs, r.Blob) || r.Size == 0 {
			t.Errorf("blobs %v, new %s of %d bytes; want 2", r.Blobs, r.Blob, r.Size)
		}
		verified(t, oci, done, verify.Options{})
		a := pulledImage(t, done)
		im, err := image.Open(a.BootstrapPath, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		for _, b := range im.Blobs() {
			if got, want := layout.Features(b.Features)&layout.FeatureSeparatePrefetch != 0, b.ID == r.Blob; got != want {
				t.Errorf("blob %s is marked as wanted first: %t, want %t", b.ID, got, want)
			}
		}
		p := parentOf(t, done)
		if got := p.boot.Annotations[artifact.AnnotationPrefetch]; got != r.Blob {
			t.Errorf("annotation names %q, want %s", got, r.Blob)
		}
		if got := inLayer(t, p, prefetchList); got != list {
			t.Errorf("the list in the image is %q, want %q", got, list)
		}
		o.List = `{"version":"v1","files":[{"path":"/empty"}]}`
		if _, err := Optimize(t.Context(), o); !errors.Is(err, ErrNothingWanted) {
			t.Errorf("a list of nothing: got %v", err)
		}
		o.List = "nothing"
		if _, err := Optimize(t.Context(), o); err == nil || !strings.Contains(err.Error(), "list of files") {
			t.Errorf("no list: got %v", err)
		}
	}
}

// pulledImage fetches the bootstrap of an image.
func pulledImage(t *testing.T, name string) *artifact.Artifact {
	t.Helper()
	a, err := artifact.Pull(t.Context(), name, artifact.Options{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// parentOf opens an image as the parent of another one.
func parentOf(t *testing.T, name string) *parent {
	t.Helper()
	p, err := findParent(t.Context(), openImage(t, name), amd64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	if err := p.fetch(t.Context(), &Options{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// inLayer is a file of the bootstrap layer.
func inLayer(t *testing.T, p *parent, want string) (text string) {
	t.Helper()
	r, err := store.Verified(t.Context(), p.source, p.boot)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = artifact.ReadLayer(r, func(name string, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if name == want {
			text = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A dictionary of two images is an image that has the blobs of what both have, and
// that a third one can be converted with.
func TestDictionaryOfImages(t *testing.T) {
	reg := newRegistry(t)
	shared := fileEntry("shared", strings.Repeat("shared", 300_000))
	var names []string
	for _, own := range []string{"a", "b", "c"} {
		oci := t.TempDir()
		newImage(t, "gzip", tarOf(t, shared), tarOf(t, fileEntry(own, strings.Repeat(own, 100_000)))).layout(t, oci, "")
		names = append(names, oci)
	}
	var sources []store.Source
	for i, oci := range names[:2] {
		rafs := reg.host + "/" + []string{"a", "b"}[i] + ":rafs"
		if _, err := Convert(t.Context(), Options{Source: oci, Target: rafs}); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, openImage(t, rafs))
	}
	dict, boot := reg.host+"/dict:v1", filepath.Join(t.TempDir(), "dict.boot")
	o := DictionaryOptions{Sources: sources, Target: target(t, dict), Platform: amd64, Bootstrap: boot}
	r, err := Dictionary(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Blobs) != 1 {
		t.Fatalf("blobs %v, want the one of what both images have", r.Blobs)
	}
	if diff := cmp.Diff(r.Blobs, pulledImage(t, dict).BlobIDs); diff != "" {
		t.Errorf("blobs of the dictionary's image (-want +got):\n%s", diff)
	}
	made, err := Convert(t.Context(), Options{Source: names[2], Target: reg.host + "/c:rafs", Dict: dict})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(made.Blobs, r.Blobs[0]) || len(made.Blobs) != 2 {
		t.Errorf("image with the dictionary has blobs %v, want %s and its own", made.Blobs, r.Blobs[0])
	}
	verified(t, names[2], reg.host+"/c:rafs", verify.Options{})
	o.Target, o.Bootstrap = nil, filepath.Join(t.TempDir(), "again")
	if r, err := Dictionary(t.Context(), o); err != nil || r.Root != nil {
		t.Errorf("without a target: %+v, %v", r, err)
	}
	one, err := os.ReadFile(boot)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(o.Bootstrap)
	if err != nil || !slices.Equal(one, two) {
		t.Errorf("made again, the dictionary is another one (%v)", err)
	}
}
