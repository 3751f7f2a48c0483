package main

import (
	"encoding/json"
	"time"

	"github.com/rafsd/rafsd/rafs/convert"
)

// conversionMetrics are nydusify's (--output-json), durations in nanoseconds.
// Reading, converting and sending go on side by side here, so that the times
// overlap: each is from the first to the last of its kind.
type conversionMetrics struct {
	SourceImageSize   int64
	TargetImageSize   int64
	SourcePullElapsed time.Duration
	ConversionElapsed time.Duration
	TargetPushElapsed time.Duration
}

// stopwatch measures the stages of a conversion by its news.
type stopwatch struct {
	start       time.Time
	first, last map[convert.Stage]time.Time
}

func newStopwatch() *stopwatch {
	return &stopwatch{time.Now(), map[convert.Stage]time.Time{}, map[convert.Stage]time.Time{}}
}

func (s *stopwatch) event(e convert.Event) {
	now := time.Now()
	if _, seen := s.first[e.Stage]; !seen {
		s.first[e.Stage] = now
	}
	s.last[e.Stage] = now
}

func (s *stopwatch) metrics(r *convert.Result) *conversionMetrics {
	m := &conversionMetrics{
		TargetImageSize:   r.BootstrapLayerSize,
		SourcePullElapsed: s.last[convert.StageRead].Sub(s.first[convert.StageRead]),
		TargetPushElapsed: s.last[convert.StagePush].Sub(s.first[convert.StagePush]),
		ConversionElapsed: time.Since(s.start),
	}
	for _, l := range r.Layers {
		m.SourceImageSize += l.SourceSize
		m.TargetImageSize += l.BlobSize
	}
	return m
}

func (f *convertFlags) writeMetrics(m *conversionMetrics) error {
	if f.outputJSON == "" {
		return nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeJSONFile(f.outputJSON, append(raw, '\n'))
}
