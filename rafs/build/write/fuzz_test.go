package write

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// FuzzTar turns bytes into the tars of two layers. What the tree accepts must
// become an image, v5 and v6, that the reader and check accept, and both must
// list the same names, modes and sizes.
func FuzzTar(f *testing.F) {
	layer, _ := aroundABlock(f)
	f.Add(layer[:8192], layer[:20480])
	f.Add(pack(f, file("a/b", chunks("ab")), file("c", "")), pack(f, file("a/.wh.b", ""), file(".wh..wh..opq", ""), file("d/e", chunks("xa"))))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, one, two []byte) {
		pool := chunk.NewPool(1, 1, int(small.ChunkSize))
		var layers []*tree.Layer
		var infos []*BlobInfo
		defer func() {
			for _, l := range layers {
				l.Close()
			}
		}()
		for i, data := range [][]byte{one, two} {
			l, info := fuzzLayer(t, pool, uint32(i), data, dir)
			if l == nil {
				return
			}
			layers, infos = append(layers, l), append(infos, info)
		}
		merged, err := tree.Merge(context.Background(), dir, layers...)
		layers = nil
		if err != nil {
			return
		}
		defer merged.Close()
		want := listTree(t, merged, tree.Root, "")
		for _, version := range []int{6, 5} {
			o := small
			o.Version, o.TempDir = version, dir
			if version == 5 {
				infos = v5Blobs(infos)
			}
			plan, err := New(merged, infos, o)
			if err != nil {
				t.Fatal(err)
			}
			defer plan.Close()
			var out bytes.Buffer
			if err := Bootstrap(&out, plan); err != nil {
				t.Fatal(err)
			}
			checkBytes(t, out.Bytes())
			im, err := image.New(out.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, listImage(t, im, image.Root, "")); diff != "" {
				t.Errorf("tree and v%d image differ:\n%s", version, diff)
			}
			im.Close()
		}
	})
}

// fuzzLayer reads a layer, nil if it is refused.
func fuzzLayer(t *testing.T, pool *chunk.Pool, number uint32, data []byte, dir string) (*tree.Layer, *BlobInfo) {
	var out bytes.Buffer
	w, err := NewBlob(&out, BlobOptions{Format: small.Format, TOC: true})
	if err != nil {
		t.Fatal(err)
	}
	cutter, err := chunk.NewCutter(context.Background(), pool, w, chunk.Options{Blob: number, Compressor: small.Compressor, TempDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := tree.ReadTar(context.Background(), bytes.NewReader(data), cutter, tree.ReadOptions{
		TempDir: dir, Limits: tree.Limits{Entries: 1000, Depth: 20, Meta: 1 << 20, Data: 1 << 20},
	})
	table, _, closeErr := cutter.Close()
	if closeErr != nil {
		t.Fatal(closeErr)
	}
	t.Cleanup(func() { table.Close() })
	if err != nil {
		return nil, nil
	}
	if table.Len() == 0 {
		return l, nil
	}
	info, err := w.Finish(Contents{Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return l, info
}

// v5Blobs are the same blobs as a v5 image may have them.
func v5Blobs(infos []*BlobInfo) (out []*BlobInfo) {
	for _, info := range infos {
		if info != nil {
			c := *info
			c.Entry.Features = uint32(layout.FeatureCapTarTOC)
			info = &c
		}
		out = append(out, info)
	}
	return out
}

func checkBytes(t testing.TB, bootstrap []byte) {
	t.Helper()
	report, err := check.Reader(context.Background(), bytes.NewReader(bootstrap), int64(len(bootstrap)), check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Errorf("check: %v", err)
	}
}

func listTree(t testing.TB, tr *tree.Tree, dir tree.ID, at string) (out []string) {
	t.Helper()
	for c, err := range tr.Children(dir) {
		if err != nil {
			t.Fatal(err)
		}
		size := c.Size
		if c.IsDir() {
			size = 0
		}
		out = append(out, fmt.Sprintf("%s/%s %o %d:%d %d %d.%d %d xattrs", at, c.Name, c.Mode, c.UID, c.GID, size, c.Mtime, c.MtimeNsec, len(c.Xattrs)))
		if c.IsDir() {
			out = append(out, listTree(t, tr, c.ID, at+"/"+c.Name)...)
		}
	}
	return out
}

func listImage(t *testing.T, im *image.Image, dir uint64, at string) (out []string) {
	t.Helper()
	err := im.ReadDir(dir, 0, func(d image.Dirent) bool {
		name := string(d.Name)
		if name == "." || name == ".." {
			return true
		}
		a, err := im.Attr(d.Node)
		if err != nil {
			t.Fatal(err)
		}
		if a.Mode&tree.TypeMask == tree.TypeDir {
			a.Size = 0
		}
		xattrs := 0
		if err := im.Xattrs(d.Node, func(string, []byte) bool { xattrs++; return true }); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s/%s %o %d:%d %d %d.%d %d xattrs", at, name, a.Mode, a.UID, a.GID, a.Size, a.Mtime, a.MtimeNsec, xattrs))
		if a.Mode&tree.TypeMask == tree.TypeDir {
			out = append(out, listImage(t, im, d.Node, at+"/"+name)...)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
