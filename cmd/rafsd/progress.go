package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

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
		b := newBars(a.stderr, terminalSize(a.stderr))
		a.screen.Store(b)
		return b, nil
	case "lines":
		return newLines(a.stderr), nil
	case "json":
		return &jsonLines{json.NewEncoder(a.stderr)}, nil
	case "none":
		return silent{}, nil
	}
	return nil, &usageError{fmt.Errorf("--progress %s: want auto, bars, lines, json or none", how)}
}

// withProgress runs f, which tells of its bytes, under a label. At the end f says how
// large is what it made; what is made of nothing has no size, -1.
func (a *app) withProgress(how string, quiet bool, label, stage string, f func(tell func(done, total int64)) (size int64, err error)) error {
	p, err := a.newProgress(how, quiet)
	if err != nil {
		return err
	}
	s := step{key: label, label: plain(label), stage: stage}
	size, err := f(func(done, total int64) {
		now := s
		if now.done, now.total = done, total; total > 0 && done >= total {
			now = step{key: s.key, label: s.label, stage: "finishing"} // of which nobody tells more
		}
		p.run(now)
	})
	if err == nil && size >= 0 {
		p.run(step{key: s.key, label: s.label, stage: "done", done: size, total: size, over: true})
	}
	p.end(err == nil)
	return err
}

const progressHelp = "how to show progress on stderr: auto (bars on terminals, else lines), bars, lines, json or none"

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
