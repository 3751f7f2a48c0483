package rafstest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MountNydusd lets nydusd, whose program is given, mount an image with FUSE until the
// test ends. config is its configuration, JSON of version 1.
func MountNydusd(t testing.TB, program, config, bootstrap string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	// Its default limit of open files is refused to most users, and then it ends.
	cmd := exec.Command(program, "fuse", "--config", file, "--bootstrap", bootstrap, "--mountpoint", mnt,
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
			t.Logf("nydusd said:\n%.3000s", log.String())
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
