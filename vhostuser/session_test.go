package vhostuser_test

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

func eventfd(t testing.TB, flags int) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// refused reports whether the back-end answered with an error, and nothing worse.
func refused(err error) bool {
	var r *vhostusertest.RefusedError
	return errors.As(err, &r)
}

// acks connects with an acknowledgement for every message.
func acks(t testing.TB, path string) *vhostusertest.VM {
	t.Helper()
	return vhostusertest.MustConnect(t, path, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor})
}

func TestOffers(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
	for _, tc := range []struct {
		what      string
		got, want uint64
	}{
		{"features", vm.OfferedFeatures, 1<<28 | 1<<29 | 1<<30 | 1<<32},
		{"protocol features", vm.OfferedProtocolFeatures, 1<<0 | 1<<3 | 1<<12 | 1<<13 | 1<<15},
		{"queues", vm.MaxQueues, 65},
		{"memory slots", vm.MaxMemSlots, 509},
	} {
		if tc.got != tc.want {
			t.Errorf("%s = %#x, want %#x", tc.what, tc.got, tc.want)
		}
	}
}

func TestConfigSpace(t *testing.T) {
	space := append([]byte("tag"), make([]byte, 37)...)
	space[36] = 4
	_, path := serve(t, &echo{}, vhostuser.Config{ConfigSpace: space})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
	if vm.OfferedProtocolFeatures&vhostuser.ProtocolConfig == 0 {
		t.Error("CONFIG is not offered")
	}
	ask := func(off, size uint32) []byte {
		c := vhostuser.ConfigSpace{Offset: off, Size: size, Data: make([]byte, size)}
		b, _, err := vm.Front.Ask(vhostuser.ReqGetConfig, -1, c.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	got, err := vhostuser.DecodeConfigSpace(ask(0, 256))
	if err != nil || got.Size != 256 || string(got.Data[:4]) != "tag\x00" || got.Data[36] != 4 || got.Data[255] != 0 {
		t.Errorf("configuration = %+v, %v", got, err)
	}
	if got, err := vhostuser.DecodeConfigSpace(ask(36, 4)); err != nil || got.Data[0] != 4 {
		t.Errorf("num_request_queues = %+v, %v, want 4", got, err)
	}
	if b := ask(250, 7); len(b) != 0 {
		t.Errorf("an impossible range was answered with %d bytes, want an error, which is none", len(b))
	}
	if err := vm.Front.Tell(vhostuser.ReqSetConfig, vhostuser.ConfigSpace{}.Append(nil)); err != nil {
		t.Errorf("SET_CONFIG without acknowledgement: %v", err)
	}
}

func TestConfigSpaceNotOffered(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
	b, _, err := vm.Front.Ask(vhostuser.ReqGetConfig, -1, vhostuser.ConfigSpace{Size: 4, Data: make([]byte, 4)}.Append(nil))
	if err != nil || len(b) != 0 {
		t.Errorf("GET_CONFIG = %d bytes, %v, want an error, which is none", len(b), err)
	}
}

// vring, u64 and the like are payloads of the tables below.
func vring(index, num uint32) []byte {
	return vhostuser.VringState{Index: index, Num: num}.Append(nil)
}
func u64(v uint64) []byte { return vhostuser.AppendU64(nil, v) }

// Messages that a running ring or the order of things forbids are refused, change
// nothing, and leave the connection and the rings as they were.
func TestRefusals(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{Rings: 3, MaxRingSize: 1024})
	vm := vhostusertest.MustBoot(t, path, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor})
	fd, mem := eventfd(t, unix.EFD_NONBLOCK), int(vm.Memory.File().Fd())
	addr := vhostuser.VringAddr{Index: 2, Desc: 0x1000, Used: 0x2000, Avail: 0x3000}
	moved, logged := addr, addr
	moved.Index, logged.Flags = 0, vhostuser.VringAddrLog
	region := vhostuser.Region{GuestPhys: 1 << 40, Size: 4096, UserAddr: 1 << 40}
	inflight := func(n, size uint16, mmap, off uint64) []byte {
		return vhostuser.Inflight{MmapSize: mmap, MmapOffset: off, NumQueues: n, QueueSize: size}.Append(nil)
	}
	for _, tc := range []struct {
		name    string
		req     vhostuser.Request
		payload []byte
		fds     []int
	}{
		{"second owner", vhostuser.ReqSetOwner, nil, nil},
		{"features not offered", vhostuser.ReqSetFeatures, u64(vm.Features | 1<<34), nil},
		{"features change while running", vhostuser.ReqSetFeatures, u64(vhostuser.FeatureVersion1), nil},
		{"features of 4 bytes", vhostuser.ReqSetFeatures, []byte{1, 2, 3, 4}, nil},
		{"protocol features not offered", vhostuser.ReqSetProtocolFeatures, u64(1 << 5), nil},
		{"protocol features above 20", vhostuser.ReqSetProtocolFeatures, u64(1 << 21), nil},
		{"size of a ring that does not exist", vhostuser.ReqSetVringNum, vring(3, 128), nil},
		{"size of a ring at 2^32-1", vhostuser.ReqSetVringNum, vring(math.MaxUint32, 128), nil},
		{"size 0", vhostuser.ReqSetVringNum, vring(2, 0), nil},
		{"size 100", vhostuser.ReqSetVringNum, vring(2, 100), nil},
		{"size above the limit", vhostuser.ReqSetVringNum, vring(2, 2048), nil},
		{"size of a running ring", vhostuser.ReqSetVringNum, vring(0, 64), nil},
		{"base of a ring that does not exist", vhostuser.ReqSetVringBase, vring(3, 0), nil},
		{"base of a running ring", vhostuser.ReqSetVringBase, vring(0, 0), nil},
		{"base of 17 bits", vhostuser.ReqSetVringBase, vring(2, 1<<16), nil},
		{"address of a running ring", vhostuser.ReqSetVringAddr, moved.Append(nil), nil},
		{"address with logging", vhostuser.ReqSetVringAddr, logged.Append(nil), nil},
		{"address of a ring that does not exist", vhostuser.ReqSetVringAddr, vhostuser.VringAddr{Index: 3}.Append(nil), nil},
		{"kick of a ring that does not exist", vhostuser.ReqSetVringKick, u64(3), []int{fd}},
		{"kick without its descriptor", vhostuser.ReqSetVringKick, u64(2), nil},
		{"kick with two descriptors", vhostuser.ReqSetVringKick, u64(2), []int{fd, fd}},
		{"kick before the address", vhostuser.ReqSetVringKick, u64(2), []int{fd}},
		{"call of a ring that does not exist", vhostuser.ReqSetVringCall, u64(255), []int{fd}},
		{"call without its descriptor", vhostuser.ReqSetVringCall, u64(0), nil},
		{"err of a ring that does not exist", vhostuser.ReqSetVringErr, u64(3), []int{fd}},
		{"enable of a ring that does not exist", vhostuser.ReqSetVringEnable, vring(3, 1), nil},
		{"enable 2", vhostuser.ReqSetVringEnable, vring(0, 2), nil},
		{"table without descriptors", vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, []vhostuser.Region{region}), nil},
		{"table with one too many", vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, []vhostuser.Region{region}), []int{mem, mem}},
		{"table of nothing", vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, nil), nil},
		{"table that overlaps", vhostuser.ReqSetMemTable, vhostuser.AppendMemTable(nil, []vhostuser.Region{region, region}), []int{mem, mem}},
		{"region without its descriptor", vhostuser.ReqAddMemReg, vhostuser.AppendSingleRegion(nil, region), nil},
		{"region that is there", vhostuser.ReqAddMemReg, vhostuser.AppendSingleRegion(nil, vhostuser.Region{Size: 4096, UserAddr: 1}), []int{mem}},
		{"region of an eventfd", vhostuser.ReqAddMemReg, vhostuser.AppendSingleRegion(nil, region), []int{fd}},
		{"region that is not there", vhostuser.ReqRemMemReg, vhostuser.AppendSingleRegion(nil, region), []int{mem}},
		{"in-flight region while running", vhostuser.ReqSetInflightFD, inflight(1, 128, 1<<20, 0), []int{mem}},
		{"channel without its descriptor", vhostuser.ReqSetBackendReqFD, nil, nil},
		{"configuration is written", vhostuser.ReqSetConfig, vhostuser.ConfigSpace{}.Append(nil), nil},
		{"dirty log", vhostuser.ReqSetLogBase, vhostuser.Log{MmapSize: 4096}.Append(nil), []int{mem}},
		{"dirty log event", vhostuser.ReqSetLogFD, nil, []int{fd}},
		{"network", vhostuser.ReqSendRARP, u64(0), nil},
		{"endianness", vhostuser.ReqSetVringEndian, vring(0, 1), nil},
		{"status", vhostuser.ReqSetStatus, u64(0), nil},
		{"device state", vhostuser.ReqSetDeviceStateFD, vhostuser.DeviceState{}.Append(nil), []int{fd}},
		{"request 0", 0, nil, nil},
		{"request of tomorrow", 4711, []byte("payload"), []int{fd, fd, fd}},
	} {
		if err := vm.Front.Tell(tc.req, tc.payload, tc.fds...); !refused(err) {
			t.Errorf("%s: %v = %v, want a refusal", tc.name, tc.req, err)
		}
		exchange(t, vm, 1, tc.name)
	}
}

func TestRefusalsBeforeMemory(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := acks(t, path)
	if err := vm.TellAddr(vm.Rings[0]); !refused(err) {
		t.Errorf("ADDR before memory = %v, want a refusal", err)
	}
	if err := vm.Front.TellU64(vhostuser.ReqSetVringKick, 0, eventfd(t, 0)); !refused(err) {
		t.Errorf("KICK before SET_FEATURES = %v, want a refusal", err)
	}
	if err := vm.Front.TellVring(vhostuser.ReqSetVringEnable, 0, 1); err != nil {
		t.Errorf("ENABLE of a ring that is not started = %v, want success", err)
	}
	if base, err := vm.GetBase(vm.Rings[0]); err != nil || base != 0 {
		t.Errorf("base of a ring that never ran = %d, %v, want 0", base, err)
	}
	mem := int(vm.Memory.File().Fd())
	for _, f := range []vhostuser.Inflight{
		{NumQueues: 0, QueueSize: 128, MmapSize: 1 << 20}, {NumQueues: 66, QueueSize: 128, MmapSize: 1 << 20},
		{NumQueues: 1, QueueSize: 0, MmapSize: 1 << 20}, {NumQueues: 1, QueueSize: 32769, MmapSize: 1 << 20},
		{NumQueues: 2, QueueSize: 128, MmapSize: 2*2112 - 1}, {NumQueues: 2, QueueSize: 128, MmapSize: 4224, MmapOffset: math.MaxUint64},
		{NumQueues: 2, QueueSize: 128, MmapSize: 4224, MmapOffset: vhostusertest.DefaultMemory - 4223},
	} {
		if err := vm.Front.Tell(vhostuser.ReqSetInflightFD, f.Append(nil), mem); !refused(err) {
			t.Errorf("SET_INFLIGHT_FD %+v = %v, want a refusal", f, err)
		}
	}
	if err := vm.Front.Tell(vhostuser.ReqSetInflightFD, vhostuser.Inflight{NumQueues: 1, QueueSize: 8, MmapSize: 4096}.Append(nil), eventfd(t, 0)); !refused(err) {
		t.Errorf("SET_INFLIGHT_FD of an eventfd = %v, want a refusal", err)
	}
	for _, f := range []vhostuser.Inflight{{NumQueues: 66, QueueSize: 1}, {NumQueues: 1}} {
		b, _, err := vm.Front.Ask(vhostuser.ReqGetInflightFD, vhostuser.SizeInflight, f.Append(nil))
		if got, _ := vhostuser.DecodeInflight(b); err != nil || got.MmapSize != 0 {
			t.Errorf("GET_INFLIGHT_FD %+v = %+v, %v, want size 0, which is an error", f, got, err)
		}
	}
	if err := vm.Start(); err != nil {
		t.Fatalf("the session is not what it was: %v", err)
	}
	exchange(t, vm, 1, "after all that")
}

// QEMU does not check how many rings there are. What it sends without waiting is
// ignored, and the one that it waits for is answered.
func TestRingThatDoesNotExist(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{Rings: 2})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{Queues: 4})
	if vm.MaxQueues != 2 {
		t.Fatalf("queues = %d, want 2", vm.MaxQueues)
	}
	for _, r := range vm.Rings[2:] {
		if base, err := vm.GetBase(r); err != nil || base != 0 {
			t.Errorf("ring %d: base = %d, %v, want 0", r.Index, base, err)
		}
	}
	all := vm.Rings
	t.Cleanup(func() { vm.Rings = all }) // to be closed
	vm.Rings = all[:2]
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	exchange(t, vm, 1, "two are enough")
}

// What is no message ends the connection, and the next one is served.
func TestFraming(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	fd := eventfd(t, 0)
	many := make([]int, vhostuser.MaxFDs+1)
	for i := range many {
		many[i] = fd
	}
	header := func(req vhostuser.Request, flags, size uint32) []byte {
		return vhostuser.Header{Request: req, Flags: flags, Size: size}.Append(nil)
	}
	for _, tc := range []struct {
		name string
		raw  []byte
		fds  []int
	}{
		{"version 0", header(vhostuser.ReqGetFeatures, 0, 0), nil},
		{"version 2", header(vhostuser.ReqGetFeatures, 2, 0), nil},
		{"a reply", header(vhostuser.ReqGetFeatures, 5, 0), nil},
		{"a payload above the limit", header(vhostuser.ReqGetFeatures, 1, vhostuser.MaxPayload+1), nil},
		{"a payload of 4 GiB", header(vhostuser.ReqSetMemTable, 1, math.MaxUint32), []int{fd}},
		{"too many descriptors", header(vhostuser.ReqGetFeatures, 1, 0), many},
		{"GET_VRING_BASE of no ring", header(vhostuser.ReqGetVringBase, 1, 0), nil},
		{"GET_INFLIGHT_FD without a payload", header(vhostuser.ReqGetInflightFD, 1, 0), []int{fd}},
	} {
		vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
		if err := vm.Front.SendRaw(tc.raw, tc.fds...); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if err := vm.Front.WaitClosed(); err != nil {
			t.Errorf("%s: %v, want the connection to end", tc.name, err)
		}
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, raw := range [][]byte{nil, {1}, header(vhostuser.ReqSetFeatures, 1, 8), append(header(vhostuser.ReqSetFeatures, 1, 8), 1)} {
		vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
		if err := vm.Front.SendRaw(raw, fd); len(raw) > 0 && err != nil {
			t.Fatal(err)
		}
		if err := vm.Close(); err != nil { // in the middle of a message
			t.Fatal(err)
		}
	}
	exchange(t, vhostusertest.MustBoot(t, path, vhostusertest.Options{}), 1, "still there")
}

// A message may come in pieces, and descriptors where none belong are closed: the
// leak check of serve counts them.
func TestPiecesAndStrayDescriptors(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := vhostusertest.MustConnect(t, path, vhostusertest.Options{})
	fd := eventfd(t, 0)
	msg := vhostuser.Header{Request: vhostuser.ReqGetFeatures, Flags: 1}.Append(nil)
	for i := range msg {
		if err := vm.Front.SendRaw(msg[i:i+1], fd); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := vm.Front.Recv(); err != nil || m.Request != vhostuser.ReqGetFeatures || m.Flags != 5 {
		t.Errorf("reply = %+v, %v", m, err)
	}
	for _, req := range []vhostuser.Request{vhostuser.ReqGetQueueNum, vhostuser.ReqGetProtocolFeatures} {
		if _, _, err := vm.Front.Ask(req, 8, nil, fd, fd, fd); err != nil {
			t.Errorf("%v with descriptors: %v", req, err)
		}
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	exchange(t, vm, 1, "fine")
}

func TestBackendChannelIsAccepted(t *testing.T) {
	_, path := serve(t, &echo{}, vhostuser.Config{})
	vm := acks(t, path)
	if err := vm.Front.Tell(vhostuser.ReqSetBackendReqFD, nil, eventfd(t, 0)); err != nil {
		t.Errorf("SET_BACKEND_REQ_FD = %v, want success", err)
	}
	if err := vm.Front.Tell(vhostuser.ReqResetOwner, nil); err != nil {
		t.Errorf("RESET_OWNER = %v, want success", err)
	}
}

func TestConfigErrors(t *testing.T) {
	for name, cfg := range map[string]vhostuser.Config{
		"no device":           {},
		"negative rings":      {Device: &echo{}, Rings: -1},
		"too many rings":      {Device: &echo{}, Rings: 257},
		"ring size":           {Device: &echo{}, MaxRingSize: 65536},
		"configuration space": {Device: &echo{}, ConfigSpace: make([]byte, 257)},
	} {
		if _, err := vhostuser.NewServer(cfg); err == nil {
			t.Errorf("%s: NewServer succeeded", name)
		}
	}
}
