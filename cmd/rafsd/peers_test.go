//go:build peers

package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
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
