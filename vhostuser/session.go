package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// session is the conversation with one front-end.
//
//	           SET_OWNER         SET_FEATURES            KICK of a ring
//	connected ----------> owned -------------> negotiated ----------> running
//	    |                   |                   ^    |                 |   |
//	    |                   |                   |    +--RESET_DEVICE---+   |
//	    |                   |                   +------GET_VRING_BASE of --+
//	    |                   |                          the last ring       |
//	    +-------------------+----------- hang-up, bad framing -------------+--> gone
//
// Front-ends differ in their order: QEMU negotiates protocol features before it
// sets the owner, Cloud Hypervisor after; neither sends SET_FEATURES before it
// starts the rings. So only that is required which a message needs: a ring is
// started with features, memory, size and address (control has its states).
//
// A message that is refused has changed nothing. Messages are served one at a time,
// and all fields belong to the goroutine of run.
type session struct {
	conn  *conn        // immutable
	cfg   *Config      // immutable
	log   *slog.Logger // immutable
	rings []*Ring      // immutable

	ctx      context.Context // ends with the session
	mem      guestmem.Memory
	owned    bool
	accepted bool   // SET_FEATURES has come
	features uint64 // accepted by SET_FEATURES
	protocol uint64 // accepted by SET_PROTOCOL_FEATURES
	inflight []byte // mapped; nil: none
	refused  int    // messages
}

// maxRefusalLogs bounds what a front-end can write into the log.
const maxRefusalLogs = 32

func newSession(c *net.UnixConn, cfg *Config, stats *counters) (*session, error) {
	s := &session{conn: newConn(c), cfg: cfg, log: cfg.Log}
	for i := range cfg.Rings {
		r, err := newRing(i, cfg, stats)
		if err != nil {
			for _, r := range s.rings {
				r.close()
			}
			return nil, err
		}
		s.rings = append(s.rings, r)
	}
	return s, nil
}

// run serves the front-end until it hangs up or ctx ends.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.end()
	defer cancel()
	s.ctx = ctx
	defer context.AfterFunc(ctx, func() { _ = s.conn.Close() })()
	s.log.Info("front-end connected")
	for {
		if err := s.serveOne(); err != nil {
			if gone(err) {
				s.log.Info("front-end hung up")
				return nil
			}
			return err
		}
	}
}

// serveOne reads a message and answers it. An error ends the session.
func (s *session) serveOne() (err error) {
	var m message
	defer m.close()
	if err := s.conn.read(&m); err != nil {
		return err
	}
	s.log.Debug("vhost-user", "request", m.Request, "flags", m.Flags, "size", m.Size, "fds", len(m.fds))
	h, known := handlers[m.Request]
	if !known {
		h.serve = (*session).unknown
	}
	err = s.call(h, &m)
	if h.replies {
		return err
	}
	var ack uint64
	if err != nil {
		ack = 1
		s.refuse(&m, err)
	}
	if m.Flags&FlagNeedReply == 0 || s.protocol&ProtocolReplyAck == 0 {
		return nil
	}
	return s.conn.reply(&m, AppendU64(nil, ack))
}

// call calls a handler. Its panic is an error of its own.
func (s *session) call(h handler, m *message) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	guestmem.Arm() // start looks at the ring
	return h.serve(s, m)
}

func panicError(p any) error {
	if err := guestmem.FaultError(p); err != nil {
		return err
	}
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}

// refuse logs that m was refused. A front-end that did not ask for an
// acknowledgement goes on: to hang up would cost the guest all its rings.
func (s *session) refuse(m *message, err error) {
	s.refused++
	switch {
	case s.refused < maxRefusalLogs:
		s.log.Warn("vhost-user request refused", "request", m.Request, "err", err)
	case s.refused == maxRefusalLogs:
		s.log.Warn("more vhost-user requests refused, not logged", "request", m.Request, "err", err)
	}
}

// unknown refuses what was not offered.
func (s *session) unknown(m *message) error {
	return fmt.Errorf("%w: %v is not supported", ErrMessage, m.Request)
}

// ring finds the ring of a message.
func (s *session) ring(index uint64) (*Ring, error) {
	if index >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("%w: ring %d: want less than %d", ErrMessage, index, len(s.rings))
	}
	return s.rings[index], nil
}

// quiesce halts rings and waits for them all, at most for the stop timeout.
func (s *session) quiesce(ctx context.Context, rings ...*Ring) bool {
	for _, r := range rings {
		r.halt()
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StopTimeout)
	defer cancel()
	clean := true
	for _, r := range rings {
		if !r.await(ctx) {
			clean = false
			r.log.Warn("ring stopped with requests that the device has not given back", "requests", r.queue.Outstanding())
		}
	}
	return clean
}

// end stops the rings and gives everything back.
func (s *session) end() {
	_ = s.conn.Close()
	// Not under the session's context, which has ended: workers are waited for.
	s.quiesce(context.Background(), s.rings...)
	for _, r := range s.rings {
		r.stop()
		r.close()
	}
	if err := s.setInflight(nil, 0, Inflight{}); err != nil {
		s.log.Error("unmapping the in-flight region", "err", err)
	}
	s.mem.Close()
	s.cfg.Device.Reset()
}

// waitGone waits until nobody uses old any more.
func waitGone(ctx context.Context, old *guestmem.Snapshot, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-old.Gone():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("guest memory is still in use")
	}
}
