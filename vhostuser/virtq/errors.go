package virtq

import (
	"errors"
	"fmt"
)

// The two classes of errors. Each error below wraps its class.
var (
	// ErrRing says that the queue cannot go on until it is started anew.
	ErrRing = errors.New("virtqueue broken")
	// ErrChain says that one chain is malformed. It has been popped and wants Push.
	ErrChain = errors.New("malformed descriptor chain")
)

// What breaks a queue.
var (
	// ErrAvailIndex: avail.idx is more than a queue size ahead.
	ErrAvailIndex = fmt.Errorf("%w: avail index", ErrRing)
	// ErrHead: an entry of the available ring is no descriptor.
	ErrHead = fmt.Errorf("%w: head", ErrRing)
	// ErrInFlight: a head was made available again before it was used.
	ErrInFlight = fmt.Errorf("%w: head in flight twice", ErrRing)
)

// What is wrong with a chain.
var (
	// ErrLoop: the chain has more descriptors than its table.
	ErrLoop = fmt.Errorf("%w: loop", ErrChain)
	// ErrNext: a descriptor names a next one that is outside of the table.
	ErrNext = fmt.Errorf("%w: next index", ErrChain)
	// ErrIndirect: an indirect table of a forbidden size, place or nesting.
	ErrIndirect = fmt.Errorf("%w: indirect table", ErrChain)
	// ErrBuffer: a buffer or an indirect table that is not in guest memory.
	ErrBuffer = fmt.Errorf("%w: buffer", ErrChain)
	// ErrOrder: a buffer to read after a buffer to write.
	ErrOrder = fmt.Errorf("%w: readable after writable", ErrChain)
	// ErrTooLong: more bytes than Limits allow.
	ErrTooLong = fmt.Errorf("%w: too long", ErrChain)
)

// What an owner gets wrong, or finds out late.
var (
	// ErrConfig: the queue cannot be started like this.
	ErrConfig = errors.New("invalid virtqueue configuration")
	// ErrStale: the chain belongs to a run of the queue that the driver has reset.
	ErrStale = errors.New("descriptor chain of an earlier run")
	// ErrNotInFlight: the chain was pushed or returned before.
	ErrNotInFlight = errors.New("descriptor chain not in flight")
	// ErrInflightRegion: the log of chains in flight contradicts itself.
	ErrInflightRegion = errors.New("invalid in-flight region")
)
