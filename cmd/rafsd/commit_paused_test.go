package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/containerdtest"
)

// slowCommit starts a commit of a container that has written more than can be read
// soon, and returns when the container is paused.
func (s *stage) slowCommit(t *testing.T, id, target string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	must1(t, os.WriteFile(filepath.Join(s.Rootfs(id), "huge"), nil, 0o600), os.Truncate(filepath.Join(s.Rootfs(id), "huge"), 1<<40))
	cmd := exec.CommandContext(t.Context(), s.bin, "commit", "--containerd-address", s.Address, "--container", id, s.rafs, target)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must1(t, cmd.Start())
	containerdtest.Wait(t, "the container to be paused", func() bool { return s.Status(t, id) == "PAUSED" })
	return cmd, &out
}

// A commit that is ended by a signal, or by several, leaves the container running and
// no image; also when containerd has to be waited for.
func TestCommitInterrupted(t *testing.T) {
	s := newStage(t)
	s.Run(t, nil, s.image, "slow", "/app")
	for _, tc := range []struct {
		name    string
		signals []os.Signal
		restart bool
	}{
		{"TERM", []os.Signal{unix.SIGTERM}, false},
		{"HUP", []os.Signal{unix.SIGHUP}, false},
		{"INT again and again", []os.Signal{unix.SIGINT, unix.SIGINT, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE}, false},
		{"KILL", []os.Signal{unix.SIGKILL}, false},
		{"TERM while containerd is away", []os.Signal{unix.SIGTERM, unix.SIGTERM}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd, out := s.slowCommit(t, "slow", s.host+"/app:never")
			if tc.restart {
				s.Stop(t)
			}
			for _, sig := range tc.signals {
				must1(t, cmd.Process.Signal(sig))
			}
			if tc.restart {
				s.Restart(t)
			}
			_ = cmd.Wait()                     // the code says it
			if tc.signals[0] == unix.SIGKILL { // then a second process does it
				containerdtest.Wait(t, "the container to be resumed", func() bool { return s.Status(t, "slow") == "RUNNING" })
				return
			}
			if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
				t.Errorf("exit code %d, want %d: %s", code, exitInterrupted, out)
			}
			if got := s.Status(t, "slow"); got != "RUNNING" {
				t.Errorf("the container is %s, want it resumed", got)
			}
		})
	}
	s.exec(t, exitSource, "rafsd", "inspect", s.host+"/app:never")
}

// A container that writes all the time is committed as it is at one time, and goes on
// writing.
func TestCommitBusyContainer(t *testing.T) {
	s := newStage(t)
	s.Run(t, nil, s.image, "busy", "/app", "/written")
	file := filepath.Join(s.Rootfs("busy"), "written")
	containerdtest.Wait(t, "the first write", func() bool { _, err := os.Stat(file); return err == nil })
	for range 5 {
		s.exec(t, 0, "rafsd", "commit", "--containerd-address", s.Address, "--container", "busy", s.rafs, s.host+"/app:busy")
	}
	mtime := func() unix.Timespec {
		st, err := os.Stat(file)
		must1(t, err)
		return unix.Timespec(st.Sys().(*syscall.Stat_t).Mtim)
	}
	before := mtime()
	containerdtest.Wait(t, "another write", func() bool { return mtime() != before })
}

// A container that does not run is committed, too, and one that somebody else has
// paused stays paused.
func TestCommitStill(t *testing.T) {
	s := newStage(t)
	s.Run(t, nil, s.image, "still", "/app")
	change(t, s.Rootfs("still"))
	want := seen(t, s.Rootfs("still"))
	commit := []string{"rafsd", "commit", "--containerd-address", s.Address, "--container", "still", s.rafs, s.host + "/app:still"}
	s.Ctr(t, "tasks", "pause", "still")
	s.exec(t, 0, commit...)
	if got := s.Status(t, "still"); got != "PAUSED" {
		t.Errorf("a container that was paused is %s", got)
	}
	s.compare(t, s.host+"/app:still", want)
	s.Ctr(t, "tasks", "resume", "still")
	s.Kill(t, "still")
	s.exec(t, 0, commit...)
	s.compare(t, s.host+"/app:still", want)
	out := s.exec(t, exitError, append(commit, "--with-path", "/opt")...)
	if want := "does not run (stopped)"; !strings.Contains(out, want) {
		t.Errorf("--with-path of a container that does not run: got %q, want %q", out, want)
	}
	s.Ctr(t, "tasks", "delete", "still")
	s.exec(t, 0, commit...)
	s.compare(t, s.host+"/app:still", want)
}

// Where an overlay keeps a folder that was moved, or the data of a file of which only
// the attributes were changed, in a lower layer, the container is asked for it.
func TestCommitRedirected(t *testing.T) {
	s := newStage(t)
	for _, parameter := range []string{"redirect_dir", "metacopy"} {
		file := "/sys/module/overlay/parameters/" + parameter
		was, err := os.ReadFile(file)
		must1(t, err, os.WriteFile(file, []byte("Y"), 0o644))
		t.Cleanup(func() { must1(t, os.WriteFile(file, was, 0o644)) })
	}
	s.Run(t, nil, s.image, "moved", "/app")
	root := s.Rootfs("moved")
	must1(t, os.Rename(filepath.Join(root, "opt/deep"), filepath.Join(root, "etc/deep")),
		os.WriteFile(filepath.Join(root, "etc/deep/new"), []byte("new"), 0o644),
		os.Chmod(filepath.Join(root, "data/hidden"), 0o600))
	marked := 0
	for _, p := range []string{"etc/deep", "data/hidden"} {
		var st unix.Stat_t
		must1(t, unix.Stat(filepath.Join(s.upper(t, "moved"), p), &st))
		for _, x := range []string{"redirect", "metacopy"} {
			if _, err := unix.Lgetxattr(filepath.Join(s.upper(t, "moved"), p), "trusted.overlay."+x, nil); err == nil {
				marked++
			}
		}
	}
	if marked < 2 {
		t.Fatalf("%d marks of overlayfs, want one for the folder and one for the file", marked)
	}
	commit := []string{"rafsd", "commit", "--containerd-address", s.Address, "--container", "moved", s.rafs, s.host + "/app:moved"}
	s.exec(t, 0, commit...)
	s.compare(t, s.host+"/app:moved", seen(t, root))
	s.Kill(t, "moved")
	if out := s.exec(t, exitError, commit...); !strings.Contains(out, "lies in a lower one") {
		t.Errorf("without a process to ask: got %q", out)
	}
}

// upper is the upper folder of a container's overlay.
func (s *stage) upper(t *testing.T, id string) string {
	t.Helper()
	_, rest, ok := strings.Cut(s.Ctr(t, "snapshots", "mounts", "/", id), "upperdir=")
	if !ok {
		t.Fatalf("no upper folder of %s", id)
	}
	dir, _, _ := strings.Cut(rest, ",")
	return strings.Fields(dir)[0]
}

func TestCommitContainerRefused(t *testing.T) {
	s := newStage(t)
	s.Run(t, nil, s.image, "one-a", "/app")
	s.Run(t, nil, s.image, "one-b", "/app")
	s.Run(t, []string{"--snapshotter", "native"}, s.image, "copied", "/app")
	change(t, s.Rootfs("one-a"))
	here := []string{"--containerd-address", s.Address}
	for _, tc := range []struct {
		code int
		args []string
		want string
	}{
		{1, []string{"--container", "two", s.rafs}, `container "two": not found; namespace default has copied, one-a, one-b`},
		{1, []string{"--container", "one", s.rafs}, `container "one": 2 begin so, one-a, one-b`},
		{1, []string{"--container", "x", "-n", "empty", s.rafs}, "namespace empty has no containers, namespace default has copied, one-a, one-b"},
		{1, []string{"--container", "copied", s.rafs}, "no upper folder: snapshotter native gives it mounts of type bind, want one overlay"},
		{3, []string{"--container", "one-a", s.image}, "make one of it with 'rafsd convert', and name that as SRC"},
		{4, []string{"--container", "one-a"}, "make one of it with 'rafsd convert', and name that as SRC"}, // the digest that it has in containerd
		{4, []string{"--container", "one-a", "--containerd-address", "/nowhere/sock", s.rafs}, "containerd does not answer at /nowhere/sock"},
		{4, []string{"--container", "one-a", "--containerd-address", "/nowhere/sock", s.rafs}, "Start containerd, or say where"},
		{1, []string{"--container", "one-a", "--with-path", "/nothing", s.rafs}, "/nothing: no such file"},
		{1, []string{"--container", "one-a", "--with-path", "/link", s.rafs}, "/link: a symbolic link"},
		{1, []string{"--container", "one-a", "--with-path", "/", s.rafs}, "below the root"},
		{2, []string{"--container", "one-a", "--upper", "/tmp", s.rafs}, "not both"},
		{2, []string{"--container", "one-a", "--with-path", "opt", s.rafs}, "want PATH or PATH=FOLDER"},
	} {
		argv := append([]string{"rafsd", "commit"}, append(here, tc.args...)...)
		if out := s.exec(t, tc.code, append(argv, s.host+"/app:never")...); !strings.Contains(out, tc.want) {
			t.Errorf("%v: got %q, want %q", tc.args, out, tc.want)
		}
	}
	for _, id := range []string{"one-a", "one-b"} {
		if got := s.Status(t, id); got != "RUNNING" {
			t.Errorf("%s is %s, want it running", id, got)
		}
	}
}
