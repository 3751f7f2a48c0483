package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// maxLine bounds one log line in bytes: readers of a daemon's stderr give up
	// on long lines (Kata's Go runtime at 64 KiB) and stop reading altogether.
	maxLine = 4 << 10
	// sinkLines is how many lines wait for a reader before further ones are dropped.
	sinkLines = 512
	// sinkGrace is how long Close waits for a reader that does not read.
	sinkGrace = time.Second
)

// sink passes log lines on without ever making a logger wait: when whoever reads
// them has stopped, lines are counted and dropped instead.
type sink struct {
	out  io.Writer
	done chan struct{}

	mu      sync.Mutex
	lines   chan []byte // closed by Close; mu guards sends against it
	closed  bool
	dropped int
}

// newSink starts the writer, for which Close waits.
func newSink(out io.Writer) *sink {
	s := &sink{out: out, lines: make(chan []byte, sinkLines), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for line := range s.lines {
			// There is nobody to tell that the log cannot be written.
			_, _ = s.out.Write(line)
		}
	}()
	return s
}

// Write takes one line. slog's handlers make one call a record.
func (s *sink) Write(line []byte) (int, error) {
	n := len(line)
	if n > maxLine {
		line = append(bytes.ToValidUTF8(line[:maxLine-4], nil), "...\n"...)
	} else {
		line = bytes.Clone(line)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return n, nil
	}
	if s.dropped > 0 {
		note := fmt.Appendf(nil, "rafsd: %d log lines dropped: the log is not being read\n", s.dropped)
		select {
		case s.lines <- note:
			s.dropped = 0
		default:
		}
	}
	select {
	case s.lines <- line:
	default:
		s.dropped++
	}
	return n, nil
}

// Close writes what waits, for at most sinkGrace.
func (s *sink) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.lines)
	}
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-time.After(sinkGrace):
	}
}

// keptLogs is how many old log files stay: NAME.1 is the youngest.
const keptLogs = 5

// rotating is a log file that is put aside when it has grown. It is written by
// one goroutine.
type rotating struct {
	path  string
	limit int64 // bytes; 0 for none
	file  *os.File
	size  int64
}

func openRotating(path string, limit int64) (*rotating, error) {
	r := &rotating{path: path, limit: limit}
	return r, r.open()
}

func (r *rotating) open() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, st.Size()
	return nil
}

// Write appends p, to a new file where the old one would grow past the limit. If
// there can be no new file, the old one goes on.
func (r *rotating) Write(p []byte) (int, error) {
	if r.limit > 0 && r.size > 0 && r.size+int64(len(p)) > r.limit {
		r.rotate()
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

func (r *rotating) rotate() {
	for i := keptLogs - 1; i >= 1; i-- {
		_ = os.Rename(fmt.Sprintf("%s.%d", r.path, i), fmt.Sprintf("%s.%d", r.path, i+1))
	}
	if os.Rename(r.path, r.path+".1") != nil {
		return
	}
	if old := r.file; r.open() == nil {
		old.Close()
	}
}

// Close closes the file.
func (r *rotating) Close() error { return r.file.Close() }
