package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/containerdtest"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// appSource is what the containers run: a program that waits, or writes a file over
// and over.
const appSource = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	for n := 0; len(os.Args) > 1; n++ {
		if err := os.WriteFile(os.Args[1], []byte(strings.Repeat(strconv.Itoa(n%10), 100000)), 0o644); err != nil {
			panic(err)
		}
	}
	time.Sleep(time.Hour)
}
`

// must1 fails the test for an error.
func must1(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// stage is a containerd, a registry, and an image in both: OCI in containerd, by the
// name that image has, RAFS in the registry, by the name rafs.
type stage struct {
	*containerdtest.Server
	bin, host, image, rafs string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{Server: containerdtest.Start(t), bin: self(t)}
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	s.host = reg.Listener.Addr().String()
	s.image, s.rafs = s.host+"/app:v1", s.host+"/app:rafs"
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	var err error
	for _, raw := range [][]byte{lowerLayer(t, buildApp(t)), middleLayer(t)} {
		img, err = mutate.AppendLayers(img, static.NewLayer(raw, types.OCIUncompressedLayer))
		must1(t, err)
	}
	config, err := img.ConfigFile()
	must1(t, err)
	config.OS, config.Architecture = "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, config)
	must1(t, err)
	ref, err := name.NewTag(s.image)
	must1(t, err)
	file := filepath.Join(t.TempDir(), "image.tar")
	must1(t, remote.Write(ref, img), tarball.WriteToFile(file, ref, img))
	s.Import(t, file)
	s.exec(t, 0, "rafsd", "convert", s.image, s.rafs)
	return s
}

func buildApp(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	must1(t, os.WriteFile(filepath.Join(dir, "app.go"), []byte(appSource), 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", "app", "app.go")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "app"))
	must1(t, err)
	return b
}

// lowerLayer and middleLayer are those of the image.
func lowerLayer(t *testing.T, app []byte) []byte {
	t.Helper()
	return tarWith(t, []tar.Header{
		{Name: "app", Typeflag: tar.TypeReg, Mode: 0o755},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/gone", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "etc/changed", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 7},
		{Name: "etc/kept", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.old": "x"}},
		{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o750},
		{Name: "data/hidden", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "becomes-file/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "becomes-file/x", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "becomes-folder", Typeflag: tar.TypeSymlink, Linkname: "etc"},
		{Name: "hard-a", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "etc/hard-b", Typeflag: tar.TypeLink, Linkname: "hard-a", Mode: 0o644},
	}, app)
}

func middleLayer(t *testing.T) []byte {
	t.Helper()
	return tarWith(t, []tar.Header{
		{Name: "opt/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "opt/deep/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "opt/deep/file", Typeflag: tar.TypeReg, Mode: 0o4755},
		{Name: "skipped/", Typeflag: tar.TypeDir, Mode: 0o755},
	}, nil)
}

// tarWith makes a tar in which files hold their names, and the first one app.
func tarWith(t *testing.T, headers []tar.Header, app []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		var body []byte
		if h.Typeflag == tar.TypeReg {
			body = []byte(h.Name)
			if app != nil {
				body, app = app, nil
			}
		}
		h.Size, h.ModTime = int64(len(body)), time.Unix(1_700_000_000, 0)
		must1(t, w.WriteHeader(&h))
		_, err := w.Write(body)
		must1(t, err)
	}
	must1(t, w.Close())
	return out.Bytes()
}

// exec runs our program by one of its names, which must end with a code, and
// returns what it prints to stdout and stderr.
func (s *stage) exec(t *testing.T, code int, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.bin, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%s: exit code %d, want %d: %s", strings.Join(argv, " "), got, code, out)
	}
	return string(out)
}

// tree compares an image of the registry with what a container has.
func (s *stage) compare(t *testing.T, ref string, want []rafstest.Entry) {
	t.Helper()
	a, err := artifact.Pull(t.Context(), ref, artifact.Options{}, t.TempDir())
	must1(t, err)
	blobs := t.TempDir()
	s.exec(t, 0, "rafsd", "copy", ref, "oci:"+blobs)
	im, err := image.Open(a.BootstrapPath, image.Options{SHA256: &a.BootstrapSHA256})
	must1(t, err)
	defer im.Close()
	rafstest.Compare(t, want, rafstest.Tree(im, rafstest.Blobs{filepath.Join(blobs, "blobs", "sha256")}))
}

// seen lists a folder but for some paths and what is below them.
func seen(t *testing.T, root string, without ...string) (entries []rafstest.Entry) {
	t.Helper()
	for e, err := range rafstest.Dir(root) {
		must1(t, err)
		if !slices.ContainsFunc(without, func(p string) bool { return e.Path == p || strings.HasPrefix(e.Path, p+"/") }) {
			entries = append(entries, e)
		}
	}
	return entries
}

// change does everything to the root of a container that a program in it may do.
func change(t *testing.T, root string) {
	t.Helper()
	at := func(p string) string { return filepath.Join(root, p) }
	write := func(p, text string) error { return os.WriteFile(at(p), []byte(text), 0o644) }
	must1(t,
		os.Remove(at("etc/gone")),
		write("etc/changed", "changed"), os.Chown(at("etc/changed"), 1<<31+5, 7),
		unix.Removexattr(at("etc/kept"), "user.old"),
		os.RemoveAll(at("data")), os.Mkdir(at("data"), 0o711), write("data/new", "new"), // opaque
		os.RemoveAll(at("becomes-file")), write("becomes-file", "a file"),
		os.Remove(at("becomes-folder")), os.MkdirAll(at("becomes-folder/a/b"), 0o700), write("becomes-folder/a/b/c", "c"),
		os.Chmod(at("opt"), 0o1777), os.Rename(at("opt/deep/file"), at("opt/moved")),
		write("new\nname", "x"), os.Symlink("/etc/../new", at("link")), os.Link(at("link"), at("opt/link")),
		write("one", "one"), os.Link(at("one"), at("opt/two")), os.Link(at("etc/kept"), at("opt/kept")),
		unix.Mkfifo(at("fifo"), 0o600), unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Setxattr(at("one"), "user.n\n", []byte("v\x00"), 0), unix.Setxattr(at("opt"), "trusted.t", []byte("t"), 0),
		unix.Setxattr(at("becomes-file"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		write("sparse", "begin"), os.Truncate(at("sparse"), 9_999_999),
		write("skipped/not-this", "not this"), write("skipped-too", "nor that"),
		unix.UtimesNanoAt(unix.AT_FDCWD, at("opt/two"), []unix.Timespec{{}, {Sec: 1 << 33, Nsec: 123456789}}, 0),
	)
}

// A committed image is what the container saw: the changes of its overlay, and what
// is mounted in it where that is asked for.
func TestCommitContainer(t *testing.T) {
	s := newStage(t)
	mounts := t.TempDir()
	must1(t, os.MkdirAll(filepath.Join(mounts, "vol/sub"), 0o750), os.Mkdir(filepath.Join(mounts, "etc"), 0o755),
		os.WriteFile(filepath.Join(mounts, "vol/sub/file"), []byte("of a volume"), 0o600),
		os.WriteFile(filepath.Join(mounts, "etc/hosts"), []byte("127.0.0.1 localhost"), 0o644))
	s.Run(t, []string{
		"--mount", "type=bind,src=" + mounts + "/vol,dst=/vol,options=rbind:rw",
		"--mount", "type=bind,src=" + mounts + "/etc/hosts,dst=/etc/hosts,options=rbind:rw",
	}, s.image, "changes-1", "/app")
	root := s.Rootfs("changes-1")
	change(t, root)
	// The name of the container's image stands for the RAFS image, as with a
	// snapshotter that mounts such; the registry has another one by that name.
	archive := filepath.Join(t.TempDir(), "rafs.tar")
	s.exec(t, 0, "rafsd", "copy", s.rafs, "oci-archive:"+archive+":rafs")
	s.Ctr(t, "images", "import", "--no-unpack", "--base-name", s.host+"/app", archive)
	s.Ctr(t, "images", "tag", "--force", s.rafs, s.image)

	done := s.host + "/other/app:done"
	out := s.exec(t, 0, "nydusify", "commit", "--container", "chang", "--containerd-address", "unix://"+s.Address, "--target", done,
		"--with-path", "/vol,/etc/hosts", "--with-mount-path", "!/skipped/", "--with-path", "!/skipped-too")
	if !strings.Contains(out, "3 blobs") {
		t.Errorf("commit says %q, want 3 blobs", out)
	}
	if got := s.Status(t, "changes-1"); got != "RUNNING" {
		t.Errorf("the container is %s, want it resumed", got)
	}
	want := append(seen(t, root, "/vol", "/etc/hosts", "/skipped", "/skipped-too"),
		slices.DeleteFunc(seen(t, mounts), func(e rafstest.Entry) bool { return e.Path == "/etc" })...)
	// Of what was left out, the image's own is there.
	want = append(want, rafstest.Entry{Path: "/skipped", Mode: unix.S_IFDIR | 0o755, Mtime: 1_700_000_000})
	s.compare(t, done, want)
}
