package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/rafstest"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// TestEveryImageThroughTheRings reads whole images as a guest does, through the
// rings, the engine and the cache: cold, by another guest warm, and by another
// daemon over the same cache with the blobs taken away.
func TestEveryImageThroughTheRings(t *testing.T) {
	for _, c := range append(rafstest.Core(t), rafstest.Nydus(t)...) {
		t.Run(c.Name, func(t *testing.T) {
			testenv.LeakCheck(t)
			cache := t.TempDir()
			socket := start(t, Options{Bootstrap: c.Bootstrap, Config: localConfig(t, c.Blobs[0], cache)})
			checkTree(t, socket, c.Want, vhostusertest.Options{})
			checkTree(t, socket, c.Want, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor, Queues: 2})

			socket = start(t, Options{Bootstrap: c.Bootstrap, Config: localConfig(t, t.TempDir(), cache)})
			checkTree(t, socket, c.Want, vhostusertest.Options{})
		})
	}
}

func checkTree(t *testing.T, socket string, want []rafstest.Entry, o vhostusertest.Options) {
	t.Helper()
	o.QueueSize = 1024
	vm, err := vhostusertest.Boot(t.Context(), socket, o)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	c, err := vhostusertest.Mount(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if want != nil {
		rafstest.Compare(t, want, guestTree(t.Context(), c))
		return
	}
	for e, err := range guestTree(t.Context(), c) {
		if err != nil {
			t.Errorf("%s: %v", e.Path, err)
		}
	}
}

func coreCase(t testing.TB, name string) *rafstest.Case {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name == name {
			return &c
		}
	}
	t.Fatalf("no image %s", name)
	return nil
}

func TestABootstrapThatChangesUnderTheDaemon(t *testing.T) {
	testenv.LeakCheck(t)
	for name, damage := range map[string]func(path string) error{
		"truncated":   func(p string) error { return os.Truncate(p, 0) },
		"removed":     os.Remove,
		"overwritten": func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			c := coreCase(t, "v6-zstd-blake3")
			data, err := os.ReadFile(c.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "image.boot")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			socket := start(t, Options{Bootstrap: path, Config: localConfig(t, c.Blobs[0], t.TempDir())})
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			checkTree(t, socket, c.Want, vhostusertest.Options{})
		})
	}
}

func TestSocketInTheWay(t *testing.T) {
	c := coreCase(t, "v6-zstd-blake3")
	run := func(socket string) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		return Run(ctx, Options{
			Socket: socket, Bootstrap: c.Bootstrap, Config: localConfig(t, c.Blobs[0], t.TempDir()), Queues: 1,
			Log: discard(), Ready: cancel,
		})
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file); err == nil {
		t.Error("a file in the way was replaced")
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file in the way holds %q now", data)
	}

	busy := start(t, Options{Bootstrap: c.Bootstrap, Config: localConfig(t, c.Blobs[0], t.TempDir())})
	if err := run(busy); err == nil {
		t.Error("the socket of another daemon was replaced")
	}

	dead := filepath.Join(dir, "dead")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: dead}), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	if err := run(dead); err != nil {
		t.Errorf("a dead socket in the way: %v", err)
	}
}

func TestTheSocketIsTheOwnersOnly(t *testing.T) {
	c := coreCase(t, "v6-zstd-blake3")
	socket := start(t, Options{Bootstrap: c.Bootstrap, Config: localConfig(t, c.Blobs[0], t.TempDir())})
	fi, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
}
