// Command summary reads what `go test -json` prints and shows what a person wants to
// know: failed tests with their output, a line for each package, and at the end the
// tests that were skipped with their reasons, and the totals as one plain line.
//
// It ends with status 1 if a test or a package failed, if no test ran, or, when the
// variable CI is set, if a test was skipped: a skip must not hide where everything
// has to run.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	s := &summary{out: os.Stdout, output: map[string][]string{}, parents: map[string]bool{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if !s.finish(os.Getenv("CI") != "") {
		os.Exit(1)
	}
}

// event is a line of `go test -json` (see `go doc test2json`).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func (e event) name() string { return e.Package + "." + e.Test }

type summary struct {
	out                     io.Writer
	output                  map[string][]string // of tests and packages that have not ended
	parents                 map[string]bool     // tests with subtests
	passed, failed, skipped int
	broken                  int // packages that failed without a failed test
	failures, skips         []string
}

func (s *summary) read(r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			// The go command itself speaks, not a test.
			fmt.Fprintln(s.out, in.Text())
			continue
		}
		s.take(e)
	}
	return in.Err()
}

func (s *summary) take(e event) {
	key := e.name()
	switch {
	case e.Action == "build-output":
		fmt.Fprint(s.out, e.Output)
	case e.Action == "output":
		s.output[key] = append(s.output[key], e.Output)
	case e.Action == "run":
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			s.parents[e.Package+"."+e.Test[:i]] = true
		}
	case e.Test == "":
		s.endPackage(e)
	default:
		s.endTest(e, key)
	}
}

// endTest counts a test; one with subtests is counted by them, unless it fails
// itself.
func (s *summary) endTest(e event, key string) {
	switch e.Action {
	case "pass":
		if !s.parents[key] {
			s.passed++
		}
	case "skip":
		s.skipped++
		s.skips = append(s.skips, fmt.Sprintf("%s: %s", short(key), reason(s.output[key])))
	case "fail":
		fmt.Fprint(s.out, strings.Join(s.output[key], ""))
		if !s.parents[key] {
			s.failed++
			s.failures = append(s.failures, short(key))
		}
	default:
		return
	}
	delete(s.output, key)
}

func (s *summary) endPackage(e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.out, "ok    %-50s %6.1f s\n", short(e.Package), e.Elapsed)
	case "fail":
		failed := s.failed
		for _, key := range s.unfinished(e.Package) {
			fmt.Fprint(s.out, strings.Join(s.output[key], ""))
		}
		if !slices.ContainsFunc(s.failures, func(f string) bool { return strings.HasPrefix(f, short(e.Package)+".") }) && failed == s.failed {
			s.broken++
			s.failures = append(s.failures, short(e.Package)+" (the package)")
		}
		fmt.Fprintf(s.out, "FAIL  %-50s %6.1f s\n", short(e.Package), e.Elapsed)
	}
	for _, key := range s.unfinished(e.Package) {
		delete(s.output, key)
	}
}

// unfinished lists what has printed and not ended: the package itself, and the tests
// that a crash or the time limit has cut off.
func (s *summary) unfinished(pkg string) []string {
	var out []string
	for key := range s.output {
		if strings.HasPrefix(key, pkg+".") {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// finish prints the end and reports whether all is well.
func (s *summary) finish(strict bool) bool {
	fmt.Fprintln(s.out)
	for _, f := range s.failures {
		fmt.Fprintf(s.out, "failed   %s\n", f)
	}
	for _, k := range s.skips {
		fmt.Fprintf(s.out, "skipped  %s\n", k)
	}
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passed, s.failed+s.broken, s.skipped)
	return s.failed+s.broken == 0 && s.passed > 0 && !(strict && s.skipped > 0)
}

// reason is what a test said before it was skipped.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if _, text, found := strings.Cut(line, ".go:"); found {
			_, text, _ = strings.Cut(text, ": ")
			return text
		}
	}
	return "no reason given"
}

// short leaves out the module's path.
func short(name string) string {
	return strings.TrimPrefix(name, "github.com/rafsd/rafsd/")
}
