package vhostusertest

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
)

// The in-flight area of a split ring (vhost-user.rst, "Inflight I/O tracking").
const (
	inflightAlign  = 64
	inflightHeader = 16
	inflightEntry  = 16
)

// Inflight is the area in which a back-end notes what it has popped and not
// answered yet. The monitor keeps it while the back-end dies.
type Inflight struct {
	Description vhostuser.Inflight

	file *os.File
	mem  []byte
}

// InflightRing is what the area says of one ring.
type InflightRing struct {
	Version, DescNum, LastBatchHead, UsedIdx uint16
	// Heads are the chains in flight, in the order in which they were popped.
	Heads []uint16
}

// sendInflight gets an area from the back-end if there is none yet, and gives it
// to the back-end.
func (vm *VM) sendInflight() error {
	if !vm.has(vhostuser.ProtocolInflightSHMFD) {
		return nil
	}
	if vm.inflight == nil {
		area, err := vm.getInflight()
		if err != nil {
			return err
		}
		vm.inflight = area
	}
	return vm.Front.Tell(vhostuser.ReqSetInflightFD, vm.inflight.Description.Append(nil), int(vm.inflight.file.Fd()))
}

func (vm *VM) getInflight() (*Inflight, error) {
	ask := vhostuser.Inflight{NumQueues: uint16(len(vm.Rings)), QueueSize: vm.opts.QueueSize}
	b, fds, err := vm.Front.Ask(vhostuser.ReqGetInflightFD, vhostuser.SizeInflight, ask.Append(nil))
	if err != nil {
		return nil, err
	}
	d, err := vhostuser.DecodeInflight(b)
	if err != nil || len(fds) != 1 {
		closeFDs(fds)
		return nil, errors.Join(fmt.Errorf("%w: GET_INFLIGHT_FD with %d descriptors: want 1", ErrProtocol, len(fds)), err)
	}
	area := &Inflight{Description: d, file: os.NewFile(uintptr(fds[0]), "inflight")}
	if d.NumQueues != ask.NumQueues || d.QueueSize != ask.QueueSize || d.MmapSize == 0 {
		return nil, errors.Join(fmt.Errorf("%w: GET_INFLIGHT_FD answered %+v to %+v", ErrProtocol, d, ask), area.close())
	}
	area.mem, err = unix.Mmap(fds[0], int64(d.MmapOffset), int(d.MmapSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("in-flight area: %w", err), area.close())
	}
	return area, nil
}

// Inflight returns the in-flight area, or nil when none was negotiated.
func (vm *VM) Inflight() *Inflight { return vm.inflight }

// Ring reads what the area says of ring i. It is exact only while the back-end
// does not run.
func (a *Inflight) Ring(i int) (InflightRing, error) {
	num := int(a.Description.QueueSize)
	stride := (inflightHeader + inflightEntry*num + inflightAlign - 1) &^ (inflightAlign - 1)
	if i < 0 || (i+1)*stride > len(a.mem) {
		return InflightRing{}, fmt.Errorf("in-flight area of %d bytes has no ring %d of %d bytes", len(a.mem), i, stride)
	}
	b := a.mem[i*stride:]
	r := InflightRing{Version: le.Uint16(b[8:]), DescNum: le.Uint16(b[10:]), LastBatchHead: le.Uint16(b[12:]), UsedIdx: le.Uint16(b[14:])}
	counters := make(map[uint16]uint64)
	for head := range num {
		e := b[inflightHeader+inflightEntry*head:]
		if e[0] == 1 {
			r.Heads = append(r.Heads, uint16(head))
			counters[uint16(head)] = le.Uint64(e[8:])
		}
	}
	slices.SortFunc(r.Heads, func(x, y uint16) int {
		if counters[x] < counters[y] {
			return -1
		}
		return 1
	})
	return r, nil
}

func (a *Inflight) close() error {
	var err error
	if a.mem != nil {
		err = unix.Munmap(a.mem)
		a.mem = nil
	}
	return errors.Join(err, a.file.Close())
}
