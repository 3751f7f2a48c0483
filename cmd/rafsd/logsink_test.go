package main

import (
	"bytes"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rafsd/rafsd/internal/testenv"
)

func TestSinkWritesInOrder(t *testing.T) {
	testenv.LeakCheck(t)
	var out bytes.Buffer
	s := newSink(&out)
	var want strings.Builder
	for i := range 300 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	s.Close()
	s.Close()
	if _, err := s.Write([]byte("late\n")); err != nil {
		t.Errorf("Write after Close: %v", err)
	}
	if out.String() != want.String() {
		t.Errorf("got %d bytes, want %d in order", out.Len(), want.Len())
	}
}

func TestSinkCutsLongLines(t *testing.T) {
	var out bytes.Buffer
	s := newSink(&out)
	log := slog.New(slog.NewTextHandler(s, nil))
	log.Info(strings.Repeat("é", 40_000))
	log.Info("next")
	s.Close()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2 || len(lines[0]) >= maxLine || !strings.HasSuffix(lines[0], "...") || !strings.Contains(lines[1], "next") {
		t.Errorf("%d lines, the first of %d bytes; want 2, at most %d bytes", len(lines), len(lines[0]), maxLine)
	}
}

// A reader that stops reading costs log lines, never the logger's time, and Close
// waits for it no longer than it says.
func TestSinkNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		s := newSink(w)
		for i := range sinkLines + 100 {
			fmt.Fprintf(s, "line %d\n", i)
		}
		synctest.Wait()
		if s.dropped == 0 {
			t.Error("nothing dropped though nobody reads")
		}
		s.Close() // returns after sinkGrace of the test's clock
		var got bytes.Buffer
		go func() { _, _ = io.Copy(&got, r) }()
		<-s.done
		w.Close()
		synctest.Wait()
		if !strings.HasPrefix(got.String(), "line 0\nline 1\n") {
			t.Errorf("the first lines are %.20q", got.String())
		}
	})
}

func TestSinkTellsWhatItDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		s := newSink(w)
		for range sinkLines + 10 {
			fmt.Fprintln(s, "x")
		}
		dropped := s.dropped
		var got bytes.Buffer
		go func() { _, _ = io.Copy(&got, r) }()
		synctest.Wait()
		fmt.Fprintln(s, "after")
		s.Close()
		w.Close()
		synctest.Wait()
		want := fmt.Sprintf("rafsd: %d log lines dropped: the log is not being read\nafter\n", dropped)
		if dropped == 0 || !strings.HasSuffix(got.String(), want) {
			t.Errorf("log ends in %q, want %q", got.String()[max(0, got.Len()-80):], want)
		}
	})
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.log")
	r, err := openRotating(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 80 {
		if _, err := fmt.Fprintf(r, "%09d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for name, first := range map[string]int{"": 70, ".1": 60, ".5": 20} {
		b, err := os.ReadFile(path + name)
		if err != nil || len(b) != 100 || !strings.HasPrefix(string(b), fmt.Sprintf("%09d\n", first)) {
			t.Errorf("%s%s: %d bytes, %v; want 100 from line %d", "d.log", name, len(b), err, first)
		}
	}
	if _, err := os.Stat(path + ".6"); !os.IsNotExist(err) {
		t.Errorf("more than %d old files: %v", keptLogs, err)
	}
}

// A folder that became read-only, or whatever forbids a new file, does not end the log.
func TestRotationFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.log")
	r, err := openRotating(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Mkdir(path+".1", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path+".1", "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The slots behind are taken by folders too, so that nothing can move.
	for i := 2; i <= keptLogs; i++ {
		if err := os.MkdirAll(filepath.Join(fmt.Sprintf("%s.%d", path, i), "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := r.Write([]byte("12345678\n")); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 27 {
		t.Errorf("log has %d bytes, %v; want all 27", len(b), err)
	}
}

// What libraries write to the global logger goes where the log goes, a line a second:
// a guest decides how much that is (go-fuse, fuse/request.go, parseRequest).
func TestLibrariesDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := stdlog.Writer()
		var out bytes.Buffer
		flags := logFlags{level: "info", format: "text"}
		_, closeLog, err := flags.open(&out)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			stdlog.Printf("Short read for %d", i)
		}
		time.Sleep(2 * time.Second) // of the test's own clock
		stdlog.Print("Short read again")
		closeLog()
		if stdlog.Writer() != old {
			t.Error("the global logger does not write where it did before")
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "Short read for 0") ||
			!strings.Contains(lines[1], "Short read again") {
			t.Errorf("%d lines %q, want the first and the one after a pause", len(lines), lines)
		}
	})
}
