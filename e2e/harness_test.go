package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rafsd/rafsd/e2e/process"
	"github.com/rafsd/rafsd/e2e/vm"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

const (
	tag = "image"
	// stopTime is how long rafsd may take to end after SIGTERM, whatever it does.
	stopTime = 3 * time.Second
	// testTime bounds each test and each machine.
	testTime = 10 * time.Minute
)

// scratch holds what all tests of this run share: the binary, the initrd.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rafsd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	scratch = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("RAFSD_BIN"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(scratch, "rafsd")
	return path, process.Build(context.Background(), "./cmd/rafsd", path)
})

var files = sync.OnceValues(func() (vm.Files, error) {
	return vm.Prepare(context.Background(), scratch)
})

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bounded returns the context of a test.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	t.Cleanup(cancel)
	return ctx
}

// server is a running rafsd.
type server struct {
	*process.Process
	fs  vm.FS
	dir string // of socket, log and cache, unless the cache was given
}

// serve starts `rafsd virtiofs` with the arguments that name the image. When the test
// ends it asks the daemon to end, which it must do at once.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	bin, err := binary()
	must(t, err)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	all := append([]string{"virtiofs", "--sock", socket}, args...)
	p, err := process.Serve(bounded(t), socket, filepath.Join(dir, "log"), bin, all...)
	must(t, err)
	s := &server{p, vm.FS{Socket: socket, Tag: tag}, dir}
	t.Cleanup(func() {
		if err := s.Stop(syscall.SIGTERM, stopTime); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.Describe())
		}
	})
	return s
}

// privateMemory returns the daemon's anonymous resident memory in KiB: what is its
// own, without the guest's memory and files that it has mapped.
func (s *server) privateMemory(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	must(t, err)
	var kib int
	for line := range strings.Lines(string(text)) {
		if n, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 && err == nil {
			return kib
		}
	}
	t.Fatal("no RssAnon in /proc/PID/status")
	return 0
}

// machine boots a guest on the daemon. Without a configuration of its own it mounts
// the tag and answers requests.
func (s *server) machine(t *testing.T, o vm.Options) *vm.VM {
	t.Helper()
	testenv.NeedsVM(t)
	var err error
	o.Boot, err = files()
	must(t, err)
	if o.FS == nil {
		o.FS = []vm.FS{s.fs}
	}
	if o.Config.Tag == "" {
		o.Config = report.Config{Tag: tag}
	}
	if o.Life == 0 {
		o.Life = testTime
	}
	ctx := bounded(t)
	v, err := vm.Start(ctx, o)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(v.Describe())
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if o.Config.Run == nil {
		_, _, err = v.AwaitType(ctx, 0, report.Ready)
		must(t, err)
	}
	return v
}

// sameTree compares what the guest sees with what it has to see.
func sameTree(t *testing.T, v *vm.VM, want []probe.Entry) {
	t.Helper()
	got, err := v.Tree(bounded(t), "/")
	must(t, err)
	diff := probe.Diff(withoutRoot(got), withoutRoot(want))
	for _, d := range diff[:min(len(diff), 20)] {
		t.Error(d)
	}
	if len(diff) > 20 {
		t.Errorf("and %d more differences", len(diff)-20)
	}
	if len(want) == 0 {
		t.Error("nothing to compare with")
	}
}

// withoutRoot leaves out the root folder: manifests and archives do not have it.
func withoutRoot(list []probe.Entry) []probe.Entry {
	out := make([]probe.Entry, 0, len(list))
	for _, e := range list {
		if e.Path != "/" {
			out = append(out, e)
		}
	}
	return out
}
