package targz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"math/rand/v2"
	"testing"

	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
)

// A stretch of the stream that has only bytes which were there before needs no
// context: nydusd takes no more contexts than chunks.
func TestRepeatedContents(t *testing.T) {
	noise := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	var entries []entry
	for _, e := range []struct{ name, data string }{
		{"zeros", string(make([]byte, 20<<20))}, {"noise", string(noise)}, {"again", string(noise)},
		{"end", string(noise[:1<<20]) + "end"}, {"once more", string(noise)},
	} {
		entries = append(entries, entry{tar.Header{Name: e.name, Mode: 0o644}, e.data})
	}
	stream := zip(t, gzip.DefaultCompression, 0, makeTar(t, entries...))
	l := read(t, bytes.NewReader(stream), Options{})
	if got, chunks := l.Contexts.Count(), l.Table.Len(); got == 0 || got > chunks || chunks != 5 {
		t.Errorf("%d contexts for %d chunks, want 1 to 5 for 5", got, chunks)
	}
	verify(t, stream, l)
	dir := t.TempDir()
	report, err := check.File(t.Context(), save(t, dir, stream, l, write.BlobOptions{}), check.Options{Blobs: check.Folder(dir), Data: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Error(err)
	}
}
