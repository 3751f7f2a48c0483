package virtq

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// Layout of an in-flight region (vhost-user.rst, "Inflight I/O tracking",
// QueueRegionSplit and DescStateSplit), in bytes.
const (
	inflightHeader   = 16
	inflightDesc     = 16
	inflightAlign    = 64
	inflightVersion  = 1
	offVersion       = 8
	offDescNum       = 10
	offLastBatchHead = 12
	offUsedIdx       = 14
	offDescNext      = 6
	offDescCounter   = 8
)

// InflightSize is the size in bytes of the in-flight region of one queue.
func InflightSize(queueSize int) int {
	return (inflightHeader + queueSize*inflightDesc + inflightAlign - 1) &^ (inflightAlign - 1)
}

// Inflight is the log of the chains in flight of one queue, in memory that
// outlives the process. The process that wrote it may have died at any point, and
// the front-end may have changed it: what it says is checked.
type Inflight struct {
	b    []byte
	size int // descriptors; immutable
}

// NewInflight lays a log over b, InflightSize(queueSize) bytes. Zeroes are a
// fresh one.
func NewInflight(b []byte, queueSize int) (*Inflight, error) {
	if queueSize <= 0 || queueSize > MaxSize || len(b) < InflightSize(queueSize) {
		return nil, fmt.Errorf("%w: %d bytes for %d descriptors", ErrInflightRegion, len(b), queueSize)
	}
	f := &Inflight{b: b, size: queueSize}
	version, descs := le.Uint16(b[offVersion:]), le.Uint16(b[offDescNum:])
	switch {
	case version == 0:
		f.clear()
	case version != inflightVersion:
		return nil, fmt.Errorf("%w: version %d: want %d", ErrInflightRegion, version, inflightVersion)
	case int(descs) != queueSize:
		return nil, fmt.Errorf("%w: %d descriptors: want %d", ErrInflightRegion, descs, queueSize)
	}
	return f, nil
}

// Size is the number of descriptors that the log has room for.
func (f *Inflight) Size() int { return f.size }

func (f *Inflight) clear() {
	clear(f.b[:InflightSize(f.size)])
	le.PutUint16(f.b[offDescNum:], uint16(f.size))
	le.PutUint16(f.b[offVersion:], inflightVersion)
}

// tryClear and tryUnmark are for callers without an error to return: a log that
// vanished is found out by the next one that has.
func (f *Inflight) tryClear() {
	var ignored error
	defer guestmem.Catch(guestmem.Arm(), &ignored)
	f.clear()
}

func (f *Inflight) tryUnmark(h uint16) {
	var ignored error
	defer guestmem.Catch(guestmem.Arm(), &ignored)
	f.unmark(h)
}

func (f *Inflight) desc(h uint16) []byte {
	return f.b[inflightHeader+int(h)*inflightDesc:][:inflightDesc]
}

func (f *Inflight) counter(h uint16) uint64 { return le.Uint64(f.desc(h)[offDescCounter:]) }

// mark logs that head h was popped as the counter-th.
func (f *Inflight) mark(h uint16, counter uint64) {
	d := f.desc(h)
	le.PutUint64(d[offDescCounter:], counter)
	d[0] = 1
}

func (f *Inflight) unmark(h uint16) { f.desc(h)[0] = 0 }

// link chains the heads of a batch from last_batch_head, before used.idx is stored.
func (f *Inflight) link(batch []uint16) {
	last := le.Uint16(f.b[offLastBatchHead:])
	for _, h := range batch {
		le.PutUint16(f.desc(h)[offDescNext:], last)
		le.PutUint16(f.b[offLastBatchHead:], h)
		last = h
	}
}

// finish logs that the batch is no longer in flight, after used.idx is stored.
func (f *Inflight) finish(batch []uint16, usedIdx uint16) {
	for _, h := range batch {
		f.unmark(h)
	}
	le.PutUint16(f.b[offUsedIdx:], usedIdx)
}

// recover returns the heads below size that were in flight when the writer of the
// log ended, in the order in which it popped them, and its highest counter.
func (f *Inflight) recover(usedIdx uint16, size int) (heads []uint16, counter uint64, err error) {
	if heads = f.marked(); len(heads) > 0 {
		if err := f.undo(usedIdx); err != nil {
			return nil, 0, err
		}
		heads = f.marked()
	}
	le.PutUint16(f.b[offUsedIdx:], usedIdx)
	for _, h := range heads {
		if int(h) >= size {
			return nil, 0, fmt.Errorf("%w: head %d in flight in a queue of %d", ErrInflightRegion, h, size)
		}
		counter = max(counter, f.counter(h))
	}
	slices.SortFunc(heads, func(a, b uint16) int { return cmp.Compare(f.counter(a), f.counter(b)) })
	return heads, counter, nil
}

// marked returns the heads that the log has in flight.
func (f *Inflight) marked() (heads []uint16) {
	for i := range f.size {
		if h := uint16(i); f.desc(h)[0] != 0 {
			heads = append(heads, h)
		}
	}
	return heads
}

// undo completes the last batch if the writer ended after it had stored used.idx
// and before it had logged that.
func (f *Inflight) undo(usedIdx uint16) error {
	n := int(usedIdx - le.Uint16(f.b[offUsedIdx:]))
	if n > f.size {
		return fmt.Errorf("%w: used index %d, ring has %d", ErrInflightRegion, le.Uint16(f.b[offUsedIdx:]), usedIdx)
	}
	h := le.Uint16(f.b[offLastBatchHead:])
	for range n {
		if int(h) >= f.size {
			return fmt.Errorf("%w: batch names head %d of %d", ErrInflightRegion, h, f.size)
		}
		f.unmark(h)
		h = le.Uint16(f.desc(h)[offDescNext:])
	}
	return nil
}
