package write

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/layout"
)

const (
	sameSize  = 8        // of a chunk.Ref in chunkMap.same, in bytes
	sameCache = 32 << 10 // memory for each layer's
)

// chunkMap decides which blob each chunk comes from: mostly the first that has it. So
// the same bytes in two layers are fetched and cached once, while each layer's
// blob remains a function of that layer alone. Chunks of foreign blobs are left
// where they are: nobody here has seen their bytes.
type chunkMap struct {
	layers []*BlobInfo    // as the refs count them
	alias  []uint32       // of each layer, the layer whose blob stands for its
	same   []*spill.Array // of each chunk of a layer, the first with that digest; nil: the chunk itself
	inUse  []bitset       // by layer and index
	// several tells that files may have chunks of more than one blob.
	several bool

	blobs  []*BlobInfo // those in use
	number []uint32    // of a layer's blob in blobs
}

func newChunkMap(layers []*BlobInfo, tempDir string) (*chunkMap, error) {
	m := &chunkMap{
		layers: layers, alias: make([]uint32, len(layers)), number: make([]uint32, len(layers)),
		same: make([]*spill.Array, len(layers)), inUse: make([]bitset, len(layers)),
	}
	own := m.findAliases()
	if len(own) < 2 {
		return m, nil // a blob has no chunk twice
	}
	if err := m.findSame(own, tempDir); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// findAliases finds the blobs that are there several times: layers with the same
// data have the same blob, whatever their names and modes are, and an image
// lists a blob once. One that was made here stands for one that was not. It
// returns the layers whose chunks may stand for others.
func (m *chunkMap) findAliases() (own []uint32) {
	ids := map[string]uint32{}
	for l, info := range m.layers {
		m.alias[l] = uint32(l)
		if info == nil {
			continue
		}
		older, ok := ids[info.ID]
		if !ok || m.layers[older].Foreign && !info.Foreign {
			ids[info.ID] = uint32(l)
		}
	}
	for l, info := range m.layers {
		if info == nil {
			continue
		}
		m.alias[l] = ids[info.ID]
		m.several = m.several || len(ids) > 1
		if m.alias[l] == uint32(l) && !info.Foreign {
			own = append(own, uint32(l))
		}
	}
	return own
}

// findSame fills same.
func (m *chunkMap) findSame(own []uint32, tempDir string) (err error) {
	first := chunk.NewIndex(tempDir)
	defer func() { err = errors.Join(err, first.Close()) }()
	var b [sameSize]byte
	for _, l := range own {
		m.same[l] = spill.NewArray(tempDir, sameSize, sameCache)
		ref := chunk.Ref{Blob: l}
		for r, err := range m.layers[l].Table.All() {
			if err != nil {
				return err
			}
			older, ok, err := first.Lookup(r.Digest, r.UncompressedSize)
			if err == nil && !ok {
				older, err = ref, first.Add(r.Digest, r.UncompressedSize, ref)
			}
			if err != nil {
				return err
			}
			binary.LittleEndian.PutUint32(b[:], older.Blob)
			binary.LittleEndian.PutUint32(b[4:], older.Index)
			if err := m.same[l].Append(b[:]); err != nil {
				return err
			}
			ref.Index++
		}
	}
	return nil
}

// Close drops what is spilled. It may be called again.
func (m *chunkMap) Close() error {
	var errs []error
	for _, a := range m.same {
		if a != nil {
			errs = append(errs, a.Close())
		}
	}
	return errors.Join(errs...)
}

// use notes that a file needs chunks. The result tells to take them from the
// blob of the file's own layer.
//
// That is so where the chosen chunks would go from one blob to another without a
// gap in the block numbers. Linux' EROFS then reads on in the wrong device: iomap
// joins reads whose sectors follow each other and does not compare devices
// ("erofs: prevent buffered read bio merges across device chunks", June 2026).
// Where both blobs are foreign, nothing can be done.
func (m *chunkMap) use(refs iter.Seq2[chunk.Ref, error], erofs bool) (own bool, err error) {
	if erofs && m.several {
		if own, err = m.joins(refs); err != nil {
			return false, err
		}
	}
	for ref, err := range refs {
		if err == nil {
			ref, err = m.choose(ref, own)
		}
		if err != nil {
			return false, err
		}
		if m.inUse[ref.Blob] == nil {
			m.inUse[ref.Blob] = newBitset(uint64(m.layers[ref.Blob].Table.Len()))
		}
		if !m.inUse[ref.Blob].add(ref.Index) {
			return false, fmt.Errorf("chunk %d of blob %s, which has %d", ref.Index, m.layers[ref.Blob].ID, m.layers[ref.Blob].Table.Len())
		}
	}
	return own, nil
}

// joins tells whether the chosen chunks of a file go from one blob to another
// without a gap.
func (m *chunkMap) joins(refs iter.Seq2[chunk.Ref, error]) (bool, error) {
	var last chunk.Ref
	end := ^uint64(0)
	for ref, err := range refs {
		if err == nil {
			ref, err = m.choose(ref, false)
		}
		if err != nil {
			return false, err
		}
		r, err := m.record(ref)
		if err != nil {
			return false, err
		}
		if ref.Blob != last.Blob && r.UncompressedOffset == end {
			return true, nil
		}
		last, end = ref, r.UncompressedOffset+uint64(r.UncompressedSize)
	}
	return false, nil
}

// choose picks the chunk that stands for a ref of a file.
func (m *chunkMap) choose(r chunk.Ref, own bool) (chunk.Ref, error) {
	if r.Blob >= uint32(len(m.layers)) || m.layers[r.Blob] == nil {
		return r, fmt.Errorf("chunk %d of blob number %d, which was not given", r.Index, r.Blob)
	}
	r.Blob = m.alias[r.Blob]
	if own || m.same[r.Blob] == nil {
		return r, nil
	}
	var b [sameSize]byte
	err := m.same[r.Blob].Get(int64(r.Index), b[:])
	return chunk.Ref{Blob: binary.LittleEndian.Uint32(b[:]), Index: binary.LittleEndian.Uint32(b[4:])}, err
}

// finish numbers the blobs in use, in the order in which they were given.
func (m *chunkMap) finish() error {
	ids := map[string]bool{}
	for l, inUse := range m.inUse {
		if inUse == nil {
			continue
		}
		info := m.layers[l]
		if ids[info.ID] {
			return fmt.Errorf("blob %s is there several times", info.ID)
		}
		ids[info.ID] = true
		m.number[l] = uint32(len(m.blobs))
		m.blobs = append(m.blobs, info)
	}
	if len(m.blobs) > maxBlobs {
		return fmt.Errorf("%d blobs with data, the format holds %d", len(m.blobs), maxBlobs)
	}
	return nil
}

// record finds a chunk that was chosen.
func (m *chunkMap) record(r chunk.Ref) (chunk.Record, error) {
	rec, err := m.layers[r.Blob].Table.Record(r.Index)
	if err != nil {
		err = fmt.Errorf("chunk %d of blob %s: %w", r.Index, m.layers[r.Blob].ID, err)
	}
	return rec, err
}

// layoutRecord is what the bootstrap says of a chunk that was chosen. Where a
// batch lies, and how it is stored, only the blob says, as nydus has it.
func (m *chunkMap) layoutRecord(ref chunk.Ref) (layout.ChunkRecord, error) {
	r, err := m.record(ref)
	if r.Flags&layout.ChunkBatch != 0 {
		r.Flags &^= layout.ChunkBatch | layout.ChunkCompressed
		r.CompressedOffset = 0
	}
	return layout.ChunkRecord{
		Digest: r.Digest, BlobIndex: m.number[ref.Blob], Index: ref.Index, Flags: r.Flags, CRC32: r.CRC32,
		CompressedSize: r.CompressedSize, UncompressedSize: r.UncompressedSize,
		CompressedOffset: r.CompressedOffset, UncompressedOffset: r.UncompressedOffset,
	}, err
}

// sortUsed gives the records of all chunks in use to a sorter, by digest, blob
// and index, and returns how many they are. Of chunks without a digest, as tarfs
// has them, a blob has one record, the last (nydus builder/src/core/v6.rs).
func (m *chunkMap) sortUsed(s *spill.Sorter) (n uint64, err error) {
	var key, value []byte
	add := func(r *layout.ChunkRecord) error {
		key = append(key[:0], r.Digest[:]...)
		key = binary.BigEndian.AppendUint32(key, r.BlobIndex)
		key = binary.BigEndian.AppendUint32(key, r.Index)
		value = r.Append(value[:0])
		n++
		return s.Add(key, value)
	}
	for l, inUse := range m.inUse {
		var last *layout.ChunkRecord
		for i := range inUse.all() {
			r, err := m.layoutRecord(chunk.Ref{Blob: uint32(l), Index: i})
			if err == nil && r.Digest == [32]byte{} {
				last = &r
				continue
			}
			if err == nil {
				err = add(&r)
			}
			if err != nil {
				return 0, err
			}
		}
		if last != nil {
			if err := add(last); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// bitset is a set of small numbers; nil is empty.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, (n+63)/64) }

// add returns false if there is no room for i.
func (s bitset) add(i uint32) bool {
	if uint64(i)/64 >= uint64(len(s)) {
		return false
	}
	s[i/64] |= 1 << (i % 64)
	return true
}

// all lists the numbers in the set, rising.
func (s bitset) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for w, word := range s {
			for ; word != 0; word &= word - 1 {
				if !yield(uint32(w*64 + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}
