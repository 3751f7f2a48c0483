package artifact

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestPullWithoutARegistry pulls by digest what was pulled before: from an index and
// from a manifest, without a question to the registry; and what is damaged is asked
// for again.
func TestPullWithoutARegistry(t *testing.T) {
	s, dir := newShelf(t), t.TempDir()
	image := s.tag("image", s.putJSON(t, types.OCIManifestSchema1, s.image(t, layerOf(t, true, member{BootstrapFile, "the bootstrap"}))))
	child := image
	child.Platform = &v1.Platform{OS: "linux", Architecture: "amd64", OSFeatures: []string{OSFeature}}
	index := s.tag("index", s.putJSON(t, types.OCIImageIndex, v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{child},
	}))
	pull := func(ref string) *Artifact {
		t.Helper()
		a, err := Pull(context.Background(), s.host+"/a"+ref, Options{Platform: v1.Platform{Architecture: "amd64"}}, dir)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	first := pull(":index")
	asked := maps.Clone(s.asked)
	for _, d := range []v1.Descriptor{index, image} {
		a := pull("@" + d.Digest.String())
		if a.Digest != image.Digest || a.BootstrapPath != first.BootstrapPath || a.Config.Config.User != "5" {
			t.Errorf("from the folder: %+v, want what the registry gave: %+v", a, first)
		}
	}
	if !maps.Equal(asked, s.asked) {
		t.Errorf("pulls by digest asked the registry: %v, before %v", s.asked, asked)
	}
	kept, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(kept) != 3 {
		t.Fatalf("documents: %q, %v; want index, image and configuration", kept, err)
	}
	for _, path := range kept {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		good[len(good)/2] ^= 1
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		pull("@" + index.Digest.String())
	}
	if maps.Equal(asked, s.asked) {
		t.Error("damaged documents were not asked for again")
	}
	asked = maps.Clone(s.asked)
	pull("@" + index.Digest.String())
	if !maps.Equal(asked, s.asked) {
		t.Error("damaged documents were not kept anew")
	}
}
