package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModules loads what the file "order" in dir lists, one name a line, in that
// order: the initrd's maker has put dependencies first.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	sc := bufio.NewScanner(bytes.NewReader(order))
	for sc.Scan() {
		if err := loadModule(filepath.Join(dir, sc.Text())); err != nil {
			return err
		}
	}
	return sc.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("module %s: %w", filepath.Base(path), err)
	}
	return nil
}

// kernelMounts are the file systems that the kernel itself provides, in the order
// in which they lie over one another.
var kernelMounts = []struct {
	kind, dir, data string
	flags           uintptr
}{
	{"proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"sysfs", "sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"devtmpfs", "dev", "mode=0755", unix.MS_NOSUID},
	{"devpts", "dev/pts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"tmpfs", "dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	{"tmpfs", "run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	{"tmpfs", "tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
}

// devLinks are what programs expect in /dev beside the kernel's own nodes.
var devLinks = map[string]string{
	"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
}

// mountKernel mounts kernelMounts below root.
func mountKernel(root string) error {
	for _, m := range kernelMounts {
		dir := filepath.Join(root, m.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, dir, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, dir, err)
		}
	}
	for name, target := range devLinks {
		link := filepath.Join(root, "dev", name)
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

const lowerDir = "/lower"

// mountTag mounts a virtio-fs tag read-only.
func mountTag(tag, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount(tag, dir, "virtiofs", unix.MS_RDONLY, "")
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount virtiofs tag %q: %w: has the machine a vhost-user-fs device with this tag?", tag, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount virtiofs tag %q: %w: the kernel has no virtiofs driver", tag, err)
	case err != nil:
		return fmt.Errorf("mount virtiofs tag %q: %w", tag, err)
	}
	return nil
}

// dropCaches makes the kernel forget clean pages, dentries and inodes.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// loopbackUp gives programs 127.0.0.1.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	return nil
}

// overlay is the writable root over the mount, made when first needed.
type overlay struct {
	dir string
}

// open returns the folder of the overlay, with the kernel's file systems in it.
func (o *overlay) open() (string, error) {
	if o.dir != "" {
		return o.dir, nil
	}
	const rw, merged = "/rw", "/merged"
	if err := os.MkdirAll(rw, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("tmpfs", rw, "tmpfs", 0, "mode=0755"); err != nil {
		return "", fmt.Errorf("mount tmpfs on %s: %w", rw, err)
	}
	for _, d := range []string{rw + "/upper", rw + "/work", merged} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	options := []string{"lowerdir=" + lowerDir, "upperdir=" + rw + "/upper", "workdir=" + rw + "/work", "index=off"}
	if err := unix.Mount("overlay", merged, "overlay", 0, strings.Join(options, ",")); err != nil {
		return "", fmt.Errorf("mount overlay on %s: %w", merged, err)
	}
	if err := mountKernel(merged); err != nil {
		return "", err
	}
	o.dir = merged
	return merged, nil
}
