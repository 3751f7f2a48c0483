package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest/report"
)

const (
	// childName is the first argument by which this program knows that it is the
	// child that becomes the command.
	childName = "rafsd-child"
	// childFailed is the exit status of a child that could not become the command:
	// what shells use for the same.
	childFailed = 127
)

// running stands for the status of a child that has none yet; no wait status has
// these bits.
const running = ^unix.WaitStatus(0)

// children reaps every process of the machine: those that init started and those
// that lost their parent. It takes the place of os/exec's own waiting, which would
// race with it.
type children struct {
	mu     sync.Mutex
	cond   *sync.Cond
	count  int // started by init, not reaped
	status map[int]unix.WaitStatus
}

func (c *children) init() {
	c.cond = sync.NewCond(&c.mu)
	c.status = map[int]unix.WaitStatus{}
	go c.reap()
}

// reap sleeps while init has no child of its own: orphans of one that is gone wait
// for the next.
func (c *children) reap() {
	for {
		c.mu.Lock()
		for c.count == 0 {
			c.cond.Wait()
		}
		c.mu.Unlock()
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err != nil {
			continue
		}
		c.mu.Lock()
		if _, ours := c.status[pid]; ours {
			c.status[pid] = ws
			c.count--
			c.cond.Broadcast()
		}
		c.mu.Unlock()
	}
}

// start starts this program as a child that becomes the command.
func (c *children) start(args []string, stdout, stderr *os.File) (int, error) {
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	process, err := os.StartProcess("/proc/self/exe", append([]string{childName}, args...), &os.ProcAttr{
		Files: []*os.File{null, stdout, stderr},
		Sys:   &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS},
	})
	if err != nil {
		return 0, err
	}
	pid := process.Pid
	process.Release()
	c.status[pid] = running
	c.count++
	c.cond.Broadcast()
	return pid, nil
}

// wait returns how a started child ended, after ending what it left behind, so
// that its pipes end too: everything, when no other child of init runs, and
// otherwise what is still in its process group.
func (c *children) wait(pid int) unix.WaitStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.status[pid] == running {
		c.cond.Wait()
	}
	ws := c.status[pid]
	delete(c.status, pid)
	target := -pid
	if c.count == 0 {
		target = -1
	}
	// ESRCH: it left nothing.
	_ = unix.Kill(target, unix.SIGKILL)
	return ws
}

// run runs a command on the overlay, reports what it writes and how it ends, and
// ends whatever it left behind.
func (m *machine) run(id int, command report.Command) error {
	root, err := m.root.open()
	if err != nil {
		return err
	}
	text, err := json.Marshal(command)
	if err != nil {
		return err
	}
	var readers sync.WaitGroup
	var ends [2]*os.File
	for i, stream := range []string{"stdout", "stderr"} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		ends[i] = w
		readers.Go(func() { m.forward(id, stream, r) })
	}
	m.port.send(report.Event{ID: id, Type: report.Started})
	pid, err := m.kids.start([]string{root, string(text)}, ends[0], ends[1])
	ends[0].Close()
	ends[1].Close()
	if err != nil {
		readers.Wait()
		return fmt.Errorf("start %q: %w", command.Args, err)
	}
	ws := m.kids.wait(pid)
	readers.Wait()
	exit := report.Event{ID: id, Type: report.Exit, Code: ws.ExitStatus()}
	if ws.Signaled() {
		exit.Code, exit.Signal = 0, unix.SignalName(ws.Signal())
	}
	m.port.send(exit)
	return nil
}

// forward reports what comes out of a pipe until its last writer is gone.
func (m *machine) forward(id int, stream string, r *os.File) {
	defer r.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			m.port.send(report.Event{ID: id, Type: report.Output, Stream: stream, Data: buf[:n]})
		}
		if err != nil {
			return
		}
	}
}

// runChild becomes the command: from here on it sees the root file system as a
// process of the image would, so that names, links and users mean what they mean
// there. It returns only an error.
func runChild(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("init: %d arguments for a child, want 2", len(args))
	}
	var command report.Command
	if err := json.Unmarshal([]byte(args[1]), &command); err != nil {
		return fmt.Errorf("init: command: %w", err)
	}
	if len(command.Args) == 0 {
		return fmt.Errorf("init: command without arguments")
	}
	if err := enter(args[0]); err != nil {
		return err
	}
	who, err := lookupUser(command.User)
	if err != nil {
		return err
	}
	os.Clearenv()
	for key, value := range environment(command.Env, who) {
		if err := os.Setenv(key, value); err != nil {
			return fmt.Errorf("environment %s: %w", key, err)
		}
	}
	if err := changeDir(command.Dir); err != nil {
		return err
	}
	if err := who.become(); err != nil {
		return err
	}
	path, err := exec.LookPath(command.Args[0])
	if err != nil {
		return err
	}
	if err := unix.Exec(path, command.Args, os.Environ()); err != nil {
		return fmt.Errorf("exec %s: %w", path, err)
	}
	return nil
}

// enter makes root the root of this process. An initrd's root cannot be pivoted
// away from, so the new one is moved over it, in a mount namespace of its own.
func enter(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("chdir %s: %w", root, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", root, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot %s: %w", root, err)
	}
	return unix.Chdir("/")
}

// changeDir makes the working directory where the image lacks it, as container
// runtimes do.
func changeDir(dir string) error {
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	return os.Chdir(dir)
}

// environment adds what an image may leave out.
func environment(env []string, who user) map[string]string {
	out := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": who.home,
	}
	for _, e := range env {
		for i := range e {
			if e[i] == '=' {
				out[e[:i]] = e[i+1:]
				break
			}
		}
	}
	return out
}
