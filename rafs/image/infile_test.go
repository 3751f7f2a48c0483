package image_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// An image in a file is the image in memory, also when none of its pages stay.
func TestInFile(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		t.Run(c.Name, func(t *testing.T) {
			dir := t.TempDir()
			want := open(t, c.Bootstrap)
			got, err := image.Open(c.Bootstrap, image.Options{InFile: true, TempDir: dir})
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
				t.Errorf("%v in the folder, %v: want nothing to stay behind", names, err)
			}
			for _, kept := range []uint32{1000, 1} {
				got.KeepPages(kept)
				if err := rafstest.Exercise(got); err != nil {
					t.Errorf("%d places: %v", kept, err)
				}
				if g, w := walk(t, got), walk(t, want); g != w {
					t.Errorf("%d places: got\n%s\nwant\n%s", kept, g, w)
				}
			}
			if g, w := got.Super(), want.Super(); g != w {
				t.Errorf("got %+v, want %+v", g, w)
			}
			sameRecords(t, got, want)
			data := make([]byte, len(want.Bytes()))
			if n, err := got.ReadAt(data, 0); err != nil || n != len(data) || !bytes.Equal(data, want.Bytes()) {
				t.Errorf("read %d bytes, %v, want the %d of the bootstrap", n, err, len(data))
			}
		})
	}
}

func sameRecords(t *testing.T, got, want *image.Image) {
	t.Helper()
	for _, b := range want.Blobs() {
		for c := range want.BlobChunks(b.Index) {
			g, _ := got.ChunkRecord(b.Index, c.Index)
			if w, _ := want.ChunkRecord(b.Index, c.Index); g != w {
				t.Errorf("chunk %d of blob %d: got %+v, want %+v", c.Index, b.Index, g, w)
			}
		}
	}
}
