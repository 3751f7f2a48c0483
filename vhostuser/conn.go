package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// message is a request as it came. Its descriptors are closed by close unless a
// handler has taken them.
type message struct {
	Header
	payload []byte // aliases the connection's buffer
	fds     []int
}

// takeFD hands over the i-th descriptor.
func (m *message) takeFD(i int) int {
	fd := m.fds[i]
	m.fds[i] = -1
	return fd
}

// oneFD hands over the only descriptor.
func (m *message) oneFD() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%w: %d descriptors: want 1", ErrMessage, len(m.fds))
	}
	return m.takeFD(0), nil
}

func (m *message) close() {
	for _, fd := range m.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	m.fds = nil
}

// conn reads and writes messages.
type conn struct {
	*net.UnixConn
	header  [SizeHeader]byte
	payload [MaxPayload]byte
	oob     []byte
	out     []byte
}

func newConn(c *net.UnixConn) *conn {
	return &conn{UnixConn: c, oob: make([]byte, unix.CmsgSpace(4*MaxFDs))}
}

// read reads the next message into m, which owns its descriptors even if there is
// an error. io.EOF: the front-end has gone between two messages.
func (c *conn) read(m *message) error {
	*m = message{}
	// Descriptors ride on the first byte of a message (vhost-user.rst).
	n, oobn, flags, _, err := c.ReadMsgUnix(c.header[:], c.oob)
	if oobn > 0 {
		m.fds = parseRights(c.oob[:oobn])
	}
	switch {
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	case flags&unix.MSG_CTRUNC != 0:
		return fmt.Errorf("%w: more than %d descriptors, or no room for them in this process", ErrMessage, MaxFDs)
	}
	if _, err := io.ReadFull(c, c.header[n:]); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	m.Header = DecodeHeader(&c.header)
	switch {
	case m.Flags&FlagVersionMask != FlagVersion:
		return fmt.Errorf("%w: %v with flags %#x: want version %d", ErrMessage, m.Request, m.Flags, FlagVersion)
	case m.Flags&FlagReply != 0:
		return fmt.Errorf("%w: %v is a reply", ErrMessage, m.Request)
	case m.Size > MaxPayload:
		return fmt.Errorf("%w: %v of %d bytes: want at most %d", ErrMessage, m.Request, m.Size, MaxPayload)
	}
	m.payload = c.payload[:m.Size]
	if _, err := io.ReadFull(c, m.payload); err != nil {
		return fmt.Errorf("%v: payload of %d bytes: %w", m.Request, m.Size, err)
	}
	return nil
}

// parseRights returns the descriptors in a control message. net asked for
// MSG_CMSG_CLOEXEC.
func parseRights(oob []byte) (fds []int) {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil // the kernel made it, and it has no descriptor that we could name
	}
	for i := range cmsgs {
		if got, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// reply answers m. fds are sent along and stay the caller's.
func (c *conn) reply(m *message, payload []byte, fds ...int) error {
	h := Header{Request: m.Request, Flags: FlagVersion | FlagReply, Size: uint32(len(payload))}
	c.out = append(h.Append(c.out[:0]), payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(c.out, oob, nil)
	if err == nil && n < len(c.out) {
		_, err = c.Write(c.out[n:])
	}
	if err != nil {
		return fmt.Errorf("%v: reply: %w", m.Request, err)
	}
	return nil
}

// gone reports whether err only says that the connection has ended.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
