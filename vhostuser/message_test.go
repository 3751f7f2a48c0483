package vhostuser

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

// codec is one structure on the wire, with its functions made alike.
type codec struct {
	name   string
	size   int // 0: of variable length
	value  any
	append func([]byte) []byte
	decode func([]byte) (any, error)
}

func as[T any](f func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return f(b) }
}

func codecs() []codec {
	region := Region{GuestPhys: 0x100000000, Size: 0x30000000, UserAddr: 0x7f5173fff000, MmapOffset: 0x1000}
	state := VringState{Index: 1, Num: 0x2c}
	addr := VringAddr{Index: 2, Flags: 1, Desc: 0x10, Used: 0x20, Avail: 0x30, Log: 0x40}
	log := Log{MmapSize: 5, MmapOffset: 6}
	config := ConfigSpace{Offset: 36, Size: 4, Flags: 1, Data: []byte{1, 0, 0, 0}}
	inflight := Inflight{MmapSize: 1 << 20, MmapOffset: 64, NumQueues: 2, QueueSize: 1024}
	device := DeviceState{Direction: 1}
	header := Header{Request: ReqAddMemReg, Flags: 9, Size: 40}
	return []codec{
		{"header", SizeHeader, header, header.Append, func(b []byte) (any, error) {
			if len(b) != SizeHeader {
				return nil, ErrMessage
			}
			return DecodeHeader((*[SizeHeader]byte)(b)), nil
		}},
		{"u64", SizeU64, uint64(0x170000000), func(b []byte) []byte { return AppendU64(b, 0x170000000) }, as(DecodeU64)},
		{"vring state", SizeVringState, state, state.Append, as(DecodeVringState)},
		{"vring address", SizeVringAddr, addr, addr.Append, as(DecodeVringAddr)},
		{"single region", SizeSingleRegion, region, func(b []byte) []byte { return AppendSingleRegion(b, region) }, as(DecodeSingleRegion)},
		{"table", SizeTableHeader + 2*SizeRegion, []Region{region, region}, func(b []byte) []byte {
			return AppendMemTable(b, []Region{region, region})
		}, as(DecodeMemTable)},
		{"log", SizeLog, log, log.Append, as(DecodeLog)},
		{"configuration", SizeConfigHeader + 4, config, config.Append, as(DecodeConfigSpace)},
		{"in-flight", SizeInflight, inflight, inflight.Append, as(DecodeInflight)},
		{"device state", SizeDeviceState, device, device.Append, as(DecodeDeviceState)},
	}
}

func TestCodecs(t *testing.T) {
	for _, c := range codecs() {
		b := c.append(nil)
		if len(b) != c.size {
			t.Errorf("%s: encoded %d bytes, want %d", c.name, len(b), c.size)
		}
		got, err := c.decode(b)
		if err != nil || !reflect.DeepEqual(got, c.value) {
			t.Errorf("%s: decode(encode) = %+v, %v, want %+v", c.name, got, err, c.value)
		}
		for _, wrong := range [][]byte{b[:len(b)-1], append(bytes.Clone(b), 0), nil} {
			if _, err := c.decode(wrong); !errors.Is(err, ErrMessage) {
				t.Errorf("%s of %d bytes: err = %v, want ErrMessage", c.name, len(wrong), err)
			}
		}
	}
}

// The bytes of this message are those that QEMU 7.2.22 sent for 768 MiB of RAM.
func TestDecodeQEMUMessage(t *testing.T) {
	b, err := hex.DecodeString("25000000" + "09000000" + "28000000" +
		"0000000000000000" + "0000000000000000" + "0000003000000000" + "00f0ff73517f0000" + "0000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	h := DecodeHeader((*[SizeHeader]byte)(b))
	if want := (Header{ReqAddMemReg, FlagVersion | FlagNeedReply, SizeSingleRegion}); h != want {
		t.Errorf("header = %+v, want %+v", h, want)
	}
	r, err := DecodeSingleRegion(b[SizeHeader:])
	if want := (Region{Size: 0x30000000, UserAddr: 0x7f5173fff000}); err != nil || r != want {
		t.Errorf("region = %+v, %v, want %+v", r, err, want)
	}
}

func TestDecodeRefusesCounts(t *testing.T) {
	table := AppendMemTable(nil, make([]Region, MaxTableRegions+1))
	if _, err := DecodeMemTable(table); !errors.Is(err, ErrMessage) {
		t.Errorf("table of %d regions: err = %v, want ErrMessage", MaxTableRegions+1, err)
	}
	huge := AppendU64(nil, 0xffffffff)
	if _, err := DecodeMemTable(huge); !errors.Is(err, ErrMessage) {
		t.Errorf("table of 2^32-1 regions: err = %v, want ErrMessage", err)
	}
	for _, c := range []ConfigSpace{{Offset: 257}, {Offset: 256, Size: 1}, {Offset: 8, Size: 0xfffffff8}, {Size: 257}} {
		if _, err := DecodeConfigSpace(c.Append(nil)); !errors.Is(err, ErrMessage) {
			t.Errorf("configuration %d+%d: err = %v, want ErrMessage", c.Offset, c.Size, err)
		}
	}
}

func TestInflightWithoutPadding(t *testing.T) {
	want := Inflight{MmapSize: 1, MmapOffset: 2, NumQueues: 3, QueueSize: 4}
	got, err := DecodeInflight(want.Append(nil)[:SizeInflight-4])
	if err != nil || got != want {
		t.Errorf("DecodeInflight = %+v, %v, want %+v", got, err, want)
	}
}

func TestRequestNames(t *testing.T) {
	for _, tc := range []struct {
		r    Request
		want string
	}{{ReqGetFeatures, "GET_FEATURES"}, {ReqGetSHMEMConfig, "GET_SHMEM_CONFIG"}, {0, "REQUEST(0)"}, {45, "REQUEST(45)"}, {1<<32 - 1, "REQUEST(4294967295)"}} {
		if got := tc.r.String(); got != tc.want {
			t.Errorf("Request(%d) = %q, want %q", uint32(tc.r), got, tc.want)
		}
	}
}
