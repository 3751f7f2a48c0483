package rafstest

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// Case is an image that a reader must be able to serve.
type Case struct {
	Name      string
	Bootstrap string // path
	Blobs     Blobs
	Want      []Entry // nil: there is no manifest, all content must verify
}

// Core returns the images that live with this package: every version, compressor
// and digester, layers, a chunk dictionary, a prefetch table.
func Core(t testing.TB) []Case {
	t.Helper()
	return cases(t, filepath.Join(testenv.ModuleRoot(), "rafs/rafstest/testdata"), func(string) bool { return true })
}

// lacking are parts of the names of images that need a feature which rafs/image
// does not have yet.
var lacking = []string{"batch", "encrypt", "tarfs", "targz-ref"}

// Nydus returns all images made by nydus-image that can be read and whose
// bootstrap is a file of its own. It skips the test, or fails it where that is
// required, if the machine does not have them.
func Nydus(t testing.TB) []Case {
	t.Helper()
	return cases(t, filepath.Join(testenv.Fixtures(t), "nydus-made"), func(name string) bool {
		for _, l := range lacking {
			if strings.Contains(name, l) {
				return false
			}
		}
		return true
	})
}

// cases lists the images of a folder that has images, blobs and trees.
func cases(t testing.TB, dir string, pick func(name string) bool) []Case {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "images/*/image.boot"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no images in %s: %v", dir, err)
	}
	trees := map[string][]Entry{}
	var out []Case
	for _, p := range paths {
		c := Case{Name: filepath.Base(filepath.Dir(p)), Bootstrap: p, Blobs: Blobs{filepath.Join(dir, "blobs")}}
		if !pick(c.Name) {
			continue
		}
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
