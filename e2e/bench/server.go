package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// server is a daemon that bench knows how to start.
type server struct {
	name    string
	program string // found
	paths   []string
	image   bool // it serves the image; otherwise the folder
	peer    bool
	// zeroUsed: it reports a used length of 0.
	zeroUsed bool
	args     func(img *image, sock, config string) []string
}

// ownPrograms returns where our own program may be.
func ownPrograms(o *options) []string {
	if given := *o.programs["rafsd"]; given != "" {
		return []string{given}
	}
	return []string{"bin/rafsd"}
}

// servers are all of them. The first is ours.
var servers = []server{
	{
		name: "rafsd", paths: []string{"bin/rafsd"}, image: true,
		args: func(img *image, sock, config string) []string {
			return []string{"virtiofs", "--sock", sock, "--bootstrap", img.bootstrap, "--config", config}
		},
	},
	{
		name: "nydusd", paths: []string{"nydusd", "~/.cargo/bin/nydusd"}, image: true, peer: true, zeroUsed: true,
		args: func(img *image, sock, config string) []string {
			// It refuses to start when it cannot have a million of open files; 0 asks for none.
			return []string{"virtiofs", "--sock", sock, "--bootstrap", img.bootstrap, "--config", config,
				"--rlimit-nofile", "0", "--log-level", "error"}
		},
	},
	{
		name: "virtiofsd", paths: []string{"virtiofsd", "~/.cargo/bin/virtiofsd", "/usr/libexec/virtiofsd"}, peer: true,
		args: func(img *image, sock, _ string) []string {
			return []string{"--socket-path", sock, "--shared-dir", img.tree, "--cache", "always", "--sandbox", "none",
				"--inode-file-handles=never", "--log-level", "error"}
		},
	},
	{
		name: "virtiofsd-c", paths: []string{"/usr/lib/qemu/virtiofsd"}, peer: true,
		args: func(img *image, sock, _ string) []string {
			return []string{"--socket-path=" + sock, "-f", "-o", "source=" + img.tree + ",cache=always,sandbox=chroot,log_level=err"}
		},
	},
}

// findServers returns those servers whose program is there.
func findServers(o *options, rep *report) []server {
	var out []server
	for _, s := range servers {
		paths := s.paths
		if given := *o.programs[s.name]; given != "" {
			paths = []string{given}
		}
		if s.program = find(paths); s.program == "" {
			rep.leaveOut(s.name, "it is no part of the comparison of daemons")
			continue
		}
		out = append(out, s)
	}
	return out
}

// find returns the first program that is there, absolute, or nothing.
func find(paths []string) string {
	for _, p := range paths {
		if rest, ok := strings.CutPrefix(p, "~/"); ok {
			p = filepath.Join(os.Getenv("HOME"), rest)
		}
		found, err := exec.LookPath(p)
		if err != nil {
			continue
		}
		if abs, err := filepath.Abs(found); err == nil {
			return abs
		}
	}
	return ""
}

// daemon is a server that runs, with its machine.
type daemon struct {
	server
	cmd       *exec.Cmd
	exited    chan error
	dir       string
	listening time.Duration // from exec until its socket was there
	vm        *vhostusertest.VM
	client    *vhostusertest.Client
	restarts  int
}

// nydusdConfig is the v1 configuration of nydusd, which rafsd reads as well.
func nydusdConfig(blobs, cache string) ([]byte, error) {
	return json.MarshalIndent(map[string]any{
		"device": map[string]any{
			"backend": map[string]any{"type": "localfs", "config": map[string]any{"dir": blobs}},
			"cache":   map[string]any{"type": "blobcache", "config": map[string]any{"work_dir": cache}},
		},
		"mode": "direct", "digest_validate": false, "iostats_files": false, "enable_xattr": true,
		"fs_prefetch": map[string]any{"enable": false},
	}, "", "  ")
}

// furnish makes the daemon's folder with its configuration, and the cache folder.
func furnish(img *image, dir, cache string) error {
	for _, d := range []string{dir, cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	config, err := nydusdConfig(img.blobs, cache)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
}

// start starts s, boots a machine on it and mounts. dir is the daemon's own,
// cache may be shared.
func start(ctx context.Context, o *options, s server, img *image, dir, cache string) (*daemon, error) {
	err := furnish(img, dir, cache)
	if err != nil {
		return nil, err
	}
	// nydusd loses the first kick now and then and never answers INIT.
	const tries = 20
	for i := range tries {
		d := &daemon{server: s, dir: dir, restarts: i}
		err = d.boot(ctx, o, img)
		if err == nil {
			return d, nil
		}
		d.stop()
		if !s.zeroUsed || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			break
		}
	}
	said, _ := os.ReadFile(filepath.Join(dir, "log"))
	return nil, fmt.Errorf("%s: %w\n%s", s.name, err, said[max(0, len(said)-2000):])
}

func (d *daemon) boot(ctx context.Context, o *options, img *image) error {
	sock := filepath.Join(d.dir, "sock")
	_ = os.Remove(sock)
	if err := d.exec(img, sock); err != nil {
		return err
	}
	opts := vhostusertest.Options{QueueSize: 1024, Regions: []vhostusertest.Region{{Size: o.guestMemory}}}
	if o.noEventIdx {
		opts.Features = vhostusertest.DefaultFeatures &^ (1 << 29)
	}
	var err error
	for range 1000 {
		if d.vm, err = vhostusertest.Boot(ctx, sock, opts); !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		return err
	}
	if d.client, err = vhostusertest.NewClient(d.vm); err != nil {
		return err
	}
	d.client.ZeroUsed = d.zeroUsed
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = d.client.Init(ctx)
	return err
}

// exec starts the program and waits until its socket is there.
func (d *daemon) exec(img *image, sock string) error {
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command(d.program, d.args(img, sock, filepath.Join(d.dir, "config.json"))...)
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = d.dir, log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.exited = make(chan error, 1)
	go func() { d.exited <- d.cmd.Wait() }()
	for time.Since(began) < 10*time.Second {
		if _, err := os.Stat(sock); err == nil {
			d.listening = time.Since(began)
			return nil
		}
		select {
		case err := <-d.exited:
			d.exited <- err
			return fmt.Errorf("ended before it listened: %w", err)
		case <-time.After(100 * time.Microsecond):
		}
	}
	return fmt.Errorf("does not listen after %v", time.Since(began))
}

// stop ends the machine and the daemon, with everything that it forked.
func (d *daemon) stop() {
	if d.client != nil {
		_ = d.client.Close()
	}
	if d.vm != nil {
		_ = d.vm.Close()
	}
	if d.exited == nil {
		return
	}
	_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	<-d.exited
	d.exited = nil
}
