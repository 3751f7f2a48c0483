package vm

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/guest/report"
	"github.com/rafsd/rafsd/internal/testenv"
)

// boot starts a machine for a test, which says all there is to know when it fails.
func boot(t *testing.T, o Options) (*VM, context.Context) {
	t.Helper()
	testenv.NeedsVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	var err error
	if o.Boot, err = Prepare(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	v, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(v.Describe())
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v, ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The story of a machine without any file system: it boots, refuses what it does not
// know, is reset and boots again, is stopped and goes on, powers off.
func TestLife(t *testing.T) {
	v, ctx := boot(t, Options{Reboot: true, CPUs: 2})
	first, next, err := v.AwaitType(ctx, 0, report.Ready)
	must(t, err)
	t.Logf("ready after %v, guest's own clock %v", first.At, time.Duration(first.Uptime))
	err = v.Do(ctx, report.Request{Op: "sing"}, nil)
	if err == nil || !strings.Contains(err.Error(), `unknown request "sing"`) {
		t.Errorf("unknown request: error %v, want one that names it", err)
	}
	_, err = v.Monitor(ctx, "system_reset", nil)
	must(t, err)
	_, next, err = v.AwaitType(ctx, next, report.Boot)
	must(t, err)
	_, _, err = v.AwaitType(ctx, next, report.Ready)
	must(t, err)
	for _, command := range []string{"stop", "cont"} {
		_, err = v.Monitor(ctx, command, nil)
		must(t, err)
	}
	if _, err = v.Monitor(ctx, "no-such-command", nil); err == nil {
		t.Errorf("the monitor accepted an unknown command")
	}
	must(t, v.PowerOff(ctx))
}

func TestTagMissing(t *testing.T) {
	v, ctx := boot(t, Options{Config: report.Config{Tag: "nowhere"}})
	_, _, err := v.AwaitType(ctx, 0, report.Ready)
	if err == nil || !strings.Contains(err.Error(), `virtiofs tag "nowhere"`) {
		t.Errorf("error %v, want one that names the tag", err)
	}
	must(t, v.Wait(ctx))
}

func TestQEMUFails(t *testing.T) {
	testenv.NeedsVM(t)
	_, err := Start(t.Context(), Options{Accel: "tcg", Boot: Files{Kernel: "/nonexistent/kernel", Initrd: "/nonexistent/initrd"}})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/kernel") {
		t.Errorf("error %v, want QEMU's own message", err)
	}
}

func TestKilledAtTheEndOfItsLife(t *testing.T) {
	v, ctx := boot(t, Options{Life: 50 * time.Millisecond})
	if err := v.Wait(ctx); err == nil || !strings.Contains(err.Error(), "killed after") {
		t.Errorf("error %v, want that the machine was killed", err)
	}
}
