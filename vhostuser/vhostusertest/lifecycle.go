package vhostusertest

import (
	"context"
	"errors"
	"fmt"

	"github.com/rafsd/rafsd/vhostuser"
)

// Start is DRIVER_OK: the monitor hands memory and rings over and enables them.
// After a Stop it is what QEMU's "cont" does, with the bases that the back-end
// returned.
func (vm *VM) Start() error {
	if vm.running {
		return errors.New("machine is running already")
	}
	var err error
	if vm.opts.Dialect == CloudHypervisor {
		err = vm.startCloudHypervisor()
	} else {
		err = vm.startQEMU()
	}
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	vm.running = true
	return nil
}

// startQEMU is vhost_user_fs_start. Memory is not sent again when the machine was
// only stopped.
func (vm *VM) startQEMU() error {
	f := vm.Front
	if err := vm.callAll(); err != nil {
		return err
	}
	if err := f.TellU64(vhostuser.ReqSetFeatures, vm.Features); err != nil {
		return err
	}
	if !vm.hasMemory {
		if err := vm.sendMemory(vm.has(vhostuser.ProtocolConfigureMemSlots)); err != nil {
			return err
		}
	}
	if err := vm.sendInflight(); err != nil {
		return err
	}
	for _, r := range vm.Rings {
		if err := errors.Join(
			f.TellVring(vhostuser.ReqSetVringNum, r.Index, uint32(r.Num)),
			f.TellVring(vhostuser.ReqSetVringBase, r.Index, uint32(r.base)),
			vm.TellAddr(r),
			vm.tellFD(vhostuser.ReqSetVringKick, r, r.kick),
		); err != nil {
			return err
		}
	}
	if err := vm.Enable(true); err != nil {
		return err
	}
	if err := vm.callAll(); err != nil {
		return err
	}
	// QEMU kicks each ring once when it takes the notifier over, empty or not.
	for _, r := range vm.Rings {
		if err := r.kick.signal(); err != nil {
			return err
		}
	}
	return nil
}

// startCloudHypervisor is VhostUserHandle::setup_vhost_user.
func (vm *VM) startCloudHypervisor() error {
	f := vm.Front
	if err := f.TellU64(vhostuser.ReqSetFeatures, vm.Features); err != nil {
		return err
	}
	if err := vm.sendMemory(false); err != nil {
		return err
	}
	for _, r := range vm.Rings {
		if err := f.TellVring(vhostuser.ReqSetVringNum, r.Index, uint32(r.Num)); err != nil {
			return err
		}
	}
	if err := vm.sendInflight(); err != nil {
		return err
	}
	for _, r := range vm.Rings {
		if err := errors.Join(
			vm.TellAddr(r),
			f.TellVring(vhostuser.ReqSetVringBase, r.Index, uint32(r.base)),
			vm.tellFD(vhostuser.ReqSetVringCall, r, r.call),
			vm.tellFD(vhostuser.ReqSetVringKick, r, r.kick),
		); err != nil {
			return err
		}
	}
	return vm.Enable(true)
}

func (vm *VM) callAll() error {
	for _, r := range vm.Rings {
		if err := vm.tellFD(vhostuser.ReqSetVringCall, r, r.call); err != nil {
			return err
		}
	}
	return nil
}

// TellAddr sends SET_VRING_ADDR with the places that r has now.
func (vm *VM) TellAddr(r *Ring) error {
	a := vhostuser.VringAddr{
		Index: uint32(r.Index), Desc: vm.Memory.UserAddr(r.Desc.GPA), Used: vm.Memory.UserAddr(r.Used.GPA),
		Avail: vm.Memory.UserAddr(r.Avail.GPA), Log: r.Used.GPA,
	}
	return vm.Front.Tell(vhostuser.ReqSetVringAddr, a.Append(nil))
}

// Enable sends SET_VRING_ENABLE for every ring. Alone it is how Cloud Hypervisor
// pauses and goes on.
func (vm *VM) Enable(on bool) error {
	var v uint32
	if on {
		v = 1
	}
	for _, r := range vm.Rings {
		if vm.Features&vhostuser.FeatureProtocolFeatures == 0 {
			return nil // the rings are enabled from the start
		}
		if err := vm.Front.TellVring(vhostuser.ReqSetVringEnable, r.Index, v); err != nil {
			return err
		}
	}
	if !vm.Front.Acks {
		_, err := vm.Front.AskU64(vhostuser.ReqGetFeatures) // QEMU's fence
		return err
	}
	return nil
}

// Stop takes the rings back: QEMU's "stop", a driver that is unbound, a reset.
// When it returns, the back-end touches guest memory no more.
func (vm *VM) Stop() error {
	if !vm.running {
		return errors.New("machine is not running")
	}
	vm.running = false
	if err := vm.Enable(false); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	for _, r := range vm.Rings {
		base, err := vm.GetBase(r)
		if err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		r.base = base
	}
	if vm.opts.Dialect == CloudHypervisor {
		return nil
	}
	for _, r := range vm.Rings {
		if err := vm.tellFD(vhostuser.ReqSetVringCall, r, vm.masked); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
	}
	return nil
}

// GetBase stops ring r and returns where the back-end would go on.
func (vm *VM) GetBase(r *Ring) (uint16, error) {
	b, fds, err := vm.Front.Ask(vhostuser.ReqGetVringBase, vhostuser.SizeVringState, vhostuser.VringState{Index: uint32(r.Index)}.Append(nil))
	if err != nil {
		return 0, err
	}
	closeFDs(fds)
	s, err := vhostuser.DecodeVringState(b)
	if err != nil {
		return 0, err
	}
	if s.Index != uint32(r.Index) || s.Num > 0xffff {
		return 0, fmt.Errorf("%w: GET_VRING_BASE of ring %d answered for ring %d with %d", ErrProtocol, r.Index, s.Index, s.Num)
	}
	return uint16(s.Num), nil
}

// Reset is a reboot of the guest: the rings are taken back and begin anew,
// without a DESTROY. Start follows, and then a new INIT. Requests that were in
// flight are forgotten.
func (vm *VM) Reset() error {
	if vm.running {
		if err := vm.Stop(); err != nil {
			return err
		}
	}
	if vm.opts.Dialect == QEMU && vm.has(vhostuser.ProtocolResetDevice) {
		if err := vm.Front.Tell(vhostuser.ReqResetDevice, nil); err != nil {
			return err
		}
	}
	for _, r := range vm.Rings {
		r.reset()
	}
	if vm.inflight != nil {
		err := vm.inflight.close()
		vm.inflight = nil
		return err
	}
	return nil
}

// Reconnect drops the connection, if it still stands, and connects again to the
// same path, as a monitor does whose back-end has died: guest memory and rings
// are as the dead one left them. With INFLIGHT_SHMFD negotiated the in-flight
// area comes along; QEMU goes on at the used index, Cloud Hypervisor at the
// available one.
func (vm *VM) Reconnect(ctx context.Context) error {
	if err := vm.Front.Close(); err != nil {
		return err
	}
	f, err := Dial(ctx, vm.path, vm.opts.Timeout)
	if err != nil {
		return err
	}
	vm.Front, vm.hasMemory, vm.running = f, false, false
	for _, r := range vm.Rings {
		if vm.opts.Dialect == CloudHypervisor {
			r.base = r.AvailIdx()
		} else {
			r.base = r.UsedIdx()
		}
	}
	if vm.opts.Dialect == CloudHypervisor {
		err = vm.connectCloudHypervisor(false)
	} else {
		err = vm.connectQEMU()
	}
	if err != nil {
		return fmt.Errorf("reconnect: %w", err)
	}
	return vm.Start()
}
