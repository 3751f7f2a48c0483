package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// fixture is an image that nydus-image made.
type fixture struct {
	bootstrap, blobs string
	want             []probe.Entry
}

// openFixture takes what the repository itself holds, and else asks for the folder
// with all fixtures.
func openFixture(t *testing.T, image, tree string) fixture {
	t.Helper()
	root := filepath.Join(testenv.ModuleRoot(), "rafs", "rafstest", "testdata")
	if _, err := os.Stat(filepath.Join(root, "images", image)); err != nil {
		root = filepath.Join(testenv.Fixtures(t), "nydus-made")
	}
	f, err := os.Open(filepath.Join(root, "trees", tree+".ndjson"))
	must(t, err)
	defer f.Close()
	want, err := probe.ReadManifest(f)
	must(t, err)
	return fixture{filepath.Join(root, "images", image, "image.boot"), filepath.Join(root, "blobs"), want}
}

func (f fixture) serve(t *testing.T) *server {
	t.Helper()
	return serve(t, "--bootstrap", f.bootstrap, "--localfs-dir", f.blobs, "--cache-dir", t.TempDir())
}

// The guest sees exactly what the manifest says: when nothing is cached anywhere,
// and again when it has forgotten everything and the daemon has it all. One pass has
// to do for the folder of 10,000 files.
func TestFixtures(t *testing.T) {
	for _, tc := range []struct{ image, tree string }{
		{"v6-zstd-blake3", "everything"},
		{"v6-lz4_block-sha256", "everything"},
		{"v6-none-sha256", "everything"},
		{"v6-chunk-16m", "everything"},
		{"v6-layers", "layers"},
		{"v6-bigdir", "bigdir"},
		{"v6-batch-1m", "everything"},
		{"v6-encrypt", "everything"},
		{"v6-layers-batch", "layers"},
		{"v5-zstd-blake3", "everything"},
		{"v5-layers", "layers"},
		{"v5-lz4_block-sha256", "everything"},
		{"v5-chunk-4k", "everything"},
	} {
		t.Run(tc.image, func(t *testing.T) {
			t.Parallel()
			f := openFixture(t, tc.image, tc.tree)
			v := f.serve(t).machine(t, vm.Options{})
			sameTree(t, v, f.want)
			if tc.tree != "bigdir" {
				must(t, v.Do(bounded(t), report.Request{Op: report.OpDrop}, nil))
				sameTree(t, v, f.want)
			}
			must(t, v.PowerOff(bounded(t)))
		})
	}
}

// The kernel's own EROFS driver reads the metadata of RAFS v6, with the data at the
// places where the cache of rafsd keeps it once it has been read: a second opinion on
// both, from code that is not ours and not nydus'.
func TestErofs(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount", "umount")
	needsErofs(t)
	for _, image := range []string{"v6-none-sha256", "v6-zstd-blake3"} {
		t.Run(image, func(t *testing.T) {
			f := openFixture(t, image, "everything")
			cache := t.TempDir()
			s := serve(t, "--bootstrap", f.bootstrap, "--localfs-dir", f.blobs, "--cache-dir", cache)
			v := s.machine(t, vm.Options{})
			got, err := v.Tree(bounded(t), "/")
			must(t, err)
			data, err := filepath.Glob(filepath.Join(cache, "*.data"))
			must(t, err)
			if len(data) != 1 {
				t.Fatalf("cache has %d files of data, want that of its only blob", len(data))
			}
			want := mountErofs(t, f.bootstrap, data[0])
			for _, d := range probe.Diff(got, want) {
				t.Errorf("rafsd and the EROFS driver differ: %s", d)
			}
			for _, d := range probe.Diff(withoutRoot(want), f.want) {
				t.Errorf("the EROFS driver and the manifest differ: %s", d)
			}
		})
	}
}

func needsErofs(t *testing.T) {
	t.Helper()
	// A kernel with the driver built in has no module to load.
	_ = exec.Command("modprobe", "erofs").Run()
	text, err := os.ReadFile("/proc/filesystems")
	must(t, err)
	if strings.Contains(string(text), "\terofs\n") {
		return
	}
	if testenv.Required("REQUIRE_TOOLS") {
		t.Fatal("this kernel has no EROFS driver")
	}
	t.Skip("this kernel has no EROFS driver")
}

// mountErofs mounts metadata with data as its only device and reads it all.
func mountErofs(t *testing.T, bootstrap, data string) []probe.Entry {
	t.Helper()
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	meta, device := loop(t, bootstrap, dir), loop(t, data, dir)
	command(t, "mount", "-t", "erofs", "-o", "ro,device="+device, meta, mnt)
	defer command(t, "umount", mnt)
	got, err := probe.Tree(mnt)
	must(t, err)
	return got
}

// loop attaches a copy of the file, filled up to whole blocks as a device needs it.
func loop(t *testing.T, path, dir string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	const block = 4096
	text = append(text, make([]byte, (block-len(text)%block)%block)...)
	copied := filepath.Join(dir, filepath.Base(path))
	must(t, os.WriteFile(copied, text, 0o600))
	device := command(t, "losetup", "--find", "--show", "--read-only", copied)
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	return device
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	text, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, text)
	}
	return strings.TrimSpace(string(text))
}
