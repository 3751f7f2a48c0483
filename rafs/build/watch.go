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
