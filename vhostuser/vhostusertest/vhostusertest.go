// Package vhostusertest is the other side of package vhostuser: a vhost-user
// front-end as a virtual machine monitor has it, and a split-ring virtio-fs
// driver as Linux has it, in one process, over one memfd.
//
// It is a library for tests, for fuzz targets and for load generators, and it
// talks to any vhost-user-fs back-end over a unix socket. A VM connects and
// negotiates in QEMU's or in Cloud Hypervisor's order, a Ring is one virtqueue
// with its kick and call descriptors, a Request is one FUSE request laid out in
// guest memory, a Client makes synchronous calls and judges every reply as
// Linux 7.1 and later do, and a Load keeps a ring full. Beneath each of them
// lies what a hostile guest needs: any bytes in any place, any message with any
// descriptors.
//
// It trusts the back-end in nothing: what a reply claims is checked against what
// was asked before it is used, and a back-end that does not answer is an error
// after a bounded time. It never shares code with the back-end except the wire
// structs of package vhostuser and the words of package guestmem, so that a
// mistake in either shows.
package vhostusertest

import (
	"errors"
	"time"

	"github.com/rafsd/rafsd/vhostuser"
)

// Dialect is the order in which a monitor speaks.
type Dialect int

const (
	// QEMU negotiates protocol features before it owns the device, adds memory
	// region by region where it may, and sends BASE before ADDR.
	QEMU Dialect = iota
	// CloudHypervisor owns first, asks for a reply to everything, always sends
	// SET_MEM_TABLE, and sends ADDR before BASE.
	CloudHypervisor
)

func (d Dialect) String() string {
	if d == CloudHypervisor {
		return "cloud-hypervisor"
	}
	return "qemu"
}

// ErrProtocol is wrapped by every error that says that the back-end broke a rule.
var ErrProtocol = errors.New("back-end broke the protocol")

// ErrTimeout is wrapped by the error for a back-end that did not answer in time.
var ErrTimeout = errors.New("back-end did not answer in time")

// Defaults and limits.
const (
	// DefaultMemory is the size of guest memory in bytes, which is sparse.
	DefaultMemory = 64 << 20
	// DefaultQueueSize is QEMU's default for vhost-user-fs, in descriptors.
	DefaultQueueSize = 128
	// DefaultTimeout bounds the wait for the answer to one message.
	DefaultTimeout = 10 * time.Second
	// PageSize is the guest's page size in bytes.
	PageSize = 4096
)

// DefaultFeatures are the virtio features that a Linux guest takes when offered.
const DefaultFeatures = vhostuser.FeatureVersion1 | vhostuser.FeatureEventIdx | vhostuser.FeatureIndirectDesc

// Options says what kind of machine a VM is. The zero value is a guest of 64 MiB
// with one request queue under QEMU.
type Options struct {
	Dialect   Dialect
	Queues    int    // request queues; 1 when 0
	QueueSize uint16 // descriptors of each ring, a power of two; DefaultQueueSize when 0

	// Features masks the virtio features that the guest accepts;
	// DefaultFeatures when 0. VERSION_1 is always accepted.
	Features uint64
	// ProtocolFeatures masks the protocol features that the monitor acknowledges;
	// what its dialect knows when 0.
	ProtocolFeatures uint64

	// Regions are the pieces of guest memory; one of DefaultMemory bytes at 0
	// when empty.
	Regions []Region

	// Timeout bounds the wait for the answer to a message; DefaultTimeout when 0.
	Timeout time.Duration
}

// protocolFeatures is what each dialect asks for (see the tables of QEMU's
// vhost-user.c and Cloud Hypervisor's virtio-devices/src/vhost_user/fs.rs), as
// far as this package speaks it.
func (d Dialect) protocolFeatures() uint64 {
	if d == CloudHypervisor {
		return vhostuser.ProtocolMQ | vhostuser.ProtocolConfigureMemSlots | vhostuser.ProtocolReplyAck |
			vhostuser.ProtocolInflightSHMFD
	}
	return vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolBackendReq |
		vhostuser.ProtocolConfigureMemSlots | vhostuser.ProtocolResetDevice
}

func (o Options) withDefaults() Options {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.QueueSize == 0 {
		o.QueueSize = DefaultQueueSize
	}
	if o.Features == 0 {
		o.Features = DefaultFeatures
	}
	o.Features |= vhostuser.FeatureVersion1
	if o.ProtocolFeatures == 0 {
		o.ProtocolFeatures = o.Dialect.protocolFeatures()
	}
	if len(o.Regions) == 0 {
		o.Regions = []Region{{Size: DefaultMemory}}
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return o
}
