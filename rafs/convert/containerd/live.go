package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/convert"
)

// Live is a container while it is committed. It is not safe for concurrent use.
type Live struct {
	client *Client
	id     string
	pause  bool // Pause does something
	// before is called before the container is paused.
	before func() error

	task   Task
	paused bool  // by us
	root   int   // descriptor of the container's root, -1 while there is none
	places []int // descriptors of what Mount has opened
}

// Live returns a container for a commit. Unless pause is set, it goes on running
// while it is read. Before, if not nil, is called before the container is paused, and
// not if there is no need to.
func (c *Client) Live(one *Container, pause bool, before func() error) *Live {
	return &Live{client: c, id: one.ID, pause: pause, before: before, root: -1}
}

// Orphan is a container that somebody has paused who is no more.
func (c *Client) Orphan(id string) *Live { return &Live{client: c, id: id, paused: true, root: -1} }

// Pause stops the processes of the container if they run. If it fails, they run.
func (l *Live) Pause(ctx context.Context) (err error) {
	if l.task, err = l.client.Task(ctx, l.id); err != nil {
		return fmt.Errorf("container %s: %w", l.id, err)
	}
	if !l.pause || l.task.Status != Running {
		return nil
	}
	if l.before != nil {
		if err := l.before(); err != nil {
			return err
		}
	}
	l.paused = true // perhaps, also if the call fails
	for until := time.Now().Add(pauseTime); ; {
		if _, err = l.client.call(ctx, "Tasks", "Pause", strings1(l.id)); err == nil {
			return nil
		}
		var refused *StatusError
		if !errors.As(err, &refused) || time.Now().After(until) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("pause container %s: %w", l.id, err), l.Resume())
		}
		time.Sleep(pauseDelay)
	}
}

const (
	// pauseTime is for how long a container that could not be paused is tried again.
	// runc gives up at once when a process is busy just then ("unable to freeze", with
	// cgroups of version 1).
	pauseTime = 5 * time.Second
	// pauseDelay is the time between tries.
	pauseDelay = 50 * time.Millisecond
	// resumeTime is what a containerd that is being started again is given.
	resumeTime = 30 * time.Second
	// resumeDelay is the time between tries.
	resumeDelay = 500 * time.Millisecond
)

// Resume undoes what Pause has done and closes what Mount has opened. A container
// that somebody else has paused stays so. It may be called again.
//
// It does not end with the context of the commit: a commit that is interrupted
// leaves no container paused. If containerd does not do it, it is asked again for
// some time; the error says what to do then.
func (l *Live) Resume() (err error) {
	for _, fd := range append(l.places, l.root) {
		if fd >= 0 {
			_ = unix.Close(fd) // nothing was written
		}
	}
	l.places, l.root = nil, -1
	if !l.paused {
		return nil
	}
	for until := time.Now().Add(resumeTime); ; time.Sleep(resumeDelay) {
		if err = l.resume(); err == nil {
			l.paused = false
			return nil
		}
		if time.Now().After(until) {
			break
		}
	}
	return fmt.Errorf("container %s is still paused, resume it with 'ctr --address %s --namespace %s tasks resume %s': %w",
		l.id, l.client.Address, l.client.Namespace, l.id, err)
}

func (l *Live) resume() error {
	ctx := context.Background()
	_, err := l.client.call(ctx, "Tasks", "Resume", strings1(l.id))
	if err == nil {
		return nil
	}
	// It may have been killed, or resumed by somebody else, or never been paused.
	if t, askErr := l.client.Task(ctx, l.id); askErr == nil && t.Status != Paused && t.Status != Pausing {
		return nil
	}
	return err
}

// Mount returns what the container has at an absolute path, with what is mounted
// there and below it. It is to be called between Pause and Resume.
func (l *Live) Mount(p string) (m convert.Mount, err error) {
	p = path.Clean("/" + p)
	if p == "/" {
		return m, errors.New("want a path below the root of the container")
	}
	if err := l.openRoot(); err != nil {
		return m, fmt.Errorf("container %s: %w", l.id, err)
	}
	m.Path = p
	dir := p
	fd, err := l.beneath(p, unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		dir, m.Name = path.Split(p)
		fd, err = l.beneath(dir, unix.O_DIRECTORY)
	}
	switch {
	case errors.Is(err, unix.ELOOP):
		return m, fmt.Errorf("container %s: %s: a symbolic link, want the path that it leads to", l.id, p)
	case err != nil:
		return m, fmt.Errorf("container %s: %s: %w", l.id, dir, err)
	}
	l.places = append(l.places, fd)
	m.Dir = "/proc/self/fd/" + strconv.Itoa(fd)
	return m, nil
}

// beneath opens a path of the container. Neither "..", nor a symbolic link, nor the
// kernel's links in /proc lead out of it.
func (l *Live) beneath(p string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	p = strings.Trim(p, "/")
	if p == "" {
		p = "."
	}
	for {
		fd, err := unix.Openat2(l.root, p, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) { // EAGAIN: something was moved meanwhile
			return fd, err
		}
	}
}

// openRoot opens the root of the container in the container's own mount namespace.
func (l *Live) openRoot() error {
	if l.root >= 0 {
		return nil
	}
	if !l.task.Lives() {
		return fmt.Errorf("it does not run (%v), and what it mounts is not there; want PATH=FOLDER", l.task.Status)
	}
	proc := "/proc/" + strconv.FormatUint(uint64(l.task.PID), 10)
	theirs, err := os.Readlink(proc + "/ns/mnt")
	if err != nil {
		return err
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if theirs == ours {
		// That of a container in a virtual machine is a process of the host.
		return fmt.Errorf("process %d has the mounts of this machine, not those of a container; want PATH=FOLDER", l.task.PID)
	}
	fd, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s/root: %w", proc, err)
	}
	l.root = fd
	// The number may be another process' by now.
	now, err := l.client.Task(context.Background(), l.id)
	if err == nil && (now.PID != l.task.PID || !now.Lives()) {
		err = fmt.Errorf("process %d has ended", l.task.PID)
	}
	return err
}
