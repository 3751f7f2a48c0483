package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// progress shows how a conversion or a copy goes. News comes one at a time.
type progress interface {
	event(convert.Event)
	blob(store.Event)
	look(verify.Event)
	run(step)
	// end is called once, after the last event. It leaves the screen in order.
	end(ok bool)
}

// newProgress takes what the user asked for: bars, lines, json or none; bars on
// terminals and lines elsewhere if that is "auto".
func (a *app) newProgress(how string, quiet bool) (progress, error) {
	switch {
	case how == "auto" && quiet:
		how = "none"
	case how == "auto" && a.stderrTTY:
		how = "bars"
	case how == "auto":
		how = "lines"
	}
	switch how {
	case "bars":
		return newBars(a.stderr), nil
	case "lines":
		return newLines(a.stderr), nil
	case "json":
		return &jsonLines{json.NewEncoder(a.stderr)}, nil
	case "none":
		return silent{}, nil
	}
	return nil, &usageError{fmt.Errorf("--progress %s: want auto, bars, lines, json or none", how)}
}

const progressHelp = "how to show progress on stderr: auto, bars, lines, json or none"

type silent struct{}

func (silent) event(convert.Event) {}
func (silent) blob(store.Event)    {}
func (silent) look(verify.Event)   {}
func (silent) run(step)            {}
func (silent) end(bool)            {}

// step is one thing that makes progress, at one moment.
type step struct {
	key         string // the same for all news of the thing
	rank        int    // of its bar
	label       string
	stage       string // what happens to it
	done, total int64  // bytes; total is 0 where it is not known
	over        bool
}

func convertStep(e convert.Event) step {
	s := step{
		key: strconv.Itoa(e.Layer), rank: e.Layer, label: layerName(e) + " " + short(e.Digest),
		stage: stageText(e.Stage), done: e.Done, total: e.Total, over: e.Stage == convert.StageDone,
	}
	if e.Layer < 0 { // the bootstrap comes last
		s.rank = e.Layers
	}
	return s
}

func blobStep(e store.Event) step {
	s := step{key: e.Digest.Hex, label: "blob " + short(e.Digest.String()), done: e.Done, total: e.Total}
	switch e.State {
	case store.Sending:
		s.stage = "copying"
	case store.Sent:
		s.stage, s.over = "done", true
	case store.Present:
		s.stage, s.over = "was there", true
	}
	return s
}

func verifyStep(e verify.Event) step {
	s := step{key: e.What + e.Digest, label: e.What, stage: "verifying", done: e.Done, total: e.Total, over: e.Over}
	if e.Digest != "" {
		s.label += " " + short(e.Digest)
	}
	if e.Over {
		s.stage, s.total = "done", e.Done
	}
	return s
}

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
	case convert.StageFound:
		return "done before"
	case convert.StagePush:
		return "pushing"
	}
	return "done"
}

// lines writes a line when a thing changes its stage, for pipes and logs.
type lines struct {
	out    io.Writer
	stages map[string]string
}

func newLines(out io.Writer) *lines { return &lines{out, map[string]string{}} }

func (l *lines) event(e convert.Event) { l.show(convertStep(e)) }
func (l *lines) blob(e store.Event)    { l.show(blobStep(e)) }
func (l *lines) look(e verify.Event)   { l.show(verifyStep(e)) }
func (l *lines) run(s step)            { l.show(s) }
func (l *lines) end(bool)              {}

func (l *lines) show(s step) {
	if l.stages[s.key] == s.stage {
		return
	}
	l.stages[s.key] = s.stage
	size := ""
	if s.total > 0 {
		size = ", " + bytesText(uint64(s.total))
	}
	fmt.Fprintf(l.out, "%s: %s%s\n", s.label, s.stage, size)
}

// jsonLines writes each piece of news as an object on a line of its own.
type jsonLines struct{ out *json.Encoder }

func (j *jsonLines) event(e convert.Event) { j.show(convertStep(e), e.Digest) }
func (j *jsonLines) blob(e store.Event)    { j.show(blobStep(e), e.Digest.String()) }
func (j *jsonLines) look(e verify.Event)   { j.show(verifyStep(e), e.Digest) }
func (j *jsonLines) run(s step)            { j.show(s, "") }
func (j *jsonLines) end(bool)              {}

func (j *jsonLines) show(s step, digest string) {
	_ = j.out.Encode(struct {
		What   string `json:"what"`
		Digest string `json:"digest,omitempty"`
		Stage  string `json:"stage"`
		Done   int64  `json:"done"`
		Total  int64  `json:"total,omitempty"`
		Over   bool   `json:"over"`
	}{strings.TrimSuffix(s.label, " "+short(digest)), digest, s.stage, s.done, s.total, s.over})
}

// bars draws a bar for each thing on a terminal, with bytes, rate and time left.
type bars struct {
	pool *mpb.Progress

	mu    sync.Mutex // the terminal is drawn by a goroutine of mpb
	steps map[string]*stepBar
}

// stepBar is one thing's bar. A stage has its own total and its own clock.
type stepBar struct {
	bar   *mpb.Bar
	last  step
	since time.Time
}

// newBars starts the goroutine that draws, which end waits for.
func newBars(out io.Writer) *bars {
	return &bars{
		pool:  mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(64)),
		steps: map[string]*stepBar{},
	}
}

func (b *bars) event(e convert.Event) { b.show(convertStep(e)) }
func (b *bars) blob(e store.Event)    { b.show(blobStep(e)) }
func (b *bars) look(e verify.Event)   { b.show(verifyStep(e)) }

func (b *bars) run(s step) { b.show(s) }

func (b *bars) show(s step) {
	b.mu.Lock()
	l, ok := b.steps[s.key]
	if !ok {
		l = &stepBar{}
		b.steps[s.key] = l
	}
	if !ok || l.last.stage != s.stage {
		l.since = time.Now()
	}
	l.last = s
	b.mu.Unlock()
	if !ok {
		l.bar = b.pool.New(0, mpb.BarStyle().Rbound("|").Lbound("|"),
			mpb.BarPriority(s.rank),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.head(l) }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.tail(l) }, decor.WCSyncSpace)))
	}
	if s.over {
		l.bar.SetTotal(max(s.total, 1), false)
		l.bar.SetCurrent(max(s.total, 1))
		l.bar.SetTotal(-1, true)
		return
	}
	l.bar.SetTotal(max(s.total, s.done+1), false)
	l.bar.SetCurrent(s.done)
}

func (b *bars) head(l *stepBar) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.last.label + " " + l.last.stage
}

func (b *bars) tail(l *stepBar) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.last.rate(time.Since(l.since))
}

// rateText is bytes, rate and time left of a stage that has taken so long.
func rateText(e convert.Event, took time.Duration) string { return convertStep(e).rate(took) }

func (s step) rate(took time.Duration) string {
	if s.over {
		return bytesText(uint64(max(s.total, 0)))
	}
	text := bytesText(uint64(max(s.done, 0)))
	if s.total > 0 {
		text += " / " + bytesText(uint64(s.total))
	}
	if s.done <= 0 || took < 500*time.Millisecond {
		return text
	}
	rate := float64(s.done) / took.Seconds()
	text += fmt.Sprintf("  %s/s", bytesText(uint64(rate)))
	if left := s.total - s.done; left > 0 {
		seconds := time.Duration(float64(left) / rate * float64(time.Second))
		text += "  " + seconds.Round(time.Second).String() + " left"
	}
	return text
}

func (b *bars) end(ok bool) {
	if !ok {
		for _, l := range b.steps {
			l.bar.Abort(false)
		}
	}
	b.pool.Shutdown()
}
