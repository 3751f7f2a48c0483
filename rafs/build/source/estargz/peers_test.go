//go:build peers

package estargz

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// nydusd reads an eStargz by what we make of its table of contents, if a node has
// the chunk information where nydusd keeps it. Run by make interop.
func TestNydusAgrees(t *testing.T) {
	nydusd, nydusImage := testenv.Peer(t, "nydusd"), testenv.Peer(t, "nydus-image")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	noise := rand.NewChaCha8([32]byte{1})
	files := map[string][]byte{"large": make([]byte, 9_000_001), "even": make([]byte, 4<<20), "zeros": make([]byte, 5<<20), "small": []byte("small")}
	for _, name := range []string{"large", "even", "zeros", "small"} {
		if name != "zeros" {
			noise.Read(files[name])
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, toc := stargz(t, b.Bytes(), DefaultChunkSize)
	dir := t.TempDir()
	path := image1(t, dir, layer, toc, DefaultChunkSize)
	if out, err := exec.Command(nydusImage, "check", "-B", path).CombinedOutput(); err != nil {
		t.Errorf("nydus-image check: %v\n%s", err, out)
	}
	mnt := mountNydusd(t, nydusd, dir, path)
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

func mountNydusd(t *testing.T, program, dir, bootstrap string) string {
	t.Helper()
	config := fmt.Sprintf(`{"device":{"backend":{"type":"localfs","config":{"dir":%q}},
		"cache":{"type":"blobcache","config":{"work_dir":%q}}},"mode":"direct"}`, dir, dir)
	return rafstest.MountNydusd(t, program, config, bootstrap)
}
