package export_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// A tar file with another name than its digest is refused, but not where it is the
// caller's own; blobs with digests are held against these as ever.
func TestNewLocalData(t *testing.T) {
	for _, tc := range []struct {
		name  string
		taken bool
	}{{"v6-tar-tarfs", true}, {"v6-none-blake3", false}} {
		im, _ := open(t, named(t, rafstest.Nydus(t), tc.name))
		c := named(t, rafstest.Nydus(t), tc.name)
		raw, err := os.ReadFile(filepath.Join(c.Blobs[0], im.Blobs()[0].ID))
		if err != nil {
			t.Fatal(err)
		}
		for i := 5 * 4096; i < len(raw); i += 4096 {
			raw[i] ^= 1 // its name is now that of another file
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, im.Blobs()[0].ID), raw, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := export.Unpack(t.Context(), im, data(t, im, rafstest.Blobs{dir}), io.Discard, export.UnpackOptions{}); !errors.Is(err, blob.ErrDigest) {
			t.Errorf("%s: unpacked: %v, want ErrDigest", tc.name, err)
		}
		b, err := localfs.New(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var said bytes.Buffer
		d, err := export.NewLocalData(t.Context(), im, b, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		_, err = export.Unpack(t.Context(), im, d, io.Discard, export.UnpackOptions{})
		if tc.taken && (err != nil || !strings.Contains(said.String(), "not named by its digest")) {
			t.Errorf("%s: %v, log %q, want it to be taken with a warning", tc.name, err, &said)
		}
		if !tc.taken && !errors.Is(err, blob.ErrDigest) {
			t.Errorf("%s: %v, want ErrDigest", tc.name, err)
		}
	}
}
