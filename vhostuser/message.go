package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMessage is wrapped by every error about the form of a message.
var ErrMessage = errors.New("malformed vhost-user message")

// Sizes of the structures on the wire, in bytes.
const (
	SizeHeader       = 12
	SizeU64          = 8
	SizeVringState   = 8
	SizeVringAddr    = 40
	SizeRegion       = 32
	SizeTableHeader  = 8
	SizeSingleRegion = 40
	SizeLog          = 16
	SizeConfigHeader = 12
	SizeInflight     = 24
	SizeDeviceState  = 8
)

// wire is the byte order of the protocol: that of the host, and all our hosts
// are little-endian.
var wire = binary.LittleEndian

// Header precedes each payload (vhost-user.rst, "Header").
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32 // of the payload, in bytes
}

// VringState is an index with a number: SET_VRING_NUM, SET_VRING_BASE,
// GET_VRING_BASE, SET_VRING_ENABLE.
type VringState struct {
	Index, Num uint32
}

// VringAddr places a ring (SET_VRING_ADDR). The addresses are virtual addresses
// of the front-end; Log is a guest-physical address.
type VringAddr struct {
	Index, Flags           uint32
	Desc, Used, Avail, Log uint64
}

// Region is one piece of guest memory.
type Region struct {
	GuestPhys  uint64 // guest-physical address
	Size       uint64 // in bytes
	UserAddr   uint64 // virtual address in the front-end
	MmapOffset uint64 // of the region in its descriptor, in bytes
}

// Log describes the dirty log of SET_LOG_BASE, in bytes.
type Log struct {
	MmapSize, MmapOffset uint64
}

// ConfigSpace is a part of the device configuration space: GET_CONFIG, SET_CONFIG.
type ConfigSpace struct {
	Offset, Size, Flags uint32
	Data                []byte // Size bytes; aliases the message it was decoded from
}

// Inflight describes the memory of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
type Inflight struct {
	MmapSize, MmapOffset uint64 // in bytes
	NumQueues, QueueSize uint16
}

// DeviceState is what SET_DEVICE_STATE_FD asks: Direction 0 saves, 1 loads;
// Phase is 0, stopped.
type DeviceState struct {
	Direction, Phase uint32
}

func checkSize(what string, b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("%w: %s of %d bytes: want %d", ErrMessage, what, len(b), want)
	}
	return nil
}

// DecodeHeader decodes the first SizeHeader bytes of a message. It does not judge them.
func DecodeHeader(b *[SizeHeader]byte) Header {
	return Header{Request: Request(wire.Uint32(b[0:])), Flags: wire.Uint32(b[4:]), Size: wire.Uint32(b[8:])}
}

// Append appends the encoded header to b.
func (h Header) Append(b []byte) []byte {
	b = wire.AppendUint32(b, uint32(h.Request))
	b = wire.AppendUint32(b, h.Flags)
	return wire.AppendUint32(b, h.Size)
}

// DecodeU64 decodes a payload that is one number.
func DecodeU64(b []byte) (uint64, error) {
	if err := checkSize("u64", b, SizeU64); err != nil {
		return 0, err
	}
	return wire.Uint64(b), nil
}

// AppendU64 appends a payload that is one number to b.
func AppendU64(b []byte, v uint64) []byte { return wire.AppendUint64(b, v) }

// DecodeVringState decodes a payload of exactly SizeVringState bytes.
func DecodeVringState(b []byte) (VringState, error) {
	if err := checkSize("vring state", b, SizeVringState); err != nil {
		return VringState{}, err
	}
	return VringState{Index: wire.Uint32(b[0:]), Num: wire.Uint32(b[4:])}, nil
}

// Append appends the encoded state to b.
func (s VringState) Append(b []byte) []byte {
	b = wire.AppendUint32(b, s.Index)
	return wire.AppendUint32(b, s.Num)
}

// DecodeVringAddr decodes a payload of exactly SizeVringAddr bytes.
func DecodeVringAddr(b []byte) (VringAddr, error) {
	if err := checkSize("vring address", b, SizeVringAddr); err != nil {
		return VringAddr{}, err
	}
	return VringAddr{
		Index: wire.Uint32(b[0:]), Flags: wire.Uint32(b[4:]),
		Desc: wire.Uint64(b[8:]), Used: wire.Uint64(b[16:]),
		Avail: wire.Uint64(b[24:]), Log: wire.Uint64(b[32:]),
	}, nil
}

// Append appends the encoded addresses to b.
func (a VringAddr) Append(b []byte) []byte {
	b = wire.AppendUint32(b, a.Index)
	b = wire.AppendUint32(b, a.Flags)
	b = wire.AppendUint64(b, a.Desc)
	b = wire.AppendUint64(b, a.Used)
	b = wire.AppendUint64(b, a.Avail)
	return wire.AppendUint64(b, a.Log)
}

func decodeRegion(b []byte) Region {
	return Region{
		GuestPhys: wire.Uint64(b[0:]), Size: wire.Uint64(b[8:]),
		UserAddr: wire.Uint64(b[16:]), MmapOffset: wire.Uint64(b[24:]),
	}
}

func (r Region) append(b []byte) []byte {
	b = wire.AppendUint64(b, r.GuestPhys)
	b = wire.AppendUint64(b, r.Size)
	b = wire.AppendUint64(b, r.UserAddr)
	return wire.AppendUint64(b, r.MmapOffset)
}

// DecodeSingleRegion decodes the payload of ADD_MEM_REG and REM_MEM_REG.
func DecodeSingleRegion(b []byte) (Region, error) {
	if err := checkSize("memory region", b, SizeSingleRegion); err != nil {
		return Region{}, err
	}
	return decodeRegion(b[8:]), nil
}

// AppendSingleRegion appends the payload of ADD_MEM_REG and REM_MEM_REG to b.
func AppendSingleRegion(b []byte, r Region) []byte {
	return r.append(wire.AppendUint64(b, 0))
}

// DecodeMemTable decodes the payload of SET_MEM_TABLE: at most MaxTableRegions
// regions, and nothing after them.
func DecodeMemTable(b []byte) ([]Region, error) {
	if len(b) < SizeTableHeader {
		return nil, fmt.Errorf("%w: memory table of %d bytes: want at least %d", ErrMessage, len(b), SizeTableHeader)
	}
	n := wire.Uint32(b)
	if n > MaxTableRegions {
		return nil, fmt.Errorf("%w: memory table of %d regions: want at most %d", ErrMessage, n, MaxTableRegions)
	}
	b = b[SizeTableHeader:]
	if err := checkSize(fmt.Sprintf("memory table of %d regions", n), b, int(n)*SizeRegion); err != nil {
		return nil, err
	}
	regions := make([]Region, n)
	for i := range regions {
		regions[i] = decodeRegion(b[i*SizeRegion:])
	}
	return regions, nil
}

// AppendMemTable appends the payload of SET_MEM_TABLE to b.
func AppendMemTable(b []byte, regions []Region) []byte {
	b = wire.AppendUint32(b, uint32(len(regions)))
	b = wire.AppendUint32(b, 0)
	for _, r := range regions {
		b = r.append(b)
	}
	return b
}

// DecodeLog decodes a payload of exactly SizeLog bytes.
func DecodeLog(b []byte) (Log, error) {
	if err := checkSize("log", b, SizeLog); err != nil {
		return Log{}, err
	}
	return Log{MmapSize: wire.Uint64(b[0:]), MmapOffset: wire.Uint64(b[8:])}, nil
}

// Append appends the encoded log description to b.
func (l Log) Append(b []byte) []byte {
	b = wire.AppendUint64(b, l.MmapSize)
	return wire.AppendUint64(b, l.MmapOffset)
}

// DecodeConfigSpace decodes a part of the configuration space of at most
// MaxConfigSpace bytes. Its data aliases b.
func DecodeConfigSpace(b []byte) (ConfigSpace, error) {
	if len(b) < SizeConfigHeader {
		return ConfigSpace{}, fmt.Errorf("%w: configuration of %d bytes: want at least %d", ErrMessage, len(b), SizeConfigHeader)
	}
	c := ConfigSpace{Offset: wire.Uint32(b[0:]), Size: wire.Uint32(b[4:]), Flags: wire.Uint32(b[8:])}
	if c.Offset > MaxConfigSpace || c.Size > MaxConfigSpace-c.Offset {
		return ConfigSpace{}, fmt.Errorf("%w: configuration range %d+%d: want at most %d bytes", ErrMessage, c.Offset, c.Size, MaxConfigSpace)
	}
	c.Data = b[SizeConfigHeader:]
	if err := checkSize("configuration data", c.Data, int(c.Size)); err != nil {
		return ConfigSpace{}, err
	}
	return c, nil
}

// Append appends the encoded part to b. Size should be len(Data).
func (c ConfigSpace) Append(b []byte) []byte {
	b = wire.AppendUint32(b, c.Offset)
	b = wire.AppendUint32(b, c.Size)
	b = wire.AppendUint32(b, c.Flags)
	return append(b, c.Data...)
}

// DecodeInflight decodes a payload of SizeInflight bytes, or of the 20 that a
// front-end sends which does not pad the structure.
func DecodeInflight(b []byte) (Inflight, error) {
	const unpadded = SizeInflight - 4
	if len(b) != unpadded {
		if err := checkSize("in-flight description", b, SizeInflight); err != nil {
			return Inflight{}, err
		}
	}
	return Inflight{
		MmapSize: wire.Uint64(b[0:]), MmapOffset: wire.Uint64(b[8:]),
		NumQueues: wire.Uint16(b[16:]), QueueSize: wire.Uint16(b[18:]),
	}, nil
}

// Append appends the encoded description, padding included, to b.
func (f Inflight) Append(b []byte) []byte {
	b = wire.AppendUint64(b, f.MmapSize)
	b = wire.AppendUint64(b, f.MmapOffset)
	b = wire.AppendUint16(b, f.NumQueues)
	b = wire.AppendUint16(b, f.QueueSize)
	return wire.AppendUint32(b, 0)
}

// DecodeDeviceState decodes a payload of exactly SizeDeviceState bytes.
func DecodeDeviceState(b []byte) (DeviceState, error) {
	if err := checkSize("device state", b, SizeDeviceState); err != nil {
		return DeviceState{}, err
	}
	return DeviceState{Direction: wire.Uint32(b[0:]), Phase: wire.Uint32(b[4:])}, nil
}

// Append appends the encoded request to b.
func (s DeviceState) Append(b []byte) []byte {
	b = wire.AppendUint32(b, s.Direction)
	return wire.AppendUint32(b, s.Phase)
}
