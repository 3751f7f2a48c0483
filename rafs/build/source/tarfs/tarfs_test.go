package tarfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), "nydus-made", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wanted(t testing.TB) []rafstest.Entry {
	t.Helper()
	all := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made/trees/tarable.ndjson"))
	return slices.DeleteFunc(all, func(e rafstest.Entry) bool { return e.Path == "/special/sock" }) // no tar holds sockets
}

// save writes the image of a tar to a folder and returns its bootstrap.
func save(t testing.TB, dir string, data []byte, chunkSize uint32) string {
	t.Helper()
	l, err := Read(t.Context(), iotest.HalfReader(bytes.NewReader(data)), Options{ChunkSize: chunkSize, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if sum := fmt.Sprintf("%x", sha256.Sum256(data)); l.ID != sum || l.Size != int64(len(data)) {
		t.Errorf("tar %s of %d bytes, want %s of %d", l.ID, l.Size, sum, len(data))
	}
	merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
	l.Tree = nil
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	plan, err := write.New(merged, []*write.BlobInfo{{ID: l.ID, Table: l.Table, Entry: l.Entry()}}, write.Options{
		Format: write.Format{ChunkSize: chunkSize, Digester: blob.DigesterSHA256}, Tarfs: true, TempDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var boot bytes.Buffer
	if err := plan.Write(&boot); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.boot")
	for name, b := range map[string][]byte{path: boot.Bytes(), filepath.Join(dir, l.ID): data} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

var chunkSizes = []uint32{4096, 64 << 10, 1 << 20, 16 << 20}

func TestImages(t *testing.T) {
	data, want := fixture(t, "tars/tarable.tar"), wanted(t)
	for _, size := range chunkSizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			path := save(t, dir, data, size)
			report, err := check.File(t.Context(), path, check.Options{Blobs: check.Folder(dir), Data: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Err(); err != nil {
				t.Error(err)
			}
			im, err := image.Open(path, image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			if size >= blob.DefaultChunkSize { // it digests the whole tar for every chunk
				rafstest.Compare(t, want, rafstest.Tree(im, rafstest.Blobs{dir}))
			}
		})
	}
}

// nydus-image made an image of the same tar: the same blob, the same chunks at the
// same places.
func TestChunksAsNydus(t *testing.T) {
	theirs, err := image.Open(filepath.Join(testenv.Fixtures(t), "nydus-made/images/v6-tar-tarfs/image.boot"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours, err := image.Open(save(t, t.TempDir(), fixture(t, "tars/tarable.tar"), blob.DefaultChunkSize), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	got, want := ours.Blobs()[0], theirs.Blobs()[0]
	if got.ID != want.ID || got.Features != want.Features || got.ChunkCount != want.ChunkCount ||
		got.CompressedSize != want.CompressedSize || got.UncompressedSize != want.UncompressedSize {
		t.Errorf("blob %+v, want %+v", got, want)
	}
	for i := range want.ChunkCount {
		a, okA := ours.ChunkRecord(0, i)
		b, okB := theirs.ChunkRecord(0, i)
		if a != b || okA != okB {
			t.Errorf("chunk %d: %+v, want %+v", i, a, b)
		}
	}
}

// Linux mounts the bootstrap with the tar as its device.
func TestLinuxAgrees(t *testing.T) {
	testenv.NeedsRoot(t)
	losetup := testenv.NeedsTool(t, "losetup")[0]
	data, want := fixture(t, "tars/tarable.tar"), wanted(t)
	for _, size := range chunkSizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := save(t, t.TempDir(), data, size)
			sum := sha256.Sum256(data)
			boot := attach(t, losetup, path)
			device := attach(t, losetup, filepath.Join(filepath.Dir(path), fmt.Sprintf("%x", sum)))
			mnt := t.TempDir()
			if err := unix.Mount(boot, mnt, "erofs", unix.MS_RDONLY, "device="+device); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(mnt, 0); err != nil {
					t.Error(err)
				}
			})
			rafstest.Compare(t, want, rafstest.Dir(mnt))
		})
	}
}

// attach makes a loop device of a file until the test ends.
func attach(t *testing.T, losetup, file string) string {
	t.Helper()
	out, err := exec.Command(losetup, "--find", "--show", "--read-only", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup %s: %v: %s", file, err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

func makeTar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// oldSparse makes the first file of a tar one with a hole, in GNU's old format:
// size bytes, of which only the last 512 are there.
func oldSparse(data []byte, size int) []byte {
	h := data[:512]
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	clear(h[345:512])
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", size-512, 512))
	copy(h[483:], fmt.Sprintf("%011o\x00", size))
	sum := 0
	copy(h[148:156], "        ")
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func TestRefuses(t *testing.T) {
	good := makeTar(t, "file", strings.Repeat("some content. ", 10000))
	broken := errors.New("broken")
	read := func(ctx context.Context, r io.Reader) (io.Closer, error) {
		return Read(ctx, r, Options{TempDir: t.TempDir()})
	}
	treetest.Refuses(t, read, good, map[string]treetest.Bad{
		"sparse": {R: bytes.NewReader(oldSparse(makeTar(t, "sparse", strings.Repeat("d", 512)), 3<<20)), Want: `entry "sparse": sparse file`},
		"half":   {R: bytes.NewReader(good[:len(good)/2]), Want: `entry "file": unexpected EOF`},
		"gzip":   {R: strings.NewReader("\x1f\x8b\x08 and so on" + strings.Repeat("x", 600)), Want: "compressed by gzip"},
		"zstd":   {R: strings.NewReader("\x28\xb5\x2f\xfd and so on" + strings.Repeat("x", 600)), Want: "compressed by zstd"},
		"reader": {R: io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)), Want: "broken"},
		"name":   {R: bytes.NewReader(makeTar(t, "../x", "x")), Want: `entry "../x"`},
	})
}

// FuzzRead reads any tar. Put together, the chunks are what the files of it hold, in
// their order.
func FuzzRead(f *testing.F) {
	f.Add(makeTar(f, "a", strings.Repeat("content ", 2000), "b/c", "x"))
	f.Add(oldSparse(makeTar(f, "sparse", strings.Repeat("d", 512)), 3<<20))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Read(t.Context(), bytes.NewReader(data), Options{ChunkSize: 4096, TempDir: t.TempDir(), Whiteouts: tree.WhiteoutNone})
		if err != nil {
			return
		}
		defer l.Close()
		var want []byte
		for r := tar.NewReader(bytes.NewReader(data)); ; {
			hdr, err := r.Next()
			if err != nil {
				break
			}
			if hdr.FileInfo().Mode().IsRegular() && hdr.Typeflag != tar.TypeLink && hdr.Typeflag != tar.TypeXGlobalHeader {
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, b...)
			}
		}
		var got []byte
		for c, err := range l.Table.All() {
			if err != nil {
				t.Fatal(err)
			}
			if c.CompressedOffset%blockSize != 0 || c.CompressedOffset != c.UncompressedOffset || c.CompressedSize != c.UncompressedSize {
				t.Errorf("chunk %+v", c)
			}
			got = append(got, data[c.CompressedOffset:][:c.CompressedSize]...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("chunks of %d bytes, files of %d", len(got), len(want))
		}
	})
}
