package write

import "github.com/rafsd/rafsd/rafs/layout/v6"

// space hands out places in the metadata area. An inode with its tail never
// crosses a block unless it is larger than one, because EROFS wants inline data
// within one block; what is left of a block is used for later inodes.
type space struct {
	block uint64 // size of one, in bytes
	next  uint64 // start of the first block that is not in use
	// free has the places with that many slots at the end of a block.
	free [v6.BlockSize / v6.NIDUnit][]uint64
}

// blocks takes whole blocks for size bytes and returns where they start.
func (s *space) blocks(size uint64) uint64 {
	off := s.next
	s.next += (size + s.block - 1) &^ (s.block - 1)
	return off
}

// slots takes slots for size bytes, which follow each other, and returns where
// they start: where they fit most tightly, most recently freed first.
func (s *space) slots(size uint64) uint64 {
	n := (size + v6.NIDUnit - 1) / v6.NIDUnit
	perBlock := s.block / v6.NIDUnit
	if n < perBlock {
		for have := n; have < perBlock; have++ {
			if places := s.free[have]; len(places) > 0 {
				off := places[len(places)-1]
				s.free[have] = places[:len(places)-1]
				s.release(off+n*v6.NIDUnit, have-n)
				return off
			}
		}
	}
	off := s.blocks(n * v6.NIDUnit)
	if rest := n % perBlock; rest > 0 {
		s.release(off+n*v6.NIDUnit, perBlock-rest)
	}
	return off
}

func (s *space) release(off, n uint64) {
	if n > 0 {
		s.free[n] = append(s.free[n], off)
	}
}
