package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Of what lies beside a bootstrap, the chunk information of the image's own blobs
// is kept, and only when the whole layer was right.
func TestPullKeepsChunkInformation(t *testing.T) {
	s := newShelf(t)
	sum := sha256.Sum256([]byte("data"))
	id := hex.EncodeToString(sum[:])
	layer := layerOf(t, true,
		member{"image/" + id + ".blob.meta", "chunks"}, member{"image/" + id + ".blob.meta", "again"},
		member{"image/abc.blob.meta", "of no blob"}, member{"image/../x/" + id + ".blob.meta", "elsewhere"},
		member{"image/image.boot", "the bootstrap"}, member{"other", ""})
	m := s.image(t, layer)
	s.tag("v1", s.putJSON(t, types.OCIManifestSchema1, m))
	dir := t.TempDir()
	if _, err := Pull(context.Background(), s.host+"/a/b:v1", Options{}, dir); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, id+".blob.meta")); err != nil || string(data) != "chunks" {
		t.Errorf("chunk information: %q, %v", data, err)
	}
	if names := metaNames(t, dir); !slices.Equal(names, []string{id + ".blob.meta"}) {
		t.Errorf("kept %q", names)
	}

	bad := m.Layers[1]
	bad.Digest.Hex = id // another object than what comes
	m.Layers[1] = bad
	s.tag("v2", s.putJSON(t, types.OCIManifestSchema1, m))
	dir = t.TempDir()
	if _, err := Pull(context.Background(), s.host+"/a/b:v2", Options{}, dir); err == nil {
		t.Error("a layer that is another was taken")
	}
	if names := metaNames(t, dir); len(names) != 0 {
		t.Errorf("kept %q of a layer that is another", names)
	}
}

func metaNames(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*meta*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

// sparseMember is a tar of one sparse file of any size, as pax 1.0 has it: a map
// without an entry, and nothing else.
func sparseMember(t *testing.T, name, size string) []byte {
	t.Helper()
	block := func(kind byte, name, data string) []byte {
		b := make([]byte, 512, 512+(len(data)+511)/512*512)
		copy(b, name)
		copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        ", 0o644, 0, 0, len(data), 0))
		b[156] = kind
		copy(b[257:], "ustar\x0000")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return append(b, data...)[:cap(b)]
	}
	var records string
	for _, r := range [][2]string{{"major", "1"}, {"minor", "0"}, {"name", name}, {"realsize", size}} {
		line := " GNU.sparse." + r[0] + "=" + r[1] + "\n"
		n := len(line) + 2
		records += fmt.Sprint(n) + line
	}
	return append(block(tar.TypeXHeader, "pax", records), block(tar.TypeReg, "sparse", "0\n"+strings.Repeat("\x00", 510))...)
}

// A layer of a few bytes cannot fill a disk with a file that it says is sparse.
func TestSparseFilesOfLayers(t *testing.T) {
	for size, want := range map[string]bool{"1024": true, "1125899906842624": false} {
		layer := sparseMember(t, "image/x.blob.meta", size)
		var boot bytes.Buffer
		w := tar.NewWriter(&boot)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: BootstrapFile, Mode: 0o444}), w.Close()); err != nil {
			t.Fatal(err)
		}
		layer = append(layer, boot.Bytes()...)
		var got []string
		_, err := ReadLayer(bytes.NewReader(layer), func(name string, size int64, r io.Reader) error {
			got = append(got, name)
			return nil
		})
		if (err == nil) != want || (len(got) == 2) != want {
			t.Errorf("ReadLayer with a file of %s bytes: %v, %q", size, err, got)
		}
		asked := false
		err = extract(io.Discard, bytes.NewReader(layer), func(string, io.Reader) { asked = true })
		if (err == nil) != want || asked != want {
			t.Errorf("extract with a file of %s bytes: %v, other files taken: %t", size, err, asked)
		}
	}
}
