package main

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/spill"
)

// chunkTally is the chunks that images refer to, sorted by what makes chunks of
// several images one: digester, digest and uncompressed size. It takes tallyCache
// bytes of memory, whatever the images.
type chunkTally struct {
	records *spill.Sorter
	images  []tallied
}

// tallied is an image of a tally.
type tallied struct {
	base   bool
	failed bool // could not be read to its end: its chunks do not count
}

const (
	tallyCache = 2 << 20
	tallyKey   = 1 + len(blob.Digest{}) + 4
	tallyValue = 4 + 4 // number of the image, compressed size
)

func newChunkTally(tempDir string) *chunkTally {
	return &chunkTally{records: spill.NewSorter(tempDir, tallyCache)}
}

// begin makes the next image the one whose chunks are added.
func (t *chunkTally) begin(base bool) { t.images = append(t.images, tallied{base: base}) }

// drop takes back what was added since begin.
func (t *chunkTally) drop() { t.images[len(t.images)-1].failed = true }

func (t *chunkTally) add(c *blob.Chunk) error {
	var key [tallyKey]byte
	key[0] = byte(c.Blob.Digester)
	copy(key[1:], c.Digest[:])
	binary.BigEndian.PutUint32(key[1+len(c.Digest):], c.UncompressedSize)
	var value [tallyValue]byte
	binary.BigEndian.PutUint32(value[:], uint32(len(t.images)-1))
	binary.BigEndian.PutUint32(value[4:], c.CompressedSize)
	return t.records.Add(key[:], value[:])
}

// chunkUse is how images use a chunk.
type chunkUse struct {
	size   uint32 // uncompressed
	images []imageUse
}

// imageUse is an image that has the chunk, and its compressed size there.
type imageUse struct {
	image      uint32
	compressed uint32
}

// each visits every chunk once, with the images in the order in which they were
// added. It is called once; the visitor does not keep what it gets.
func (t *chunkTally) each(visit func(*chunkUse)) error {
	sorted, err := t.records.Sort()
	if err != nil {
		return err
	}
	var last [tallyKey]byte
	var use chunkUse
	flush := func() {
		if len(use.images) > 0 {
			visit(&use)
		}
		use.images = use.images[:0]
	}
	for sorted.Next() {
		if !bytes.Equal(last[:], sorted.Key()) {
			flush()
			copy(last[:], sorted.Key())
			use.size = binary.BigEndian.Uint32(last[tallyKey-4:])
		}
		at := imageUse{binary.BigEndian.Uint32(sorted.Value()), binary.BigEndian.Uint32(sorted.Value()[4:])}
		switch n := len(use.images); {
		case t.images[at.image].failed:
		case n > 0 && use.images[n-1].image == at.image:
			use.images[n-1] = at
		default:
			use.images = append(use.images, at)
		}
	}
	if err := sorted.Err(); err != nil {
		return err
	}
	flush()
	return nil
}

func (t *chunkTally) close() error { return t.records.Close() }

// nodeSet is inodes of an image, each visited once however often it was added.
type nodeSet struct{ nodes *spill.Sorter }

// nodeCache is the memory of a nodeSet, in bytes.
const nodeCache = 1 << 20

func newNodeSet(tempDir string) nodeSet { return nodeSet{spill.NewSorter(tempDir, nodeCache)} }

func (s nodeSet) add(node uint64) error {
	return s.nodes.Add(binary.BigEndian.AppendUint64(nil, node), nil)
}

// each visits the inodes by their numbers, and ends the set.
func (s nodeSet) each(visit func(node uint64) error) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	sorted, err := s.nodes.Sort()
	if err != nil {
		return err
	}
	last, some := uint64(0), false
	for sorted.Next() {
		node := binary.BigEndian.Uint64(sorted.Key())
		if some && node == last {
			continue
		}
		last, some = node, true
		if err := visit(node); err != nil {
			return err
		}
	}
	return sorted.Err()
}

func (s nodeSet) close() error { return s.nodes.Close() }
