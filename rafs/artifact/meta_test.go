package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Of what lies beside a bootstrap, the chunk information of the image's own blobs
// is kept, and only when the whole layer was right.
func TestPullKeepsChunkInformation(t *testing.T) {
	s := newShelf(t)
	sum := sha256.Sum256([]byte("data"))
	id := hex.EncodeToString(sum[:])
	layer := layerOf(t, true,
		member{"image/" + id + ".blob.meta", "chunks"}, member{"image/" + id + ".blob.meta", "again"},
		member{"image/abc.blob.meta", "of no blob"}, member{"image/../x/" + id + ".blob.meta", "elsewhere"},
		member{"image/image.boot", "the bootstrap"}, member{"other", ""})
	m := s.image(t, layer)
	s.tag("v1", s.putJSON(t, types.OCIManifestSchema1, m))
	dir := t.TempDir()
	if _, err := Pull(context.Background(), s.host+"/a/b:v1", Options{}, dir); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, id+".blob.meta")); err != nil || string(data) != "chunks" {
		t.Errorf("chunk information: %q, %v", data, err)
	}
	if names := metaNames(t, dir); !slices.Equal(names, []string{id + ".blob.meta"}) {
		t.Errorf("kept %q", names)
	}

	bad := m.Layers[1]
	bad.Digest.Hex = id // another object than what comes
	m.Layers[1] = bad
	s.tag("v2", s.putJSON(t, types.OCIManifestSchema1, m))
	dir = t.TempDir()
	if _, err := Pull(context.Background(), s.host+"/a/b:v2", Options{}, dir); err == nil {
		t.Error("a layer that is another was taken")
	}
	if names := metaNames(t, dir); len(names) != 0 {
		t.Errorf("kept %q of a layer that is another", names)
	}
}

func metaNames(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*meta*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}
