package vhostusertest

import (
	"fmt"

	"github.com/rafsd/rafsd/vhostuser"
)

func (r *region) wire() vhostuser.Region {
	return vhostuser.Region{GuestPhys: r.GPA, Size: r.Size, UserAddr: r.userAddr, MmapOffset: r.offset}
}

// sendMemory tells the back-end of all guest memory, region by region or as one
// table.
func (vm *VM) sendMemory(slots bool) error {
	vm.hasMemory = true
	if !slots {
		return vm.sendTable()
	}
	for _, r := range vm.Memory.regions {
		if err := vm.addRegion(r); err != nil {
			return err
		}
	}
	return nil
}

func (vm *VM) sendTable() error {
	var table []vhostuser.Region
	var fds []int
	for _, r := range vm.Memory.regions {
		table = append(table, r.wire())
		fds = append(fds, int(vm.Memory.file.Fd()))
	}
	return vm.Front.Tell(vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, table), fds...)
}

func (vm *VM) addRegion(r *region) error {
	return vm.Front.Tell(vhostuser.ReqAddMemReg, vhostuser.AppendSingleRegion(nil, r.wire()), int(vm.Memory.file.Fd()))
}

// Plug adds memory to the running guest, as device_add pc-dimm does: one
// ADD_MEM_REG where that was negotiated, else the whole table anew.
func (vm *VM) Plug(r Region) error {
	reg, err := vm.Memory.add(r)
	if err != nil {
		return err
	}
	if vm.has(vhostuser.ProtocolConfigureMemSlots) {
		return vm.addRegion(reg)
	}
	return vm.sendTable()
}

// Unplug takes the region that begins at gpa away from the guest. The region's
// buffers must not be used by the back-end any more; Alloc gives out no more of
// it.
func (vm *VM) Unplug(gpa uint64) error {
	for i, r := range vm.Memory.regions {
		if r.GPA != gpa {
			continue
		}
		vm.Memory.regions = append(vm.Memory.regions[:i:i], vm.Memory.regions[i+1:]...)
		if vm.Memory.prefer == r {
			vm.Memory.prefer = nil
		}
		vm.Memory.unplugged = append(vm.Memory.unplugged, r)
		if !vm.has(vhostuser.ProtocolConfigureMemSlots) {
			return vm.sendTable()
		}
		w := r.wire()
		w.MmapOffset = 0 // ignored (vhost-user.rst, REM_MEM_REG)
		return vm.Front.Tell(vhostuser.ReqRemMemReg, vhostuser.AppendSingleRegion(nil, w))
	}
	return fmt.Errorf("guest memory: no region begins at %#x", gpa)
}
