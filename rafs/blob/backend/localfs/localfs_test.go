package localfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/backendtest"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
)

func put(t *testing.T, dir string, data []byte) string {
	t.Helper()
	sum := sha256.Sum256(data)
	id := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(dir, id), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSuite(t *testing.T) {
	testenv.LeakCheck(t)
	dir, alt := t.TempDir(), t.TempDir()
	for name, where := range map[string]string{"dir": dir, "alt": alt} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, backendtest.Fixture{
				Put: func(t *testing.T, data []byte) string { return put(t, where, data) },
				New: func(t *testing.T) backend.Backend {
					b, err := localfs.New(dir, alt)
					if err != nil {
						t.Fatal(err)
					}
					return b
				},
			})
		})
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "any name")
	want := backendtest.Data(5000, 1)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	b := localfs.NewFile(path)
	defer b.Close()
	r, err := b.Open("0123")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := r.ReadRange(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v, equal: %v", err, bytes.Equal(got, want))
	}
}

func TestNotAPlainFile(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"folder":   os.Mkdir(filepath.Join(dir, "folder"), 0o700),
		"pipe":     syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
		"absolute": os.Symlink(outside, filepath.Join(dir, "absolute")),
		"upwards":  os.Symlink("../"+filepath.Base(filepath.Dir(outside))+"/secret", filepath.Join(dir, "upwards")),
		"loop":     os.Symlink("loop", filepath.Join(dir, "loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
		b, err := localfs.New(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		r, err := b.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ReadRange(t.Context(), make([]byte, 10), 0); !errors.Is(err, backend.ErrDenied) {
			t.Errorf("%s: %v, want ErrDenied", name, err)
		}
	}
}

// A file that shrinks under the reader is a range outside it, not zeros.
func TestShrinks(t *testing.T) {
	dir := t.TempDir()
	id := put(t, dir, make([]byte, 8192))
	b, err := localfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, err := b.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ReadRange(t.Context(), make([]byte, 8192), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, id), 100); err != nil {
		t.Fatal(err)
	}
	if err := r.ReadRange(t.Context(), make([]byte, 8192), 0); !errors.Is(err, backend.ErrRange) {
		t.Errorf("read of a file that shrank: %v, want ErrRange", err)
	}
}

func TestNoFolder(t *testing.T) {
	if _, err := localfs.New(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("new over no folder: %v, want ErrNotExist", err)
	}
}
