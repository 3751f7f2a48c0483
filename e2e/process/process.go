// Package process builds the programs of this repository and runs those that serve
// on a unix socket: the daemon under test, or another one to compare it with.
//
// A process is bounded: it dies with the process that started it, and Stop kills
// what does not end in time.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Root returns the root folder of the repository, found from this source file.
func Root() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("repository: built with -trimpath, so the sources cannot be found")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file))), nil
}

// Build builds a package of the repository, "./cmd/rafsd", into a static program.
func Build(ctx context.Context, pkg, out string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, bytes.TrimSpace(text))
	}
	return nil
}

// Process is a running program.
type Process struct {
	cmd  *exec.Cmd
	log  string
	out  *os.File
	done chan struct{}
	err  error // set before done is closed
	stop sync.Once
}

// Start starts a program whose output goes to the file log.
func Start(log, program string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(program, args...), log: log, out: out, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Serve starts a program and waits until it listens on the unix socket.
func Serve(ctx context.Context, socket, log, program string, args ...string) (*Process, error) {
	p, err := Start(log, program, args...)
	if err != nil {
		return nil, err
	}
	if err := p.awaitSocket(ctx, socket); err != nil {
		err = fmt.Errorf("%s: %w\n%s", filepath.Base(program), err, p.Describe())
		return nil, errors.Join(err, p.Stop(syscall.SIGKILL, time.Second))
	}
	return p, nil
}

// awaitSocket asks the kernel for its table of unix sockets. To connect would be a
// session that the program takes for the one it serves.
func (p *Process) awaitSocket(ctx context.Context, socket string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return err
		}
		if listens(string(text), socket) {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("ended before it listened on %s: %v", socket, p.err)
		case <-ctx.Done():
			return fmt.Errorf("does not listen on %s: %w", socket, context.Cause(ctx))
		}
	}
}

// listens looks for a path with the flag __SO_ACCEPTCON (net/unix: proc_net_unix,
// columns Num RefCount Protocol Flags Type St Inode Path).
func listens(table, socket string) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 8 && f[7] == socket && f[3] == "00010000" {
			return true
		}
	}
	return false
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended; it may be called after Done is closed.
func (p *Process) Err() error { return p.err }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop sends the signal, waits for the end of the process, and kills it when that
// takes longer than patience. It is an error if it had to be killed, if it ended with
// another status than 0 after a signal that asks it to end, or if a process of its
// group survives.
func (p *Process) Stop(s syscall.Signal, patience time.Duration) error {
	var err error
	p.stop.Do(func() { err = p.end(s, patience) })
	return err
}

func (p *Process) end(s syscall.Signal, patience time.Duration) error {
	defer p.out.Close()
	name := filepath.Base(p.cmd.Path)
	target := p.PID()
	if s == syscall.SIGKILL {
		target = -target
	}
	// A process that has ended already is looked at below.
	_ = syscall.Kill(target, s)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var late error
	select {
	case <-p.done:
	case <-timer.C:
		late = fmt.Errorf("%s: still runs %v after %v", name, patience, s)
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
		<-p.done
	}
	if late == nil && p.err != nil && s != syscall.SIGKILL {
		late = fmt.Errorf("%s: after %v: %w", name, s, p.err)
	}
	return errors.Join(late, GroupGone(p.PID()))
}

// groupWait is how long the system may take to reap the orphans of a process group
// whose processes have been killed.
const groupWait = 2 * time.Second

// GroupGone returns nil when no process of a process group is left. Otherwise it
// kills what is left and says so.
func GroupGone(pgid int) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(groupWait); ; <-tick.C {
		if syscall.Kill(-pgid, 0) == syscall.ESRCH || !alive(pgid) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process group %d still has processes: %v", pgid, syscall.Kill(-pgid, syscall.SIGKILL))
		}
	}
}

// alive reports whether a process of the group runs. One that has ended stays in its
// group until its parent, which may be the machine's init, gets round to it.
func alive(pgid int) bool {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return true
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		// pid (comm) state ppid pgrp ..., and comm may have anything in it
		// (proc_pid_stat(5)).
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(pgid) && fields[0] != "Z" && fields[0] != "X" {
			return true
		}
	}
	return false
}

// Describe returns the command line and the end of the output.
func (p *Process) Describe() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		text = []byte(err.Error())
	}
	return fmt.Sprintf("--- %s\n%s\n", strings.Join(p.cmd.Args, " "), bytes.TrimSpace(text[max(0, len(text)-16<<10):]))
}
