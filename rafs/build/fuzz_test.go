package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// seedLayers are bootstraps of small layers in every version, with whiteouts,
// hard links and xattrs, and images that nydus-image made.
func seedLayers(f *testing.F) [][2][]byte {
	f.Helper()
	low := layerDir(f, map[string]string{"a": "a", "d/b": strings.Repeat("b", 9000), "d/gone": "", "e/": ""})
	up := layerDir(f, map[string]string{".wh.a": "", "d/.wh.gone": "", "e/.wh..wh..opq": "", "d/b/": "", "new": strings.Repeat("b", 9000)})
	must(f, os.Link(filepath.Join(low, "a"), filepath.Join(low, "e/link")))
	var seeds [][2][]byte
	for _, version := range []int{5, 6} {
		var pair [2][]byte
		for i, src := range []string{low, up} {
			o := options(f, src)
			o.Version, o.ChunkSize, o.Whiteouts = version, 4096, tree.WhiteoutNone
			data, err := os.ReadFile(create(f, o).Bootstrap)
			must(f, err)
			pair[i] = data
		}
		seeds = append(seeds, pair)
	}
	for _, c := range rafstest.Core(f) {
		data, err := os.ReadFile(c.Bootstrap)
		must(f, err)
		if len(data) < 64<<10 {
			seeds = append(seeds, [2][]byte{data, data})
		}
	}
	return seeds
}

// Whatever two layers are, they are refused or become an image that has no fault
// and answers every question without contradicting itself.
func FuzzMerge(f *testing.F) {
	for _, s := range seedLayers(f) {
		f.Add(s[0], s[1], false)
		f.Add(s[1], s[0], true)
	}
	f.Fuzz(func(t *testing.T, low, up []byte, parent bool) {
		if len(low)+len(up) > 1<<20 {
			t.Skip("larger than what a change of a few bytes gives")
		}
		dir := t.TempDir()
		o := MergeOptions{
			Host:      Host{TempDir: dir, Limits: tree.Limits{Entries: 1 << 14, Meta: 16 << 20}},
			Bootstrap: filepath.Join(dir, "out"), Prefetch: Prefetch{PrefetchFS, []string{"/"}},
		}
		for i, data := range [][]byte{low, up} {
			p := filepath.Join(dir, strings.Repeat("ab"[i:i+1], 64))
			must(t, os.WriteFile(p, data, 0o600))
			o.Sources = append(o.Sources, p)
		}
		if parent {
			o.Parent, o.Sources = o.Sources[0], o.Sources[1:]
		}
		_, err := Merge(context.Background(), o)
		if err != nil {
			if errors.Is(err, errRules) && clean(t, o.Parent) && clean(t, o.Sources...) {
				t.Errorf("of images that are right: %v", err)
			}
			if _, statErr := os.Stat(o.Bootstrap); statErr == nil {
				t.Errorf("left an image after: %v", err)
			}
			return
		}
		im, err := image.Open(o.Bootstrap, image.Options{})
		if err != nil {
			t.Fatalf("merged image cannot be opened: %v", err)
		}
		defer im.Close()
		if err := rafstest.Exercise(im); err != nil {
			t.Errorf("merged image: %v", err)
		}
	})
}

// clean tells whether images break no rule, not even those that they can be read
// in spite of.
func clean(t *testing.T, paths ...string) bool {
	t.Helper()
	for _, p := range paths {
		if p == "" {
			continue
		}
		report, err := check.File(t.Context(), p, check.Options{})
		must(t, err)
		if len(report.Violations) > 0 {
			return false
		}
	}
	return true
}
