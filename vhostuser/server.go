package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// Defaults of Config.
const (
	// DefaultRings is one hiprio ring and 64 request rings: a front-end need not
	// check how many there are before it uses them, and QEMU does not.
	DefaultRings = 1 + 64
	// DefaultStopTimeout is short enough for a front-end that holds all its
	// virtual processors while it waits for a ring to stop.
	DefaultStopTimeout = 2 * time.Second
	// DefaultPollMax is about what it takes a processor of a virtual machine to
	// wake up, which is what polling spares.
	DefaultPollMax = 100 * time.Microsecond
	// MaxRings is what the index of SET_VRING_KICK has room for.
	MaxRings = 256
)

// Config is what a Server may be told. Only Device is required.
type Config struct {
	// Device serves the rings.
	Device Device
	// Rings is the number of rings that are offered; 0 stands for DefaultRings.
	Rings int
	// MaxRingSize bounds the descriptors of a ring; 0 stands for virtq.MaxSize.
	MaxRingSize int
	// Limits bound one request; zeroes stand for virtq.DefaultLimit.
	Limits virtq.Limits
	// ConfigSpace is the device configuration space, at most MaxConfigSpace bytes.
	// If it is empty, as it should be unless the front-end needs it, the back-end
	// does not offer to answer for it: some versions of QEMU crash on the offer.
	ConfigSpace []byte
	// StopTimeout bounds how long a stopping ring waits for the device; 0 stands
	// for DefaultStopTimeout.
	StopTimeout time.Duration
	// PollMax bounds how long a ring polls before it sleeps; 0 stands for
	// DefaultPollMax, a negative value for none.
	PollMax time.Duration
	// Log receives what goes wrong; nil for nowhere. What a guest can cause is rate
	// limited.
	Log *slog.Logger

	quiet *rate.Sometimes // bounds that, for all rings of all sessions
}

// The first guestLogs lines that a guest causes are logged, then one a second.
const guestLogs = 32

func (c Config) withDefaults() (Config, error) {
	if c.Rings == 0 {
		c.Rings = DefaultRings
	}
	if c.MaxRingSize == 0 {
		c.MaxRingSize = virtq.MaxSize
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = DefaultStopTimeout
	}
	if c.PollMax == 0 {
		c.PollMax = DefaultPollMax
	}
	c.PollMax = max(c.PollMax, 0)
	c.quiet = &rate.Sometimes{First: guestLogs, Interval: time.Second}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Device == nil:
		return c, errors.New("vhost-user: no device")
	case c.Rings < 1 || c.Rings > MaxRings:
		return c, fmt.Errorf("vhost-user: %d rings: want 1 to %d", c.Rings, MaxRings)
	case c.MaxRingSize < 1 || c.MaxRingSize > virtq.MaxSize:
		return c, fmt.Errorf("vhost-user: ring size %d: want 1 to %d", c.MaxRingSize, virtq.MaxSize)
	case len(c.ConfigSpace) > MaxConfigSpace:
		return c, fmt.Errorf("vhost-user: configuration space of %d bytes: want at most %d", len(c.ConfigSpace), MaxConfigSpace)
	}
	return c, nil
}

// Server serves a device to one front-end after another.
type Server struct {
	cfg   Config
	stats counters
}

// NewServer checks cfg.
func NewServer(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg}, nil
}

// Stats returns what the server has counted.
func (s *Server) Stats() Stats { return s.stats.stats() }

// Serve accepts front-ends on l, a unix socket, until ctx ends; it returns nil
// then. It closes l. One front-end is served at a time. While it is connected,
// others are refused; one that comes as the last one goes, as a virtual machine
// that reboots does, waits.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer func() { _ = l.Close() }()
	var busy *served
	defer func() { busy.wait() }()
	defer cancel()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case passing(err):
			s.cfg.Log.Warn("accepting a front-end", "err", err)
			pause(ctx, acceptPause)
			continue
		case err != nil:
			return fmt.Errorf("vhost-user: accepting a front-end: %w", err)
		}
		unixConn, ok := conn.(*net.UnixConn)
		if !ok {
			_ = conn.Close()
			return fmt.Errorf("vhost-user: listener of %T: want a unix socket", conn)
		}
		if busy.connected() {
			s.cfg.Log.Warn("front-end refused: another one is connected")
			_ = conn.Close()
			continue
		}
		busy.wait()
		busy = s.serve(ctx, unixConn)
	}
}

// passing reports whether accepting may work again soon (accept(2)): that is no
// reason to leave a front-end that is being served.
func passing(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// acceptPause lets descriptors become free before the next try to accept.
const acceptPause = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// served is a front-end that is being served.
type served struct {
	conn *net.UnixConn
	done chan struct{}
}

// serve serves conn in a goroutine; wait waits for its end.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) *served {
	v := &served{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		if err := s.session(ctx, conn); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("front-end gone", "err", err)
		}
	}()
	return v
}

// session serves one front-end. A panic costs the connection.
func (s *Server) session(ctx context.Context, conn *net.UnixConn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	ses, err := newSession(conn, &s.cfg, &s.stats)
	if err != nil {
		_ = conn.Close()
		return err
	}
	return ses.run(ctx)
}

func (v *served) wait() {
	if v != nil {
		<-v.done
	}
}

// connected reports whether the front-end is there. One that has hung up is not,
// even if the session has yet to find out.
func (v *served) connected() bool {
	if v == nil {
		return false
	}
	select {
	case <-v.done:
		return false
	default:
	}
	raw, err := v.conn.SyscallConn()
	if err != nil {
		return false
	}
	gone := true
	// An error means that the session has closed the connection.
	_ = raw.Control(func(fd uintptr) {
		p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, err := unix.Poll(p[:], 0)
		gone = err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return !gone
}
