package rafstest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// Case is an image that a reader must be able to serve.
type Case struct {
	Name      string
	Bootstrap string // path; of the blob, where the bootstrap is inside that
	Blobs     Blobs
	Want      []Entry // nil: there is no manifest, all content must verify
}

// Core returns the images that live with this package: every version, compressor
// and digester, layers, a chunk dictionary, a prefetch table.
func Core(t testing.TB) []Case {
	t.Helper()
	return cases(t, filepath.Join(testenv.ModuleRoot(), "rafs/rafstest/testdata"))
}

// Nydus returns all images made by nydus-image. It skips the test, or fails it
// where that is required, if the machine does not have them.
func Nydus(t testing.TB) []Case {
	t.Helper()
	return cases(t, filepath.Join(testenv.Fixtures(t), "nydus-made"))
}

// cases lists the images of a folder that has images, blobs and trees.
func cases(t testing.TB, dir string) []Case {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "images/*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no images in %s: %v", dir, err)
	}
	trees := map[string][]Entry{}
	var out []Case
	for _, p := range paths {
		c := Case{Name: filepath.Base(p), Bootstrap: bootstrapOf(t, p, dir), Blobs: Blobs{filepath.Join(dir, "blobs")}}
		if tree := treeOf(c.Name); tree != "" {
			if trees[tree] == nil {
				trees[tree] = Manifest(t, filepath.Join(dir, "trees", tree+".ndjson"))
			}
			c.Want = trees[tree]
			if tree == "tarable" {
				c.Want = WholeSeconds(c.Want)
			}
		}
		out = append(out, c)
	}
	return out
}

// bootstrapOf is the bootstrap of the image in a folder, or the blob that has it
// inside.
func bootstrapOf(t testing.TB, image, dir string) string {
	t.Helper()
	path := filepath.Join(image, "image.boot")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	var out struct{ Blobs []string }
	b, err := os.ReadFile(filepath.Join(image, "output.json"))
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil || len(out.Blobs) != 1 {
		t.Fatalf("image %s has neither a bootstrap nor one blob: %v", image, err)
	}
	return filepath.Join(dir, "blobs", out.Blobs[0])
}

// treeOf names the manifest of an image made by nydus-image.
func treeOf(name string) string {
	_, kind, _ := strings.Cut(name, "-")
	switch {
	case kind == "dict", strings.HasPrefix(name, "upstream"):
		return ""
	case kind == "bigdir":
		return "bigdir"
	case strings.HasPrefix(kind, "layers"), kind == "parent":
		return "layers"
	case strings.HasPrefix(kind, "tar"):
		return "tarable"
	}
	return "everything"
}
