package build

import (
	"encoding/binary"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/image"
)

// movedChunks tells where chunks of an image have gone.
type movedChunks struct {
	first []int64 // position of the first chunk of each blob, and the number of all
	array *spill.Array
}

const (
	movedSize  = 8
	movedCache = 256 << 10 // bytes
)

func newMovedChunks(im *image.Image, tempDir string) movedChunks {
	m := movedChunks{first: []int64{0}, array: spill.NewArray(tempDir, movedSize, movedCache)}
	for i, b := range im.Blobs() {
		m.first = append(m.first, m.first[i]+int64(b.ChunkCount))
	}
	return m
}

func (m *movedChunks) len() int64 { return m.first[len(m.first)-1] }

// position numbers the chunks of all blobs.
func (m *movedChunks) position(old chunk.Ref) int64 { return m.first[old.Blob] + int64(old.Index) }

// at is the new place of a chunk, false if it stays where it is.
func (m *movedChunks) at(old chunk.Ref) (chunk.Ref, bool, error) {
	i := m.position(old)
	if i >= m.array.Len() {
		return chunk.Ref{}, false, nil
	}
	var b [movedSize]byte
	if err := m.array.Get(i, b[:]); err != nil {
		return chunk.Ref{}, false, err
	}
	n := binary.LittleEndian.Uint32(b[:]) // of the blob, plus 1
	return chunk.Ref{Blob: n - 1, Index: binary.LittleEndian.Uint32(b[4:])}, n != 0, nil
}

func (m *movedChunks) note(old, ref chunk.Ref) error {
	var b [movedSize]byte
	binary.LittleEndian.PutUint32(b[:], ref.Blob+1)
	binary.LittleEndian.PutUint32(b[4:], ref.Index)
	return m.array.Set(m.position(old), b[:])
}

// refList is a list that grows without being copied.
type refList [][]chunk.Ref

const refBlock = 1 << 13

func (l *refList) add(ref chunk.Ref) {
	n := len(*l)
	if n == 0 || len((*l)[n-1]) == refBlock {
		*l = append(*l, make([]chunk.Ref, 0, refBlock))
		n++
	}
	(*l)[n-1] = append((*l)[n-1], ref)
}

func (l refList) all(yield func(chunk.Ref) bool) {
	for _, block := range l {
		for _, ref := range block {
			if !yield(ref) {
				return
			}
		}
	}
}
