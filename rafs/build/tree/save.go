package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/build/spill"
)

// savedLayer begins what Save writes. It changes whenever a record of a layer
// changes, in event.go or here.
const savedLayer = "rafsd layer 2\n"

// Save writes the layer, for LoadLayer of this version of the program. The layer
// stays what it is.
func (l *Layer) Save(w io.Writer) error {
	head := []byte(savedLayer)
	for _, n := range []int64{int64(l.Entries), l.Bytes, int64(l.DroppedXattrs), int64(l.Implied)} {
		head = binary.LittleEndian.AppendUint64(head, uint64(n))
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, log := range []*spill.Log{l.xattrs, l.refs, l.links} {
		if err := log.Save(w); err != nil {
			return err
		}
	}
	for _, run := range []*spill.Run{l.left, l.beside} {
		if err := run.Save(w); err != nil {
			return err
		}
	}
	return nil
}

// LoadLayer makes a layer of what Save wrote. What comes from strangers must not
// get here: entries are taken as they are.
func LoadLayer(r io.Reader, o BuilderOptions) (*Layer, error) {
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	var head [len(savedLayer) + 4*8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if got := string(head[:len(savedLayer)]); got != savedLayer {
		return nil, fmt.Errorf("layer begins with %q, want %q", got, savedLayer)
	}
	l := newLayer(o)
	if err := l.load(r, head[len(savedLayer):]); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Layer) load(r io.Reader, counts []byte) error {
	l.Entries = int(binary.LittleEndian.Uint64(counts))
	l.Bytes = int64(binary.LittleEndian.Uint64(counts[8:]))
	l.DroppedXattrs = int(binary.LittleEndian.Uint64(counts[16:]))
	l.Implied = int(binary.LittleEndian.Uint64(counts[24:]))
	for _, log := range []*spill.Log{l.xattrs, l.refs, l.links} {
		if err := log.Load(r); err != nil {
			return err
		}
	}
	var err error
	if l.left, err = spill.LoadRun(r, l.tempDir, logCache); err != nil {
		return err
	}
	l.beside, err = spill.LoadRun(r, l.tempDir, logCache/4)
	return err
}
