package check

import (
	"sort"
)

// chunkIndex finds the chunks of all blobs by blob and number, at 12 bytes a
// chunk. Positions count the chunks of all blobs in the order of these.
type chunkIndex struct {
	sets []chunkSet
	used bitset // positions of chunks that files use
}

// chunkSet is the chunks of one blob by ascending number.
type chunkSet struct {
	base    int // position of the first
	numbers []uint32
	words   []uint64 // see chunkWord
	inUse   int
}

// chunkWord packs the block that a chunk is at in the uncompressed space with its
// size in bytes.
func chunkWord(block uint64, size uint32) uint64 { return block<<32 | uint64(size) }

func newChunkIndex(blobs int) *chunkIndex { return &chunkIndex{sets: make([]chunkSet, blobs)} }

// find returns the place of a chunk in its set, false for a chunk or a blob that
// is not there.
func (x *chunkIndex) find(blob, number uint32) (int, bool) {
	if blob >= uint32(len(x.sets)) {
		return 0, false
	}
	s := &x.sets[blob]
	// Numbers ascend, so that a chunk is at its number if all before it are there,
	// and never behind.
	n := min(int(number)+1, len(s.numbers))
	if n == int(number)+1 && s.numbers[number] == number {
		return int(number), true
	}
	i := sort.Search(n, func(i int) bool { return s.numbers[i] >= number })
	return i, i < n && s.numbers[i] == number
}

// use marks a chunk as used.
func (x *chunkIndex) use(blob uint32, at int) {
	s := &x.sets[blob]
	if p := uint64(s.base + at); !x.used.has(p) {
		x.used.add(p)
		s.inUse++
	}
}

// order sorts the sets, drops numbers that are there twice, of which it tells
// duplicate, and gives out positions.
func (x *chunkIndex) order(duplicate func(blob int, number uint32)) {
	base := 0
	for b := range x.sets {
		s := &x.sets[b]
		s.base = base
		if !sort.IsSorted(s) {
			sort.Stable(s)
		}
		n := 0
		for i := range s.numbers {
			if n > 0 && s.numbers[n-1] == s.numbers[i] {
				duplicate(b, s.numbers[i])
				continue
			}
			s.numbers[n], s.words[n] = s.numbers[i], s.words[i]
			n++
		}
		s.numbers, s.words = s.numbers[:n], s.words[:n]
		base += n
	}
	x.used = newBitset(uint64(base))
}

// len is the number of positions.
func (x *chunkIndex) len() int {
	if len(x.sets) == 0 {
		return 0
	}
	last := &x.sets[len(x.sets)-1]
	return last.base + len(last.numbers)
}

func (s *chunkSet) Len() int           { return len(s.numbers) }
func (s *chunkSet) Less(i, j int) bool { return s.numbers[i] < s.numbers[j] }
func (s *chunkSet) Swap(i, j int) {
	s.numbers[i], s.numbers[j] = s.numbers[j], s.numbers[i]
	s.words[i], s.words[j] = s.words[j], s.words[i]
}
