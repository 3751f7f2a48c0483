package write

import "github.com/rafsd/rafsd/rafs/layout/v6"

// space hands out places in the metadata area, the same that nydus-image does
// (nydus builder/src/core/v6.rs, v6_set_offset): one behind the other, except
// where inline data has to stay within one block, as EROFS wants it. What that
// leaves of a block is used for later inodes, where they fit most tightly, longest
// free first.
type space struct {
	block uint64 // size of one, in bytes
	next  uint64 // end of what is in use
	// free has the starts of blocks with that many slots at their end.
	free [v6.BlockSize/v6.NIDUnit + 1][]uint64
}

// slots takes size bytes at a slot, in a block that is in use or at the end.
func (s *space) slots(size uint64) uint64 {
	if off, ok := s.reuse(size); ok {
		return off
	}
	return s.append(size)
}

// append takes size bytes at the end.
func (s *space) append(size uint64) uint64 {
	off := s.next
	s.next = roundUp(s.next+size, v6.NIDUnit)
	return off
}

// reuse takes size bytes at the end of a block that is in use.
func (s *space) reuse(size uint64) (uint64, bool) {
	n := roundUp(size, v6.NIDUnit) / v6.NIDUnit
	for have := n; have < s.block/v6.NIDUnit; have++ {
		if blocks := s.free[have]; len(blocks) > 0 {
			s.free[have] = blocks[1:]
			off := blocks[0] + s.block - have*v6.NIDUnit
			s.release(off + n*v6.NIDUnit)
			return off, true
		}
	}
	return 0, false
}

// release gives the rest of a block back.
func (s *space) release(off uint64) {
	if rest := off % s.block; rest != 0 {
		n := (s.block - rest) / v6.NIDUnit
		s.free[n] = append(s.free[n], off-rest)
	}
}

// nextBlock leaves the rest of the last block to others.
func (s *space) nextBlock() {
	s.release(s.next)
	s.next = roundUp(s.next, s.block)
}

// flat places an inode whose data lies in the metadata area: whole blocks apart,
// and the rest behind the inode where that stays within one block.
func (s *space) flat(fixed, size uint64) (l v6.InodeLayout, off, blocks uint64) {
	tail := size % s.block
	if tail == 0 || fixed+tail > s.block {
		off = s.slots(fixed)
		s.nextBlock()
		blocks = s.next
		s.next += roundUp(size, s.block)
		return v6.LayoutFlatPlain, off, blocks
	}
	off, ok := s.reuse(fixed + tail)
	if !ok {
		if s.block-s.next%s.block < fixed+tail {
			s.nextBlock()
		}
		off = s.append(fixed + tail)
	}
	if whole := size - tail; whole > 0 {
		s.nextBlock()
		blocks = s.next
		s.next += whole
	}
	return v6.LayoutFlatInline, off, blocks
}

// roundUp rounds n up to a multiple of a power of two.
func roundUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
