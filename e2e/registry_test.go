package e2e

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// A root file system of Debian packages goes to a registry, is converted, and guests
// boot from it by reference, while the registry counts what is asked of it.
func TestRegistry(t *testing.T) {
	testenv.NeedsVM(t)
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "mmdebstrap", "tar")
	ctx := bounded(t)
	image := debian(ctx, t)
	want := unpack(t, image)
	r := startRegistry(t)
	p := publish(ctx, t, r, image)
	cache := t.TempDir()
	t.Run("cold", func(t *testing.T) { cold(t, r, p, cache, want) })
	t.Run("warm", func(t *testing.T) { warm(t, r, p, cache, want) })
	t.Run("alone", func(t *testing.T) { alone(t, r, p, cache) })
	t.Run("command", func(t *testing.T) {
		config, err := image.ConfigFile()
		must(t, err)
		fromCommandLine(t, p, cache, config.Config)
	})
}

// cold: nothing is cached, and the registry is not near.
func cold(t *testing.T, r *registry.Registry, p published, cache string, want []probe.Entry) {
	r.Reset()
	r.SetLimits(registry.Limits{Latency: 5 * time.Millisecond, Rate: 100 << 20})
	s := serve(t, "--cache-dir", cache, p.reference)
	v := s.machine(t, vm.Options{Memory: 1024})
	python(t, v)
	touched := r.Blobs(p.Chunks...)
	if touched.Bytes == 0 || touched.Bytes >= p.ChunkBytes {
		t.Errorf("running python fetched %d of %d bytes: want some and not all", touched.Bytes, p.ChunkBytes)
	}
	t.Logf("python fetched %d of %d bytes in %d requests", touched.Bytes, p.ChunkBytes, touched.Requests)
	sameTree(t, v, want)
	all := r.Blobs(p.Chunks...)
	// Everything was read once; what two requests both fetched is waste.
	if all.Bytes > p.ChunkBytes*11/10 {
		t.Errorf("reading the tree fetched %d bytes of blobs of %d", all.Bytes, p.ChunkBytes)
	}
	t.Logf("whole tree: %d bytes in %d requests; private memory of the daemon %d KiB", all.Bytes, all.Requests, s.privateMemory(t))
	must(t, v.PowerOff(bounded(t)))
}

// warm: another daemon, another guest, the cache that the first ones have filled.
func warm(t *testing.T, r *registry.Registry, p published, cache string, want []probe.Entry) {
	r.Reset()
	s := serve(t, "--cache-dir", cache, p.reference)
	v := s.machine(t, vm.Options{Memory: 1024})
	sameTree(t, v, want)
	if got := r.Blobs(p.Chunks...); got != (registry.Traffic{}) {
		t.Errorf("with a warm cache the registry was asked for chunks: %+v, want nothing", got)
	}
	t.Logf("private memory of the daemon %d KiB", s.privateMemory(t))
	must(t, v.PowerOff(bounded(t)))
}

// alone: named by its digest, with a warm cache, an image needs no registry at all.
func alone(t *testing.T, r *registry.Registry, p published, cache string) {
	var asked atomic.Int64
	r.Inspect(func(*http.Request) { asked.Add(1) })
	defer r.Inspect(nil)
	s := serve(t, "--cache-dir", cache, p.byDigest)
	v := s.machine(t, vm.Options{Memory: 1024})
	python(t, v)
	if got := asked.Load(); got != 0 {
		t.Errorf("with a warm cache the registry was asked %d times, want never", got)
	}
	must(t, v.PowerOff(bounded(t)))
}

// fromCommandLine: the command that the image's configuration names is run from the
// kernel's command line, and the machine ends with it.
func fromCommandLine(t *testing.T, p published, cache string, c v1.Config) {
	ctx := bounded(t)
	run := &report.Command{Args: append(c.Cmd, "-c", "print('%s \"quoted\"' % 'so')"), Env: c.Env, Dir: c.WorkingDir, User: c.User}
	s := serve(t, "--cache-dir", cache, p.reference)
	v := s.machine(t, vm.Options{Config: report.Config{Tag: tag, Run: run}})
	must(t, v.Wait(ctx))
	out, _, err := v.AwaitType(ctx, 0, report.Output)
	must(t, err)
	if want := "so \"quoted\"\n"; string(out.Data) != want {
		t.Errorf("output %q, want %q", out.Data, want)
	}
	exit, _, err := v.AwaitType(ctx, 0, report.Exit)
	must(t, err)
	if exit.Code != 0 || exit.Signal != "" {
		t.Errorf("ended with %d %s, want 0", exit.Code, exit.Signal)
	}
	console, err := v.Console()
	must(t, err)
	if strings.Contains(console, "Kernel panic") {
		t.Errorf("the guest's kernel panicked:\n%s", console)
	}
}

// python runs a program of the image as the image's configuration wants it.
func python(t *testing.T, v *vm.VM) {
	t.Helper()
	got, err := v.Run(bounded(t), report.Command{
		Args: []string{"python3", "-c", "import os, json, ssl; print(os.getcwd(), os.getuid(), os.environ['GREETING'])"},
		Env:  []string{"GREETING=hello there", "PATH=/usr/bin"}, Dir: "/tmp", User: "nobody",
	})
	must(t, err)
	if want := "/tmp 65534 hello there\n"; got.Code != 0 || string(got.Stdout) != want {
		t.Errorf("python: status %d, %q, stderr %q, want %q", got.Code, got.Stdout, got.Stderr, want)
	}
}

// What is converted is what GNU tar makes of the same layers.
func TestConvertedLayers(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "tar")
	image := smallImage(t)
	r := startRegistry(t)
	p := publish(bounded(t), t, r, image)
	v := serve(t, p.reference).machine(t, vm.Options{})
	sameTree(t, v, unpack(t, image))
}
