package daemon

import "github.com/rafsd/rafsd/daemon/metrics"

// samples turns the figures of all parts into metrics.
func (d *parts) samples() []metrics.Sample {
	var s samples
	d.guestSamples(&s)
	d.engineSamples(&s)
	return s
}

type samples []metrics.Sample

func (s *samples) counter(name, help string, value float64, labels ...string) {
	s.add(metrics.Counter, name, help, value, labels)
}

func (s *samples) gauge(name, help string, value float64, labels ...string) {
	s.add(metrics.Gauge, name, help, value, labels)
}

func (s *samples) add(kind metrics.Kind, name, help string, value float64, labels []string) {
	m := metrics.Sample{Name: name, Help: help, Kind: kind, Value: value}
	for i := 0; i+1 < len(labels); i += 2 {
		m.Labels = append(m.Labels, metrics.Label{Name: labels[i], Value: labels[i+1]})
	}
	*s = append(*s, m)
}

// guestSamples are about what the guest asks.
func (d *parts) guestSamples(s *samples) {
	v, dev, fs := d.server.Stats(), d.device.Stats(), d.fs.Stats()
	s.counter("requests_total", "FUSE requests taken off the rings.", float64(dev.Requests))
	s.counter("requests_malformed_total", "Chains that held no FUSE request.", float64(dev.Malformed))
	s.counter("requests_failed_total", "Requests that the device answered with an error by itself.", float64(dev.Failed))
	s.counter("panics_total", "Panics caught while serving a request.", float64(dev.Panics))
	s.gauge("reads_waiting", "Reads that are being fetched now.", float64(dev.Waiting))
	const reads, readsHelp = "reads_total", "Reads by the way they took."
	s.counter(reads, readsHelp, float64(fs.ReadNow), "way", "ready")
	s.counter(reads, readsHelp, float64(fs.ReadWait), "way", "waited")
	s.counter("read_errors_total", "Reads that ended in an error.", float64(fs.ReadErrors))
	s.counter("read_bytes_total", "Bytes of file data given to the guest.", float64(fs.ReadBytes))
	s.counter("ring_sleeps_total", "Waits for a kick that slept.", float64(v.Sleeps))
	s.counter("ring_spins_total", "Waits for a kick that polling ended.", float64(v.Spins))
	s.counter("ring_calls_total", "Notifications of the driver.", float64(v.Calls))
	s.counter("rings_broken_total", "Rings stopped for what the guest did to them.", float64(v.Broken))
}

// engineSamples are about chunks and where they come from.
func (d *parts) engineSamples(s *samples) {
	e, b := d.engine.Stats(), d.source.meter.Stats()
	s.counter("first_uses_total", "Chunks out of the cache that were verified.", float64(e.FirstUses))
	const chunks, chunksHelp = "chunks_fetched_total", "Chunks fetched, by what for."
	s.counter(chunks, chunksHelp, float64(e.Misses), "for", "read")
	s.counter(chunks, chunksHelp, float64(e.Amplified), "for", "neighbour")
	s.counter(chunks, chunksHelp, float64(e.Prefetched), "for", "prefetch")
	const fetched, fetchedHelp = "fetched_bytes_total", "Compressed bytes that the source gave, by what for."
	s.counter(fetched, fetchedHelp, float64(e.DemandBytes), "for", "read")
	s.counter(fetched, fetchedHelp, float64(e.PrefetchBytes), "for", "prefetch")
	const bad, badHelp = "verify_failures_total", "Chunks that were not what the image says, by source."
	s.counter(bad, badHelp, float64(e.BadBackend), "source", d.source.kind)
	s.counter(bad, badHelp, float64(e.BadCache), "source", "cache")
	s.counter("refetches_total", "Second fetches of chunks that failed verification.", float64(e.Refetches))
	s.counter("flights_total", "Chunks that were worked on.", float64(e.Flights))
	s.counter("flight_errors_total", "Chunks that could not be had.", float64(e.FlightErrors))
	s.counter("flights_joined_total", "Reads that found their chunk under way.", float64(e.Joined))
	s.counter("cache_fills_total", "Chunks put into the cache.", float64(e.Fills))
	s.counter("cache_fill_errors_total", "Chunks that could not be put into the cache.", float64(e.FillErrors))
	s.counter("cache_errors_total", "Other failures of the cache.", float64(e.CacheErrors))
	s.counter("source_requests_total", "Tries of requests to the source.", float64(b.Requests), "source", d.source.kind)
	s.counter("source_errors_total", "Tries of requests to the source that failed.", float64(b.Errors), "source", d.source.kind)
	s.counter("source_bytes_total", "Bytes that the source gave.", float64(b.Bytes), "source", d.source.kind)
	s.counter("source_seconds_total", "Time spent in requests to the source.", b.Seconds, "source", d.source.kind)
	s.gauge("source_requests_now", "Range requests in flight.", float64(e.RequestsNow))
	s.gauge("fetch_memory_bytes", "Memory of chunks in flight.", float64(e.BytesNow))
	s.counter("decode_seconds_total", "Time spent decompressing.", e.DecodeSeconds)
	s.counter("verify_seconds_total", "Time spent hashing.", e.VerifySeconds)
}
