package containerd

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/containerdtest"
)

// A containerd that has nothing says so, in terms that can be told apart.
func TestNothingThere(t *testing.T) {
	s := containerdtest.Start(t)
	c := New(s.Address, "default")
	defer c.Close()
	if _, err := c.Container(t.Context(), "x"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "namespace default has no containers") {
		t.Errorf("container: got %v", err)
	}
	if _, err := c.ImageDigest(t.Context(), "localhost/x:y"); !errors.Is(err, ErrNotFound) {
		t.Errorf("image: got %v", err)
	}
	if task, err := c.Task(t.Context(), "x"); err != nil || task.Status != NoTask || task.Lives() {
		t.Errorf("task: got %+v, %v, want none", task, err)
	}
	if _, err := c.Upper(t.Context(), &Container{ID: "x", Snapshotter: "overlayfs", SnapshotKey: "x"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("snapshot: got %v", err)
	}
	if _, err := c.Upper(t.Context(), &Container{ID: "x"}); !errors.Is(err, ErrNoUpper) {
		t.Errorf("no snapshot: got %v", err)
	}
	// Of a container that does not run, nothing is there but what was written.
	live := c.Live(&Container{ID: "x"}, true, func() error { return errors.New("not to be called") })
	if err := live.Pause(t.Context()); err != nil {
		t.Errorf("pause: %v", err)
	}
	if _, err := live.Mount("/etc"); err == nil || !strings.Contains(err.Error(), "does not run (no task)") {
		t.Errorf("mount: got %v", err)
	}
	if err := errors.Join(live.Resume(), live.Resume()); err != nil {
		t.Errorf("resume: %v", err)
	}
	// The process of a container that is a virtual machine sees what this one does.
	live = c.Live(&Container{ID: "x"}, true, func() error { return errors.New("not to be called") })
	live.task = Task{uint32(os.Getpid()), Running}
	if _, err := live.Mount("/etc"); err == nil || !strings.Contains(err.Error(), "has the mounts of this machine") {
		t.Errorf("mount of a process of this machine: got %v", err)
	}
	s.Stop(t)
	var away *UnreachableError
	if _, err := c.Container(t.Context(), "x"); !errors.As(err, &away) || away.Address != s.Address {
		t.Errorf("containerd has ended: got %v", err)
	}
}
