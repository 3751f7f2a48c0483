package vhostusertest

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are 1/32 wide: a quantile is right
// to about 3 %. The zero value is empty.
type Histogram struct {
	counts [44 * subBuckets]uint64
	n      uint64
}

const (
	subBits    = 5
	subBuckets = 1 << subBits
)

func bucket(ns uint64) int {
	if ns < subBuckets {
		return int(ns)
	}
	exp := bits.Len64(ns) - subBits - 1 // ns >> exp is in [subBuckets, 2*subBuckets)
	return (exp+1)*subBuckets + int(ns>>exp) - subBuckets
}

// upper is the largest number of nanoseconds in bucket i.
func upper(i int) uint64 {
	if i < subBuckets {
		return uint64(i)
	}
	exp := i/subBuckets - 1
	return uint64(subBuckets+i%subBuckets+1)<<exp - 1
}

// Record counts d.
func (h *Histogram) Record(d time.Duration) {
	i := bucket(uint64(max(d, 0)))
	h.counts[min(i, len(h.counts)-1)]++
	h.n++
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.n }

// Quantile returns the duration that the fraction q of the recorded ones does not
// exceed, 0 when there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; c > 0 && seen >= max(rank, 1) {
			return time.Duration(upper(i))
		}
	}
	return 0
}

// Add adds what o has counted.
func (h *Histogram) Add(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
}
