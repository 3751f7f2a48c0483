package vhostuser

import (
	"fmt"

	"github.com/rafsd/rafsd/vhostuser/guestmem"
)

// handler serves one kind of request.
type handler struct {
	serve func(*session, *message) error
	// replies: the request has an answer of its own, which serve has sent unless
	// it returns an error. NEED_REPLY changes nothing, and an error ends the
	// session, as the front-end waits for an answer that cannot be given.
	replies bool
}

// handlers are the requests that are served. Migration adds SET_LOG_BASE,
// SET_LOG_FD, SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE here, together with the
// protocol features that offer them.
var handlers map[Request]handler

func init() {
	handlers = map[Request]handler{
		ReqGetFeatures:         {(*session).getFeatures, true},
		ReqSetFeatures:         {(*session).setFeatures, false},
		ReqSetOwner:            {(*session).setOwner, false},
		ReqResetOwner:          {(*session).resetOwner, false},
		ReqSetMemTable:         {(*session).setMemTable, false},
		ReqSetVringNum:         {(*session).setVringNum, false},
		ReqSetVringAddr:        {(*session).setVringAddr, false},
		ReqSetVringBase:        {(*session).setVringBase, false},
		ReqGetVringBase:        {(*session).getVringBase, true},
		ReqSetVringKick:        {(*session).setVringKick, false},
		ReqSetVringCall:        {(*session).setVringCall, false},
		ReqSetVringErr:         {(*session).setVringErr, false},
		ReqGetProtocolFeatures: {(*session).getProtocolFeatures, true},
		ReqSetProtocolFeatures: {(*session).setProtocolFeatures, false},
		ReqGetQueueNum:         {(*session).getQueueNum, true},
		ReqSetVringEnable:      {(*session).setVringEnable, false},
		ReqSetBackendReqFD:     {(*session).setBackendReqFD, false},
		ReqGetConfig:           {(*session).getConfig, true},
		ReqGetInflightFD:       {(*session).getInflightFD, true},
		ReqSetInflightFD:       {(*session).setInflightFD, false},
		ReqResetDevice:         {(*session).resetDevice, false},
		ReqGetMaxMemSlots:      {(*session).getMaxMemSlots, true},
		ReqAddMemReg:           {(*session).addMemReg, false},
		ReqRemMemReg:           {(*session).remMemReg, false},
	}
}

// offeredFeatures is what GET_FEATURES answers. LOG_ALL joins it with migration.
const offeredFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureProtocolFeatures | FeatureVersion1

func (s *session) offeredProtocol() uint64 {
	offer := ProtocolMQ | ProtocolReplyAck | ProtocolInflightSHMFD | ProtocolResetDevice | ProtocolConfigureMemSlots
	if len(s.cfg.ConfigSpace) > 0 {
		offer |= ProtocolConfig
	}
	return offer
}

func (s *session) replyU64(m *message, v uint64) error {
	return s.conn.reply(m, AppendU64(nil, v))
}

func (s *session) getFeatures(m *message) error { return s.replyU64(m, offeredFeatures) }

func (s *session) setFeatures(m *message) error {
	v, err := DecodeU64(m.payload)
	if err != nil {
		return err
	}
	if extra := v &^ offeredFeatures; extra != 0 {
		return fmt.Errorf("%w: features %#x were not offered", ErrMessage, extra)
	}
	for _, r := range s.rings {
		if r.control.started && v != s.features {
			return fmt.Errorf("%w: features change from %#x to %#x while ring %d is started", errState, s.features, v, r.index)
		}
	}
	s.features, s.accepted = v, true
	if v&FeatureProtocolFeatures == 0 {
		// vhost-user.rst, "Ring states": without that bit rings need no enabling.
		for _, r := range s.rings {
			s.enable(r)
		}
	}
	return nil
}

func (s *session) setOwner(*message) error {
	if s.owned {
		return fmt.Errorf("%w: the session has an owner", errState)
	}
	s.owned = true
	return nil
}

// resetOwner does nothing: the request is deprecated, and what it once did has
// been read in contradicting ways.
func (s *session) resetOwner(*message) error { return nil }

func (s *session) getProtocolFeatures(m *message) error {
	return s.replyU64(m, s.offeredProtocol())
}

func (s *session) setProtocolFeatures(m *message) error {
	v, err := DecodeU64(m.payload)
	if err != nil {
		return err
	}
	if extra := v &^ s.offeredProtocol(); extra != 0 {
		return fmt.Errorf("%w: protocol features %#x were not offered", ErrMessage, extra)
	}
	s.protocol = v
	return nil
}

func (s *session) getQueueNum(m *message) error { return s.replyU64(m, uint64(len(s.rings))) }

// setBackendReqFD accepts a channel for requests of ours and closes it: there are
// none, and the feature was not offered.
func (s *session) setBackendReqFD(m *message) error {
	if len(m.fds) != 1 {
		return fmt.Errorf("%w: %d descriptors: want 1", ErrMessage, len(m.fds))
	}
	return nil
}

func (s *session) getConfig(m *message) error {
	c, err := DecodeConfigSpace(m.payload)
	if err != nil || len(s.cfg.ConfigSpace) == 0 {
		// An answer of size 0 is an error to the front-end (vhost-user.rst).
		return s.conn.reply(m, nil)
	}
	clear(c.Data)
	if c.Offset < uint32(len(s.cfg.ConfigSpace)) {
		copy(c.Data, s.cfg.ConfigSpace[c.Offset:])
	}
	return s.conn.reply(m, c.Append(nil))
}

// resetDevice brings the device to where it was before SET_FEATURES.
func (s *session) resetDevice(*message) error {
	s.quiesce(s.ctx, s.rings...)
	for _, r := range s.rings {
		r.reset(s.features&FeatureProtocolFeatures == 0)
	}
	s.cfg.Device.Reset()
	return nil
}

func (s *session) getMaxMemSlots(m *message) error { return s.replyU64(m, guestmem.MaxRegions) }

func (s *session) setMemTable(m *message) error {
	table, err := DecodeMemTable(m.payload)
	if err != nil {
		return err
	}
	regions := make([]guestmem.Region, len(table))
	for i, r := range table {
		regions[i] = guestmem.Region(r)
	}
	old, err := s.mem.Replace(regions, m.fds)
	if err != nil {
		return err
	}
	return s.moved(old)
}

func (s *session) addMemReg(m *message) error {
	r, err := DecodeSingleRegion(m.payload)
	if err != nil {
		return err
	}
	if len(m.fds) != 1 {
		return fmt.Errorf("%w: %d descriptors: want 1", ErrMessage, len(m.fds))
	}
	if err := s.mem.Add(guestmem.Region(r), m.fds[0]); err != nil {
		return err
	}
	return s.moved(nil)
}

// remMemReg ignores a descriptor, which front-ends have sent by mistake.
func (s *session) remMemReg(m *message) error {
	r, err := DecodeSingleRegion(m.payload)
	if err != nil {
		return err
	}
	old, err := s.mem.Remove(guestmem.Region(r))
	if err != nil {
		return err
	}
	return s.moved(old)
}

// moved brings the rings to the new memory. If old is not nil, it then waits until
// nobody uses the old memory, for a front-end that is about to take it away:
// requests that take long are interrupted and served again. Memory that is still
// in use after that stays mapped here until its last user is done.
func (s *session) moved(old *guestmem.Snapshot) error {
	snap := s.mem.Pin()
	defer snap.Unpin()
	s.log.Debug("guest memory", "regions", snap.Regions(), "sealed", snap.Sealed())
	for _, r := range s.rings {
		if err := r.queue.Remap(snap); err != nil {
			r.Broken(err)
			s.quiesce(s.ctx, r)
			r.stop()
		}
	}
	if old == nil || waitGone(s.ctx, old, s.cfg.StopTimeout/4) == nil {
		return nil
	}
	s.quiesce(s.ctx, s.rings...)
	for _, r := range s.rings {
		r.launch(s.ctx, s.cfg.Device)
	}
	if err := waitGone(s.ctx, old, s.cfg.StopTimeout/4); err != nil {
		s.log.Warn("memory table changed", "err", err)
	}
	return nil
}
