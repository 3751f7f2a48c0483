package check

import (
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/layout"
)

// chunkData decodes the chunks of one blob and compares their digests.
type chunkData struct {
	o          *object
	compressor blob.Compressor
	digester   blob.Digester
	key        *xts.Key
	units      *unit.Table
	last       unit.Unit
	lastOut    []byte // what last decodes to; nil: nothing yet

	in, out []byte
}

func newChunkData(o *object, c blob.Compressor, d blob.Digester) *chunkData {
	return &chunkData{o: o, compressor: c, digester: d}
}

// room makes p n bytes long.
func room(p []byte, n int) []byte {
	if cap(p) < n {
		return make([]byte, n)
	}
	return p[:n]
}

// check decodes a chunk. place is where it is in a unit, nil for one that has its
// own place.
func (d *chunkData) check(r *layout.ChunkRecord, place *unit.Place) {
	if d.o.c.done() || r.UncompressedSize > blob.MaxChunkSize || r.CompressedSize > maxCompressedChunkSize || !d.digester.Valid() {
		return // said already
	}
	off := r.CompressedOffset
	var plain []byte
	var ok bool
	if place != nil {
		off = place.Unit.Offset
		plain, ok = d.shared(place, r)
	} else {
		plain, ok = d.own(r)
	}
	if !ok {
		return
	}
	if sum := d.digester.Sum(plain); sum != blob.Digest(r.Digest) {
		d.o.c.fail(off, d.o, "chunk %d has digest %s, the bootstrap says %s", r.Index, sum, blob.Digest(r.Digest))
	}
}

func (d *chunkData) own(r *layout.ChunkRecord) ([]byte, bool) {
	d.in = room(d.in, int(r.CompressedSize))
	if !d.o.bytes(d.in, r.CompressedOffset) {
		return nil, false
	}
	d.out = room(d.out, int(r.UncompressedSize))
	err := d.decrypt(d.in, func(src []byte) error {
		switch {
		case r.Flags&layout.ChunkCompressed == 0:
			return codec.Decode(blob.CompressorNone, d.out, src)
		case d.compressor == blob.CompressorGzip:
			return zran.DecodeMember(d.out, src)
		}
		return codec.Decode(d.compressor, d.out, src)
	})
	if err != nil {
		d.o.c.fail(r.CompressedOffset, d.o, "chunk %d: %v", r.Index, err)
		return nil, false
	}
	return d.out, true
}

// decrypt gives what src is without its encryption to decode: without its padding,
// and with it where only that decodes.
func (d *chunkData) decrypt(src []byte, decode func(plain []byte) error) error {
	if d.key == nil {
		return decode(src)
	}
	plain, err := d.key.Decrypt(src[:0], src)
	if err != nil {
		return err
	}
	short := xts.Trim(plain)
	if err = decode(short); err != nil && len(short) < len(plain) {
		err = decode(plain)
	}
	return err
}

// shared cuts a chunk out of its unit. Chunks of a unit follow each other, so that
// each is decoded once.
func (d *chunkData) shared(p *unit.Place, r *layout.ChunkRecord) ([]byte, bool) {
	if d.lastOut == nil || d.last != p.Unit {
		d.last, d.lastOut = p.Unit, nil
		d.in = room(d.in, int(p.Unit.Size))
		if !d.o.bytes(d.in, p.Unit.Offset) {
			return nil, false
		}
		d.out = room(d.out, int(p.Unit.OutSize))
		err := d.decrypt(d.in, func(src []byte) error { return d.units.Decode(&p.Unit, d.out, src) })
		if err != nil {
			d.o.c.fail(p.Unit.Offset, d.o, "unit %d: %v", p.Unit.Number, err)
			return nil, false
		}
		d.lastOut = d.out
	}
	return d.lastOut[p.Offset:][:r.UncompressedSize], true
}
