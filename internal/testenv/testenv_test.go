package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a testing.TB that notes how a test ended instead of ending it.
type recorder struct {
	testing.TB
	skipped, failed string
	errors          []string
	cleanups        []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Skipped() bool    { return r.skipped != "" }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// run calls f as the testing package would: on a goroutine that Skipf and Fatalf end.
func run(f func(testing.TB)) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestModuleRoot(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(ModuleRoot(), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(mod), "module github.com/rafsd/rafsd\n") {
		t.Errorf("go.mod of %s is another module's: %.60q", ModuleRoot(), mod)
	}
}

func TestMissing(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	needs := map[string]func(testing.TB){
		"REQUIRE_FIXTURES": func(tb testing.TB) { Fixtures(tb) },
		"REQUIRE_TOOLS":    func(tb testing.TB) { NeedsTool(tb, "no-such-program-anywhere") },
		"REQUIRE_VM":       func(tb testing.TB) { NeedsVM(tb) },
	}
	for variable, need := range needs {
		for _, tc := range []struct {
			ci, require string
			fail        bool
		}{
			{"", "", false}, {"false", "0", false}, {"", "1", true}, {"true", "", true}, {"true", "0", true},
		} {
			t.Run(fmt.Sprintf("%s=%s,CI=%s", variable, tc.require, tc.ci), func(t *testing.T) {
				t.Setenv("RAFSD_FIXTURES", absent)
				t.Setenv("PATH", absent)
				t.Setenv("CI", tc.ci)
				t.Setenv(variable, tc.require)
				r := run(need)
				if got := r.failed != ""; got != tc.fail {
					t.Errorf("failed = %t (%q), want %t", got, r.failed, tc.fail)
				}
				if got := r.skipped != ""; got == tc.fail {
					t.Errorf("skipped = %t (%q), want %t", got, r.skipped, !tc.fail)
				}
			})
		}
	}
}

func TestFixturesByVariable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("RAFSD_FIXTURES", dir)
	if got := Fixtures(t); got != dir {
		t.Errorf("Fixtures = %q, want %q", got, dir)
	}
}

func TestLeakCheckClean(t *testing.T) {
	LeakCheck(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { close(done) }()
	<-done
	r.Close()
	w.Close()
}

func TestLeaksAreFound(t *testing.T) {
	goroutines, descriptors := stacks(), fds()
	stop, running := make(chan struct{}), make(chan struct{})
	go func() { close(running); <-stop }()
	<-running
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	left := append(fresh(goroutines, stacks()), fresh(descriptors, fds())...)
	if len(left) != 2 || !strings.Contains(left[0], "TestLeaksAreFound") || !strings.HasSuffix(left[1], os.DevNull) {
		t.Errorf("leaks = %q, want this test's goroutine and %s", left, os.DevNull)
	}
	close(stop)
	f.Close()
	if left := settle(goroutines, descriptors); len(left) != 0 {
		t.Errorf("leaks after closing = %q, want none", left)
	}
}
