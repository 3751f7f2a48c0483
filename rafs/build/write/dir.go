package write

import (
	"slices"

	"github.com/rafsd/rafsd/rafs/build/oldtree"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// dirNames returns what a folder lists, "." and ".." among it, sorted by bytes
// as EROFS searches it.
func dirNames(n *tree.Node) []string {
	names := append(n.Names(), ".", "..")
	slices.Sort(names)
	return names
}

// dirBlocks splits names into blocks: an entry and its name lie in one block. It
// yields the names of each block and the bytes they take.
func dirBlocks(names []string, yield func(block []string, used int)) {
	start, used := 0, 0
	for i, name := range names {
		need := v6.DirentSize + len(name)
		if used+need > v6.BlockSize {
			yield(names[start:i], used)
			start, used = i, 0
		}
		used += need
	}
	yield(names[start:], used)
}

// dirSize is the i_size of a folder: whole blocks, and what the last one has.
func dirSize(names []string) uint64 {
	size, last := uint64(0), 0
	dirBlocks(names, func(_ []string, used int) {
		size += v6.BlockSize
		last = used
	})
	return size - v6.BlockSize + uint64(last)
}

// appendDir appends the contents of a folder to b, the last block not padded.
func (p *Plan) appendDir(b []byte, in *inode) []byte {
	start := len(b)
	dirBlocks(dirNames(in.node), func(block []string, _ int) {
		b = append(b, make([]byte, int(alignBlock(uint64(len(b)-start)))-(len(b)-start))...)
		nameOff := len(block) * v6.DirentSize
		for _, name := range block {
			child := p.entry(in, name)
			d := v6.Dirent{NID: p.nid(child), NameOff: uint16(nameOff), Type: v6.TypeOf(child.node.Mode)}
			b = d.Append(b)
			nameOff += len(name)
		}
		for _, name := range block {
			b = append(b, name...)
		}
	})
	return b
}

// entry finds the inode of a name in a folder.
func (p *Plan) entry(dir *inode, name string) *inode {
	switch name {
	case ".":
		return dir
	case "..":
		return &p.inodes[dir.parent]
	}
	return &p.inodes[p.index[dir.node.Child(name)]]
}
