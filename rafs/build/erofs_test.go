package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// Linux sees in layers that were built one upon the other what a container would:
// chunks from the blobs of both, at addresses that nothing joins.
func TestLinuxMountsLayers(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	shared := noise(5, 5<<12)
	low, up := t.TempDir(), t.TempDir()
	put(t, low, "d/gone", []byte("gone"))
	put(t, low, "f", shared)
	put(t, low, "text", text(100000, "low "))
	put(t, up, "d/.wh.gone", nil)
	put(t, up, "d/new", shared[1<<12:])
	put(t, up, "changed", append(noise(6, 1<<12), shared[1<<12:]...))
	put(t, up, "mixed", append(append(append([]byte{}, shared[:2<<12]...), noise(6, 3<<12)...), shared[3<<12:]...))
	must(t, unix.Setxattr(filepath.Join(up, "changed"), "user.x", []byte("y"), 0), os.Chmod(filepath.Join(up, "d"), 0o701))
	cache := t.TempDir()
	var result *Result
	parent := ""
	for _, src := range []string{low, up} {
		o := options(t, src)
		o.ChunkSize, o.BlobDir, o.CacheDir, o.Parent = 4096, "", cache, parent
		result = create(t, o)
		parent = result.Bootstrap
	}
	if len(result.Blobs) != 2 {
		t.Fatalf("blobs %q, want two", result.Blobs)
	}
	var devices []string
	for _, id := range result.Blobs {
		devices = append(devices, filepath.Join(cache, id+".blob.data"))
	}
	mnt := testenv.MountEROFS(t, result.Bootstrap, devices...)
	want := t.TempDir()
	for _, src := range []string{low, up} {
		if out, err := exec.Command("cp", "-a", src+"/.", want).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	must(t, os.Remove(filepath.Join(want, "d/gone")), os.Remove(filepath.Join(want, "d/.wh.gone")))
	// What cp made of the folder's time does not count.
	expected := dirEntries(t, want)
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(up, "d"), &st))
	for i := range expected {
		if expected[i].Path == "/d" {
			expected[i].Mtime, expected[i].MtimeNsec = st.Mtim.Sec, uint32(st.Mtim.Nsec)
		}
	}
	rafstest.Compare(t, expected, rafstest.Dir(mnt))
}

// A merge of uncompressed layers is one file system for Linux, too.
func TestLinuxMountsMerge(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	var sources, devices []string
	data := map[string]string{}
	cache := t.TempDir()
	for _, names := range []map[string]string{
		{"a": "a", "d/b": string(noise(1, 300000)), "gone": "x"}, {"d/c": string(noise(2, 5000)), ".wh.gone": "", "a": "other"},
	} {
		o := options(t, layerDir(t, names))
		o.BlobDir, o.CacheDir, o.Whiteouts, o.Compressor = "", cache, tree.WhiteoutNone, blob.CompressorNone
		r := create(t, o)
		p := filepath.Join(filepath.Dir(o.Bootstrap), r.Blob)
		must(t, os.Rename(o.Bootstrap, p))
		sources, data[r.Blob] = append(sources, p), filepath.Join(cache, r.Blob+".blob.data")
	}
	r := merge(t, mergeOptions(t, sources...))
	for _, id := range r.Blobs {
		devices = append(devices, data[id])
	}
	mnt := testenv.MountEROFS(t, r.Bootstrap, devices...)
	for name, want := range map[string]string{"a": "other", "d/b": string(noise(1, 300000)), "d/c": string(noise(2, 5000))} {
		if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	if _, err := os.Stat(filepath.Join(mnt, "gone")); !os.IsNotExist(err) {
		t.Errorf("gone: %v, want it gone", err)
	}
}
