package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"github.com/rafsd/rafsd/vhostuser/virtq"
)

// BenchmarkAnswer is what a request costs between the rings and the file system.
func BenchmarkAnswer(b *testing.B) {
	read := header(opRead, nodeReady, 80)
	binary.LittleEndian.PutUint32(read[56:], 4096)
	for name, c := range map[string]struct {
		in   []byte
		room int
	}{
		"GETATTR":     {header(opGetattr, nodeReady, 56), 120},
		"LOOKUP":      {lookupOf("libpython3.11.so\x00"), 144},
		"READ-4KiB":   {read, 16 + 4096},
		"STATFS":      {header(17, nodeReady, 40), 96},
		"FORGET":      {header(opForget, nodeReady, 48), 0},
		"not-a-FUSE":  {header(opGetattr, nodeReady, 20), 120},
		"READDIRPLUS": {append(header(44, nodeReady, 80)[:56], append([]byte{0, 16, 0, 0}, make([]byte, 20)...)...), 16 + 4096},
	} {
		b.Run(name, func(b *testing.B) {
			d := New(newFake(), Options{})
			q := &request{chain: virtq.Chain{
				Readable: [][]byte{bytes.Clone(c.in)}, ReadLen: len(c.in),
				Writable: [][]byte{make([]byte, c.room)}, WriteLen: c.room,
			}}
			b.ReportAllocs()
			for b.Loop() {
				d.answer(context.Background(), nil, q, nil)
			}
		})
	}
}
