// Package metrics shows the daemon's figures to Prometheus. The parts of the
// daemon know nothing of it: each has a snapshot of plain numbers, and whoever
// composes them hands a [Source] that turns the snapshot into samples when
// somebody asks. Between two scrapes nothing runs and nothing is kept.
//
// It listens on a unix socket or on the loopback interface only, trusts no
// request, and never shows names that a guest chose.
package metrics

import (
	"fmt"
	"math"
	"runtime"
	"runtime/metrics"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Prefix stands in front of every name of this daemon.
const Prefix = "rafsd_"

// Kind says how a figure moves.
type Kind int

// The kinds of figures.
const (
	// Counter only rises while the process lives. Its name ends in _total.
	Counter Kind = iota
	// Gauge rises and falls.
	Gauge
	// Histogram has Buckets, Sum and, in Value, the number of observations.
	Histogram
)

// Label is one dimension of a figure.
type Label struct{ Name, Value string }

// Bucket counts the observations that are at most Limit, smaller ones included.
type Bucket struct {
	Limit float64
	Count uint64
}

// Sample is one figure at one moment. Units are those of Prometheus: seconds, bytes.
type Sample struct {
	// Name has no prefix; all samples of one name have one help and one kind.
	Name, Help string
	Kind       Kind
	Labels     []Label
	Value      float64
	// Buckets and Sum belong to histograms.
	Buckets []Bucket
	Sum     float64
}

// Source takes a snapshot. It is called from several goroutines at once.
type Source func() []Sample

// Registry is what is shown.
type Registry struct {
	inner *prometheus.Registry
}

// New makes a registry with a few figures of the process and one constant
// sample, rafsd_build_info, that carries the version.
func New(version string, sources ...Source) (*Registry, error) {
	r := &Registry{inner: prometheus.NewRegistry()}
	base := []prometheus.Collector{
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{process(version)},
	}
	for _, s := range sources {
		base = append(base, collector{s})
	}
	for _, c := range base {
		if err := r.inner.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return r, nil
}

// collector adapts a Source. It describes nothing beforehand, so that a source
// may name its labels as it goes.
type collector struct{ source Source }

func (c collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.source() {
		out <- s.metric()
	}
}

// metric converts a sample. What cannot be converted becomes an error of the
// scrape, which names it.
func (s *Sample) metric() prometheus.Metric {
	names, values := make([]string, len(s.Labels)), make([]string, len(s.Labels))
	for i, l := range s.Labels {
		names[i], values[i] = l.Name, l.Value
	}
	desc := prometheus.NewDesc(Prefix+s.Name, s.Help, names, nil)
	kind := prometheus.GaugeValue
	switch s.Kind {
	case Counter:
		kind = prometheus.CounterValue
	case Histogram:
		buckets := make(map[float64]uint64, len(s.Buckets))
		for _, b := range s.Buckets {
			buckets[b.Limit] = b.Count
		}
		return checked(desc)(prometheus.NewConstHistogram(desc, uint64(math.Max(s.Value, 0)), s.Sum, buckets, values...))
	}
	return checked(desc)(prometheus.NewConstMetric(desc, kind, s.Value, values...))
}

func checked(desc *prometheus.Desc) func(prometheus.Metric, error) prometheus.Metric {
	return func(m prometheus.Metric, err error) prometheus.Metric {
		if err != nil {
			return prometheus.NewInvalidMetric(desc, err)
		}
		return m
	}
}

// process is the part of Go's own figures that an operator looks at.
func process(version string) Source {
	return func() []Sample {
		read := []metrics.Sample{
			{Name: "/sched/goroutines:goroutines"},
			{Name: "/memory/classes/heap/objects:bytes"},
			{Name: "/memory/classes/total:bytes"},
		}
		metrics.Read(read)
		value := func(i int) float64 {
			if read[i].Value.Kind() != metrics.KindUint64 {
				return math.NaN()
			}
			return float64(read[i].Value.Uint64())
		}
		return []Sample{
			{
				Name: "build_info", Help: "Version of the daemon; the value is always 1.", Kind: Gauge, Value: 1,
				Labels: []Label{{"version", version}, {"go", runtime.Version()}},
			},
			{Name: "goroutines", Help: "Goroutines of the process.", Kind: Gauge, Value: value(0)},
			{Name: "heap_objects_bytes", Help: "Memory of live and not yet swept heap objects.", Kind: Gauge, Value: value(1)},
			{Name: "go_memory_bytes", Help: "Memory that the Go runtime has mapped.", Kind: Gauge, Value: value(2)},
		}
	}
}
