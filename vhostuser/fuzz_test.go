package vhostuser_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// conversation is a fuzzed list of messages, and what a front-end must get back.
type conversation struct {
	t     *testing.T
	b     []byte
	front *vhostusertest.FrontEnd
	mem   *os.File
	event int
	acks  bool // REPLY_ACK is negotiated
	ended bool
}

func (c *conversation) byte() byte {
	if len(c.b) == 0 {
		return 0
	}
	b := c.b[0]
	c.b = c.b[1:]
	return b
}

// num is a small number most of the time, and an edge sometimes.
func (c *conversation) num() uint64 {
	switch b := c.byte(); {
	case b < 0x80:
		return uint64(b & 7)
	case b < 0xc0:
		return uint64(b&0x3f) << 12
	case b < 0xe0:
		return 1 << (b & 0x1f)
	case b < 0xf0:
		return -uint64(b&0xf + 1)
	default:
		return uint64(c.byte())<<(b&0xf) | uint64(c.byte())
	}
}

// payload makes one that has the form of the request's, unless it should not.
func (c *conversation) payload(req vhostuser.Request) []byte {
	switch req {
	case vhostuser.ReqSetFeatures:
		return vhostuser.AppendU64(nil, uint64(c.byte()&7)<<28|1<<32|c.num()>>8<<40)
	case vhostuser.ReqSetProtocolFeatures:
		return vhostuser.AppendU64(nil, uint64(c.byte()&0xf|8)&^6)
	case vhostuser.ReqSetVringNum, vhostuser.ReqSetVringBase, vhostuser.ReqGetVringBase, vhostuser.ReqSetVringEnable:
		return vring(uint32(c.num()), uint32(c.num()))
	case vhostuser.ReqSetVringAddr:
		base := 0x7f0000000000 + c.num()&^0xfff
		return vhostuser.VringAddr{Index: uint32(c.num()), Flags: uint32(c.num()) >> 3, Desc: base, Avail: base + 0x1000, Used: base + 0x2000}.Append(nil)
	case vhostuser.ReqSetVringKick, vhostuser.ReqSetVringCall, vhostuser.ReqSetVringErr:
		return u64(c.num())
	case vhostuser.ReqAddMemReg, vhostuser.ReqRemMemReg:
		return vhostuser.AppendSingleRegion(nil, c.region())
	case vhostuser.ReqSetMemTable:
		var table []vhostuser.Region
		for range c.byte() & 3 {
			table = append(table, c.region())
		}
		return vhostuser.AppendMemTable(nil, table)
	case vhostuser.ReqGetInflightFD, vhostuser.ReqSetInflightFD:
		return vhostuser.Inflight{MmapSize: c.num(), MmapOffset: c.num(), NumQueues: uint16(c.num()), QueueSize: uint16(c.num())}.Append(nil)
	case vhostuser.ReqGetConfig, vhostuser.ReqSetConfig:
		n := uint32(c.byte() & 63)
		return vhostuser.ConfigSpace{Offset: uint32(c.num()), Size: n, Data: make([]byte, n)}.Append(nil)
	}
	return nil
}

func (c *conversation) region() vhostuser.Region {
	at := c.num() << 12
	return vhostuser.Region{GuestPhys: at, Size: c.num() << 12, UserAddr: 0x7f0000000000 + at, MmapOffset: c.num()}
}

// ownReply are the requests that have an answer of their own.
var ownReply = map[vhostuser.Request]bool{
	vhostuser.ReqGetFeatures: true, vhostuser.ReqGetVringBase: true, vhostuser.ReqGetProtocolFeatures: true,
	vhostuser.ReqGetQueueNum: true, vhostuser.ReqGetConfig: true, vhostuser.ReqGetInflightFD: true,
	vhostuser.ReqGetMaxMemSlots: true,
}

// step sends a message and takes the answer that it must have.
func (c *conversation) step() {
	how, req := c.byte(), vhostuser.Request(c.byte()%48)
	m := vhostusertest.Message{Request: req, Flags: vhostuser.FlagVersion, Payload: c.payload(req)}
	if how&1 != 0 {
		m.Flags |= vhostuser.FlagNeedReply
	}
	switch how >> 1 & 7 {
	case 0:
	case 1:
		m.FDs = []int{c.event}
	case 2:
		m.FDs = []int{int(c.mem.Fd())}
	case 3:
		m.FDs = []int{int(c.mem.Fd()), c.event, int(c.mem.Fd())}
	case 4:
		m.Payload = m.Payload[:len(m.Payload)/2]
	default: // what the request should have
		m.FDs = c.rightFDs(req, m.Payload)
	}
	if how == 0xff {
		m.Flags = uint32(c.byte()) | 1<<8 // Send takes 0 for a plain request
	}
	if err := c.front.Send(m); err != nil {
		c.end(err)
		return
	}
	if m.Flags&vhostuser.FlagVersionMask != 1 || m.Flags&vhostuser.FlagReply != 0 {
		c.end(c.front.WaitClosed())
		return
	}
	if req == vhostuser.ReqSetProtocolFeatures && len(m.Payload) == 8 {
		c.acks = true // payload always has bit 3 and nothing that was not offered; this message counts
	}
	if ownReply[req] || c.acks && m.Flags&vhostuser.FlagNeedReply != 0 {
		c.take(req)
	}
}

func (c *conversation) rightFDs(req vhostuser.Request, payload []byte) []int {
	switch req {
	case vhostuser.ReqAddMemReg, vhostuser.ReqSetInflightFD:
		return []int{int(c.mem.Fd())}
	case vhostuser.ReqSetMemTable:
		return []int{int(c.mem.Fd()), int(c.mem.Fd()), int(c.mem.Fd())}[:payload[0]]
	case vhostuser.ReqSetVringKick, vhostuser.ReqSetVringCall, vhostuser.ReqSetVringErr, vhostuser.ReqSetBackendReqFD:
		return []int{c.event}
	}
	return nil
}

func (c *conversation) take(req vhostuser.Request) {
	m, err := c.front.Recv()
	if err != nil {
		c.end(err)
		return
	}
	for _, fd := range m.FDs {
		unix.Close(fd)
	}
	if m.Request != req || m.Flags != vhostuser.FlagVersion|vhostuser.FlagReply {
		c.t.Fatalf("%v was answered with %v, flags %#x", req, m.Request, m.Flags)
	}
}

// end is the end of the connection, and nothing else: not silence.
func (c *conversation) end(err error) {
	c.ended = true
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		c.t.Fatalf("the connection ended with %v", err)
	}
}

func socketpair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// FuzzSession has a conversation with a server. Each request that must be
// answered is, by the right reply and in bounded time; the connection ends only
// where it may; afterwards the device was reset and no descriptor is left.
func FuzzSession(f *testing.F) {
	// SET_OWNER, SET_PROTOCOL_FEATURES, SET_FEATURES, ADD_MEM_REG of 1 MiB; then for
	// ring 1: NUM 8, ADDR, KICK, CALL, ENABLE.
	boot := []byte{0, 3, 0, 16, 15, 0, 2, 7, 0, 11, 37, 0, 0xc8, 0, 0, 8, 1, 0xc3, 0, 9, 0x81, 1, 0, 11, 12, 1, 11, 13, 1, 1, 18, 1, 1}
	f.Add(boot)
	f.Add(append(boot[:len(boot):len(boot)], 0, 11, 1, 0, 11, 12, 1, 0, 38, 0, 0xc8, 0, 1, 34, 11, 12, 1))
	f.Add(append(boot[:len(boot):len(boot)], 11, 5, 1, 0, 0xc8, 0, 1, 18, 1, 0, 1, 18, 1, 1, 11, 5, 1, 1, 1, 0))
	f.Add([]byte{0, 16, 8, 11, 31, 0, 0, 2, 0xe3, 11, 32, 0xa0, 0, 2, 0xe3, 1, 34, 1, 44, 1, 47})
	f.Add([]byte{0xff, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := countFDs(t)
		dev := &echo{}
		srv, err := vhostuser.NewServer(vhostuser.Config{Device: dev, Rings: 3, StopTimeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := socketpair(t)
		done := make(chan error, 1)
		go func() { done <- srv.ServeConn(t.Context(), theirs) }()
		memory, err := vhostusertest.NewMemory([]vhostusertest.Region{{Size: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		c := &conversation{t: t, b: b, front: vhostusertest.NewFrontEnd(ours, 10*time.Second), mem: memory.File(), event: event}
		for range 64 {
			if len(c.b) == 0 || c.ended {
				break
			}
			c.step()
		}
		if err := errors.Join(c.front.Close(), memory.Close(), unix.Close(event)); err != nil {
			t.Fatal(err)
		}
		<-done
		if got := dev.resets.Load(); got == 0 {
			t.Error("the device was not reset")
		}
		if got := countFDs(t); got != before {
			t.Errorf("%d descriptors are open, %d were before", got, before)
		}
	})
}
