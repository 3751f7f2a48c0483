package check

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// All data of all images that nydus made is right by this package's own reading:
// batches, ciphers, gzip streams, tables of contents.
func TestBlobsOfNydus(t *testing.T) {
	for _, cases := range [][]rafstest.Case{rafstest.Core(t), rafstest.Nydus(t)} {
		for _, c := range cases {
			t.Run(c.Name, func(t *testing.T) {
				r, err := File(context.Background(), c.Bootstrap, Options{Blobs: Folder(c.Blobs[0]), Data: true})
				if err != nil {
					t.Fatal(err)
				}
				if err := r.Err(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// patchedBlobs gives blobs of which one has other bytes.
type patchedBlobs struct {
	dir  Folder
	id   string
	data []byte
}

func (p *patchedBlobs) Open(ctx context.Context, id string) (Blob, error) {
	if id == p.id {
		return &readerBlob{bytes.NewReader(p.data), int64(len(p.data))}, nil
	}
	return p.dir.Open(ctx, id)
}

// Each part of a blob is damaged by itself. The blob of v6-blob-toc has data, chunk
// information, digests and a table of contents, each with a tar header.
func TestDamagedBlobs(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	const id = "b18794514248b9a70b9135be76f5a0abe09ab6f104fd6503d466b69ea8efc3cb"
	whole, err := os.ReadFile(filepath.Join(dir, "blobs", id))
	if err != nil {
		t.Fatal(err)
	}
	const dataSize, ci, header, digests, toc = 949604, 950116, 953522, 958130, 970034
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		data   bool // only data tells
		want   string
	}{
		{"data", flipAt(1000), true, "chunk "},
		{"tar header of the data", flipAt(dataSize + 3), false, "tar header"},
		{"chunk information", flipAt(ci + 700), false, "chunk"},
		{"magic of the header", flipAt(header), false, "magic"},
		{"entries in the header", flipAt(header + 12), false, "chunks, the blob table says"},
		{"offset in the header", flipAt(header + 16), false, "the blob table says"},
		{"reserved byte of the header", flipAt(header + 2000), false, "reserved"},
		{"a digest", flipAt(digests + 40), false, "digest"},
		{"table of contents", flipAt(toc + 56), false, "table of contents has"},
		{"table of contents, digest of a section", flipAt(toc + 128 + 30), false, "section \"blob.meta\" has sha256"},
		{"last header", flipAt(len(whole) - 512 + 1), false, "checksum"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, false, "the object has 971057"},
		{"empty", func([]byte) []byte { return nil }, false, "the object has 0"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, false, "the object has 971059"},
	} {
		for _, data := range []bool{false, true} {
			if tt.data && !data {
				continue
			}
			blobs := &patchedBlobs{dir: Folder(filepath.Join(dir, "blobs")), id: id, data: tt.change(bytes.Clone(whole))}
			r, err := File(context.Background(), filepath.Join(dir, "images/v6-blob-toc/image.boot"), Options{Blobs: blobs, Data: data})
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s (data: %t): got %v, want %q", tt.name, data, err, tt.want)
			}
		}
	}
}

func flipAt(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 1
		return b
	}
}

func TestBlobsThatAreNotThere(t *testing.T) {
	c := rafstest.Core(t)[0]
	r, err := File(context.Background(), c.Bootstrap, Options{Blobs: Folder(t.TempDir()), Data: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "cannot be opened") {
		t.Errorf("got %v, want that blobs cannot be opened", err)
	}
}

// FuzzBlob: whatever a blob is, there is a verdict.
func FuzzBlob(f *testing.F) {
	var boot, id, dir string
	for _, c := range rafstest.Core(f) {
		if c.Name == "upstream-v6" {
			boot, dir = c.Bootstrap, c.Blobs[0]
		}
	}
	id = "be7d77eeb719f70884758d1aa800ed0fb09d701aaec469964e9d54325f0d5fef"
	whole, err := os.ReadFile(filepath.Join(dir, id))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	for off := 0; off < len(whole); off += 101 {
		f.Add([]byte{byte(off), byte(off >> 8), 0, 0, 4, 0xff, 0xff, 0xff, 0x7f})
	}
	f.Fuzz(func(t *testing.T, patches []byte) {
		data := patched(whole, patches)
		r, err := File(context.Background(), boot, Options{Blobs: &patchedBlobs{id: id, data: data}, Data: true})
		if err != nil {
			t.Fatal(err)
		}
		var found *Error
		if err := r.Err(); err != nil && !errors.As(err, &found) {
			t.Errorf("got %v", err)
		}
		if len(data) != len(whole) || len(patches) != patchSize {
			return
		}
		if ok := r.Err() == nil; bytes.Equal(data, whole) && !ok || ok && !sameSections(data, whole) {
			t.Errorf("%d bytes, equal: %t: got %v", len(data), bytes.Equal(data, whole), r.Err())
		}
	})
}

// sameSections tells whether one blob is another but for what nobody reads of a tar
// header: with a checksum that fits, its owner or its time may be anything. Nor do
// compressed chunks matter, of which only the digests of what they hold tell: the
// header of a zstd frame can say the same in many ways.
func sameSections(a, b []byte) bool {
	const magicAt, size, dataSize = 257, 512, 0x1e7a
	a, b = bytes.Clone(a), bytes.Clone(b)
	copy(a[:dataSize], b)
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("ustar  \x00"))
		if i < magicAt || at+i-magicAt+size > len(b) {
			return bytes.Equal(a, b)
		}
		x, y := a[at+i-magicAt:][:size], b[at+i-magicAt:][:size]
		copy(x[100:124], y[100:])
		copy(x[136:156], y[136:])
		copy(x[265:], y[265:])
		at += i - magicAt + size
	}
}

// A bootstrap that was taken out of its blob does not know the blob's id.
func TestInlineBlobID(t *testing.T) {
	const id = "dd2def1adb812aefc7fb129d1a7d653c9b0111f24504f282b16bc23e2162c05e"
	dir := Folder(filepath.Join(testenv.Fixtures(t), "nydus-made/blobs"))
	f, err := os.Open(filepath.Join(string(dir), id))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var boot bytes.Buffer
	err = image.ExtractBootstrap(&boot, f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	for want, id := range map[string]string{"": id, "cannot be opened": ""} {
		r, err := Reader(context.Background(), bytes.NewReader(boot.Bytes()), int64(boot.Len()), Options{Blobs: dir, Data: true, InlineBlobID: id})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Err(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("with id %q: got %v, want %q", id, err, want)
		}
	}
}
