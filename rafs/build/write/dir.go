package write

import (
	"iter"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// dirent is an entry of a folder: a name and the first node of its inode.
type dirent struct {
	name string
	node tree.ID
	typ  v6.FileType
}

// dirents lists a folder, "." and ".." among it, sorted by bytes as EROFS searches
// it. An error is the last thing it yields.
func dirents(t *tree.Tree, dir, parent tree.ID) iter.Seq2[dirent, error] {
	return func(yield func(dirent, error) bool) {
		dots := []dirent{{".", dir, v6.TypeDir}, {"..", parent, v6.TypeDir}}
		for n, err := range t.Children(dir) {
			if err != nil {
				yield(dirent{}, err)
				return
			}
			for ; len(dots) > 0 && dots[0].name < n.Name; dots = dots[1:] {
				if !yield(dots[0], nil) {
					return
				}
			}
			if !yield(dirent{n.Name, n.Inode, v6.TypeOf(n.Mode)}, nil) {
				return
			}
		}
		for _, d := range dots {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// dirPacker splits the entries of a folder into blocks: an entry and its name lie
// in one block.
type dirPacker struct {
	block uint64 // size of one, in bytes
	whole uint64 // bytes of the blocks that are full
	used  uint64 // bytes of the last one
}

// add makes room for a name and tells whether a new block begins with it.
func (p *dirPacker) add(name string) (next bool) {
	need := uint64(v6.DirentSize + len(name))
	if next = p.used+need > p.block; next {
		p.whole += p.block
		p.used = 0
	}
	p.used += need
	return next
}

// size is the i_size of the folder: whole blocks, and what the last one has.
func (p *dirPacker) size() uint64 { return p.whole + p.used }

// dirBlocks yields the blocks of a folder, the last one not padded. A block is
// valid until the next one.
func (p *V6) dirBlocks(dir, parent tree.ID) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		packer := dirPacker{block: p.block}
		var block []dirent
		var buf []byte
		emit := func(pad bool) bool {
			var err error
			if buf, err = p.appendDirBlock(buf[:0], block); err == nil && pad {
				buf = append(buf, zeroBlock[:p.block-uint64(len(buf))]...)
			}
			block = block[:0]
			return yield(buf, err) && err == nil
		}
		for d, err := range dirents(p.tree, dir, parent) {
			if err != nil {
				yield(nil, err)
				return
			}
			if packer.add(d.name) && !emit(true) {
				return
			}
			block = append(block, d)
		}
		emit(false)
	}
}

// appendDirBlock appends the entries of a block, then their names.
func (p *V6) appendDirBlock(b []byte, block []dirent) ([]byte, error) {
	nameOff := len(block) * v6.DirentSize
	for _, d := range block {
		m, err := p.read(d.node)
		if err != nil {
			return b, err
		}
		e := v6.Dirent{NID: uint64(m.nid), NameOff: uint16(nameOff), Type: d.typ}
		b = e.Append(b)
		nameOff += len(d.name)
	}
	for _, d := range block {
		b = append(b, d.name...)
	}
	return b, nil
}
