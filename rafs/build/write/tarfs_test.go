package write

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// tarCutter notes where in a tar the data of files lies.
type tarCutter struct {
	pos   int64
	r     io.Reader
	table records
}

func (c *tarCutter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.pos += int64(n)
	return n, err
}

func (c *tarCutter) File(r io.Reader, size int64, add func(chunk.Ref) error) error {
	for size > 0 {
		n := min(size, blob.DefaultChunkSize)
		c.table = append(c.table, chunk.Record{
			CompressedOffset: uint64(c.pos), UncompressedOffset: uint64(c.pos), CompressedSize: uint32(n), UncompressedSize: uint32(n),
		})
		if _, err := io.CopyN(io.Discard, r, n); err != nil {
			return err
		}
		if err := add(chunk.Ref{Index: uint32(len(c.table) - 1)}); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// buildTarfs makes a bootstrap over a tar as it is.
func buildTarfs(t *testing.T, data []byte) (plan Plan, bootstrap []byte, id string) {
	t.Helper()
	c := &tarCutter{r: bytes.NewReader(data)}
	layer, err := tree.ReadTar(context.Background(), c, c, tree.ReadOptions{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	merged, err := tree.Merge(context.Background(), t.TempDir(), layer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { merged.Close() })
	sum := sha256.Sum256(data)
	id = hex.EncodeToString(sum[:])
	o := Options{Format: Format{ChunkSize: blob.DefaultChunkSize, Digester: blob.DigesterSHA256}, Tarfs: true, TempDir: t.TempDir()}
	info := &BlobInfo{ID: id, Table: c.table, Entry: v6.BlobEntry{
		ChunkCount: c.table.Len(), Digester: uint32(blob.DigesterSHA256), Features: uint32(layout.FeatureCapTarTOC | layout.FeatureTarfs),
		CompressedSize: uint64(len(data)), UncompressedSize: uint64(len(data)),
	}}
	if plan, err = New(merged, []*BlobInfo{info}, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plan.Close() })
	var out bytes.Buffer
	if err := Bootstrap(&out, plan); err != nil {
		t.Fatal(err)
	}
	return plan, out.Bytes(), id
}

// A bootstrap over a tar file is what nydus-image makes of it, and ours and Linux
// read the files from the tar.
func TestTarfs(t *testing.T) {
	data := fixtureTars(t, "tarable.tar")[0]
	_, bootstrap, id := buildTarfs(t, data)
	want, got := decodeV6(t, nydusFile(t, "images", "v6-tar-tarfs", "image.boot")), decodeV6(t, bootstrap)
	want.Blobs[0].CICompressor = 0 // of chunk information that is not there
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tables (-nydus +got):\n%s", diff)
	}
	if diff := cmp.Diff(places(t, nydusFile(t, "images", "v6-tar-tarfs", "image.boot")), places(t, bootstrap)); diff != "" {
		t.Errorf("inodes by name (-nydus +got):\n%s", diff)
	}
	dir := t.TempDir()
	boot := filepath.Join(dir, "image.boot")
	for name, b := range map[string][]byte{boot: bootstrap, filepath.Join(dir, id): data} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := check.Image(context.Background(), boot); err != nil {
		t.Errorf("check: %v", err)
	}
	im, err := image.Open(boot, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	entries := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", "tarable.ndjson"))
	entries = slices.DeleteFunc(entries, func(e rafstest.Entry) bool { return e.Path == "/special/sock" }) // not in a tar
	rafstest.Compare(t, entries, rafstest.Tree(im, rafstest.Blobs{dir}))
}

func TestLinuxReadsTarfs(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	data := fixtureTars(t, "tarable.tar")[0]
	_, bootstrap, id := buildTarfs(t, data)
	dir := t.TempDir()
	boot, tar := filepath.Join(dir, "image.boot"), filepath.Join(dir, id)
	for name, b := range map[string][]byte{boot: bootstrap, tar: data} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := manifest(t, "tarable.ndjson")
	delete(want, "/special/sock") // a tar holds no sockets
	if diff := cmp.Diff(want, observe(t, testenv.MountEROFS(t, boot, tar))); diff != "" {
		t.Errorf("tree differs (-want +got):\n%s", diff)
	}
}
