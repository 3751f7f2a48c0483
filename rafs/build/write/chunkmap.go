package write

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/oldchunk"
)

// chunkMap decides which blob each chunk comes from: mostly the first that has it. So
// the same bytes in two layers are fetched and cached once, while each layer's
// blob remains a function of that layer alone.
type chunkMap struct {
	layers []*BlobInfo   // as the refs count them
	alias  []uint32      // of each layer, the first layer with the same blob
	same   [][]chunk.Ref // of each chunk of each layer, the first chunk with that digest
	inUse  [][]bool      // by layer and index
	used   []chunk.Ref   // those in use, sorted by digest and blob; count in layers

	blobs  []*BlobInfo // those in use
	number []uint32    // of a layer's blob in blobs
}

func newChunkMap(layers []*BlobInfo) *chunkMap {
	m := &chunkMap{
		layers: layers, number: make([]uint32, len(layers)), alias: make([]uint32, len(layers)),
		same: make([][]chunk.Ref, len(layers)), inUse: make([][]bool, len(layers)),
	}
	first := map[blob.Digest]chunk.Ref{}
	ids := map[string]uint32{}
	for l, info := range layers {
		if info == nil {
			continue
		}
		// Layers with the same data have the same blob, whatever their names and
		// modes are, and an image lists a blob once.
		m.alias[l] = uint32(l)
		if older, ok := ids[info.ID]; ok {
			m.alias[l] = older
		} else {
			ids[info.ID] = uint32(l)
		}
		m.same[l] = make([]chunk.Ref, len(info.Records))
		m.inUse[l] = make([]bool, len(info.Records))
		for i := range info.Records {
			ref := chunk.Ref{Blob: uint32(l), Index: uint32(i)}
			if older, ok := first[info.Records[i].Digest]; ok {
				ref = older
			} else {
				first[info.Records[i].Digest] = ref
			}
			m.same[l][i] = ref
		}
	}
	return m
}

// use notes that a file needs chunks. The result tells to take them from the
// blob of the file's own layer.
//
// That is so where the chosen chunks would go from one blob to another without a
// gap in the block numbers. Linux' EROFS then reads on in the wrong device: iomap
// joins reads whose sectors follow each other and does not compare devices
// ("erofs: prevent buffered read bio merges across device chunks", June 2026).
func (m *chunkMap) use(refs []chunk.Ref) (own bool) {
	for i := 1; i < len(refs) && !own; i++ {
		a, b := m.choose(refs[i-1], false), m.choose(refs[i], false)
		end := m.record(a).UncompressedOffset + uint64(m.record(a).UncompressedSize)
		own = a.Blob != b.Blob && m.record(b).UncompressedOffset == end
	}
	for _, r := range refs {
		r = m.choose(r, own)
		m.inUse[r.Blob][r.Index] = true
	}
	return own
}

// choose picks the chunk that stands for a ref of a file.
func (m *chunkMap) choose(r chunk.Ref, own bool) chunk.Ref {
	if own {
		return chunk.Ref{Blob: m.alias[r.Blob], Index: r.Index}
	}
	return m.same[r.Blob][r.Index]
}

// finish numbers the blobs in use, in the order of the layers.
func (m *chunkMap) finish() error {
	for l, inUse := range m.inUse {
		if !slices.Contains(inUse, true) {
			continue
		}
		m.number[l] = uint32(len(m.blobs))
		m.blobs = append(m.blobs, m.layers[l])
		for i, yes := range inUse {
			if yes {
				m.used = append(m.used, chunk.Ref{Blob: uint32(l), Index: uint32(i)})
			}
		}
	}
	if len(m.blobs) > maxBlobs {
		return fmt.Errorf("%d layers with data, the format holds %d", len(m.blobs), maxBlobs)
	}
	slices.SortFunc(m.used, func(a, b chunk.Ref) int {
		if order := bytes.Compare(m.record(a).Digest[:], m.record(b).Digest[:]); order != 0 {
			return order
		}
		return cmp.Compare(a.Blob, b.Blob)
	})
	return nil
}

// record finds a ref that same or used hold.
func (m *chunkMap) record(r chunk.Ref) *chunk.Record { return &m.layers[r.Blob].Records[r.Index] }
