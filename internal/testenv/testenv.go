// Package testenv tells a test what the machine offers: fixture data, root, a
// virtual machine, programs. What is missing skips the test and says why, unless
// the run requires it (REQUIRE_FIXTURES, REQUIRE_ROOT, REQUIRE_VM,
// REQUIRE_TOOLS set to 1, or CI=true): then it fails, so that a skip can never
// hide where everything has to run.
//
// It is imported by tests only and trusts the environment variables it reads.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// ModuleRoot returns the folder that holds the module's go.mod, found from the
// folder of this source file, so that it holds whatever the working directory is.
var ModuleRoot = sync.OnceValue(func() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("testenv: no caller information")
	}
	dir := filepath.Dir(file)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			panic("testenv: no go.mod above " + file)
		}
		dir = up
	}
})

// Fixtures returns the folder with images made by other software:
// $RAFSD_FIXTURES, or shared/fixtures beside the module's folder.
func Fixtures(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("RAFSD_FIXTURES")
	if dir == "" {
		dir = filepath.Join(filepath.Dir(ModuleRoot()), "shared", "fixtures")
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		missing(t, "REQUIRE_FIXTURES", "no fixtures at %s (set RAFSD_FIXTURES to their folder)", dir)
	}
	return dir
}

// NeedsRoot asks for user id 0.
func NeedsRoot(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		missing(t, "REQUIRE_ROOT", "needs root, runs as user %d", uid)
	}
}

// NeedsVM asks for QEMU of this machine's architecture and returns its path.
// Whether KVM works is no question here: QEMU emulates where it does not.
func NeedsVM(t testing.TB) string {
	t.Helper()
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}[runtime.GOARCH]
	if arch == "" {
		missing(t, "REQUIRE_VM", "no QEMU is known for GOARCH %s", runtime.GOARCH)
	}
	path, err := exec.LookPath("qemu-system-" + arch)
	if err != nil {
		missing(t, "REQUIRE_VM", "needs a virtual machine: %v", err)
	}
	return path
}

// NeedsTool asks for programs in PATH or in the sbin folders and returns their
// paths, one a name.
func NeedsTool(t testing.TB, names ...string) []string {
	t.Helper()
	paths := make([]string, 0, len(names))
	for _, name := range names {
		path, err := lookTool(name)
		if err != nil {
			missing(t, "REQUIRE_TOOLS", "needs %s: %v", name, err)
		}
		paths = append(paths, path)
	}
	return paths
}

// lookTool also looks where Debian puts mkfs and mount helpers, which are not in
// the PATH of an ordinary user.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, sbinErr := exec.LookPath(filepath.Join(dir, name)); sbinErr == nil {
			return path, nil
		}
	}
	return "", err
}

// Required reports whether this run must not skip what variable stands for.
func Required(variable string) bool {
	return truthy(os.Getenv(variable)) || truthy(os.Getenv("CI"))
}

func truthy(v string) bool {
	switch strings.ToLower(v) {
	case "", "0", "false", "no":
		return false
	}
	return true
}

// missing ends the test: as a skip, or as a failure where the run requires it.
func missing(t testing.TB, variable, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if Required(variable) {
		t.Fatalf("%s (required: CI or %s is set)", reason, variable)
	}
	t.Skipf("%s (%s=1 makes this a failure)", reason, variable)
}

// Peer returns a program of another project that a test with the build tag "peers"
// compares with: nydusd, nydus-image, virtiofsd (Rust), virtiofsd-c (QEMU's). It is
// $RAFSD_NYDUSD and so on, or found by its name in PATH, or where cargo and Debian
// install it. Such tests are asked for by name (make interop), so what is missing
// fails.
func Peer(t testing.TB, name string) string {
	t.Helper()
	variable := "RAFSD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	candidates := []string{os.Getenv(variable), name}
	if name == "virtiofsd-c" {
		candidates = append(candidates, "/usr/lib/qemu/virtiofsd")
	}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, filepath.Join(home, ".cargo", "bin", name))
	}
	for _, c := range candidates {
		if c == "" {
			continue
		}
		if path, err := exec.LookPath(c); err == nil {
			return path
		}
	}
	t.Fatalf("no %s: set %s, or run make bench-peers", name, variable)
	return ""
}
