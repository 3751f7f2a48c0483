package device

import "sync/atomic"

type counters struct {
	requests, malformed, failed, panics atomic.Uint64
	waiting                             atomic.Int64
}

// Stats counts what a Device has served since it was made.
type Stats struct {
	// Requests is how many well-formed requests were taken off the rings.
	Requests uint64
	// Malformed is how many chains held no FUSE request.
	Malformed uint64
	// Failed is how many requests the device itself answered with an error: what
	// go-fuse could not parse, and what panicked.
	Failed uint64
	// Panics is how many panics were caught.
	Panics uint64
	// Waiting is how many reads are being fetched now.
	Waiting int64
}

// Stats returns the counters as they are now.
func (d *Device) Stats() Stats {
	return Stats{
		Requests:  d.stats.requests.Load(),
		Malformed: d.stats.malformed.Load(),
		Failed:    d.stats.failed.Load(),
		Panics:    d.stats.panics.Load(),
		Waiting:   d.stats.waiting.Load(),
	}
}
