package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// needs are the programs that the demonstration runs, and Debian's and Ubuntu's
// packages of them.
var needs = []struct {
	program, pkg string
	making       bool // only to make an image of the distribution's packages
	unprivileged bool // only without root rights
}{
	{program: "qemu-system-x86_64", pkg: "qemu-system-x86"},
	{program: "xz", pkg: "xz-utils"},
	{program: "mmdebstrap", pkg: "mmdebstrap", making: true},
	{program: "newuidmap", pkg: "uidmap", making: true, unprivileged: true},
}

// install installs the missing programs with apt.
func install(ctx context.Context, making bool) error {
	var missing []string
	for _, n := range needs {
		if n.making && !making || n.unprivileged && os.Geteuid() == 0 {
			continue
		}
		if _, err := exec.LookPath(n.program); err != nil {
			missing = append(missing, n.pkg)
		}
	}
	if len(missing) == 0 {
		return refresh(ctx)
	}
	fmt.Printf("Installing what is missing here: %s\n", strings.Join(missing, " "))
	if err := asRoot(ctx, "apt-get", "update", "--quiet", "--quiet"); err != nil {
		return err
	}
	return asRoot(ctx, "apt-get", append([]string{"install", "--quiet", "--quiet", "--yes", "--no-install-recommends"}, missing...)...)
}

// refresh fetches apt's lists where there are none, as on a new machine: the kernel's
// package is looked up in them.
func refresh(ctx context.Context) error {
	if err := exec.CommandContext(ctx, "apt-cache", "show", "linux-image-cloud-amd64").Run(); err == nil {
		return nil
	}
	if err := exec.CommandContext(ctx, "apt-cache", "show", "linux-image-virtual").Run(); err == nil {
		return nil
	}
	return asRoot(ctx, "apt-get", "update", "--quiet", "--quiet")
}

// asRoot runs a command with root rights; sudo asks for a password on the terminal.
func asRoot(ctx context.Context, name string, args ...string) error {
	if os.Geteuid() != 0 {
		name, args = "sudo", append([]string{"DEBIAN_FRONTEND=noninteractive", name}, args...)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}
