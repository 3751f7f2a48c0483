//go:build peers

package write

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

// nydusd reads what we write, with its own validation on, so that it looks at the
// chunk information, the table of contents and the digest section of each blob.
// Run by make interop.
func TestNydusdAgrees(t *testing.T) {
	nydusd := testenv.Peer(t, "nydusd")
	for _, tc := range []struct {
		tree string
		tars []string
		o    Options
	}{
		{"tarable.ndjson", []string{"tarable.tar"}, Options{Format: zstdBlake3}},
		{"tarable.ndjson", []string{"tarable.tar"}, Options{Format: Format{ChunkSize: 1 << 16, Compressor: 1, Digester: 1}}},
		{"layers.ndjson", []string{"layer1.tar", "layer2.tar", "layer3.tar"}, Options{Format: zstdBlake3, Prefetch: []string{"/"}}},
		{"layers.ndjson", []string{"layer1.tar", "layer2.tar", "layer3.tar"}, Options{Format: Format{ChunkSize: 4096}}},
	} {
		t.Run(fmt.Sprintf("%s-%v-%d", tc.tree, tc.o.Compressor, tc.o.ChunkSize), func(t *testing.T) {
			dir := t.TempDir()
			bootstrap := build(t, tc.o, 2, fixtureTars(t, tc.tars...)...).save(t, dir)
			mnt := mountNydusd(t, nydusd, dir, bootstrap)
			want := manifest(t, tc.tree)
			delete(want, "/special/sock") // a tar holds no sockets
			got := observe(t, mnt)
			for _, name := range []string{"/times/t0", "/times/t1"} {
				if l, ok := got[name]; ok { // nydusd takes an mtime of 0 s for none and shows when it started
					l.Mtime = 0
					got[name] = l
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("tree differs (-want +got):\n%s", diff)
			}
		})
	}
}

// mountNydusd mounts an image with nydusd and FUSE.
func mountNydusd(t *testing.T, program, dir, bootstrap string) string {
	t.Helper()
	config := filepath.Join(dir, "config.json")
	text := fmt.Sprintf(`{"device":{"backend":{"type":"localfs","config":{"dir":%q}},
		"cache":{"type":"blobcache","config":{"work_dir":%q},"validate":true}},
		"mode":"direct","enable_xattr":true,"fs_prefetch":{"enable":true,"threads_count":2}}`, dir, t.TempDir())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	// Its default limit of open files is refused to most users, and then it ends.
	cmd := exec.Command(program, "fuse", "--config", config, "--bootstrap", bootstrap, "--mountpoint", mnt,
		"--log-level", "warn", "--rlimit-nofile", "0")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		if t.Failed() {
			t.Logf("nydusd said:\n%s", log.String())
		}
	})
	for range 10000 {
		var fs unix.Statfs_t
		if err := unix.Statfs(mnt, &fs); err == nil && fs.Type == unix.FUSE_SUPER_MAGIC {
			return mnt
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("nydusd does not mount: %s", log.String())
	return ""
}
