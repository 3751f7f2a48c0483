package vhostusertest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// scripted is a back-end that knows answers and nothing else, and notes what it
// was told.
type scripted struct {
	features, protocol uint64
	refuse             vhostuser.Request // answered with 1
	corrupt            func(*vhostusertest.Message)

	listener *net.UnixListener
	notes    chan string
}

func (s *scripted) listen(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s.listener, s.notes = l, make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if err := s.serve(vhostusertest.NewFrontEnd(conn, time.Minute)); !errors.Is(err, io.EOF) {
				s.notes <- fmt.Sprint("error: ", err)
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return path
}

// note is a message in short: name, ring if any, "+fd" for each descriptor, "!"
// when a reply is asked for.
func note(m vhostusertest.Message) string {
	s := m.Request.String()
	switch m.Request {
	case vhostuser.ReqSetVringEnable, vhostuser.ReqSetVringNum, vhostuser.ReqSetVringBase:
		v, _ := vhostuser.DecodeVringState(m.Payload)
		s += fmt.Sprintf(" %d=%d", v.Index, v.Num)
	case vhostuser.ReqSetVringAddr, vhostuser.ReqGetVringBase:
		s += fmt.Sprintf(" %d", m.Payload[0])
	case vhostuser.ReqSetVringCall, vhostuser.ReqSetVringKick, vhostuser.ReqSetVringErr:
		v, _ := vhostuser.DecodeU64(m.Payload)
		s += fmt.Sprintf(" %d", v)
	case vhostuser.ReqSetFeatures, vhostuser.ReqSetProtocolFeatures:
		v, _ := vhostuser.DecodeU64(m.Payload)
		s += fmt.Sprintf(" %#x", v)
	}
	s += strings.Repeat("+fd", len(m.FDs))
	if m.Flags&vhostuser.FlagNeedReply != 0 {
		s += "!"
	}
	return s
}

func (s *scripted) serve(f *vhostusertest.FrontEnd) error {
	for {
		m, err := f.Recv()
		if err != nil {
			return err
		}
		s.notes <- note(m)
		for _, fd := range m.FDs {
			_ = unix.Close(fd)
		}
		reply := vhostusertest.Message{Request: m.Request, Flags: vhostuser.FlagVersion | vhostuser.FlagReply}
		switch m.Request {
		case vhostuser.ReqGetFeatures:
			reply.Payload = vhostuser.AppendU64(nil, s.features)
		case vhostuser.ReqGetProtocolFeatures:
			reply.Payload = vhostuser.AppendU64(nil, s.protocol)
		case vhostuser.ReqGetQueueNum:
			reply.Payload = vhostuser.AppendU64(nil, 3)
		case vhostuser.ReqGetMaxMemSlots:
			reply.Payload = vhostuser.AppendU64(nil, 32)
		case vhostuser.ReqGetVringBase:
			reply.Payload = vhostuser.VringState{Index: uint32(m.Payload[0]), Num: 0x2c}.Append(nil)
		case vhostuser.ReqGetInflightFD:
			d, _ := vhostuser.DecodeInflight(m.Payload)
			d.MmapSize = 1 << 20
			fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC)
			if err == nil {
				err = unix.Ftruncate(fd, 1<<20)
			}
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			reply.Payload, reply.FDs = d.Append(nil), []int{fd}
		default:
			if m.Flags&vhostuser.FlagNeedReply == 0 {
				continue
			}
			var v uint64
			if m.Request == s.refuse {
				v = 1
			}
			reply.Payload = vhostuser.AppendU64(nil, v)
		}
		if s.corrupt != nil {
			s.corrupt(&reply)
		}
		if err := f.Send(reply); err != nil {
			return err
		}
	}
}

// heard returns what the back-end was told since the last time.
func (s *scripted) heard() []string {
	var out []string
	for {
		select {
		case n := <-s.notes:
			out = append(out, n)
		default:
			return out
		}
	}
}

func lines(s string) []string {
	var out []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

func compare(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if w := lines(want); !slices.Equal(got, w) {
		t.Errorf("%s:\ngot\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(w, "\n\t"))
	}
}

// virtiofsdProtocol is what the C virtiofsd of QEMU 7.2 offers.
const virtiofsdProtocol = 0x8c2b

// The order is that of a trace of QEMU 7.2.22 with the C virtiofsd, except that
// the enabling asks for replies, as QEMU does since 8.2.
func TestOrderOfQEMU(t *testing.T) {
	s := &scripted{features: 0x1_7500_0000, protocol: virtiofsdProtocol}
	vm, err := vhostusertest.Connect(t.Context(), s.listen(t), vhostusertest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	fence(t, vm)
	compare(t, "realize", s.heard(), `
		GET_FEATURES
		GET_PROTOCOL_FEATURES
		SET_PROTOCOL_FEATURES 0x8029
		GET_QUEUE_NUM
		GET_MAX_MEM_SLOTS
		SET_BACKEND_REQ_FD+fd!
		SET_OWNER
		GET_FEATURES
		SET_VRING_CALL 0+fd
		SET_VRING_ERR 0+fd
		SET_VRING_CALL 1+fd
		SET_VRING_ERR 1+fd
		GET_FEATURES`)
	start := func(memory, base string) string {
		return `
		SET_VRING_CALL 0+fd
		SET_VRING_CALL 1+fd
		SET_FEATURES 0x170000000
		` + memory + `
		SET_VRING_NUM 0=128
		SET_VRING_BASE 0=` + base + `
		SET_VRING_ADDR 0
		SET_VRING_KICK 0+fd
		SET_VRING_NUM 1=128
		SET_VRING_BASE 1=` + base + `
		SET_VRING_ADDR 1
		SET_VRING_KICK 1+fd
		SET_VRING_ENABLE 0=1!
		SET_VRING_ENABLE 1=1!
		SET_VRING_CALL 0+fd
		SET_VRING_CALL 1+fd
		GET_FEATURES`
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	fence(t, vm)
	compare(t, "start", s.heard(), start("ADD_MEM_REG+fd!", "0"))
	if err := vm.Stop(); err != nil {
		t.Fatal(err)
	}
	fence(t, vm)
	compare(t, "stop", s.heard(), `
		SET_VRING_ENABLE 0=0!
		SET_VRING_ENABLE 1=0!
		GET_VRING_BASE 0
		GET_VRING_BASE 1
		SET_VRING_CALL 0+fd
		SET_VRING_CALL 1+fd
		GET_FEATURES`)
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	fence(t, vm)
	compare(t, "cont", s.heard(), start("", "44"))
	if err := vm.Plug(vhostusertest.Region{GPA: 1 << 32, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := vm.Unplug(1 << 32); err != nil {
		t.Fatal(err)
	}
	compare(t, "hotplug", s.heard(), "ADD_MEM_REG+fd!\nREM_MEM_REG!")
}

// fence makes sure that the back-end has noted everything.
func fence(t *testing.T, vm *vhostusertest.VM) {
	t.Helper()
	if _, err := vm.Front.AskU64(vhostuser.ReqGetFeatures); err != nil {
		t.Fatal(err)
	}
}

// A back-end such as nydusd offers MQ and BACKEND_REQ only: one table of memory,
// and a GET_FEATURES instead of acknowledgements.
func TestOrderOfQEMUWithoutAcks(t *testing.T) {
	s := &scripted{features: 0x1_7000_0000, protocol: 0x21}
	vm, err := vhostusertest.Boot(t.Context(), s.listen(t), vhostusertest.Options{
		Regions: []vhostusertest.Region{{Size: 1 << 20}, {GPA: 1 << 32, Size: 1 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	fence(t, vm)
	heard := s.heard()
	for _, want := range []string{"SET_BACKEND_REQ_FD+fd", "SET_MEM_TABLE+fd+fd"} {
		if !slices.Contains(heard, want) {
			t.Errorf("back-end did not hear %s: %q", want, heard)
		}
	}
	i := slices.Index(heard, "SET_VRING_ENABLE 1=1")
	if i < 0 || heard[i+1] != "GET_FEATURES" {
		t.Errorf("no GET_FEATURES after enabling: %q", heard)
	}
}

func TestOrderOfCloudHypervisor(t *testing.T) {
	s := &scripted{features: 0x1_7000_0000, protocol: 0xffff_ffff &^ (1 << 5)}
	path := s.listen(t)
	vm, err := vhostusertest.Boot(t.Context(), path, vhostusertest.Options{Dialect: vhostusertest.CloudHypervisor})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	setup := func(inflight, base string) string {
		return `
		SET_FEATURES 0x170000000!
		SET_MEM_TABLE+fd!
		SET_VRING_NUM 0=128!
		SET_VRING_NUM 1=128!
		` + inflight + `
		SET_INFLIGHT_FD+fd!
		SET_VRING_ADDR 0!
		SET_VRING_BASE 0=0!
		SET_VRING_CALL 0+fd!
		SET_VRING_KICK 0+fd!
		SET_VRING_ADDR 1!
		SET_VRING_BASE 1=` + base + `!
		SET_VRING_CALL 1+fd!
		SET_VRING_KICK 1+fd!
		SET_VRING_ENABLE 0=1!
		SET_VRING_ENABLE 1=1!`
	}
	compare(t, "boot", s.heard(), `
		SET_OWNER
		GET_FEATURES
		GET_PROTOCOL_FEATURES
		SET_PROTOCOL_FEATURES 0x9009
		GET_QUEUE_NUM`+setup("GET_INFLIGHT_FD!", "0"))

	// The back-end dies with two requests visible to it.
	vm.Rings[1].SetAvailIdx(2)
	if err := vm.Reconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	compare(t, "reconnect", s.heard(), `
		SET_OWNER
		GET_FEATURES
		SET_PROTOCOL_FEATURES 0x9009`+setup("", "2"))
}

func TestFrontEndJudgesReplies(t *testing.T) {
	for _, tc := range []struct {
		name    string
		refuse  vhostuser.Request
		corrupt func(*vhostusertest.Message)
		want    string
	}{
		{"refused", vhostuser.ReqAddMemReg, nil, "ADD_MEM_REG: refused with code 1"},
		{"reply bit missing", 0, func(m *vhostusertest.Message) { m.Flags = 1 }, "GET_FEATURES with flags 0x1"},
		{"need-reply left on", 0, func(m *vhostusertest.Message) { m.Flags |= 8 }, "GET_FEATURES with flags 0xd"},
		{"another request", 0, func(m *vhostusertest.Message) { m.Request++ }, "SET_FEATURES with flags 0x5"},
		{"too short", 0, func(m *vhostusertest.Message) { m.Payload = m.Payload[1:] }, "reply of 7 bytes"},
		{"no VERSION_1", 0, func(m *vhostusertest.Message) { clear(m.Payload) }, "without VERSION_1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &scripted{features: 0x1_7000_0000, protocol: virtiofsdProtocol, refuse: tc.refuse, corrupt: tc.corrupt}
			vm, err := vhostusertest.Boot(t.Context(), s.listen(t), vhostusertest.Options{})
			if err == nil {
				_ = vm.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("boot = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestFrontEndWaitsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = vhostusertest.Connect(t.Context(), path, vhostusertest.Options{Timeout: time.Millisecond})
	if !errors.Is(err, vhostusertest.ErrTimeout) {
		t.Errorf("connect to a silent back-end = %v, want ErrTimeout", err)
	}
}
