package convert

import (
	"archive/tar"
	"net/http"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// Layers in a cache are not converted again, nor read; the image is the same.
func TestCache(t *testing.T) {
	for name, format := range map[string]Format{"default": {}, "batch": {BatchSize: 128 << 10}} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			src, dst, cacheName := reg.host+"/src:v1", reg.host+"/dst:v1", reg.host+"/cache:v1"
			img := newImage(t, "gzip", fixtureTars(t, layerTars...)...)
			img.push(t, src)
			o := Options{Source: src, Target: dst, Cache: Cache{Name: cacheName, Version: "v1"}, Format: format}
			first, err := Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			verified(t, src, dst, verify.Options{})
			before := reg.count(http.MethodGet, img.manifest.Layers[0].Digest.Hex)
			o.Target = reg.host + "/again:v1"
			second, err := Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if first.Digest != second.Digest || resumed(first) != 0 || resumed(second) != 3 {
				t.Errorf("digests %s and %s, %d and %d layers from the cache, want 0 and 3", first.Digest, second.Digest, resumed(first), resumed(second))
			}
			if reads := reg.count(http.MethodGet, img.manifest.Layers[0].Digest.Hex); reads != before {
				t.Errorf("the first layer was read %d times more", reads-before)
			}
			verified(t, src, o.Target, verify.Options{})
			checkRecords(t, cacheName, 3)
			// Of another format, or version, none is used; the version replaces the other.
			o.Format.ChunkSize = 256 << 10
			if got, err := Convert(t.Context(), o); err != nil || resumed(got) != 0 {
				t.Errorf("another chunk size: %+v, %v, want no layer from the cache", got, err)
			}
			o.Format, o.Cache.Version, o.Cache.MaxRecords = format, "v2", 2
			if got, err := Convert(t.Context(), o); err != nil || resumed(got) != 0 || got.Digest != first.Digest {
				t.Errorf("another version: %+v, %v, want no layer from the cache", got, err)
			}
			checkRecords(t, cacheName, 2)
		})
	}
}

// checkRecords wants so many layers in a cache, each with what nydusify looks for.
func checkRecords(t *testing.T, name string, n int) {
	t.Helper()
	src := openImage(t, name)
	index, err := src.Root().Index()
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%d manifests, want 1", len(index.Manifests))
	}
	_, m := manifestOf(t, src, &index.Manifests[0])
	if len(m.Layers) != n {
		t.Errorf("%d records, want %d", len(m.Layers), n)
	}
	for _, d := range m.Layers {
		if d.Annotations[artifact.AnnotationSource] == "" || d.Annotations[artifact.AnnotationBlob] != "true" {
			t.Errorf("record %v", d.Annotations)
		}
	}
}

// A layer that is nothing without the ones below it is in no cache, and the image
// is what it is without one.
func TestCacheLayersThatLean(t *testing.T) {
	private := tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7}
	root := private
	root.Name = "./"
	file := func(name, data string) entry { return entry{Header: tar.Header{Name: name}, data: data} }
	dir, cached := t.TempDir(), "oci:"+t.TempDir()+"/cache"
	newImage(t, "gzip",
		tarOf(t, entry{Header: root}, entry{Header: private}, file("a", "a"), dirEntry("w"), file("w/f", "f")),
		tarOf(t, file("c", "c")),   // the root stays as it is
		tarOf(t, file("d/x", "x")), // and so does d
		tarOf(t, entry{Header: tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}}, file("b2", "b")),
		tarOf(t, dirEntry(".wh.w"), dirEntry(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", ""), file("e", "e")),
	).layout(t, dir, "")
	for _, want := range []int{0, 3} {
		o := Options{Source: dir, Target: "oci:" + t.TempDir(), Cache: Cache{Name: cached}}
		got, err := Convert(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if resumed(got) != want {
			t.Errorf("%d layers from the cache, want %d", resumed(got), want)
		}
		verified(t, dir, o.Target, verify.Options{})
		checkRecords(t, cached, 3)
	}
}

func TestCacheRefused(t *testing.T) {
	o := Options{Source: t.TempDir(), Target: "oci:" + t.TempDir(), Cache: Cache{Name: "oci:" + t.TempDir() + "/cache"}}
	o.Reference = true
	if _, err := Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), "a build cache is for") {
		t.Errorf("zran: got %v, want a refusal", err)
	}
}
