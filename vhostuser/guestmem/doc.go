// Package guestmem maps the memory of a virtual machine and reads and writes it.
//
// A table of regions is an immutable Snapshot with a count of its users; Memory
// holds the current one. Who touches guest memory holds a pin on the snapshot
// that the slices came from, and a mapping goes away after the last pin.
//
// The guest runs while this package reads, so any byte may change at any time:
// read a byte once, copy it, then judge the copy. The package trusts nobody for
// addresses and lengths. It cannot keep the owner of the memory's descriptor from
// truncating it; the access then faults, and Arm with Catch turn that fault into
// an error instead of the end of the process.
//
// This is the only package of the project that uses unsafe. It supports
// little-endian machines only, as the rings of VIRTIO 1 are little-endian.
package guestmem
