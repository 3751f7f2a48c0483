package vhostusertest

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
)

// VM is a monitor and its guest on one connection to a back-end.
//
//	Connect -> Start -> Stop -> Resume      monitor stops and goes on
//	                 -> Reset -> Start      guest reboots
//	                 -> Reconnect           back-end died and came back
//
// Its methods are for one goroutine at a time. A Client may be at work meanwhile,
// except during Reset.
type VM struct {
	Memory *Memory
	Front  *FrontEnd
	Rings  []*Ring // 0 is hiprio

	// What was negotiated.
	Features, ProtocolFeatures uint64
	// What the back-end offered.
	OfferedFeatures, OfferedProtocolFeatures uint64
	// MaxQueues and MaxMemSlots are the back-end's; 0 where it was not asked.
	MaxQueues, MaxMemSlots uint64

	opts       Options
	path       string
	running    bool
	hasMemory  bool // the back-end was told of guest memory on this connection
	inflight   *Inflight
	backendReq *os.File // our end of the back-end's own channel
	masked     eventFD  // what the rings' calls are set to while they are stopped
}

// Connect makes the machine, connects to the back-end at path and negotiates. The
// guest does not run yet.
func Connect(ctx context.Context, path string, opts Options) (*VM, error) {
	opts = opts.withDefaults()
	memory, err := NewMemory(opts.Regions)
	if err != nil {
		return nil, err
	}
	vm := &VM{Memory: memory, opts: opts, path: path, masked: -1}
	if err := vm.build(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

func (vm *VM) build(ctx context.Context) error {
	for i := range vm.opts.Queues + 1 {
		r, err := newRing(vm.Memory, i, vm.opts.QueueSize)
		if err != nil {
			return err
		}
		vm.Rings = append(vm.Rings, r)
	}
	var err error
	if vm.masked, err = newEventFD(); err != nil {
		return err
	}
	if vm.Front, err = Dial(ctx, vm.path, vm.opts.Timeout); err != nil {
		return err
	}
	if vm.opts.Dialect == CloudHypervisor {
		return vm.connectCloudHypervisor(true)
	}
	return vm.connectQEMU()
}

// Boot is Connect and Start.
func Boot(ctx context.Context, path string, opts Options) (*VM, error) {
	vm, err := Connect(ctx, path, opts)
	if err != nil {
		return nil, err
	}
	if err := vm.Start(); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// connectQEMU is what vhost_user_backend_init and vhost_dev_init send.
func (vm *VM) connectQEMU() error {
	f := vm.Front
	if err := vm.offered(); err != nil {
		return err
	}
	if vm.OfferedFeatures&vhostuser.FeatureProtocolFeatures != 0 {
		if err := vm.negotiateProtocol(true); err != nil {
			return err
		}
		if err := vm.sendBackendReqFD(); err != nil {
			return err
		}
	}
	if err := f.Tell(vhostuser.ReqSetOwner, nil); err != nil {
		return err
	}
	if err := vm.offered(); err != nil {
		return err
	}
	for _, r := range vm.Rings {
		if err := vm.tellFD(vhostuser.ReqSetVringCall, r, vm.masked); err != nil {
			return err
		}
		if err := vm.tellFD(vhostuser.ReqSetVringErr, r, r.errs); err != nil {
			return err
		}
	}
	return nil
}

// connectCloudHypervisor is what VhostUserHandle::connect_vhost_user and
// negotiate_features_vhost_user send; a reconnection does not ask for the
// protocol features again.
func (vm *VM) connectCloudHypervisor(first bool) error {
	f := vm.Front
	if err := f.Tell(vhostuser.ReqSetOwner, nil); err != nil {
		return err
	}
	if err := vm.offered(); err != nil {
		return err
	}
	if vm.OfferedFeatures&vhostuser.FeatureProtocolFeatures == 0 {
		return nil
	}
	if err := vm.negotiateProtocol(first); err != nil {
		return err
	}
	f.AckAll = true
	if need := uint64(len(vm.Rings)); vm.MaxQueues != 0 && vm.MaxQueues < need {
		return fmt.Errorf("back-end has %d queues: want %d", vm.MaxQueues, need)
	}
	return nil
}

// offered asks for the virtio features and settles on what the guest will take.
func (vm *VM) offered() error {
	v, err := vm.Front.AskU64(vhostuser.ReqGetFeatures)
	if err != nil {
		return err
	}
	if v&vhostuser.FeatureVersion1 == 0 {
		return fmt.Errorf("%w: features %#x are without VERSION_1", ErrProtocol, v)
	}
	if vm.OfferedFeatures == v {
		return nil // the rings may be in use by a Client
	}
	if vm.OfferedFeatures != 0 {
		return fmt.Errorf("%w: features %#x are offered: want %#x as before", ErrProtocol, v, vm.OfferedFeatures)
	}
	vm.OfferedFeatures = v
	vm.Features = v & (vm.opts.Features | vhostuser.FeatureProtocolFeatures)
	for _, r := range vm.Rings {
		r.eventIdx = vm.Features&vhostuser.FeatureEventIdx != 0
		r.indirect = vm.Features&vhostuser.FeatureIndirectDesc != 0
	}
	return nil
}

func (vm *VM) negotiateProtocol(ask bool) error {
	f := vm.Front
	var err error
	if ask {
		if vm.OfferedProtocolFeatures, err = f.AskU64(vhostuser.ReqGetProtocolFeatures); err != nil {
			return err
		}
	}
	vm.ProtocolFeatures = vm.OfferedProtocolFeatures & vm.opts.ProtocolFeatures
	if err := f.TellU64(vhostuser.ReqSetProtocolFeatures, vm.ProtocolFeatures); err != nil {
		return err
	}
	f.Acks = vm.has(vhostuser.ProtocolReplyAck)
	if !ask {
		return nil
	}
	if vm.has(vhostuser.ProtocolMQ) {
		if vm.MaxQueues, err = f.AskU64(vhostuser.ReqGetQueueNum); err != nil {
			return err
		}
	}
	if vm.opts.Dialect == QEMU && vm.has(vhostuser.ProtocolConfigureMemSlots) {
		vm.MaxMemSlots, err = f.AskU64(vhostuser.ReqGetMaxMemSlots)
	}
	return err
}

func (vm *VM) has(protocolFeature uint64) bool { return vm.ProtocolFeatures&protocolFeature != 0 }

// sendBackendReqFD gives the back-end a channel for requests of its own, which
// nobody serves.
func (vm *VM) sendBackendReqFD() error {
	if !vm.has(vhostuser.ProtocolBackendReq) {
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("back-end channel: %w", err)
	}
	defer unix.Close(pair[1])
	if vm.backendReq != nil {
		_ = vm.backendReq.Close()
	}
	vm.backendReq = os.NewFile(uintptr(pair[0]), "backend-req")
	return vm.Front.Tell(vhostuser.ReqSetBackendReqFD, nil, pair[1])
}

func (vm *VM) tellFD(req vhostuser.Request, r *Ring, fd eventFD) error {
	return vm.Front.TellU64(req, uint64(r.Index), int(fd))
}

// Close ends the machine: the connection breaks, guest memory goes.
func (vm *VM) Close() error {
	var errs []error
	if vm.Front != nil {
		errs = append(errs, vm.Front.Close())
	}
	for _, r := range vm.Rings {
		r.close()
	}
	vm.Rings = nil
	vm.masked.close()
	vm.masked = -1
	if vm.backendReq != nil {
		errs = append(errs, vm.backendReq.Close())
		vm.backendReq = nil
	}
	if vm.inflight != nil {
		errs = append(errs, vm.inflight.close())
		vm.inflight = nil
	}
	if vm.Memory != nil {
		errs = append(errs, vm.Memory.Close())
		vm.Memory = nil
	}
	return errors.Join(errs...)
}
