package fetch

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Stats are counts since New, unless said otherwise.
type Stats struct {
	// ReadyReads and ReadyBytes are what came straight from the cache file.
	ReadyReads, ReadyBytes uint64
	// FirstUses and FirstBytes are chunks out of the cache that were verified.
	FirstUses, FirstBytes uint64
	// RecentHits are chunks out of memory, where the cache does not work.
	RecentHits uint64
	// Misses are chunks that had to be fetched for a read, Amplified those that
	// came along, Prefetched those that Prefetch asked for.
	Misses, Amplified, Prefetched uint64
	// Flights are chunks that were worked on, FlightErrors those that failed,
	// Joined reads that found one under way.
	Flights, FlightErrors, Joined uint64
	// Requests are range requests, RequestErrors those that failed.
	Requests, RequestErrors uint64
	// DemandBytes and PrefetchBytes are compressed bytes that the backend gave.
	DemandBytes, PrefetchBytes uint64
	// BadBackend and BadCache are chunks that failed verification, by source;
	// Refetches are second tries.
	BadBackend, BadCache, Refetches uint64
	// Fills are chunks put into the cache, FillErrors those that could not be;
	// CacheErrors are other failures of the cache.
	Fills, FillErrors, CacheErrors uint64
	// RequestSeconds, DecodeSeconds and VerifySeconds sum the time of these steps.
	RequestSeconds, DecodeSeconds, VerifySeconds float64
	// RequestsNow and BytesNow are requests and memory in flight at this moment.
	RequestsNow, BytesNow int64
}

type counters struct {
	readyReads, readyBytes, firstUses, firstBytes, recentHits atomic.Uint64
	misses, amplified, prefetched                             atomic.Uint64
	flights, flightErrors, joined                             atomic.Uint64
	requests, requestErrors, demandBytes, prefetchBytes       atomic.Uint64
	badBackend, badCache, refetches                           atomic.Uint64
	fills, fillErrors, cacheErrors                            atomic.Uint64
	requestNanos, decodeNanos, verifyNanos                    atomic.Uint64
}

func (c *counters) request(by class, n int, took time.Duration, err error) {
	c.requests.Add(1)
	c.requestNanos.Add(uint64(took))
	switch {
	case err != nil:
		c.requestErrors.Add(1)
	case by == prefetch:
		c.prefetchBytes.Add(uint64(n))
	default:
		c.demandBytes.Add(uint64(n))
	}
}

// Stats is what happened so far.
func (e *Engine) Stats() Stats {
	c := &e.stats
	seconds := func(n *atomic.Uint64) float64 { return time.Duration(n.Load()).Seconds() }
	net, local := e.net.out(), e.local.out()
	return Stats{
		ReadyReads: c.readyReads.Load(), ReadyBytes: c.readyBytes.Load(),
		FirstUses: c.firstUses.Load(), FirstBytes: c.firstBytes.Load(), RecentHits: c.recentHits.Load(),
		Misses: c.misses.Load(), Amplified: c.amplified.Load(), Prefetched: c.prefetched.Load(),
		Flights: c.flights.Load(), FlightErrors: c.flightErrors.Load(), Joined: c.joined.Load(),
		Requests: c.requests.Load(), RequestErrors: c.requestErrors.Load(),
		DemandBytes: c.demandBytes.Load(), PrefetchBytes: c.prefetchBytes.Load(),
		BadBackend: c.badBackend.Load(), BadCache: c.badCache.Load(), Refetches: c.refetches.Load(),
		Fills: c.fills.Load(), FillErrors: c.fillErrors.Load(), CacheErrors: c.cacheErrors.Load(),
		RequestSeconds: seconds(&c.requestNanos), DecodeSeconds: seconds(&c.decodeNanos),
		VerifySeconds: seconds(&c.verifyNanos),
		RequestsNow:   net.slots, BytesNow: net.bytes + local.bytes,
	}
}

// throttle lets a line a second through and counts the others: guests and
// registries decide how often we would complain.
type throttle struct {
	mu      sync.Mutex
	last    time.Time
	dropped int
}

func (t *throttle) warn(log *slog.Logger, msg string, args ...any) {
	t.mu.Lock()
	if now := time.Now(); now.Sub(t.last) >= time.Second {
		t.last = now
	} else {
		t.dropped++
		t.mu.Unlock()
		return
	}
	dropped := t.dropped
	t.dropped = 0
	t.mu.Unlock()
	if dropped > 0 {
		args = append(args, "suppressed", dropped)
	}
	log.Warn(msg, args...)
}
