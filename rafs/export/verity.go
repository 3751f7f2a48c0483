package export

import (
	"crypto/sha256"
	"fmt"
	"io"
)

// The parameters of nydus' hash trees (utils/src/verity.rs): version 1 of
// dm-verity, SHA-256, no salt, no superblock.
const (
	hashBlock = 4096
	hashSize  = sha256.Size
	perBlock  = hashBlock / hashSize
)

// Verity is what dm-verity needs to know of a disk with a hash tree.
type Verity struct {
	DataBlockSize int   // bytes
	DataBlocks    int64 // the tree is over these, from the start of the disk
	HashOffset    int64 // of the tree, in bytes; a multiple of 4096
	Root          [sha256.Size]byte
}

// String is the line that nydus-image prints, from which nydus-snapshotter takes
// the numbers (pkg/tarfs/tarfs.go).
func (v *Verity) String() string {
	return fmt.Sprintf("dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size=%d "+
		"--hash-block-size=%d --data-blocks %d --hash-offset %d %x", v.DataBlockSize, hashBlock, v.DataBlocks, v.HashOffset, v.Root)
}

// file is what a hash tree is read from and written to.
type file interface {
	io.ReaderAt
	io.WriterAt
}

// hashTree makes the tree of a disk's first blocks and writes it behind them,
// aligned to its own blocks: the root's level first, the leaves last, as
// veritysetup does. One block of data has no tree, its digest is the root.
// tell is called with the bytes that have been read.
func hashTree(f file, blockSize int, blocks int64, tell func(n int) error) (*Verity, error) {
	size := blocks * int64(blockSize)
	v := &Verity{DataBlockSize: blockSize, DataBlocks: blocks, HashOffset: (size + hashBlock - 1) &^ (hashBlock - 1)}
	t := newTree(f, v.HashOffset, blocks)
	zero := sha256.Sum256(make([]byte, blockSize))
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := f.ReadAt(p, off); err != nil {
			return nil, err
		}
		for i := 0; i < len(p); i += blockSize {
			sum := zero
			if b := p[i : i+blockSize]; !isZero(b) {
				sum = sha256.Sum256(b)
			}
			if err := t.add(0, sum); err != nil {
				return nil, err
			}
		}
		if err := tell(len(p)); err != nil {
			return nil, err
		}
	}
	root, err := t.finish()
	v.Root = root
	return v, err
}

// hashLevels is a hash tree that grows by its leaves. It keeps one block a level.
type hashLevels struct {
	w      io.WriterAt
	levels []hashLevel // leaves first
	root   [hashSize]byte
}

type hashLevel struct {
	off   int64 // of the next block
	block []byte
}

func newTree(w io.WriterAt, off, blocks int64) *hashLevels {
	t := &hashLevels{w: w}
	var sizes []int64
	for n := blocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		sizes = append(sizes, n)
	}
	t.levels = make([]hashLevel, len(sizes))
	for i := len(sizes) - 1; i >= 0; i-- {
		t.levels[i] = hashLevel{off: off, block: make([]byte, 0, hashBlock)}
		off += sizes[i] * hashBlock
	}
	return t
}

// add appends a digest to a level; above the highest one it is the root.
func (t *hashLevels) add(level int, sum [hashSize]byte) error {
	if level == len(t.levels) {
		t.root = sum
		return nil
	}
	l := &t.levels[level]
	l.block = append(l.block, sum[:]...)
	if len(l.block) < hashBlock {
		return nil
	}
	return t.flush(level)
}

// flush writes the block of a level, filled up with zeros.
func (t *hashLevels) flush(level int) error {
	l := &t.levels[level]
	n := len(l.block)
	block := l.block[:hashBlock]
	clear(block[n:])
	if _, err := t.w.WriteAt(block, l.off); err != nil {
		return err
	}
	l.off += hashBlock
	l.block = l.block[:0]
	return t.add(level+1, sha256.Sum256(block))
}

func (t *hashLevels) finish() ([hashSize]byte, error) {
	for i := range t.levels {
		if len(t.levels[i].block) > 0 {
			if err := t.flush(i); err != nil {
				return t.root, err
			}
		}
	}
	return t.root, nil
}
