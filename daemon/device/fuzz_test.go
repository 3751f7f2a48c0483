package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// FuzzFUSE answers arbitrary requests of arbitrary shape. Whatever they are, an
// answer is as long as it says and carries the request's number, nothing is written
// behind it, and where there is room for a header there is an answer.
func FuzzFUSE(f *testing.F) {
	log.SetOutput(io.Discard)
	f.Cleanup(func() { log.SetOutput(log.Default().Writer()) })
	for op := range uint32(55) {
		f.Add(append(header(op, nodeReady, 80), "name\x00other\x00"...), uint16(4096), uint8(40))
		f.Add(header(op, 1, 48), uint16(120), uint8(7))
		f.Add(header(op, 0, 40), uint16(15), uint8(1))
	}
	read := header(opRead, nodeReady, 80)
	binary.LittleEndian.PutUint32(read[56:], 4096)
	f.Add(read, uint16(4096+16), uint8(80))
	f.Fuzz(func(t *testing.T, in []byte, room uint16, cut uint8) {
		d := New(readyFake{newFake()}, Options{})
		reply := bytes.Repeat([]byte{0x5a}, int(room)+64)
		q := &request{chain: virtq.Chain{
			Readable: pieces(in, int(cut)), ReadLen: len(in),
			Writable: pieces(reply[:room], int(cut)*3+1), WriteLen: int(room),
		}}
		used, done := d.answer(context.Background(), nil, q, nil)
		if !done {
			t.Fatalf("opcode %d was sent to wait", q.header.opcode)
		}
		if used > int(room) || !bytes.Equal(reply[room:], bytes.Repeat([]byte{0x5a}, 64)) {
			t.Fatalf("%d bytes used, room for %d", used, room)
		}
		if used == 0 {
			if room >= outHeaderSize && !noReply(q.header.opcode) {
				t.Fatalf("opcode %d: no answer into %d bytes", q.header.opcode, room)
			}
			return
		}
		if got := binary.LittleEndian.Uint32(reply); int(got) != used {
			t.Fatalf("opcode %d: out_header.len %d, used %d", q.header.opcode, got, used)
		}
		if got := binary.LittleEndian.Uint64(reply[8:]); got != q.header.unique {
			t.Fatalf("opcode %d: unique %d, want %d", q.header.opcode, got, q.header.unique)
		}
		if e := int32(binary.LittleEndian.Uint32(reply[4:])); e > 0 || e < -4095 {
			t.Fatalf("opcode %d: error %d", q.header.opcode, e)
		}
	})
}

// readyFake has every file at hand.
type readyFake struct{ *fake }

func (f readyFake) ReadNow(node, off uint64, dst [][]byte) (int, fuse.Status, bool) {
	if node == nodeSlow {
		node = nodeReady
	}
	return f.fake.ReadNow(node, off, dst)
}

// Readlink has a target for every node.
func (readyFake) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return []byte("some/target"), fuse.OK
}

// pieces cuts b into buffers of n bytes, as descriptors might.
func pieces(b []byte, n int) (out [][]byte) {
	n = max(n, 1)
	for len(b) > n {
		out, b = append(out, b[:n:n]), b[n:]
	}
	if len(b) > 0 {
		out = append(out, b)
	}
	return out
}
