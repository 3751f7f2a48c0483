package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// redrawEvery is short enough to look alive, and long enough to cost nothing.
const redrawEvery = 100 * time.Millisecond

// bars draws a line for each thing on a terminal, with bytes, rate and time left.
// What is over moves up and stays, as what a shell printed does; the lines of what
// goes on are drawn over themselves, each frame in one write, so that none is ever
// seen half erased.
type bars struct {
	out  io.Writer
	size func() (width, height int)

	mu    sync.Mutex
	steps map[string]*stepBar
	shown []*stepBar // what is not over, in order
	past  []step     // what is over and was not printed yet
	drawn []int      // cells in each line that is on the screen and will be drawn over
	ended bool

	stop chan struct{}
	done sync.WaitGroup
}

// stepBar is one thing. A stage has its own total and its own clock.
type stepBar struct {
	step
	since time.Time
}

// newBars starts the goroutine that draws, which end waits for.
func newBars(out io.Writer, size func() (width, height int)) *bars {
	b := &bars{out: out, size: size, steps: map[string]*stepBar{}, stop: make(chan struct{})}
	b.done.Go(func() {
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				b.draw(now)
			case <-b.stop:
				return
			}
		}
	})
	return b
}

// terminalSize asks a terminal, each time anew, for it may change; what does not say
// is taken to be of the usual size.
func terminalSize(out io.Writer) func() (width, height int) {
	return func() (int, int) {
		if f, ok := out.(*os.File); ok {
			if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
				return w, h
			}
		}
		return 80, 24
	}
}

func (b *bars) event(e convert.Event) { b.run(convertStep(e)) }
func (b *bars) blob(e store.Event)    { b.run(blobStep(e)) }
func (b *bars) look(e verify.Event)   { b.run(verifyStep(e)) }

func (b *bars) run(s step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, known := b.steps[s.key]
	switch {
	case !known:
		l = &stepBar{since: time.Now()}
		b.steps[s.key] = l
		at, _ := slices.BinarySearchFunc(b.shown, s.rank+1, func(l *stepBar, rank int) int { return l.rank - rank })
		b.shown = slices.Insert(b.shown, at, l)
	case l.over:
		return
	case l.stage != s.stage:
		l.since = time.Now()
	}
	l.step = s
	if s.over {
		b.shown = slices.DeleteFunc(b.shown, func(o *stepBar) bool { return o == l })
		b.past = append(b.past, s)
	}
}

// Write prints lines of a log above what is drawn.
func (b *bars) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return b.out.Write(p)
	}
	width, height := b.size()
	if err := b.frame(p, width, height, time.Now()); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (b *bars) draw(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		width, height := b.size()
		_ = b.frame(nil, width, height, now)
	}
}

// frame draws everything anew: what is over, lines of others, what goes on.
func (b *bars) frame(others []byte, width, height int, now time.Time) error {
	var f bytes.Buffer
	if n := b.rows(width); n > 0 {
		fmt.Fprintf(&f, "\r\x1b[%dA", n)
	}
	for _, l := range b.past {
		f.WriteString(l.last(max(width-1, 1)) + "\x1b[K\n")
	}
	b.past = nil
	if len(others) > 0 {
		f.WriteString("\x1b[J")
		f.Write(others)
		if !bytes.HasSuffix(others, []byte("\n")) {
			f.WriteByte('\n')
		}
	}
	lines := drawLines(b.shown, width, max(height-1, 1), now)
	b.drawn = b.drawn[:0]
	for _, l := range lines {
		f.WriteString(l + "\x1b[K\n")
		b.drawn = append(b.drawn, cells(l))
	}
	f.WriteString("\x1b[J") // what was below, such as the ^C of a key
	_, err := b.out.Write(f.Bytes())
	return err
}

// rows is how many rows of the screen the drawn lines take now: a terminal that has
// become narrower breaks them.
func (b *bars) rows(width int) (n int) {
	for _, l := range b.drawn {
		n += max(1, (l+width-1)/max(width, 1))
	}
	return n
}

// end leaves the screen to others. What is not over says how far it came.
func (b *bars) end(ok bool) {
	close(b.stop)
	b.done.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	for _, l := range b.shown {
		if !ok {
			l.stage += ": stopped after"
		}
		b.past = append(b.past, l.step)
	}
	b.shown = nil
	if len(b.past)+len(b.drawn) > 0 {
		width, height := b.size()
		_ = b.frame(nil, width, height, time.Now())
	}
}
