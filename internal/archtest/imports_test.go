package archtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// levels maps each pattern of Table to its level.
func levels(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for line := range strings.Lines(strings.TrimSpace(Table)) {
		fields := strings.Fields(line)
		level, err := strconv.Atoi(fields[0])
		if err != nil {
			t.Fatalf("table line %q: %v", line, err)
		}
		for _, f := range fields[1:] {
			for _, pattern := range expand(f) {
				out[pattern] = level
			}
		}
	}
	return out
}

// levelOf finds a package in the table.
func levelOf(table map[string]int, pkg string) (int, bool) {
	for pattern, level := range table {
		if match(pkg, pattern) {
			return level, true
		}
	}
	return 0, false
}

// refuse says why from may not import to, or nothing.
func refuse(table map[string]int, from, to string, test bool) string {
	switch {
	case from == to || strings.HasPrefix(to, from+"/"):
		return ""
	case matchAny(from, Apart):
		if base := strings.Split(from, "/")[0]; base == "guest" && strings.HasPrefix(to, "guest/") || test && matchAny(to, TestOnly) {
			return ""
		}
		return from + " imports nothing of this module"
	case matchAny(to, TestOnly):
		if test || matchAny(from, TestOnly) || match(from, "e2e/...") {
			return ""
		}
		return to + " is for tests"
	case matchAny(from, TestOnly) || test:
		return ""
	}
	for pattern, never := range Never {
		if match(from, pattern) && matchAny(to, never) && !match(to, pattern) {
			return fmt.Sprintf("%s never imports %s", pattern, to)
		}
	}
	for pattern, peers := range Peers {
		if match(from, pattern) && matchAny(to, peers) {
			return ""
		}
	}
	a, known := levelOf(table, from)
	if !known {
		return from + " is not in the table"
	}
	b, known := levelOf(table, to)
	if !known {
		return to + " is not in the table"
	}
	if b >= a {
		return fmt.Sprintf("level %d imports level %d, want a lower one", a, b)
	}
	return ""
}

func TestImports(t *testing.T) {
	table := levels(t)
	for _, s := range sources(t) {
		if _, known := levelOf(table, s.pkg); !known && !s.test() && !matchAny(s.pkg, TestOnly) && !matchAny(s.pkg, Apart) {
			t.Errorf("%s: package %s is not in the import table", s.path, s.pkg)
		}
		for _, path := range s.imports() {
			if to, ok := inModule(path); ok {
				if why := refuse(table, s.pkg, to, s.test()); why != "" {
					t.Errorf("%s imports %s: %s", s.path, to, why)
				}
			}
		}
	}
}

func TestOnlyIn(t *testing.T) {
	for _, s := range sources(t) {
		for _, path := range s.imports() {
			places, restricted := OnlyIn[path]
			if !restricted || matchAny(s.pkg, places) || s.test() && path != "unsafe" || matchAny(s.pkg, TestOnly) && path != "unsafe" {
				continue
			}
			t.Errorf("%s imports %s, which belongs into %s only", s.path, path, strings.Join(places, ", "))
		}
		if slices.Contains(s.imports(), "C") {
			t.Errorf("%s uses cgo", s.path)
		}
	}
}

// The rules themselves are tried here, since a rule that refuses nothing passes
// every tree.
func TestRules(t *testing.T) {
	table := levels(t)
	for _, tc := range []struct {
		from, to string
		test, ok bool
	}{
		{"daemon", "daemon/device", false, true},
		{"daemon/device", "daemon", false, false},
		{"daemon/device", "daemon/config", false, false},
		{"daemon", "rafs/convert", false, false},
		{"daemon/config", "rafs/build/tree", false, false},
		{"daemon", "rafs/artifact", false, true},
		{"cmd/rafsd", "rafs/convert", false, true},
		{"cmd/rafsd", "internal/testenv", false, false},
		{"cmd/rafsd", "internal/testenv", true, true},
		{"rafs/blob", "rafs/layout/v6", false, false},
		{"rafs/blob/fetch", "rafs/blob/cache", false, true},
		{"rafs/blob/cache", "rafs/blob/codec", false, false},
		{"rafs/blob/backend/registry", "rafs/blob/backend", false, true},
		{"rafs/blob/backend", "rafs/blob/backend/registry", false, true},
		{"rafs/blob/backend/registry", "rafs/blob/backend/localfs", false, false},
		{"vhostuser", "vhostuser/virtq", false, true},
		{"vhostuser/virtq", "vhostuser", false, false},
		{"vhostuser", "rafs/blob", false, false},
		{"vhostuser/virtq", "vhostuser/guestmem", false, true},
		{"rafs/image", "rafs/rafstest", false, false},
		{"rafs/image", "rafs/rafstest", true, true},
		{"rafs/rafstest", "rafs/image", false, true},
		{"rafs/rafstest/conform", "rafs/image", false, false},
		{"guest/init", "guest/report", false, true},
		{"guest/init", "rafs/blob", false, false},
		{"e2e/vm", "internal/testenv", false, true},
		{"e2e", "e2e/vm", false, true},
		{"e2e", "daemon", false, false},
		{"rafs/nowhere", "rafs/blob", false, false},
	} {
		got := refuse(table, tc.from, tc.to, tc.test)
		if (got == "") != tc.ok {
			t.Errorf("%s imports %s (test file %t): %q, want allowed = %t", tc.from, tc.to, tc.test, got, tc.ok)
		}
	}
}
