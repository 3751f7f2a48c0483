package write

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/oldchunk"
	"github.com/rafsd/rafsd/rafs/build/oldtree"
	"github.com/rafsd/rafsd/rafs/image"
)

// FuzzTar turns bytes into the tars of two layers. What the tree accepts must
// become an image that the reader accepts, and both must list the same names,
// modes and sizes.
func FuzzTar(f *testing.F) {
	layer, _ := aroundABlock(f)
	f.Add(layer[:8192], layer[:20480])
	f.Add(pack(f, file("a/b", chunks("ab")), file("c", "")), pack(f, file("a/.wh.b", ""), file(".wh..wh..opq", ""), file("d/e", chunks("xa"))))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		limits := tree.Limits{Entries: 1000, Depth: 20, Meta: 1 << 20, Data: 1 << 20}
		pool := chunk.NewPool(1, 1, int(small.ChunkSize))
		var layers []*tree.Layer
		var infos []*BlobInfo
		for i, data := range [][]byte{one, two} {
			var out bytes.Buffer
			w := NewBlob(&out, small.Format)
			cutter := chunk.NewCutter(context.Background(), pool, w, chunk.Options{Blob: uint32(i), Compressor: small.Compressor})
			l, err := tree.ReadLayer(context.Background(), bytes.NewReader(data), cutter, limits)
			records, closeErr := cutter.Close()
			if closeErr != nil {
				t.Fatal(closeErr)
			}
			if err != nil {
				return
			}
			var info *BlobInfo
			if len(records) > 0 {
				if info, err = w.Finish(records); err != nil {
					t.Fatal(err)
				}
			}
			layers, infos = append(layers, l), append(infos, info)
		}
		merged, err := tree.Merge(layers...)
		if err != nil {
			return
		}
		plan, err := New(merged, infos, small)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Bootstrap(&out, plan); err != nil {
			t.Fatal(err)
		}
		im, err := image.New(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		if diff := cmp.Diff(listTree(merged.Root, ""), listImage(t, im, image.Root, "")); diff != "" {
			t.Errorf("tree and image differ:\n%s", diff)
		}
	})
}

func listTree(n *tree.Node, at string) (out []string) {
	for _, name := range n.Names() {
		c := n.Child(name)
		size := c.Size
		if c.IsDir() {
			size = 0
		}
		out = append(out, fmt.Sprintf("%s/%s %o %d:%d %d %d.%d %d xattrs", at, name, c.Mode, c.UID, c.GID, size, c.Mtime, c.MtimeNsec, len(c.Xattrs)))
		out = append(out, listTree(c, at+"/"+name)...)
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
