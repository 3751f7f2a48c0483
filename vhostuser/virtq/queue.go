package virtq

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// le is the byte order of VIRTIO 1.
var le = binary.LittleEndian

// MaxSize bounds the size of a split queue (VIRTIO 1.2 §2.7).
const MaxSize = 32768

// DefaultLimit is what a chain may have of either kind by default, in bytes: a
// request of 1 MiB and room for its header.
const DefaultLimit = 1<<20 + 64<<10

// Limits bound the buffers of one chain, in bytes.
type Limits struct{ Readable, Writable int }

// Config says how the driver has set up a queue.
type Config struct {
	Size              int    // number of descriptors, a power of two up to MaxSize
	Desc, Avail, Used uint64 // virtual addresses of the front-end
	Base              uint16 // the index in the available ring to go on from
	Indirect          bool   // VIRTIO_F_INDIRECT_DESC was negotiated
	EventIdx          bool   // VIRTIO_F_EVENT_IDX was negotiated
}

// States of a head.
const (
	idle     = iota // the driver's, or available
	inFlight        // popped
	parked          // popped and returned: the next Pop takes it first
)

// head is what a queue knows of a descriptor that starts a chain.
type head struct {
	state   atomic.Uint32
	counter uint64 // of its last pop; guarded by popMu
}

// Queue is one split virtqueue. Its methods may be called from any goroutine.
//
// Every head is idle, in flight or parked. The number that is not idle is always
// lastAvail - usedIdx - lost - len(batch), modulo 2^16.
type Queue struct {
	limits Limits // immutable

	// popMu guards the driver's side of the ring. It comes before pushMu.
	popMu     sync.Mutex
	lastAvail uint16   // next entry of the available ring to pop
	availIdx  uint16   // the last avail.idx seen
	counter   uint64   // of pops
	popped    []uint16 // heads by entry of the available ring: our copy
	entries   int      // how many of popped before lastAvail are valid
	parked    []uint16 // heads, by counter
	pieces    [][]byte // scratch of copyTable
	table     []byte   // scratch of copyTable
	fence     guestmem.Fence

	// pushMu guards our side of the ring.
	pushMu      sync.Mutex
	usedIdx     uint16   // used.idx as published
	batch       []uint16 // heads pushed and not published
	signalled   uint16   // usedIdx when need-notify was last decided
	everDecided bool     // signalled is valid
	usedFlags   uint16
	pushFence   guestmem.Fence

	// Written under both mutexes, read under either.
	running           bool
	size              int // 0: never started
	indirect          bool
	eventIdx          bool
	config            Config
	snap              *guestmem.Snapshot // pinned while running
	desc, avail, used guestmem.Part
	heads             []head
	gen               uint32 // changes when what is in flight is forgotten
	lost              uint16 // see Lost
	inflight          *Inflight
	broken            error // what stopped popping; nil if nothing did
}

// New makes a queue that is not started. A limit of 0 stands for DefaultLimit.
func New(limits Limits) *Queue {
	if limits.Readable == 0 {
		limits.Readable = DefaultLimit
	}
	if limits.Writable == 0 {
		limits.Writable = DefaultLimit
	}
	return &Queue{limits: limits}
}

func (q *Queue) lock()   { q.popMu.Lock(); q.pushMu.Lock() }
func (q *Queue) unlock() { q.pushMu.Unlock(); q.popMu.Unlock() }

// Start lets the queue run over the memory of snap, of which it takes a pin.
//
// If the rings are as the last Stop left them, chains that were in flight then
// still are, and parked ones are popped again. If they are not, the driver has
// reset the device and all that is forgotten. If another process was there before
// and left an in-flight region, what it did not finish is popped first.
func (q *Queue) Start(snap *guestmem.Snapshot, c Config) (err error) {
	q.lock()
	defer q.unlock()
	defer guestmem.Catch(guestmem.Arm(), &err)
	if q.running {
		return fmt.Errorf("%w: started twice", ErrConfig)
	}
	if c.Size <= 0 || c.Size > MaxSize || c.Size&(c.Size-1) != 0 {
		return fmt.Errorf("%w: size %d: want a power of two up to %d", ErrConfig, c.Size, MaxSize)
	}
	if q.inflight != nil && c.Size > q.inflight.Size() {
		return fmt.Errorf("%w: size %d: in-flight region has %d", ErrConfig, c.Size, q.inflight.Size())
	}
	p, err := resolve(snap, c)
	if err != nil {
		return err
	}
	if err := q.takeUpLocked(c, p.used.Load16(usedIdxOff)); err != nil {
		return err
	}
	q.desc, q.avail, q.used = p.desc, p.avail, p.used
	q.config, q.indirect, q.eventIdx = c, c.Indirect, c.EventIdx
	q.availIdx = q.lastAvail
	q.everDecided, q.usedFlags, q.broken = false, 0, nil
	snap.Pin()
	q.snap, q.running = snap, true
	return nil
}

// takeUpLocked decides which chains are in flight when the queue starts with
// used as the driver's and our common used index.
func (q *Queue) takeUpLocked(c Config, used uint16) error {
	ran := q.size != 0
	if ran && c.Size == q.size && used == q.usedIdx && (q.inflight != nil || c.Base == q.lastAvail) {
		return nil
	}
	q.forgetLocked(c.Size)
	q.lastAvail, q.usedIdx = c.Base, used
	if q.inflight == nil {
		q.lost = c.Base - used
		return nil
	}
	// Until the log has been read, the next try must not take this for a run.
	q.size = 0
	if ran {
		q.inflight.clear()
	}
	if err := q.resubmitLocked(c.Size); err != nil {
		return err
	}
	q.size = c.Size
	return nil
}

// forgetLocked makes all heads idle and begins a new run.
func (q *Queue) forgetLocked(size int) {
	q.gen++
	q.lastAvail, q.usedIdx, q.lost, q.entries = 0, 0, 0, 0
	q.parked, q.batch = q.parked[:0], q.batch[:0]
	if size != q.size {
		q.heads, q.popped, q.size = make([]head, size), make([]uint16, size), size
		return
	}
	for i := range q.heads {
		q.heads[i].state.Store(idle)
	}
}

// resubmitLocked parks what the in-flight region says is in flight, below size.
func (q *Queue) resubmitLocked(size int) error {
	heads, counter, err := q.inflight.recover(q.usedIdx, size)
	if err != nil {
		return err
	}
	q.counter = max(q.counter, counter)
	q.lastAvail = q.usedIdx
	for _, h := range heads {
		q.heads[h].counter = q.inflight.counter(h)
		q.heads[h].state.Store(parked)
		q.parked = append(q.parked, h)
		// Which entry of the available ring it was is not known any more.
		q.lastAvail++
	}
	return nil
}

// parts are the three parts of a ring in our address space.
type parts struct{ desc, avail, used guestmem.Part }

// Offsets in the available and the used ring, in bytes (VIRTIO 1.2 §2.7.6, §2.7.8).
const (
	availFlagsOff = 0
	availIdxOff   = 2
	availRingOff  = 4
	usedIdxOff    = 2
	usedRingOff   = 4
	usedElemSize  = 8
)

func resolve(snap *guestmem.Snapshot, c Config) (p parts, err error) {
	// VIRTIO 1.2 §2.7: alignments. Sizes include the event fields at the end,
	// which are there even if EVENT_IDX was not negotiated.
	if p.desc, err = snap.Part(c.Desc, descSize*c.Size, 16); err != nil {
		return p, fmt.Errorf("%w: descriptor table: %w", ErrConfig, err)
	}
	if p.avail, err = snap.Part(c.Avail, availRingOff+2*c.Size+2, 2); err != nil {
		return p, fmt.Errorf("%w: available ring: %w", ErrConfig, err)
	}
	if p.used, err = snap.Part(c.Used, usedRingOff+usedElemSize*c.Size+2, 4); err != nil {
		return p, fmt.Errorf("%w: used ring: %w", ErrConfig, err)
	}
	return p, nil
}

// Remap moves a running queue to the memory of snap, of which it takes a pin. If
// the rings are not in it, the queue stays where it was.
func (q *Queue) Remap(snap *guestmem.Snapshot) error {
	q.lock()
	defer q.unlock()
	if !q.running {
		return nil
	}
	p, err := resolve(snap, q.config)
	if err != nil {
		return err
	}
	snap.Pin()
	q.snap.Unpin()
	q.snap, q.desc, q.avail, q.used = snap, p.desc, p.avail, p.used
	return nil
}

// Stop ends the run and gives up the memory. It returns the index in the available
// ring from which the next run goes on. Chains that were returned and are the
// newest count as never popped; older ones stay parked for a run that goes on.
// Stop is idempotent.
func (q *Queue) Stop() (base uint16) {
	q.lock()
	defer q.unlock()
	if !q.running {
		return q.lastAvail
	}
	q.running = false
	q.snap.Unpin()
	q.snap, q.desc, q.avail, q.used = nil, guestmem.Part{}, guestmem.Part{}, guestmem.Part{}
	q.unpopLocked()
	return q.lastAvail
}

// unpopLocked makes the newest chains available again, as far as they are parked.
func (q *Queue) unpopLocked() {
	for ; len(q.parked) > 0 && q.entries > 0; q.entries-- {
		last := len(q.parked) - 1
		h := q.parked[last]
		if q.popped[int(q.lastAvail-1)&(q.size-1)] != h {
			return // one that is newer has been answered, or may yet be
		}
		q.parked = q.parked[:last]
		q.heads[h].state.Store(idle)
		q.lastAvail--
		if q.inflight != nil {
			q.inflight.tryUnmark(h)
		}
	}
}

// Reset forgets everything, as the driver has. Precondition: the queue is stopped.
func (q *Queue) Reset() {
	q.lock()
	defer q.unlock()
	if q.running {
		return
	}
	q.forgetLocked(0)
	if q.inflight != nil {
		q.inflight.tryClear()
	}
}

// SetInflight gives the queue a region to log in, nil to take it away. What the
// region has is resubmitted by the next Start. Precondition: the queue is stopped.
func (q *Queue) SetInflight(f *Inflight) error {
	q.lock()
	defer q.unlock()
	if q.running {
		return fmt.Errorf("%w: in-flight region while running", ErrConfig)
	}
	if f != nil && q.size != 0 {
		// The region decides what is in flight, not what this queue remembers.
		q.forgetLocked(0)
	}
	q.inflight = f
	return nil
}

// Base is the index in the available ring of the next entry to pop.
func (q *Queue) Base() uint16 {
	q.popMu.Lock()
	defer q.popMu.Unlock()
	return q.lastAvail
}

// Outstanding is the number of chains that were popped and neither pushed nor
// returned.
func (q *Queue) Outstanding() int {
	q.lock()
	defer q.unlock()
	return int(q.lastAvail-q.usedIdx-q.lost) - len(q.batch) - len(q.parked)
}

// Lost is the number of chains that, by the indexes with which the run began, were
// in flight in a process that kept no log of them. The driver waits for them in vain.
func (q *Queue) Lost() int {
	q.popMu.Lock()
	defer q.popMu.Unlock()
	return int(q.lost)
}
