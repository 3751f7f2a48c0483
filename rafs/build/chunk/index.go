package chunk

import (
	"encoding/binary"
	"errors"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/spill"
)

const (
	slotSize = 8
	// slotCache is what an index keeps of its slots in memory, in bytes: all of
	// them up to some 200,000 chunks.
	slotCache = 2 << 20
	minSlots  = 1 << 9
	entrySize = 44 // of an Index, in bytes
)

// slots is a hash table of digests that somebody else keeps under rising
// numbers. A slot has 32 bits of the digest and the number plus 1, or zero.
type slots struct {
	dir   string
	array *spill.Array
	mask  uint64
	n     uint32
	// digest returns what is kept under a number.
	digest func(uint32) (blob.Digest, error)
}

func newSlots(dir string, digest func(uint32) (blob.Digest, error)) *slots {
	return &slots{
		dir: dir, digest: digest, mask: minSlots - 1,
		array: spill.NewArray(dir, slotSize, slotCache),
	}
}

func place(d *blob.Digest) uint64       { return binary.LittleEndian.Uint64(d[:]) }
func fingerprint(d *blob.Digest) uint32 { return binary.LittleEndian.Uint32(d[8:]) }

// find returns the number of a digest, or else the slot where it belongs.
func (s *slots) find(d *blob.Digest) (number uint32, slot uint64, ok bool, err error) {
	var b [slotSize]byte
	for slot = place(d) & s.mask; ; slot = (slot + 1) & s.mask {
		if int64(slot) >= s.array.Len() {
			return 0, slot, false, nil
		}
		if err := s.array.Get(int64(slot), b[:]); err != nil {
			return 0, 0, false, err
		}
		next := binary.LittleEndian.Uint32(b[4:])
		if next == 0 {
			return 0, slot, false, nil
		}
		if binary.LittleEndian.Uint32(b[:]) != fingerprint(d) {
			continue
		}
		have, err := s.digest(next - 1)
		if err != nil {
			return 0, 0, false, err
		}
		if have == *d {
			return next - 1, slot, true, nil
		}
	}
}

func (s *slots) put(slot uint64, d *blob.Digest, number uint32) error {
	var b [slotSize]byte
	binary.LittleEndian.PutUint32(b[:], fingerprint(d))
	binary.LittleEndian.PutUint32(b[4:], number+1)
	return s.array.Set(int64(slot), b[:])
}

// add puts a digest into the slot where find says it belongs. Numbers count up.
func (s *slots) add(slot uint64, d *blob.Digest) error {
	if err := s.put(slot, d, s.n); err != nil {
		return err
	}
	s.n++
	if uint64(s.n) > s.mask/4*3 {
		return s.double()
	}
	return nil
}

func (s *slots) double() error {
	old := s.array
	s.mask = 2*s.mask + 1
	s.array = spill.NewArray(s.dir, slotSize, slotCache)
	for number := range s.n {
		d, err := s.digest(number)
		if err != nil {
			return errors.Join(err, old.Close())
		}
		_, slot, _, err := s.find(&d)
		if err == nil {
			err = s.put(slot, &d, number)
		}
		if err != nil {
			return errors.Join(err, old.Close())
		}
	}
	return old.Close()
}

func (s *slots) close() error { return s.array.Close() }

// Index finds chunks by their digests. It is a Dict. It is used by one goroutine
// at a time.
type Index struct {
	slots   *slots
	entries *spill.Array // digest, size, ref
}

// NewIndex makes an index whose files lie in dir, or in os.TempDir if that is
// empty.
func NewIndex(dir string) *Index {
	i := &Index{entries: spill.NewArray(dir, entrySize, tableCache)}
	i.slots = newSlots(dir, func(n uint32) (blob.Digest, error) {
		e, err := i.entry(n)
		return blob.Digest(e[:32]), err
	})
	return i
}

func (i *Index) entry(n uint32) (b [entrySize]byte, err error) {
	return b, i.entries.Get(int64(n), b[:])
}

// Add notes a chunk. The first one with a digest stays.
func (i *Index) Add(d blob.Digest, size uint32, ref Ref) error {
	_, slot, ok, err := i.slots.find(&d)
	if err != nil || ok {
		return err
	}
	var b [entrySize]byte
	copy(b[:], d[:])
	binary.LittleEndian.PutUint32(b[32:], size)
	binary.LittleEndian.PutUint32(b[36:], ref.Blob)
	binary.LittleEndian.PutUint32(b[40:], ref.Index)
	if err := i.entries.Append(b[:]); err != nil {
		return err
	}
	return i.slots.add(slot, &d)
}

// Len is the number of chunks.
func (i *Index) Len() uint32 { return i.slots.n }

// Lookup finds a chunk with a digest and an uncompressed size.
func (i *Index) Lookup(d blob.Digest, size uint32) (Ref, bool, error) {
	n, _, ok, err := i.slots.find(&d)
	if err != nil || !ok {
		return Ref{}, false, err
	}
	b, err := i.entry(n)
	if err != nil || binary.LittleEndian.Uint32(b[32:]) != size {
		return Ref{}, false, err
	}
	return Ref{binary.LittleEndian.Uint32(b[36:]), binary.LittleEndian.Uint32(b[40:])}, true, nil
}

// Close drops the chunks. It may be called again.
func (i *Index) Close() error { return errors.Join(i.slots.close(), i.entries.Close()) }
