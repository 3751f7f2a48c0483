package store

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// Those who write to one layout at the same time find each other's images there.
func TestManyTargetsOneLayout(t *testing.T) {
	f := newFixture()
	f.root = f.image(t, 1, nil, 100)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 16 {
		dst := target(t, fmt.Sprintf("oci:%s/x:v%d", dir, i), Push{})
		wg.Go(func() {
			if _, err := Copy(t.Context(), dst, f, CopyOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 16 {
		s := source(t, fmt.Sprintf("oci:%s/x:v%d", dir, i))
		if s.Root().Digest != f.root.Digest {
			t.Errorf("v%d is %s, want %s", i, s.Root().Digest, f.root.Digest)
		}
	}
}

// A blob of a layout that is not what it was is stored again.
func TestDamagedLayout(t *testing.T) {
	f := newFixture()
	d := f.add(types.OCILayer, noise(1, 5000))
	f.root = f.image(t, 2, nil, 100)
	dir := t.TempDir()
	dst := target(t, "oci:"+dir, Push{})
	store := func() bool {
		t.Helper()
		sent, err := dst.Blob(t.Context(), d, func(ctx context.Context, from int64) (io.ReadCloser, error) { return f.Blob(ctx, d, from) })
		if err != nil {
			t.Fatal(err)
		}
		return sent
	}
	if !store() || store() {
		t.Error("a blob is not stored once")
	}
	path := filepath.Join(dir, blobPath(d.Digest))
	for what, data := range map[string][]byte{"other bytes": noise(2, 5000), "cut": noise(1, 5000)[:4999]} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if !store() || store() {
			t.Errorf("%s: not stored again, once", what)
		}
	}
}

// What is written can be read by those whom the umask lets.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	f := newFixture()
	f.root = f.image(t, 1, nil, 100)
	dir := t.TempDir()
	for _, name := range []string{"oci:" + dir, "oci-archive:" + dir + "/a.tar"} {
		copyTo(t, name, f, Push{}, CopyOptions{})
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		if err == nil && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", path, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
