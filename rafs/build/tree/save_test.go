package tree

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
)

// Layers that were saved merge into the same tree, hard links into lower layers
// and whiteouts included.
func TestSave(t *testing.T) {
	hard := [][]byte{
		pack(t, file("a", "1"), file("b", "2"), dir("d"), file("d/e", "3")),
		pack(t, link("c", "a"), link("d/f", "b"), file(".wh.b", ""), file("d/.wh..wh..opq", "")),
	}
	for name, tars := range map[string][][]byte{
		"links": hard, "empty": {pack(t)},
		"layers": {fixtureTar(t, "layer1.tar"), fixtureTar(t, "layer2.tar"), fixtureTar(t, "layer3.tar")},
		"files":  {fixtureTar(t, "everything.tar")},
	} {
		t.Run(name, func(t *testing.T) {
			var files memory
			var first, second []*Layer
			for _, data := range tars {
				l, err := ReadTar(context.Background(), bytes.NewReader(data), &files, ReadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				var saved bytes.Buffer
				if err := l.Save(&saved); err != nil {
					t.Fatal(err)
				}
				loaded, err := LoadLayer(bytes.NewReader(saved.Bytes()), BuilderOptions{TempDir: t.TempDir()})
				if err != nil {
					t.Fatal(err)
				}
				if loaded.Entries != l.Entries || loaded.Bytes != l.Bytes || loaded.DroppedXattrs != l.DroppedXattrs {
					t.Errorf("loaded %d entries of %d bytes, want %d, %d", loaded.Entries, loaded.Bytes, l.Entries, l.Bytes)
				}
				var again bytes.Buffer
				if err := loaded.Save(&again); err != nil || !bytes.Equal(again.Bytes(), saved.Bytes()) {
					t.Errorf("saved again: %d bytes, %v, want the same %d", again.Len(), err, saved.Len())
				}
				if _, err := LoadLayer(bytes.NewReader(saved.Bytes()[:saved.Len()-1]), BuilderOptions{}); err == nil {
					t.Error("a layer that was cut off is loaded")
				}
				first, second = append(first, l), append(second, loaded)
			}
			if diff := cmp.Diff(merged(t, &files, first), merged(t, &files, second)); diff != "" {
				t.Errorf("tree (-saved +loaded):\n%.3000s", diff)
			}
		})
	}
}

func fixtureTar(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), "nydus-made", "tars", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func merged(t *testing.T, files *memory, layers []*Layer) map[string]manifestLine {
	t.Helper()
	tr, err := Merge(context.Background(), t.TempDir(), layers...)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	return manifestOf(t, tr, files)
}
