package export_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// A layer is the tar, compressed, under digests that another implementation
// finds as well, and the same bytes each time.
func TestLayer(t *testing.T) {
	testenv.LeakCheck(t)
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	plain, _ := unpack(t, im, d, export.UnpackOptions{})
	for name, want := range map[string]types.MediaType{
		"gzip": types.OCILayer, "zstd": types.OCILayerZStd, "uncompressed": types.OCIUncompressedLayer,
	} {
		c, err := export.ParseCompression(name)
		if err != nil {
			t.Fatal(err)
		}
		var out, again bytes.Buffer
		info, err := export.Layer(t.Context(), im, d, &out, export.LayerOptions{Compression: c})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := export.Layer(t.Context(), im, d, &again, export.LayerOptions{Compression: c}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Errorf("%s: other bytes the second time", name)
		}
		sum, diff := sha256.Sum256(out.Bytes()), sha256.Sum256(plain)
		if info.MediaType != want || info.Size != int64(out.Len()) || info.TarSize != int64(len(plain)) ||
			info.Digest.Hex != hex.EncodeToString(sum[:]) || info.DiffID.Hex != hex.EncodeToString(diff[:]) {
			t.Errorf("%s: %+v for %d bytes of %x, tar %d bytes of %x", name, info, out.Len(), sum, len(plain), diff)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(out.Bytes())), nil
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if id, err := layer.DiffID(); err != nil || id != info.DiffID {
			t.Errorf("%s: diff id %v, %v, want %v", name, id, err, info.DiffID)
		}
	}
	if _, err := export.ParseCompression("bzip2"); err == nil {
		t.Error("bzip2 is no compression of OCI layers")
	}
	if _, err := export.Layer(t.Context(), im, d, &failing{1000}, export.LayerOptions{}); !errors.Is(err, errFull) {
		t.Errorf("writer that fails: %v", err)
	}
}

// The layers of an image come out one by one, each by the bootstrap inside its
// blob, and are what the layers went in as.
func TestLayerByLayer(t *testing.T) {
	root := testenv.Fixtures(t)
	for _, name := range []string{"v6-inline-meta", "v6-inline-meta-toc", "v5-inline-meta"} {
		b, err := localfs.New(filepath.Join(root, "nydus-made/blobs"))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		id := blobIDs(t, filepath.Join(root, "nydus-made/images", name, "output.json"))[0]
		im, err := export.OpenLayer(t.Context(), b, id, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		d := data(t, im, rafstest.Blobs{filepath.Join(root, "nydus-made/blobs")})
		var out bytes.Buffer
		info, err := export.Layer(t.Context(), im, d, &out, export.LayerOptions{Compression: export.Uncompressed})
		if err != nil {
			t.Fatal(err)
		}
		want, sockets := withoutSockets(rafstest.Manifest(t, filepath.Join(root, "nydus-made/trees/everything.ndjson")))
		rafstest.Compare(t, want, each(readTar(t, &out)))
		if info.Stats.Sockets != sockets {
			t.Errorf("%s: %d sockets, want %d", name, info.Stats.Sockets, sockets)
		}
	}
}

func blobIDs(t *testing.T, path string) []string {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Blobs []string }
	if err := json.Unmarshal(p, &out); err != nil || len(out.Blobs) == 0 {
		t.Fatalf("%s: %v, %s", path, err, p)
	}
	return out.Blobs
}

// A blob without a bootstrap says so.
func TestOpenLayerWithout(t *testing.T) {
	c := named(t, rafstest.Core(t), "v6-zstd-blake3")
	im, _ := open(t, c)
	b, err := localfs.New(c.Blobs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := export.OpenLayer(t.Context(), b, im.Blobs()[0].ID, t.TempDir()); !errors.Is(err, image.ErrNoBootstrap) {
		t.Errorf("got %v, want %v", err, image.ErrNoBootstrap)
	}
	if _, err := export.OpenLayer(t.Context(), b, "absent", t.TempDir()); err == nil {
		t.Error("absent blob: no error")
	}
}
