package image_test

import (
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func TestQuick(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	names, _ := filepath.Glob(filepath.Join(dir, "images/*/image.boot"))
	more, _ := filepath.Glob(filepath.Join(dir, "images/*/layers/*"))
	up, _ := filepath.Glob(filepath.Join(dir, "../upstream/*/image.boot"))
	for _, n := range append(append(names, more...), up...) {
		im, err := image.Open(n, image.Options{})
		rel, _ := filepath.Rel(dir, n)
		if err != nil {
			t.Logf("%-40s %v", rel, err)
			continue
		}
		s := im.Super()
		t.Logf("%-40s ok v%d %d inodes %d names %v %v flags %#x prefetch %v blobs %d feat %s", rel, s.Version, s.Inodes, s.Names, s.Compressor, s.Digester, uint64(s.Flags), im.Prefetch(), len(im.Blobs()), "")
		im.Close()
	}
	_ = rafstest.Compare
}
