package vm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/e2e/process"
	"github.com/rafsd/rafsd/guest/probe"
	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// folder makes a small root file system, whose only program tells what it is run as.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, text := range map[string]string{
		"etc/passwd":      "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
		"etc/group":       "root:x:0:\nwww:x:34:\nlogs:x:40:web\n",
		"srv/big":         strings.Repeat("0123456789abcdef", 1<<16),
		"srv/odd\xffname": "",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
	must(t, process.Build(t.Context(), "./e2e/vm/testdata/told", filepath.Join(dir, "bin/told")))
	must(t, os.Symlink("/bin/told", filepath.Join(dir, "srv/link")))
	must(t, unix.Mknod(filepath.Join(dir, "srv/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Link(filepath.Join(dir, "etc/group"), filepath.Join(dir, "srv/group")))
	must(t, unix.Setxattr(filepath.Join(dir, "srv/big"), "user.note", []byte("hello"), 0))
	return dir
}

// share serves a folder with another implementation, QEMU's own virtiofsd, so that
// these tests judge the guest and this harness and nothing else.
func share(t *testing.T, dir string) FS {
	t.Helper()
	testenv.NeedsRoot(t)
	server := testenv.NeedsTool(t, "/usr/lib/qemu/virtiofsd")[0]
	state := t.TempDir()
	socket := filepath.Join(state, "s")
	p, err := process.Serve(t.Context(), socket, filepath.Join(state, "log"), server,
		"--socket-path="+socket, "-o", "source="+dir, "-o", "cache=always", "-o", "xattr")
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.Describe())
		}
		// It ends with its only client, and else has to be killed.
		if err := p.Stop(syscall.SIGKILL, 5*time.Second); err != nil {
			t.Error(err)
		}
	})
	return FS{Socket: socket, Tag: "image"}
}

func TestTree(t *testing.T) {
	dir := folder(t)
	v, ctx := boot(t, Options{FS: []FS{share(t, dir)}, Config: report.Config{Tag: "image"}})
	_, _, err := v.AwaitType(ctx, 0, report.Ready)
	must(t, err)
	want, err := probe.Tree(dir)
	must(t, err)
	for range 2 {
		got, err := v.Tree(ctx, "/")
		must(t, err)
		for _, d := range probe.Diff(got, want) {
			t.Error(d)
		}
		must(t, v.Do(ctx, report.Request{Op: report.OpDrop}, nil))
	}
	wantFile := want[slices.IndexFunc(want, func(e probe.Entry) bool { return e.Path == "/srv/big" })]
	for _, direct := range []bool{false, true} {
		err = v.Do(ctx, report.Request{Op: report.OpRead, Paths: []string{"/srv/big"}, Direct: direct}, func(r Record) {
			if r.Path != "/srv/big" || r.Size != 1<<20 || r.SHA256 != wantFile.SHA256 {
				t.Errorf("read with direct=%t: %s, want %d bytes with %s", direct, line(r.Event), 1<<20, wantFile.SHA256)
			}
		})
		must(t, err)
	}
	if err := v.Do(ctx, report.Request{Op: report.OpRead, Paths: []string{"/absent"}}, nil); err == nil {
		t.Errorf("reading an absent file is no error")
	}
	loop, err := v.Send(report.Request{Op: report.OpLoop, Paths: []string{"/etc/passwd"}})
	must(t, err)
	for passes := 0; passes < 3; {
		r, err := loop.Next(ctx)
		must(t, err)
		if r.Type == report.Pass {
			passes++
		}
	}
	must(t, v.Do(ctx, report.Request{Op: report.OpCancel, Target: loop.ID}, nil))
	for err = nil; err == nil; _, err = loop.Next(ctx) {
	}
	if err != ErrDone {
		t.Errorf("cancelled loop ended with %v, want %v", err, ErrDone)
	}
	must(t, v.Do(ctx, report.Request{Op: report.OpUmount}, nil))
	must(t, v.PowerOff(ctx))
}

// as is what the program says of itself.
type as struct {
	Args, Env []string
	Dir       string
	UID, GID  int
	Groups    []int
}

func TestRun(t *testing.T) {
	v, ctx := boot(t, Options{FS: []FS{share(t, folder(t))}, Config: report.Config{Tag: "image"}})
	_, _, err := v.AwaitType(ctx, 0, report.Ready)
	must(t, err)
	path := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, tc := range []struct {
		name    string
		command report.Command
		as      as
		code    int
		signal  string
	}{
		{"as root", report.Command{Args: []string{"told", "exit", "3", `a "b" 'c'`}},
			as{[]string{"told", "exit", "3", `a "b" 'c'`}, []string{"HOME=/root", path}, "/", 0, 0, nil}, 3, ""},
		{"by name", report.Command{Args: []string{"/srv/link", "exit", "0"}, User: "web", Dir: "/srv", Env: []string{"A=b=c", "PATH=/bin"}},
			as{[]string{"/srv/link", "exit", "0"}, []string{"A=b=c", "HOME=/var/www", "PATH=/bin"}, "/srv", 33, 34, []int{40}}, 0, ""},
		{"folder that is not there", report.Command{Args: []string{"told", "exit", "0"}, User: "7:8", Dir: "/new/one"},
			as{[]string{"told", "exit", "0"}, []string{"HOME=/", path}, "/new/one", 7, 8, nil}, 0, ""},
		{"killed", report.Command{Args: []string{"told", "die"}},
			as{[]string{"told", "die"}, []string{"HOME=/root", path}, "/", 0, 0, nil}, 0, "SIGKILL"},
		{"leaves a daemon", report.Command{Args: []string{"told", "leave"}},
			as{[]string{"told", "leave"}, []string{"HOME=/root", path}, "/", 0, 0, nil}, 0, ""},
		{"writes to the overlay", report.Command{Args: []string{"told", "write", "/srv/big"}},
			as{[]string{"told", "write", "/srv/big"}, []string{"HOME=/root", path}, "/", 0, 0, nil}, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := v.Run(ctx, tc.command)
			must(t, err)
			var told as
			must(t, json.Unmarshal(got.Stdout, &told))
			slices.Sort(told.Env)
			if len(told.Groups) == 0 {
				told.Groups = nil
			}
			if !reflect.DeepEqual(told, tc.as) {
				t.Errorf("ran as %+v, want %+v", told, tc.as)
			}
			if got.Code != tc.code || got.Signal != tc.signal || string(got.Stderr) != "on stderr\n" {
				t.Errorf("ended with %d %q, stderr %q, want %d %q", got.Code, got.Signal, got.Stderr, tc.code, tc.signal)
			}
		})
	}
	got, err := v.Run(ctx, report.Command{Args: []string{"absent"}})
	if err != nil || got.Code != 127 || !strings.Contains(string(got.Stderr), "absent") {
		t.Errorf("absent program: %+v, %v, want status 127 and its name", got, err)
	}
}

// A command from the kernel's command line: the machine ends when it has ended.
func TestRunAndPowerOff(t *testing.T) {
	dir := folder(t)
	before, err := probe.Tree(dir)
	must(t, err)
	command := report.Command{Args: []string{"told", "write", "/srv/big"}, User: "web"}
	v, ctx := boot(t, Options{FS: []FS{share(t, dir)}, Config: report.Config{Tag: "image", Run: &command}})
	must(t, v.Wait(ctx))
	exit, _, err := v.AwaitType(ctx, 0, report.Exit)
	must(t, err)
	if exit.Code != 1 {
		t.Errorf("exit status %d, want 1: user web may not write to root's file", exit.Code)
	}
	after, err := probe.Tree(dir)
	must(t, err)
	for _, d := range probe.Diff(after, before) {
		t.Errorf("the shared folder has changed: %s", d)
	}
	long := report.Command{Args: []string{"told", "exit", "5", strings.Repeat("x", 3000)}}
	v, ctx = boot(t, Options{FS: []FS{share(t, dir)}, Config: report.Config{Tag: "image", Run: &long}})
	must(t, v.Wait(ctx))
	exit, _, err = v.AwaitType(ctx, 0, report.Exit)
	must(t, err)
	if exit.Code != 5 {
		t.Errorf("long configuration: exit status %d, want 5", exit.Code)
	}
}
