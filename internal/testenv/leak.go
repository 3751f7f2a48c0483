package testenv

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakGrace is how long a test's last goroutines may take to unwind after the
// test has closed what it opened.
const leakGrace = 5 * time.Second

// LeakCheck fails the test when, at its end and after its other cleanups, there
// are goroutines or descriptors that were not there when LeakCheck was called.
// It belongs into the first line of a test that does not run in parallel.
func LeakCheck(t testing.TB) {
	t.Helper()
	startPoller()
	goroutines, descriptors := stacks(), fds()
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		leaked := settle(goroutines, descriptors)
		for _, l := range leaked {
			t.Errorf("leak: %s", l)
		}
	})
}

// settle waits until nothing but what was there before is left, or for leakGrace,
// and returns what is left over.
func settle(goroutines, descriptors map[string]string) []string {
	for deadline := time.Now().Add(leakGrace); ; runtime.Gosched() {
		leaked := append(fresh(goroutines, stacks()), fresh(descriptors, fds())...)
		if len(leaked) == 0 || time.Now().After(deadline) {
			return leaked
		}
		time.Sleep(time.Millisecond)
	}
}

// fresh lists the entries of now whose key or meaning was not there before.
func fresh(before, now map[string]string) []string {
	var out []string
	for k, v := range now {
		if was, ok := before[k]; !ok || was != v && v != "" && strings.HasPrefix(k, "fd ") {
			out = append(out, fmt.Sprintf("%s: %s", k, v))
		}
	}
	slices.Sort(out)
	return out
}

// stacks returns the stack of each goroutine by its number, without those that
// the Go runtime starts once and keeps.
func stacks() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	out := map[string]string{}
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		head, body, _ := strings.Cut(stack, "\n")
		id, _, _ := strings.Cut(head, " [")
		if strings.Contains(body, "os/signal.loop") || strings.Contains(body, "runtime.ensureSigM") {
			continue
		}
		out[id] = body
	}
	return out
}

// fds returns what each open descriptor of the process points to. The descriptor
// that lists the folder is left out: it is gone before its link is read.
func fds() map[string]string {
	out := map[string]string{}
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return out
	}
	for _, e := range dir {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out["fd "+e.Name()] = target
		}
	}
	return out
}

// startPoller makes the runtime open its epoll descriptor now, not inside the
// test that happens to use a pipe first.
func startPoller() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	r.Close()
	w.Close()
}
