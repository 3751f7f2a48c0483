package vhostuser

import "fmt"

func (s *session) setVringNum(m *message) error {
	v, err := DecodeVringState(m.payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		return err
	}
	return r.setNum(v.Num, s.cfg.MaxRingSize)
}

func (s *session) setVringAddr(m *message) error {
	v, err := DecodeVringAddr(m.payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		return err
	}
	snap := s.mem.Pin()
	if snap == nil {
		return fmt.Errorf("%w: ring address before memory", errState)
	}
	snap.Unpin()
	return r.setAddr(v)
}

func (s *session) setVringBase(m *message) error {
	v, err := DecodeVringState(m.payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		return err
	}
	return r.setBase(v.Num)
}

// getVringBase stops a ring. The front-end may hold all virtual processors until
// it has the answer, so the wait for the device is bounded, and a ring that does
// not exist has an answer too: it never ran.
func (s *session) getVringBase(m *message) error {
	v, err := DecodeVringState(m.payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		s.refuse(m, err)
		return s.conn.reply(m, VringState{Index: v.Index}.Append(nil))
	}
	s.quiesce(s.ctx, r)
	return s.conn.reply(m, VringState{Index: v.Index, Num: uint32(r.stop())}.Append(nil))
}

// vringFD decodes the payload that comes with a ring's descriptor. The result is
// nil if the front-end attaches none.
func (s *session) vringFD(m *message) (*Ring, *eventFD, error) {
	v, err := DecodeU64(m.payload)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.ring(v & VringIndexMask)
	if err != nil {
		return nil, nil, err
	}
	if v&VringNoFD != 0 {
		return r, nil, nil
	}
	fd, err := m.oneFD()
	if err != nil {
		return nil, nil, err
	}
	return r, newEventFD(fd), nil
}

func (s *session) setVringKick(m *message) error {
	r, kick, err := s.vringFD(m)
	if err != nil {
		return err
	}
	if !s.accepted {
		kick.release()
		return fmt.Errorf("%w: ring %d is kicked before SET_FEATURES", errState, r.index)
	}
	if r.control.started {
		// Another descriptor for a ring that goes on.
		s.quiesce(s.ctx, r)
		r.control.kick.release()
		r.control.kick = kick
		r.launch(s.ctx, s.cfg.Device)
		return nil
	}
	snap := s.mem.Pin()
	if snap != nil {
		defer snap.Unpin()
	}
	if err := r.start(snap, kick, s.features); err != nil {
		// The front-end hears of it even if it asked for no acknowledgement.
		_ = r.errs.signal()
		return fmt.Errorf("ring %d: %w", r.index, err)
	}
	if n := r.queue.Lost(); n > 0 {
		r.quiet.Do(func() { r.log.Warn("ring starts with requests in flight of which there is no log", "requests", n) })
	}
	r.launch(s.ctx, s.cfg.Device)
	r.nudge()
	return nil
}

func (s *session) setVringCall(m *message) error {
	r, call, err := s.vringFD(m)
	if err != nil {
		return err
	}
	r.call.set(call)
	r.nudge()
	return nil
}

// nudge notifies the driver of a started ring without a reason: completions of
// before may have gone to a descriptor that is no more, or to none if the process
// that published them died. A driver that finds nothing new does nothing.
func (r *Ring) nudge() {
	if !r.control.started {
		return
	}
	if err := r.call.signal(); err != nil {
		r.Broken(err)
	}
}

func (s *session) setVringErr(m *message) error {
	r, e, err := s.vringFD(m)
	if err != nil {
		return err
	}
	r.errs.set(e)
	return nil
}

func (s *session) setVringEnable(m *message) error {
	v, err := DecodeVringState(m.payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		return err
	}
	switch v.Num {
	case 0:
		r.control.enabled = false
		s.quiesce(s.ctx, r)
	case 1:
		s.enable(r)
	default:
		return fmt.Errorf("%w: ring %d: enable %d: want 0 or 1", ErrMessage, r.index, v.Num)
	}
	return nil
}

func (s *session) enable(r *Ring) {
	r.control.enabled = true
	r.launch(s.ctx, s.cfg.Device)
}
