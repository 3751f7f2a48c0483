package convert

import (
	"archive/tar"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

var when = time.Unix(1_700_000_000, 0)

func at(h tar.Header) tar.Header {
	h.ModTime = when
	return h
}

func fileEntry(name, data string) entry {
	return entry{Header: at(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}), data: data}
}

func folderEntry(name string) entry {
	return entry{Header: at(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755})}
}

// unpackTo makes files and folders of entries, and overlayfs' marks of whiteouts.
func unpackTo(t *testing.T, dir string, entries ...entry) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name)
		base := filepath.Base(name)
		gone, white := strings.CutPrefix(base, ".wh.")
		switch {
		case base == ".wh..wh..opq":
			check(unix.Setxattr(filepath.Dir(name), "trusted.overlay.opaque", []byte("y"), 0))
		case white:
			check(unix.Mknod(filepath.Join(filepath.Dir(name), gone), unix.S_IFCHR, 0))
		case e.Typeflag == tar.TypeDir:
			check(os.MkdirAll(name, 0o755))
		default:
			check(os.WriteFile(name, []byte(e.data), 0o644))
		}
	}
	for i := range entries {
		name := filepath.Join(dir, entries[len(entries)-1-i].Name)
		if _, err := os.Lstat(name); err == nil {
			check(os.Chtimes(name, when, when))
		}
	}
}

func commitTo(t *testing.T, rafs, target string, o CommitOptions) (*Committed, error) {
	t.Helper()
	dst, err := store.OpenTarget(t.Context(), target, artifact.Options{}, store.Push{})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	o.Source, o.Target, o.Platform, o.WorkDir = openImage(t, rafs), dst, amd64, t.TempDir()
	return Commit(t.Context(), o)
}

// An image that was committed is the one that a layer of the same changes makes.
func TestCommit(t *testing.T) {
	testenv.NeedsRoot(t)
	base := []entry{
		folderEntry("etc"), fileEntry("etc/old", "old"), fileEntry("etc/changed", "before"), folderEntry("data"),
		fileEntry("data/hidden", "hidden"), fileEntry("big", strings.Repeat("0123456789", 300_000)), folderEntry("mnt"), fileEntry("mnt/below", "below"),
	}
	changes := []entry{
		folderEntry("etc"), fileEntry("etc/new", "new"), fileEntry("etc/changed", "after"), fileEntry("etc/.wh.old", ""),
		folderEntry("data"), fileEntry("data/.wh..wh..opq", ""), fileEntry("data/seen", "seen"),
		fileEntry("left-out", "left out"), folderEntry("mnt"), fileEntry("mnt/shadowed", "x"),
	}
	mounted := []entry{fileEntry("file", "mounted")}
	for _, version := range []int{5, 6} {
		oci, want, upper, mount := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
		newImage(t, "gzip", tarOf(t, base...)).layout(t, oci, "")
		expected := []entry{folderEntry("mnt"), fileEntry("mnt/.wh..wh..opq", ""), fileEntry("mnt/file", "mounted")}
		newImage(t, "gzip", tarOf(t, base...), tarOf(t, changes[:len(changes)-3]...), tarOf(t, expected...)).layout(t, want, "")
		unpackTo(t, upper, changes...)
		unpackTo(t, mount, mounted...)
		if err := os.Chtimes(mount, when, when); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(mount, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(upper, 0o755); err != nil {
			t.Fatal(err)
		}
		rafs, got := "oci:"+t.TempDir(), "oci:"+t.TempDir()
		if _, err := Convert(t.Context(), Options{Source: oci, Target: rafs, Format: Format{Version: version}}); err != nil {
			t.Fatal(err)
		}
		o := CommitOptions{Upper: upper, Without: []string{"/left-out"}, Mounts: []Mount{{Path: "/mnt", Dir: mount}}}
		r, err := commitTo(t, rafs, got, o)
		if err != nil {
			t.Fatal(err)
		}
		if r.Times != 1 || len(r.Blobs) != 2 {
			t.Errorf("v%d: committed %d times, blobs %v, want once, 2", version, r.Times, r.Blobs)
		}
		verified(t, want, got, verify.Options{})
		again := "oci:" + t.TempDir()
		if r, err := commitTo(t, got, again, CommitOptions{Upper: t.TempDir(), MaxTimes: 3}); err != nil || r.Times != 3 || len(r.Blobs) != 0 {
			t.Errorf("v%d: nothing committed on top: %+v, %v", version, r, err)
		}
		if _, err := commitTo(t, got, again, CommitOptions{Upper: upper, MaxTimes: 2}); err == nil || !strings.Contains(err.Error(), "limit 2") {
			t.Errorf("v%d: beyond the limit: got %v", version, err)
		}
	}
}

func TestCommitRefused(t *testing.T) {
	rafs, zran := "oci:"+t.TempDir(), "oci:"+t.TempDir()
	oci := fixtureLayout(t)
	for target, o := range map[string]Options{rafs: {}, zran: {Reference: true}} {
		o.Source, o.Target = oci, target
		if _, err := Convert(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		image, want string
		o           CommitOptions
	}{
		{rafs, "upper folder", CommitOptions{Upper: "/nowhere"}},
		{oci, "not a RAFS image", CommitOptions{Upper: t.TempDir()}},
		{zran, "without --oci-ref", CommitOptions{Upper: t.TempDir()}},
		{rafs, "below the root", CommitOptions{Upper: t.TempDir(), Mounts: []Mount{{Path: "/", Dir: t.TempDir()}}}},
	} {
		if _, err := commitTo(t, tc.image, "oci:"+t.TempDir(), tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.image, err, tc.want)
		}
	}
}

// fakeContainer counts what is asked of it.
type fakeContainer struct {
	pauses, resumes int
	pauseErr        error
	mount           func(path string) (Mount, error)
}

func (c *fakeContainer) Pause(context.Context) error {
	c.pauses++
	return c.pauseErr
}

func (c *fakeContainer) Resume() error {
	c.resumes++
	return nil
}

func (c *fakeContainer) Mount(path string) (Mount, error) { return c.mount(path) }

// A container is paused when all else is known, and resumed however the reading ends,
// before anything is stored.
func TestCommitPauses(t *testing.T) {
	rafs := "oci:" + t.TempDir()
	if _, err := Convert(t.Context(), Options{Source: fixtureLayout(t), Target: rafs}); err != nil {
		t.Fatal(err)
	}
	mounted, broken := t.TempDir(), errors.New("broken")
	unpackTo(t, mounted, fileEntry("file", "one"), fileEntry("other", "two"))
	good := func(path string) (Mount, error) { return Mount{Path: path, Dir: mounted, Name: "file"}, nil }
	for name, tc := range map[string]struct {
		c     fakeContainer
		upper string
		want  error
	}{
		"well":    {fakeContainer{mount: good}, t.TempDir(), nil},
		"pause":   {fakeContainer{pauseErr: broken}, t.TempDir(), broken},
		"mount":   {fakeContainer{mount: func(string) (Mount, error) { return Mount{}, broken }}, t.TempDir(), broken},
		"reading": {fakeContainer{mount: good}, "/nowhere", fs.ErrNotExist},
		"panic":   {fakeContainer{mount: func(string) (Mount, error) { panic(broken) }}, t.TempDir(), broken},
	} {
		t.Run(name, func(t *testing.T) {
			o := CommitOptions{Upper: tc.upper, Container: &tc.c, Paths: []string{"/etc/file"}}
			err := func() (err error) {
				defer func() {
					if r := recover(); r != nil {
						err = r.(error)
					}
				}()
				_, err = commitTo(t, rafs, "oci:"+t.TempDir(), o)
				return err
			}()
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if tc.c.pauses != 1 || tc.c.resumes != 1 {
				t.Errorf("paused %d times, resumed %d times, want once each", tc.c.pauses, tc.c.resumes)
			}
		})
	}
	var untouched fakeContainer
	if _, err := commitTo(t, fixtureLayout(t), "oci:"+t.TempDir(), CommitOptions{Upper: t.TempDir(), Container: &untouched}); !errors.Is(err, artifact.ErrNotRAFS) {
		t.Errorf("not a RAFS image: got %v", err)
	}
	if untouched.pauses != 0 || untouched.resumes != 0 {
		t.Errorf("for an image that cannot be committed to, the container was paused")
	}
}
