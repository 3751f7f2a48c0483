//go:build peers

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// nydus-image ends each command line with the code that we do.
func TestPeerFlags(t *testing.T) {
	peer := testenv.Peer(t, "nydus-image")
	run := func(args ...string) (int, string) {
		cmd := exec.Command(peer, args...)
		cmd.Stdin = strings.NewReader("/\n")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return 0, string(out)
		case errors.As(err, &exit):
			return exit.ExitCode(), string(out)
		}
		t.Fatal(err)
		return 0, ""
	}
	r := flagFolder(t, func(args ...string) {
		if code, out := run(args...); code != 0 {
			t.Fatalf("%v: %d, %s", args, code, out)
		}
	})
	for _, c := range flagCases {
		if c.since != "2.2" {
			continue // the newest that cargo installs
		}
		if code, out := run(c.words(r)...); code != c.code {
			t.Errorf("%s: nydus-image ends with %d, we with %d: %s", c.args, code, c.code, out)
		}
	}
}

// What is asked of an image has the answer that nydus-image gives.
func TestPeerAnswers(t *testing.T) {
	peer := testenv.Peer(t, "nydus-image")
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
	for _, c := range rafstest.Core(t) {
		for _, request := range []string{"blobs", "stats", "prefetch"} {
			want, err := exec.Command(peer, "-l", "error", "inspect", "-R", request, "-B", c.Bootstrap).Output()
			if err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
			if code, got, errs := runNydusImage("inspect", "-R", request, "-B", c.Bootstrap); code != 0 || got != string(want) {
				t.Errorf("%s: %s: got %s%s, want %s", c.Name, request, got, errs, want)
			}
		}
		if !strings.HasSuffix(c.Name, "layers") && c.Name != "upstream-v6" {
			continue // 2.2 refuses some names of xattrs
		}
		if out, err := exec.Command(peer, "stat", "-B", c.Bootstrap, "-J", theirs).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", c.Name, err, out)
		}
		if code, _, errs := runNydusImage("stat", "-B", c.Bootstrap, "-J", ours); code != 0 {
			t.Fatalf("%s: %s", c.Name, errs)
		}
		if got, want := readJSON(t, ours), readJSON(t, theirs); got != want {
			t.Errorf("%s: stat: got\n%s\nwant\n%s", c.Name, got, want)
		}
	}
}

// readJSON reads a file of JSON into a form that can be compared.
func readJSON(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	data, err = json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
