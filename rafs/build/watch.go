package build

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tellEvery is how many bytes are read between two calls of Host.Progress.
const tellEvery = 1 << 20

// watched counts what is read from it, and tells.
type watched struct {
	r                 io.Reader
	tell              func(done, total int64)
	done, told, total int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.done += int64(n)
	if w.done-w.told >= tellEvery || err == io.EOF && w.total > 0 {
		w.told = w.done
		w.tell(w.done, w.total)
	}
	return n, err
}

// gauge tells of work that is done in steps of some bytes. The zero value tells nobody.
type gauge struct {
	tell              func(done, total int64)
	done, told, total int64
}

func (g *gauge) add(n int64) {
	g.done += n
	if g.tell != nil && (g.done-g.told >= tellEvery || g.done >= g.total) {
		g.told = g.done
		g.tell(g.done, g.total)
	}
}

// gaugeFiles expects all of some files. What cannot be looked at is found out by
// whoever opens it.
func (h *Host) gaugeFiles(paths ...string) gauge {
	g := gauge{tell: h.Progress}
	for _, p := range paths {
		g.total += fileSize(p)
	}
	return g
}

// fileSize is the size of a file, or 0.
func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	return st.Size()
}

// watch is f, of which Host.Progress hears.
func (h *Host) watch(f *sourceFile) io.Reader {
	if h.Progress == nil {
		return f
	}
	w := &watched{r: f, tell: h.Progress}
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		w.total = st.Size()
	}
	return w
}

// sourceFile is a file that a build reads. Nobody may ever write to a fifo, or go on
// writing to it: when ctx ends, whoever waits for that waits no longer.
type sourceFile struct {
	*os.File
	ctx  context.Context
	stop func() bool
}

func openSource(ctx context.Context, path string) (*sourceFile, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var opened atomic.Pointer[os.File]
	var failed atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		for opened.Load() == nil && !failed.Load() && st.Mode()&os.ModeNamedPipe != 0 {
			// A writer ends the wait for one, once that has begun (fifo(7)).
			if w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
				w.Close()
			}
			time.Sleep(time.Millisecond)
		}
		if f := opened.Load(); f != nil {
			_ = f.SetReadDeadline(time.Now()) // only what can wait has one
		}
	})
	f, err := os.Open(path)
	if err != nil {
		failed.Store(true)
		stop()
		return nil, err
	}
	opened.Store(f)
	if ctx.Err() != nil {
		_ = f.SetReadDeadline(time.Now())
	}
	return &sourceFile{f, ctx, stop}, nil
}

func (s *sourceFile) Read(p []byte) (int, error) {
	n, err := s.File.Read(p)
	if err != nil && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

func (s *sourceFile) Close() error {
	s.stop()
	return s.File.Close()
}
