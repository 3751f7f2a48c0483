package process

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStop(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		signal       syscall.Signal
		want         string
	}{
		{"ends as asked", "trap 'exit 0' TERM; echo begin; while :; do :; done", syscall.SIGTERM, ""},
		{"has ended", "exit 0", syscall.SIGTERM, ""},
		{"failed", "exit 3", syscall.SIGTERM, "exit status 3"},
		{"killed", "exec sleep 60", syscall.SIGKILL, ""},
		{"does not listen", "trap '' TERM; echo begin; exec sleep 60", syscall.SIGTERM, "still runs"},
		{"leaves a child", "sleep 60 & exit 0", syscall.SIGTERM, "still has processes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := Start(filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", tc.script)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case strings.HasPrefix(tc.script, "trap"):
				awaitText(t, p, "begin")
			case tc.signal == syscall.SIGTERM:
				<-p.Done()
			}
			err = p.Stop(tc.signal, 500*time.Millisecond)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got error %v, want %q", err, tc.want)
			}
			if err := GroupGone(p.PID()); err != nil {
				t.Error(err)
			}
		})
	}
}

func awaitText(t *testing.T, p *Process, want string) {
	t.Helper()
	for !strings.Contains(p.Describe(), "\n"+want) {
		if t.Context().Err() != nil {
			t.Fatal("no output")
		}
	}
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	_, err := Serve(t.Context(), socket, filepath.Join(dir, "log"), "/bin/sh", "-c", "echo cannot; exit 1")
	if err == nil || !strings.Contains(err.Error(), "ended before") || !strings.Contains(err.Error(), "cannot") {
		t.Errorf("error %v, want one with the program's output", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = Serve(ctx, socket, filepath.Join(dir, "log"), "/bin/sleep", "60")
	if err == nil || !strings.Contains(err.Error(), "does not listen") {
		t.Errorf("error %v, want that it does not listen", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := Serve(t.Context(), socket, filepath.Join(dir, "log"), "/bin/sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(syscall.SIGKILL, time.Second); err != nil {
		t.Error(err)
	}
}

func TestListens(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
ffff8880: 00000002 00000000 00010000 0001 01 20531 /run/a
ffff8881: 00000003 00000000 00000000 0001 03 20532 /run/b
ffff8882: 00000002 00000000 00010000 0001 01 20533 @abstract
ffff8883: 00000003 00000000 00000000 0001 03 20534
`
	for path, want := range map[string]bool{"/run/a": true, "/run/b": false, "/run": false, "": false} {
		if got := listens(table, path); got != want {
			t.Errorf("%q listens: %t, want %t", path, got, want)
		}
	}
}
