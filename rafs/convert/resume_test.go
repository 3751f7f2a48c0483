package convert

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// resumed counts the layers that were found.
func resumed(r *Result) (n int) {
	for _, l := range r.Layers {
		if l.Resumed {
			n++
		}
	}
	return n
}

// A conversion whose registry goes away keeps its layers: the next one reads none
// of them, makes the same image, and removes them.
func TestResume(t *testing.T) {
	for name, o := range flavours {
		t.Run(name, func(t *testing.T) {
			reg, state := newRegistry(t), t.TempDir()
			src, dst := reg.host+"/src:v1", reg.host+"/dst:v1"
			img := newImage(t, "gzip", fixtureTars(t, layerTars...)...)
			img.push(t, src)
			o.Source, o.Target = src, "oci:"+t.TempDir()
			want, err := Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			o.Target, o.StateDir = dst, state
			o.Push.Retries = -1
			reg.refuse = func(r *http.Request) bool {
				return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/dst/manifests/")
			}
			if _, err := Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), again) {
				t.Fatalf("refused: got %v, want %q in it", err, again)
			}
			reg.refuse = nil
			before := 0
			for _, l := range img.manifest.Layers {
				before += reg.count(http.MethodGet, l.Digest.Hex)
			}
			got, err := Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			after := 0
			for _, l := range img.manifest.Layers {
				after += reg.count(http.MethodGet, l.Digest.Hex)
			}
			if got.Digest != want.Digest || resumed(got) != 3 || !o.Reference && after != before {
				t.Errorf("resumed %d layers, %d more reads: digest %s, want %s", resumed(got), after-before, got.Digest, want.Digest)
			}
			verified(t, src, dst, verify.Options{})
			if left, _ := os.ReadDir(filepath.Join(state, "layers")); len(left) != 0 {
				t.Errorf("%v remains", left)
			}
		})
	}
}

// What was kept is not used when it is damaged, or was made otherwise.
func TestResumeDamaged(t *testing.T) {
	oci, state := t.TempDir(), t.TempDir()
	newImage(t, "gzip", fixtureTars(t, layerTars...)...).layout(t, oci, "")
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fill := Options{Source: oci, Target: "oci:" + blocked + "/x", StateDir: state}
	same := program
	defer func() { program = same }()
	for what, tc := range map[string]struct {
		harm func(path string, size int64) error
		o    Options
		want int
	}{
		"nothing":     {func(string, int64) error { return nil }, Options{}, 3},
		"cut":         {func(path string, size int64) error { return os.Truncate(path, size/2) }, Options{}, 0},
		"empty":       {func(path string, size int64) error { return os.Truncate(path, 0) }, Options{}, 0},
		"flipped":     {flip, Options{}, 0},
		"gone":        {func(path string, _ int64) error { return os.Remove(path) }, Options{}, 0},
		"other chunk": {func(string, int64) error { return nil }, Options{Format: Format{ChunkSize: 4096}}, 0},
		"other kind":  {func(string, int64) error { return nil }, Options{Reference: true}, 0},
		"other build": {func(string, int64) error { program = func() []string { return []string{"v0"} }; return nil }, Options{}, 0},
	} {
		for _, suffix := range []string{stateBlob, stateLayer} {
			program = same
			if _, err := Convert(t.Context(), fill); err == nil {
				t.Fatal("a target below a file is written")
			}
			kept, err := filepath.Glob(filepath.Join(state, "layers", "*"+suffix))
			if err != nil || len(kept) != 3 {
				t.Fatalf("kept %v, want 3 files", kept)
			}
			for _, path := range kept {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := tc.harm(path, st.Size()); err != nil {
					t.Fatal(err)
				}
			}
			tc.o.Source, tc.o.Target, tc.o.StateDir = oci, "oci:"+t.TempDir(), state
			got, err := Convert(t.Context(), tc.o)
			if err != nil {
				t.Fatalf("%s %s: %v", what, suffix, err)
			}
			if resumed(got) != tc.want {
				t.Errorf("%s %s: resumed %d layers, want %d", what, suffix, resumed(got), tc.want)
			}
			verified(t, oci, tc.o.Target, verify.Options{SkipData: true})
		}
	}
}

func flip(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], size/2)
	b[0] ^= 1
	_, writeErr := f.WriteAt(b[:], size/2)
	return errors.Join(err, writeErr, f.Close())
}

// A folder that others may write to is not trusted.
func TestStateFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "layers"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "layers"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir); err == nil || !strings.Contains(err.Error(), "alone may write to") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// On a disk that gets full a conversion ends with what to do, and goes on when
// there is room.
func TestDiskFull(t *testing.T) {
	testenv.NeedsRoot(t)
	var tars [][]byte
	for i := range 3 {
		tars = append(tars, tarOf(t, entry{Header: tar.Header{Name: fmt.Sprint(i)}, data: string(noise(uint64(i), 700_000))}))
	}
	oci, disk := t.TempDir(), t.TempDir()
	newImage(t, "gzip", tars...).layout(t, oci, "")
	mount := func(size string) error { return unix.Mount("none", disk, "tmpfs", 0, "size="+size) }
	if err := mount("2m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }()
	o := Options{Source: oci, Target: "oci:" + t.TempDir(), StateDir: disk, WorkDir: disk, Layers: 1}
	_, err := Convert(t.Context(), o)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), again) {
		t.Fatalf("got %v, want %v and %q", err, unix.ENOSPC, again)
	}
	if _, err := os.Stat(filepath.Join(strings.TrimPrefix(o.Target, "oci:"), "index.json")); err == nil {
		t.Error("there is an image")
	}
	if err := unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=20m"); err != nil {
		t.Fatal(err)
	}
	got, err := Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if n := resumed(got); n == 0 || n == 3 {
		t.Errorf("resumed %d layers, want those that were done", n)
	}
	verified(t, oci, o.Target, verify.Options{})
	if left, _ := filepath.Glob(filepath.Join(disk, "*", "*")); len(left) != 0 {
		t.Errorf("%v remains", left)
	}
}

// noise does not compress.
func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	x := seed*2862933555777941757 + 3037000493
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x >> 32)
	}
	return data
}

// Only what conversions have left is removed when it is old: the folder may be
// one that the user has other things in.
func TestExpireLeavesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	key := strings.Repeat("0a", 32)
	old := time.Now().Add(-2 * stateAge)
	write := func(name string) {
		path := filepath.Join(dir, StateLayers, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.Chtimes(path, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	mine := []string{key + stateBlob, key + stateLayer, unfinished + "123"}
	others := []string{"thesis.txt", "base.layer", key, key + ".tar", strings.ToUpper(key) + stateBlob, "x" + key + stateBlob}
	for _, name := range append(mine, others...) {
		write(name)
	}
	if _, err := openState(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range mine {
		if _, err := os.Stat(filepath.Join(dir, StateLayers, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, want it gone", name, err)
		}
	}
	for _, name := range others {
		if _, err := os.Stat(filepath.Join(dir, StateLayers, name)); err != nil {
			t.Errorf("what is not ours: %v", err)
		}
	}
}

// Conversions of the same image that share a state folder do not disturb each
// other.
func TestSharedStateFolder(t *testing.T) {
	o := Options{StateDir: t.TempDir()}
	s, err := openState(o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversion{run: &run{opts: o, state: s}}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				f, err := c.blobFile()
				if err != nil {
					t.Error(err)
					return
				}
				err = errors.Join(s.name(f, "same"), f.Close())
				if err != nil {
					t.Errorf("writer %d, file %d: %v", i, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) != 1 || left[0].Name() != "same" {
		t.Errorf("left %v, %v, want one file", left, err)
	}
}
