package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/convert/containerd"
)

// guardVerb is what guards are started with, and nobody else has a use for.
const guardVerb = "resume-when-orphaned"

// guard is a process that resumes a container if this one ends, in whatever way,
// before it has. SIGKILL gives no time to do that.
type guard struct {
	cmd *exec.Cmd
	// life is a pipe to the guard: a byte means that all is well, its end without one
	// that this process has ended.
	life *os.File
}

func startGuard(client *containerd.Client, id string) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", guardVerb, "--containerd-address", client.Address, "--namespace", client.Namespace, id)
	cmd.Args[0] = "rafsd"
	cmd.Stdin = r
	// What a terminal sends to those who run in it is not for the guard.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("start what resumes the container if this process is killed: %w", err)
	}
	return &guard{cmd, w}, nil
}

// end tells the guard that it is not needed any more, or, where the container could not
// be resumed, to go on trying.
func (g *guard) end(resumed bool) {
	if resumed {
		_, _ = g.life.Write([]byte{1}) // it may have been killed, which changes nothing
	}
	_ = g.life.Close()
	if resumed {
		_ = g.cmd.Wait()
	}
}

func (a *app) guard() *cobra.Command {
	var address, namespace string
	cmd := &cobra.Command{
		Use: guardVerb + " ID", Hidden: true, Args: args(cobra.ExactArgs(1), "ID"),
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			return a.watchParent(containerd.New(address, namespace), args[0])
		},
	}
	cmd.Flags().StringVar(&address, "containerd-address", containerd.DefaultAddress, "socket of containerd")
	cmd.Flags().StringVar(&namespace, "namespace", "default", "namespace of containerd that has the container")
	return cmd
}

// pauseUnderWay is how long a call that pauses the container may take effect after the
// end of who has made it.
const pauseUnderWay = time.Second

// watchParent waits for the end of who holds the other end of stdin.
func (a *app) watchParent(client *containerd.Client, id string) error {
	defer client.Close()
	if _, err := io.ReadFull(a.stdin, make([]byte, 1)); err == nil {
		return nil
	}
	time.Sleep(pauseUnderWay)
	return client.Orphan(id).Resume()
}
