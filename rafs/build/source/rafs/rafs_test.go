package rafs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openImage(t testing.TB, path, id string) *image.Image {
	t.Helper()
	im, err := image.Open(path, image.Options{InlineBlobID: id})
	must(t, err)
	t.Cleanup(func() { im.Close() })
	return im
}

// merged merges images as layers, and returns the image of each blob as well.
func merged(t testing.TB, w tree.Whiteouts, blobs *Blobs, images ...*image.Image) (*tree.Tree, error) {
	t.Helper()
	var layers []*tree.Layer
	for _, im := range images {
		known, err := blobs.Add(im, nil)
		if err != nil {
			return nil, err
		}
		l, err := Read(context.Background(), im, Options{TempDir: t.TempDir(), Whiteouts: w, Ref: known.Ref})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	tr, err := tree.Merge(context.Background(), t.TempDir(), layers...)
	if err == nil {
		t.Cleanup(func() { tr.Close() })
	}
	return tr, err
}

// entries lists a tree as rafstest does, with contents.
func entries(t testing.TB, tr *tree.Tree, blobs *Blobs, files rafstest.Blobs) iter.Seq2[rafstest.Entry, error] {
	t.Helper()
	links := map[tree.ID]uint32{}
	for id := range tree.ID(tr.Len()) {
		n, err := tr.Node(id)
		must(t, err)
		links[n.Inode]++
	}
	return func(yield func(rafstest.Entry, error) bool) {
		paths := map[tree.ID]string{tree.Root: ""}
		for id := tree.Root + 1; id < tree.ID(tr.Len()); id++ {
			n, err := tr.Node(id)
			must(t, err)
			paths[id] = paths[n.Parent] + "/" + n.Name
			e := rafstest.Entry{
				Path: paths[id], Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: links[n.Inode], Size: n.Size,
				Mtime: n.Mtime, MtimeNsec: n.MtimeNsec, Rdev: n.Rdev, Link: n.Target,
			}
			for _, x := range n.Xattrs {
				if e.Xattrs == nil {
					e.Xattrs = map[string]string{}
				}
				e.Xattrs[x.Name] = x.Value
			}
			if n.Type() == tree.TypeFile && files == nil {
				must(t, segments(tr, &n, blobs))
			} else if n.Type() == tree.TypeFile {
				h := sha256.New()
				must(t, content(h, tr, &n, blobs, files))
				e.SHA256 = hex.EncodeToString(h.Sum(nil))
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func content(h hash.Hash, tr *tree.Tree, n *tree.Node, blobs *Blobs, files rafstest.Blobs) error {
	for ref, err := range tr.Refs(n) {
		if err != nil {
			return err
		}
		_, records := blobs.Info(ref.Blob)
		rec, err := records.Record(ref.Index)
		if err != nil {
			return err
		}
		s := records.sources[0]
		c, ok := s.im.Chunk(s.index, ref.Index)
		if !ok || c.Digest != rec.Digest || c.UncompressedSize != rec.UncompressedSize || c.UncompressedOffset != rec.UncompressedOffset {
			return errors.New("the record is not that of the chunk")
		}
		data, err := files.Read(&blob.Segment{Chunk: c, Length: c.UncompressedSize})
		if err != nil {
			return err
		}
		h.Write(data)
	}
	return nil
}

// segments holds the refs of a file against its size.
func segments(tr *tree.Tree, n *tree.Node, blobs *Blobs) error {
	size := uint64(0)
	for ref, err := range tr.Refs(n) {
		if err != nil {
			return err
		}
		_, records := blobs.Info(ref.Blob)
		rec, err := records.Record(ref.Index)
		if err != nil {
			return err
		}
		size += uint64(rec.UncompressedSize)
	}
	if size != n.Size {
		return fmt.Errorf("%s: chunks of %d bytes, size %d", n.Name, size, n.Size)
	}
	return nil
}

// Every image reads as a layer what it reads as itself.
func TestRead(t *testing.T) {
	core := rafstest.Core(t)
	for i, tc := range append(core, rafstest.Nydus(t)...) {
		t.Run(tc.Name, func(t *testing.T) {
			im := openImage(t, tc.Bootstrap, "")
			want := tc.Want
			if want == nil {
				for e, err := range rafstest.Tree(im, tc.Blobs) {
					must(t, err)
					want = append(want, e)
				}
			}
			var blobs Blobs
			tr, err := merged(t, tree.WhiteoutNone, &blobs, im)
			must(t, err)
			// What the chunks of nydus' images hold, TestLayers reads.
			files := tc.Blobs
			if i >= len(core) {
				files = nil
			}
			for i := range want {
				if files == nil {
					want[i].SHA256 = ""
				}
			}
			rafstest.Compare(t, want, entries(t, tr, &blobs, files))
			for i, b := range im.Blobs() {
				info, records := blobs.Info(uint32(i))
				e := &info.Entry
				if info.ID != b.ID || e.CompressedSize != b.CompressedSize || blob.Compressor(e.Compressor) != b.Compressor ||
					layout.Features(e.Features)&layout.FeatureV5NoExtBlobTable != 0 || e.UncompressedSize == 0 || records.Len() == 0 {
					t.Errorf("blob %d: got %+v, image has %+v", i, info, b)
				}
			}
		})
	}
}

// The layers of nydus-image, whiteouts and all, are the image that it made of them.
func TestLayers(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/layers.ndjson"))
	for _, name := range []string{"v6-layers", "v5-layers", "v6-layers-toc", "v6-layers-batch", "v6-layers-encrypt"} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(dir, "images", name)
			image := openImage(t, filepath.Join(at, "image.boot"), "")
			var layers []string
			for _, b := range image.Blobs() {
				layers = append(layers, b.ID)
			}
			files, err := os.ReadDir(filepath.Join(at, "layers"))
			must(t, err)
			if len(files) != len(layers) {
				t.Fatalf("%d layers, the image has %d blobs", len(files), len(layers))
			}
			var blobs Blobs
			tr, err := merged(t, tree.WhiteoutOCI, &blobs, openLayers(t, filepath.Join(at, "layers"), layers)...)
			must(t, err)
			rafstest.Compare(t, want, entries(t, tr, &blobs, rafstest.Blobs{filepath.Join(dir, "blobs")}))
		})
	}
}

func openLayers(t *testing.T, dir string, ids []string) []*image.Image {
	t.Helper()
	var images []*image.Image
	for _, id := range ids {
		images = append(images, openImage(t, filepath.Join(dir, id), id))
	}
	return images
}

// A blob that two images have is one blob, and they must agree about it.
func TestSharedBlobs(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made/images")
	a := openImage(t, filepath.Join(dir, "v6-dict/dict.boot"), "")
	b := openImage(t, filepath.Join(dir, "v6-dict/image.boot"), "")
	var blobs Blobs
	_, err := merged(t, tree.WhiteoutOCI, &blobs, a, b)
	must(t, err)
	if blobs.Len() != 2 {
		t.Errorf("%d blobs, want 2: that of the dictionary is in both", blobs.Len())
	}
	if n, ok := blobs.Find(a.Blobs()[0].ID); !ok || n != 0 {
		t.Errorf("the dictionary's blob is number %d, %t; want 0", n, ok)
	}
	index := chunk.NewIndex(t.TempDir())
	defer index.Close()
	known, err := blobs.Add(a, nil)
	must(t, err)
	must(t, known.Learn(index, blob.DigesterBlake3))
	for c := range a.BlobChunks(0) {
		if ref, ok, err := index.Lookup(c.Digest, c.UncompressedSize); err != nil || !ok || ref.Blob != 0 {
			t.Fatalf("chunk %d: got %v, %t, %v; want it found", c.Index, ref, ok, err)
		}
		if _, ok, _ := index.Lookup(c.Digest, c.UncompressedSize+1); ok {
			t.Fatalf("chunk %d is found by another size", c.Index)
		}
	}
	other := chunk.NewIndex(t.TempDir())
	defer other.Close()
	must(t, known.Learn(other, blob.DigesterSHA256))
	if other.Len() != 0 {
		t.Errorf("%d digests of another algorithm were learnt", other.Len())
	}
}

func TestContradiction(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made/images")
	a := openImage(t, filepath.Join(dir, "v6-zstd-blake3/image.boot"), "")
	for _, tc := range []struct{ name, image, want string }{
		{"other chunks", "v6-batch-1m", "contradict each other about chunk"},
		{"other digester", "v6-zstd-sha256", "digester"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := openImage(t, filepath.Join(dir, tc.image, "image.boot"), "")
			var blobs Blobs
			first, err := blobs.Add(a, nil)
			must(t, err)
			second, err := blobs.Add(b, func(i *Info) error {
				i.ID = a.Blobs()[0].ID
				return nil
			})
			if err == nil {
				_, err = Read(context.Background(), b, Options{TempDir: t.TempDir(), Whiteouts: tree.WhiteoutNone, Ref: second.Ref})
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), a.Blobs()[0].ID) {
				t.Errorf("got %v, want %q and the blob", err, tc.want)
			}
			if n := first.Numbers(); len(n) != 1 || n[0] != 0 {
				t.Errorf("numbers %v, want 0", n)
			}
		})
	}
}
