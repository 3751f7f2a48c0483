package build

import (
	"io"
	"os"
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
func (h *Host) watch(f *os.File) io.Reader {
	if h.Progress == nil {
		return f
	}
	w := &watched{r: f, tell: h.Progress}
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		w.total = st.Size()
	}
	return w
}
