// Command init is the first process of a guest that boots from a virtio-fs mount.
// It loads the kernel modules that lie beside it in the initrd, mounts the tag
// read-only, and then either runs one command on a writable overlay of it, with
// the environment, working directory and user of the image, and powers off; or
// answers the requests of its host (see package report). All it has to say goes as
// JSON lines over a virtio-serial port; the console gets a line only when there is
// no port.
//
// It trusts its host and its kernel. It never writes to the mount, never leaves a
// child process behind, and never ends without a power off or reboot: the kernel
// panics when its first process exits.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/guest/report"
)

// portWait bounds how long the port may take to appear once its driver is loaded.
const portWait = 20 * time.Second

func main() {
	if os.Args[0] == childName {
		err := runChild(os.Args[1:])
		fmt.Fprintln(os.Stderr, err)
		os.Exit(childFailed)
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a virtual machine; it does nothing elsewhere")
		os.Exit(2)
	}
	os.Exit(life())
}

// life is all that the first process does. It returns only where the kernel
// refuses to power off, and the kernel then panics.
func life() int {
	p, err := begin()
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		leave(unix.LINUX_REBOOT_CMD_POWER_OFF)
		return 1
	}
	m := &machine{port: p}
	if err := m.start(); err != nil {
		p.send(report.Event{Type: report.Failed, Error: err.Error()})
		m.finish(unix.LINUX_REBOOT_CMD_POWER_OFF)
		return 1
	}
	m.serve()
	return 1
}

// begin makes a place to stand on: the kernel's file systems, its modules, the port.
func begin() (*port, error) {
	if err := mountKernel("/"); err != nil {
		return nil, err
	}
	if err := loadModules("/modules"); err != nil {
		return nil, err
	}
	p, err := openPort(report.PortName, portWait)
	if err != nil {
		return nil, err
	}
	p.send(report.Event{Type: report.Boot})
	return p, nil
}

// machine is the guest as the requests see it.
type machine struct {
	port  *port
	tag   string
	loops loops
	root  overlay
	kids  children
}

// start does what the configuration says. It does not return when that is to run a
// command and power off.
func (m *machine) start() error {
	config, err := m.config()
	if err != nil {
		return err
	}
	m.kids.init()
	if err := loopbackUp(); err != nil {
		return err
	}
	if config.Tag != "" {
		if err := m.mount(config.Tag); err != nil {
			return err
		}
	}
	if config.Run == nil {
		m.port.send(report.Event{Type: report.Ready})
		return nil
	}
	if err := m.run(0, *config.Run); err != nil {
		return err
	}
	m.finish(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return nil
}

func (m *machine) config() (report.Config, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return report.Config{}, err
	}
	config, onPort, err := report.ParseCmdline(string(cmdline))
	if onPort {
		err = m.port.receive(&config)
	}
	return config, err
}

// mount mounts the tag and says so.
func (m *machine) mount(tag string) error {
	if err := mountTag(tag, lowerDir); err != nil {
		return err
	}
	m.tag = tag
	m.port.send(report.Event{Type: report.Mounted})
	return nil
}

// finish waits until the host has read everything, then ends the machine's life.
func (m *machine) finish(how int) {
	m.port.send(report.Event{Type: report.Bye})
	m.port.awaitBye()
	leave(how)
}

// leave powers off or reboots. Nothing here has written to a disk.
func leave(how int) {
	if err := unix.Reboot(how); err != nil {
		fmt.Fprintf(os.Stderr, "init: reboot(%#x): %v\n", how, err)
	}
}
