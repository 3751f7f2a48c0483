package export_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// disk exports an image into the test's folder.
func disk(t testing.TB, im *image.Image, d *export.Data, o export.BlockOptions) (string, *export.Disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	got, err := export.Block(t.Context(), im, d, path, o)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != got.Size {
		t.Fatalf("disk has %v bytes, %v, want %d", fi.Size(), err, got.Size)
	}
	return path, got
}

// v6 are the images that have metadata of EROFS.
func v6(t testing.TB) []rafstest.Case {
	t.Helper()
	var out []rafstest.Case
	for _, c := range every(t) {
		if !strings.HasPrefix(c.Name, "v5") && !strings.Contains(c.Name, "-v5") {
			out = append(out, c)
		}
	}
	return out
}

// Linux mounts each disk with no option and shows the tree, byte for byte, and
// fsck.erofs finds nothing and extracts everything.
func TestBlockMount(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, c := range every(t) {
		t.Run(c.Name, func(t *testing.T) {
			im, d := open(t, c)
			path, _ := disk(t, im, d, export.BlockOptions{})
			rafstest.Compare(t, shows(t, c, im), rafstest.Dir(testenv.MountEROFS(t, path)))
			if im.Super().BlockSize == 512 {
				return // fsck.erofs knows no other blocks
			}
			// With --extract it reads all data, too.
			if out := run(t, "fsck.erofs", "--extract", path); strings.Contains(out, "<E>") || strings.Contains(out, "<W>") {
				t.Errorf("fsck.erofs: %s", out)
			}
		})
	}
}

// The same image gives the same disk; nothing of blobs is in it; blocks of zeros
// are holes.
func TestBlockFile(t *testing.T) {
	testenv.LeakCheck(t)
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	path, got := disk(t, im, d, export.BlockOptions{})
	again, _ := disk(t, im, d, export.BlockOptions{})
	a, b := read(t, path), read(t, again)
	if !bytes.Equal(a, b) {
		t.Error("other bytes the second time")
	}
	if id := im.Blobs()[0].ID; bytes.Contains(a, []byte(id)) {
		t.Errorf("the disk names blob %s", id)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > got.DataBytes+im.Super().Size || used >= got.Size {
		t.Errorf("%d bytes of %d are allocated, for %d of data", used, got.Size, got.DataBytes)
	}
	zero := make([]byte, 4096)
	for off := int64(0); off < got.Size; off += 4096 {
		data, err := unix.Seek(int(mustOpen(t, path).Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if off = data; bytes.Equal(a[off:off+4096], zero) {
			t.Errorf("zeros at %#x are no hole", off)
		}
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustOpen(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The hash tree is what veritysetup makes of the disk, and what it accepts.
func TestBlockVerity(t *testing.T) {
	for _, name := range []string{"v6-zstd-blake3", "v6-bigdir", "v6-layers", "v5-zstd-blake3", "v6-tar-tarfs"} {
		im, d := open(t, named(t, every(t), name))
		path, got := disk(t, im, d, export.BlockOptions{Verity: true})
		v := got.Verity
		if root := rootHash(t, path, v); root != v.Root {
			t.Errorf("%s: root %x, want %x", name, v.Root, root)
		}
		args := []string{
			"verify", "--no-superblock", "--format=1", "-s", "-", "--hash=sha256", fmt.Sprintf("--data-block-size=%d", v.DataBlockSize),
			"--hash-block-size=4096", fmt.Sprintf("--data-blocks=%d", v.DataBlocks), fmt.Sprintf("--hash-offset=%d", v.HashOffset),
			path, path, fmt.Sprintf("%x", v.Root),
		}
		run(t, "veritysetup", args...)
		p := read(t, path)
		p[5*4096+77] ^= 1 // of a file that holds the metadata
		bad := save(t, "bad", p)
		args[len(args)-3], args[len(args)-2] = bad, bad
		if out, err := command(t, "veritysetup", args...); err == nil {
			t.Errorf("%s: veritysetup accepts a flipped bit: %s", name, out)
		}
		// As nydus-snapshotter reads it (pkg/tarfs/tarfs.go).
		pattern := "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size=%d --hash-block-size=4096 --data-blocks %d --hash-offset %d %s\n"
		var size, blocks, offset int64
		var root string
		n, err := fmt.Sscanf(v.String()+"\n", pattern, &size, &blocks, &offset, &root)
		if n != 4 || err != nil || size != int64(got.BlockSize) || blocks != got.Blocks || root != fmt.Sprintf("%x", v.Root) ||
			offset%4096 != 0 || offset < size*blocks || offset >= size*blocks+4096 {
			t.Errorf("%s: %s: %v, for %+v", name, v, err, got)
		}
	}
}

// rootHash computes the root of a disk's tree.
func rootHash(t testing.TB, path string, v *export.Verity) [32]byte {
	t.Helper()
	p := read(t, path)[:v.DataBlocks*int64(v.DataBlockSize)]
	for size := v.DataBlockSize; ; size = 4096 {
		var up []byte
		for ; len(p) > 0; p = p[size:] {
			sum := sha256.Sum256(p[:size])
			up = append(up, sum[:]...)
		}
		if len(up) == 32 {
			return [32]byte(up)
		}
		for len(up)%4096 != 0 {
			up = append(up, 0)
		}
		p = up
	}
}

// nydus-image's layout is what its own test wants (service/src/block_device.rs,
// test_export), hash tree included, which nydus pads with the digest of a block
// of zeros.
func TestBlockDeviceTable(t *testing.T) {
	im, d := open(t, named(t, rafstest.Core(t), "upstream-v6"))
	path, got := disk(t, im, d, export.BlockOptions{DeviceTable: true})
	p := read(t, path)
	if got.Blocks != 0x209 || len(p) != 0x209*4096 {
		t.Errorf("%d blocks, %d bytes, want %d blocks", got.Blocks, len(p), 0x209)
	}
	zero := sha256.Sum256(make([]byte, 4096))
	var levels [][]byte
	for data := p; len(levels) == 0 || len(data) > 4096; {
		var up []byte
		for ; len(data) > 0; data = data[4096:] {
			sum := sha256.Sum256(data[:4096])
			up = append(up, sum[:]...)
		}
		for len(up)%4096 != 0 {
			up = append(up, zero[:]...)
		}
		levels, data = append(levels, up), up
	}
	for i := len(levels) - 1; i >= 0; i-- {
		p = append(p, levels[i]...)
	}
	const want = "5684c330c622350c12d633d0773201f862b9955375d806670e1aaf36ef038b31"
	if got := fmt.Sprintf("%x", sha256.Sum256(p)); got != want {
		t.Errorf("sha256 %s, want %s", got, want)
	}
}

// Linux mounts that layout, too.
func TestBlockDeviceTableMount(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, c := range v6(t) {
		im, d := open(t, c)
		path, _ := disk(t, im, d, export.BlockOptions{DeviceTable: true})
		if im.Super().BlockSize != 4096 {
			// Linux does not see the whole of links/nearly-page there, as nydus-image
			// writes it.
			c.Want = slices.DeleteFunc(slices.Clone(shows(t, c, im)), func(e rafstest.Entry) bool { return len(e.Link) > 512 })
			dir := testenv.MountEROFS(t, path)
			rafstest.Compare(t, c.Want, func(yield func(rafstest.Entry, error) bool) {
				for e, err := range rafstest.Dir(dir) {
					if len(e.Link) <= 512 && !yield(e, err) {
						return
					}
				}
			})
			continue
		}
		rafstest.Compare(t, shows(t, c, im), rafstest.Dir(testenv.MountEROFS(t, path)))
	}
}

// An error, a context that ends and an image that cannot be one leave neither the
// disk nor anything else, and what was there stays.
func TestBlockErrors(t *testing.T) {
	testenv.LeakCheck(t)
	c := named(t, rafstest.Core(t), "v6-zstd-blake3")
	im, d := open(t, c)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := data(t, im, rafstest.Blobs{t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v5, v5data := open(t, named(t, rafstest.Core(t), "v5-zstd-blake3"))
	for name, f := range map[string]func() error{
		"no blob":  func() error { _, err := export.Block(t.Context(), im, none, path, export.BlockOptions{}); return err },
		"canceled": func() error { _, err := export.Block(ctx, im, d, path, export.BlockOptions{Verity: true}); return err },
		"v5 with a device table": func() error {
			_, err := export.Block(t.Context(), v5, v5data, path, export.BlockOptions{DeviceTable: true})
			return err
		},
		"a folder": func() error { _, err := export.Block(t.Context(), im, d, dir, export.BlockOptions{}); return err },
		"no folder": func() error {
			_, err := export.Block(t.Context(), im, d, filepath.Join(dir, "none/disk"), export.BlockOptions{})
			return err
		},
	} {
		if err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 || string(read(t, path)) != "old" {
			t.Errorf("%s: left %v, %v", name, names, err)
		}
	}
	if _, err := export.Block(t.Context(), im, d, path, export.BlockOptions{}); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || len(read(t, path)) < 4096 {
		t.Errorf("success left %v, %v", names, err)
	}
}

// A full file system is told as such, and has its room back.
func TestBlockFull(t *testing.T) {
	testenv.NeedsRoot(t)
	im, d := open(t, named(t, rafstest.Core(t), "v6-zstd-blake3"))
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	_, err := export.Block(t.Context(), im, d, filepath.Join(dir, "disk"), export.BlockOptions{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "disk")) {
		t.Errorf("got %v, want ENOSPC with the path", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
		t.Errorf("%d of %d blocks are free, %v", st.Bfree, st.Blocks, err)
	}
}

// A process that is killed leaves nothing.
func TestBlockKilled(t *testing.T) {
	c := named(t, rafstest.Core(t), "v6-zstd-blake3")
	if dir := os.Getenv("RAFSD_KILLED"); dir != "" {
		im, d := open(t, c)
		_, err := export.Block(t.Context(), im, d, filepath.Join(dir, "disk"), export.BlockOptions{
			Progress: func(done, total int64) { _ = unix.Kill(os.Getpid(), unix.SIGKILL) },
		})
		t.Fatalf("survived: %v", err)
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestBlockKilled$")
	cmd.Env = append(os.Environ(), "RAFSD_KILLED="+dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("got %v, want a kill\n%s", err, out)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left %v, %v", names, err)
	}
}
