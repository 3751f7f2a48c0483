// Package containerdtest runs a containerd of a test's own, with runc beneath, and
// containers of images that the test makes. Nothing of it is outside the test's
// folders but the mounts and the cgroups of the containers, which end with the test.
//
// It is imported by tests only, and needs root.
package containerdtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
)

// patience is for machines that do something else meanwhile.
const patience = 60 * time.Second

// Server is a containerd that runs until the test ends.
type Server struct {
	// Address is the path of its socket.
	Address string

	dir, config string
	ctr         string
	daemon      *exec.Cmd
	log         bytes.Buffer
}

// Start runs containerd, which has no containers yet.
func Start(t testing.TB) *Server {
	t.Helper()
	testenv.NeedsRoot(t)
	tools := testenv.NeedsTool(t, "containerd", "ctr", "runc", "containerd-shim-runc-v2")
	// Not a folder with the test's name: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("containerd's folder: %v", err)
		}
	})
	s := &Server{Address: filepath.Join(dir, "sock"), dir: dir, config: filepath.Join(dir, "config.toml"), ctr: tools[1]}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	takesUpper(t, root)
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[debug]
  level = "warn"
[grpc]
  address = %q
[ttrpc]
  address = %q
`, root, filepath.Join(dir, "state"), s.Address, s.Address+".ttrpc")
	if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.daemon = exec.Command(tools[0], "--config", s.config)
	s.Restart(t)
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// takesUpper mounts something else on a folder whose file system is none that an
// overlay can have on top, such as an overlay.
func takesUpper(t testing.TB, root string) {
	t.Helper()
	at := filepath.Join(root, "try")
	for _, d := range []string{"low", "up", "work", "all"} {
		if err := os.MkdirAll(filepath.Join(at, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	defer os.RemoveAll(at)
	options := "lowerdir=" + at + "/low,upperdir=" + at + "/up,workdir=" + at + "/work"
	if err := unix.Mount("overlay", at+"/all", "overlay", 0, options); err == nil {
		if err := unix.Unmount(at+"/all", 0); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		t.Fatalf("tmpfs on %s: %v", root, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", root, err)
		}
	})
}

// Restart starts containerd after Stop. Containers have gone on meanwhile.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.daemon = exec.Command(s.daemon.Path, s.daemon.Args[1:]...)
	s.daemon.Stdout, s.daemon.Stderr = &s.log, &s.log
	if err := s.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	Wait(t, "containerd to answer", func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", s.Address)
		if err != nil {
			return false
		}
		_ = c.Close()
		return s.try(t.Context(), "version") == nil
	})
}

// Stop ends containerd. Its containers go on.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.daemon.ProcessState != nil {
		return
	}
	_ = s.daemon.Process.Signal(unix.SIGTERM)
	timer := time.AfterFunc(patience, func() { _ = s.daemon.Process.Kill() })
	defer timer.Stop()
	_ = s.daemon.Wait() // ends by a signal
	if t.Failed() {
		t.Logf("containerd:\n%s", s.log.String())
	}
}

func (s *Server) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, s.ctr, append([]string{"--address", s.Address, "--namespace", "default"}, args...)...)
}

func (s *Server) try(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if out, err := s.command(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Ctr runs containerd's own client, in the namespace "default" unless the
// arguments begin with another one, and returns what it prints.
func (s *Server) Ctr(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// Import takes the images of a tar of an OCI layout.
func (s *Server) Import(t testing.TB, tar string) {
	t.Helper()
	s.Ctr(t, "images", "import", tar)
}

// Run makes a container and starts it. Options are those of "ctr run".
func (s *Server) Run(t testing.TB, options []string, image, id string, argv ...string) {
	t.Helper()
	args := append([]string{"run", "--detach"}, options...)
	t.Cleanup(func() { s.Remove(t, id) })
	s.Ctr(t, append(append(args, image, id), argv...)...)
}

// Remove ends a container, whatever it does, and removes it.
func (s *Server) Remove(t testing.TB, id string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	// What is paused does not die before it is resumed, on some kernels.
	_ = s.try(ctx, "tasks", "resume", id)
	_ = s.try(ctx, "tasks", "delete", "--force", id)
	_ = s.try(ctx, "containers", "delete", id)
}

// Kill ends the process of a container, which remains.
func (s *Server) Kill(t testing.TB, id string) {
	t.Helper()
	s.Ctr(t, "tasks", "kill", "--signal", "SIGKILL", id)
	Wait(t, "the container to end", func() bool { return s.Status(t, id) == "STOPPED" })
}

// Status is what containerd calls what a container does: RUNNING, PAUSED, STOPPED,
// or nothing if it has no task.
func (s *Server) Status(t testing.TB, id string) string {
	t.Helper()
	_, status := s.task(t, id)
	return status
}

// Root is the path by which this machine sees the root of a running container, with
// all that is mounted there.
func (s *Server) Root(t testing.TB, id string) string {
	t.Helper()
	pid, status := s.task(t, id)
	if pid == 0 {
		t.Fatalf("container %s has no process: %q", id, status)
	}
	return "/proc/" + strconv.Itoa(pid) + "/root"
}

// Rootfs is the root of a running container without what is mounted inside.
func (s *Server) Rootfs(id string) string {
	return filepath.Join(s.dir, "state", "io.containerd.runtime.v2.task", "default", id, "rootfs")
}

func (s *Server) task(t testing.TB, id string) (pid int, status string) {
	t.Helper()
	for line := range strings.Lines(s.Ctr(t, "tasks", "list")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			pid, _ = strconv.Atoi(f[1])
			return pid, f[2]
		}
	}
	return 0, ""
}

// Wait waits for something that another process does.
func Wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}
