package testenv

import (
	"os/exec"
	"strings"
	"testing"
)

// MountEROFS has Linux mount an image, a file or a block device, with files as the
// devices that its blobs are, and returns where, until the test ends. It needs root.
func MountEROFS(t testing.TB, image string, devices ...string) string {
	t.Helper()
	NeedsRoot(t)
	NeedsTool(t, "losetup", "mount", "umount")
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	device := func(file string) string {
		if strings.HasPrefix(file, "/dev/") {
			return file
		}
		dev := run("losetup", "--find", "--show", "--read-only", file)
		t.Cleanup(func() { run("losetup", "--detach", dev) })
		return dev
	}
	options := "ro"
	for _, file := range devices {
		options += ",device=" + device(file)
	}
	dir := t.TempDir()
	run("mount", "-t", "erofs", "-o", options, device(image), dir)
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { run("umount", dir) })
	return dir
}
