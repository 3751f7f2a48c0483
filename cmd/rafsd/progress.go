package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/rafsd/rafsd/rafs/convert"
)

// progress shows how a conversion goes. Its events come one at a time.
type progress interface {
	event(convert.Event)
	// end is called once, after the last event. It leaves the screen in order.
	end(ok bool)
}

type silent struct{}

func (silent) event(convert.Event) {}
func (silent) end(bool)            {}

// lines writes a line when a layer changes its stage, for pipes and logs.
type lines struct {
	out    io.Writer
	stages map[int]convert.Stage
}

func newLines(out io.Writer) *lines { return &lines{out, map[int]convert.Stage{}} }

func (l *lines) event(e convert.Event) {
	if was, seen := l.stages[e.Layer]; seen && was == e.Stage {
		return
	}
	l.stages[e.Layer] = e.Stage
	size := ""
	if e.Total > 0 {
		size = ", " + bytesText(uint64(e.Total))
	}
	fmt.Fprintf(l.out, "%s %s: %s%s\n", layerName(e), short(e.Digest), stageText(e.Stage), size)
}

func (l *lines) end(bool) {}

func layerName(e convert.Event) string {
	if e.Layer < 0 {
		return "bootstrap"
	}
	return fmt.Sprintf("layer %d/%d", e.Layer+1, e.Layers)
}

func stageText(s convert.Stage) string {
	switch s {
	case convert.StageRead:
		return "converting"
	case convert.StagePush:
		return "pushing"
	}
	return "done"
}

// bars draws a bar for each layer on a terminal, with bytes, rate and time left.
type bars struct {
	pool *mpb.Progress

	mu     sync.Mutex // the terminal is drawn by a goroutine of mpb
	layers map[int]*layerBar
}

// layerBar is one layer's bar. A stage has its own total and its own clock.
type layerBar struct {
	bar   *mpb.Bar
	last  convert.Event
	since time.Time
}

// newBars starts the goroutine that draws, which end waits for.
func newBars(out io.Writer) *bars {
	return &bars{
		pool:   mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(64)),
		layers: map[int]*layerBar{},
	}
}

func (b *bars) event(e convert.Event) {
	b.mu.Lock()
	l, ok := b.layers[e.Layer]
	if !ok {
		l = &layerBar{}
		b.layers[e.Layer] = l
	}
	if !ok || l.last.Stage != e.Stage {
		l.since = time.Now()
	}
	l.last = e
	b.mu.Unlock()
	if !ok {
		l.bar = b.pool.New(0, mpb.BarStyle().Rbound("|").Lbound("|"),
			mpb.BarPriority(priority(e)),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.head(l) }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.tail(l) }, decor.WCSyncSpace)))
	}
	if e.Stage == convert.StageDone {
		l.bar.SetTotal(max(e.Total, 1), false)
		l.bar.SetCurrent(max(e.Total, 1))
		l.bar.SetTotal(-1, true)
		return
	}
	l.bar.SetTotal(max(e.Total, e.Done+1), false)
	l.bar.SetCurrent(e.Done)
}

// priority puts the bootstrap, which comes last, below the layers.
func priority(e convert.Event) int {
	if e.Layer < 0 {
		return e.Layers
	}
	return e.Layer
}

func (b *bars) head(l *layerBar) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("%s %s %s", layerName(l.last), short(l.last.Digest), stageText(l.last.Stage))
}

func (b *bars) tail(l *layerBar) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return rateText(l.last, time.Since(l.since))
}

// rateText is bytes, rate and time left of a stage that has taken so long.
func rateText(e convert.Event, took time.Duration) string {
	if e.Stage == convert.StageDone {
		return bytesText(uint64(max(e.Total, 0)))
	}
	text := bytesText(uint64(max(e.Done, 0)))
	if e.Total > 0 {
		text += " / " + bytesText(uint64(e.Total))
	}
	if e.Done <= 0 || took < 500*time.Millisecond {
		return text
	}
	rate := float64(e.Done) / took.Seconds()
	text += fmt.Sprintf("  %s/s", bytesText(uint64(rate)))
	if left := e.Total - e.Done; left > 0 {
		seconds := time.Duration(float64(left) / rate * float64(time.Second))
		text += "  " + seconds.Round(time.Second).String() + " left"
	}
	return text
}

func (b *bars) end(ok bool) {
	if !ok {
		for _, l := range b.layers {
			l.bar.Abort(false)
		}
	}
	b.pool.Shutdown()
}
