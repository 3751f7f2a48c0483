//go:build peers

package targz

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// bigTar has files of many sizes, some of which end with a block of the tar.
func bigTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	rnd, noise := rand.New(rand.NewPCG(1, 2)), rand.NewChaCha8([32]byte{3})
	for i := range 24 {
		size := []int{5 << 20, 512 * (1 + rnd.IntN(4000)), 1 + rnd.IntN(3_000_000), 1 << 20, 1, 4096}[i%6]
		data := make([]byte, size)
		for at := 0; at < size; {
			n := min(size-at, 1+rnd.IntN(5000))
			if kind := rnd.IntN(3); kind == 0 {
				noise.Read(data[at : at+n])
			} else if kind == 1 && at > n {
				copy(data[at:at+n], data[rnd.IntN(at-n+1):])
			}
			at += n
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%02d", i), Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// nydusd reads what we make of a layer, and nydus-image accepts it. Streams of
// several members are for nydusd 2.3 and later, and not here. Run by make interop.
func TestNydusAgrees(t *testing.T) {
	nydusd, nydusImage := testenv.Peer(t, "nydusd"), testenv.Peer(t, "nydus-image")
	big := bigTar(t)
	for _, c := range []struct {
		name   string
		stream []byte
		o      write.BlobOptions
	}{
		{"best", zip(t, gzip.BestCompression, 0, big), write.BlobOptions{}},
		{"fast-toc", zip(t, gzip.BestSpeed, 0, big), write.BlobOptions{TOC: true}},
		{"stored", zip(t, gzip.NoCompression, 0, big), write.BlobOptions{}},
		{"huffman-64k", zip(t, gzip.HuffmanOnly, 0, big), write.BlobOptions{Format: write.Format{ChunkSize: 64 << 10}}},
		{"tar", big, write.BlobOptions{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := read(t, bytes.NewReader(c.stream), Options{ChunkSize: c.o.ChunkSize})
			dir := t.TempDir()
			path := save(t, dir, c.stream, l, c.o)
			if out, err := exec.Command(nydusImage, "check", "-B", path).CombinedOutput(); err != nil {
				t.Errorf("nydus-image check: %v\n%s", err, out)
			}
			src := t.TempDir()
			untar(t, src, big)
			var want []rafstest.Entry
			for e, err := range rafstest.Dir(src) {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, e)
			}
			mnt := mountNydusd(t, nydusd, dir, path)
			for _, w := range want {
				if !w.IsRegular() {
					continue
				}
				a, err := os.ReadFile(filepath.Join(src, w.Path))
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(filepath.Join(mnt, w.Path))
				if err != nil || !bytes.Equal(a, b) {
					t.Errorf("%s: %d bytes, %v; want %d", w.Path, len(b), err, len(a))
				}
			}
		})
	}
}

func untar(t testing.TB, dir string, data []byte) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, hdr.Name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func mountNydusd(t *testing.T, program, dir, bootstrap string) string {
	t.Helper()
	config := fmt.Sprintf(`{"device":{"backend":{"type":"localfs","config":{"dir":%q}},
		"cache":{"type":"blobcache","config":{"work_dir":%q},"validate":true}},"mode":"direct"}`, dir, t.TempDir())
	return rafstest.MountNydusd(t, program, config, bootstrap)
}
