package vhostusertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/vhostuser"
)

// Message is one vhost-user message, right or wrong.
type Message struct {
	Request vhostuser.Request
	Flags   uint32
	Payload []byte
	FDs     []int // sent: borrowed; received: the receiver closes them
}

// FrontEnd is the monitor's end of the socket. Its methods are for one goroutine
// at a time.
type FrontEnd struct {
	conn    *net.UnixConn
	timeout time.Duration

	// Acks says that REPLY_ACK was negotiated.
	Acks bool
	// AckAll sets NEED_REPLY on every message, as Cloud Hypervisor does, instead
	// of on those on which QEMU sets it.
	AckAll bool
}

// Dial connects to the back-end that listens on path. Every answer is waited for
// until timeout has passed.
func Dial(ctx context.Context, path string, timeout time.Duration) (*FrontEnd, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("front-end: %w", err)
	}
	return NewFrontEnd(conn.(*net.UnixConn), timeout), nil
}

// NewFrontEnd speaks over a connection that it takes over.
func NewFrontEnd(conn *net.UnixConn, timeout time.Duration) *FrontEnd {
	return &FrontEnd{conn: conn, timeout: timeout}
}

// Close closes the connection, as a monitor does that has died.
func (f *FrontEnd) Close() error {
	if err := f.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// SendRaw sends bytes that need not be a message, with the descriptors fds
// attached to the first of them.
func (f *FrontEnd) SendRaw(b []byte, fds ...int) error {
	if err := f.conn.SetWriteDeadline(time.Now().Add(f.timeout)); err != nil {
		return fmt.Errorf("front-end: %w", err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := f.conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = f.conn.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("front-end: send: %w", timeoutError(err))
	}
	return nil
}

// Send sends m. Flags of 0 mean those of a plain request.
func (f *FrontEnd) Send(m Message) error {
	if m.Flags == 0 {
		m.Flags = vhostuser.FlagVersion
	}
	h := vhostuser.Header{Request: m.Request, Flags: m.Flags, Size: uint32(len(m.Payload))}
	b := append(h.Append(make([]byte, 0, vhostuser.SizeHeader+len(m.Payload))), m.Payload...)
	if err := f.SendRaw(b, m.FDs...); err != nil {
		return fmt.Errorf("%v: %w", m.Request, err)
	}
	return nil
}

// Recv receives one message of the back-end. io.EOF: it hung up.
func (f *FrontEnd) Recv() (Message, error) {
	if err := f.conn.SetReadDeadline(time.Now().Add(f.timeout)); err != nil {
		return Message{}, fmt.Errorf("front-end: %w", err)
	}
	var raw [vhostuser.SizeHeader]byte
	oob := make([]byte, unix.CmsgSpace(4*vhostuser.MaxFDs))
	n, oobn, _, _, err := f.conn.ReadMsgUnix(raw[:], oob)
	fds := receivedFDs(oob[:oobn])
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && n < len(raw) {
		_, err = io.ReadFull(f.conn, raw[n:])
	}
	if err != nil {
		closeFDs(fds)
		return Message{}, timeoutError(err)
	}
	h := vhostuser.DecodeHeader(&raw)
	if h.Size > vhostuser.MaxPayload {
		closeFDs(fds)
		return Message{}, fmt.Errorf("%w: %v with a payload of %d bytes", ErrProtocol, h.Request, h.Size)
	}
	m := Message{Request: h.Request, Flags: h.Flags, Payload: make([]byte, h.Size), FDs: fds}
	if _, err := io.ReadFull(f.conn, m.Payload); err != nil {
		closeFDs(fds)
		return Message{}, timeoutError(err)
	}
	return m, nil
}

// Tell sends a request that has no answer of its own, and waits for the
// acknowledgement where the dialect asks for one.
func (f *FrontEnd) Tell(req vhostuser.Request, payload []byte, fds ...int) error {
	m := Message{Request: req, Flags: vhostuser.FlagVersion, Payload: payload, FDs: fds}
	if f.Acks && (f.AckAll || qemuWaits(req)) {
		m.Flags |= vhostuser.FlagNeedReply
	}
	if err := f.Send(m); err != nil {
		return err
	}
	if m.Flags&vhostuser.FlagNeedReply == 0 {
		return nil
	}
	reply, err := f.reply(req)
	if err != nil {
		return err
	}
	closeFDs(reply.FDs)
	v, err := vhostuser.DecodeU64(reply.Payload)
	if err != nil {
		return fmt.Errorf("%v: %w: %w", req, ErrProtocol, err)
	}
	if v != 0 {
		return fmt.Errorf("%v: %w", req, &RefusedError{Code: v})
	}
	return nil
}

// RefusedError is a back-end's answer to a request that it could not serve.
type RefusedError struct{ Code uint64 }

func (e *RefusedError) Error() string { return fmt.Sprintf("refused with code %d", e.Code) }

// qemuWaits says whether QEMU 8.2 and later set NEED_REPLY on req.
func qemuWaits(req vhostuser.Request) bool {
	switch req {
	case vhostuser.ReqSetMemTable, vhostuser.ReqAddMemReg, vhostuser.ReqRemMemReg,
		vhostuser.ReqSetBackendReqFD, vhostuser.ReqSetVringEnable:
		return true
	}
	return false
}

// Ask sends a request that has an answer of its own and returns the answer's
// payload and descriptors, which the caller closes. A size of 0 or more is the
// size that the payload must have.
func (f *FrontEnd) Ask(req vhostuser.Request, size int, payload []byte, fds ...int) ([]byte, []int, error) {
	m := Message{Request: req, Flags: vhostuser.FlagVersion, Payload: payload, FDs: fds}
	if f.Acks && f.AckAll {
		m.Flags |= vhostuser.FlagNeedReply // changes nothing: one reply
	}
	if err := f.Send(m); err != nil {
		return nil, nil, err
	}
	reply, err := f.reply(req)
	if err != nil {
		return nil, nil, err
	}
	if size >= 0 && len(reply.Payload) != size {
		closeFDs(reply.FDs)
		return nil, nil, fmt.Errorf("%v: %w: a reply of %d bytes: want %d", req, ErrProtocol, len(reply.Payload), size)
	}
	return reply.Payload, reply.FDs, nil
}

// reply receives the reply to req and judges it as QEMU does or, with AckAll, as
// rust-vmm does, which does not mind NEED_REPLY in a reply.
func (f *FrontEnd) reply(req vhostuser.Request) (Message, error) {
	m, err := f.Recv()
	if err != nil {
		return Message{}, fmt.Errorf("reply to %v: %w", req, err)
	}
	flags := m.Flags
	if f.AckAll {
		flags &^= vhostuser.FlagNeedReply
	}
	if want := vhostuser.FlagVersion | vhostuser.FlagReply; m.Request != req || flags != want {
		closeFDs(m.FDs)
		return Message{}, fmt.Errorf("reply to %v: %w: %v with flags %#x: want flags %#x", req, ErrProtocol, m.Request, m.Flags, want)
	}
	return m, nil
}

// AskU64 is Ask for a request that is answered with one number.
func (f *FrontEnd) AskU64(req vhostuser.Request) (uint64, error) {
	b, fds, err := f.Ask(req, vhostuser.SizeU64, nil)
	if err != nil {
		return 0, err
	}
	closeFDs(fds)
	return binary.LittleEndian.Uint64(b), nil
}

// TellU64 is Tell with one number.
func (f *FrontEnd) TellU64(req vhostuser.Request, v uint64, fds ...int) error {
	return f.Tell(req, vhostuser.AppendU64(nil, v), fds...)
}

// TellVring is Tell with a ring's index and a number.
func (f *FrontEnd) TellVring(req vhostuser.Request, index int, num uint32) error {
	return f.Tell(req, vhostuser.VringState{Index: uint32(index), Num: num}.Append(nil))
}

// WaitClosed waits until the back-end has hung up. Messages that it sends until
// then are thrown away.
func (f *FrontEnd) WaitClosed() error {
	for {
		m, err := f.Recv()
		closeFDs(m.FDs)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("front-end: waiting for the back-end to hang up: %w", err)
		}
	}
}

func timeoutError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrTimeout
	}
	return err
}

func receivedFDs(oob []byte) []int {
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
