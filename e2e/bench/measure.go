package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// launchVerb is the argument by which this program starts itself to start another.
const launchVerb = "launch"

// usage is what one run of a program took.
type usage struct {
	Wall float64 `json:"wall_s"`
	CPU  float64 `json:"cpu_s"` // user and system
	RSS  uint64  `json:"peak_rss_bytes"`
}

// measure runs a program and tells what it took. The program is started by a process
// that is small: Linux counts into a child's peak what its parent had in memory when
// it forked, and this one has had the memory of virtual machines.
func measure(ctx context.Context, argv []string) (usage, error) {
	self, err := os.Executable()
	if err != nil {
		return usage{}, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return usage{}, err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, self, append([]string{launchVerb}, argv...)...)
	cmd.ExtraFiles = []*os.File{in}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Run()
	if err := errors.Join(err, in.Close()); err != nil {
		return usage{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, &said)
	}
	var u usage
	err = json.NewDecoder(out).Decode(&u)
	return u, err
}

// launch is the other side of measure: it runs argv and writes what that took to
// descriptor 3.
func launch(argv []string) error {
	if len(argv) == 0 {
		return errors.New("nothing to launch")
	}
	result := os.NewFile(3, "result")
	syscall.CloseOnExec(3)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return err
	}
	u := usage{
		Wall: time.Since(began).Seconds(),
		CPU:  (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(),
	}
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.RSS = uint64(r.Maxrss) << 10
	}
	return json.NewEncoder(result).Encode(u)
}
