// Package virtq is the device's side of a split virtqueue (VIRTIO 1.2 §2.7).
//
// A Queue pops descriptor chains that the driver made available and pushes them
// back as used, in any order and from any goroutine. It knows when to notify the
// driver and when the driver need not notify it, and it can log what is in flight
// so that another process can take over.
//
// It trusts the driver in nothing. Every descriptor is read once, into private
// memory, and judged there. A chain that is wrong costs the driver that chain
// (ErrChain); an index that is wrong leaves no chain to blame and costs the queue
// (ErrRing). It allocates nothing per chain once slices have grown, never blocks
// on the driver, and makes no system calls: kicks and calls are its owner's.
package virtq
