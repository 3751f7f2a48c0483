package image

import (
	"encoding/binary"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Chunks yields the chunks of files, and of all files below folders, in the order
// of nodes and names, each chunk once. Node ids that are none are passed over.
// It is meant for [Image.Prefetch].
func (im *Image) Chunks(nodes []uint64) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		w := &chunkWalk{im: im, yield: yield, folders: map[uint64]bool{}, seen: make([]bitset, len(im.blobs))}
		for i, places := range im.chunks.records {
			w.seen[i] = newBitset(uint64(len(places)))
		}
		// The last is taken first.
		for i := len(nodes) - 1; i >= 0; i-- {
			w.todo = append(w.todo, nodes[i])
		}
		w.run()
	}
}

// chunkWalk is the state of Chunks. Folders are taken once, chunks are yielded
// once, so that a table that names the root a million times costs nothing.
type chunkWalk struct {
	im      *Image
	yield   func(blob.Chunk) bool
	todo    []uint64
	folders map[uint64]bool
	seen    []bitset // of each blob, positions of its records
}

func (w *chunkWalk) run() {
	for len(w.todo) > 0 {
		node := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		a, err := w.im.Attr(node)
		if err != nil {
			continue
		}
		switch v6.TypeOf(a.Mode) {
		case v6.TypeDir:
			w.folder(node)
		case v6.TypeRegular:
			if !w.im.eachChunk(node, w.chunk) {
				return
			}
		}
	}
}

func (w *chunkWalk) folder(node uint64) {
	if w.folders[node] {
		return
	}
	w.folders[node] = true
	start := len(w.todo)
	// The error is about node, which is a folder of the image.
	_ = w.im.ReadDir(node, 0, func(d Dirent) bool {
		if string(d.Name) != "." && string(d.Name) != ".." {
			w.todo = append(w.todo, d.Node)
		}
		return true
	})
	for i, j := start, len(w.todo)-1; i < j; i, j = i+1, j-1 {
		w.todo[i], w.todo[j] = w.todo[j], w.todo[i]
	}
}

func (w *chunkWalk) chunk(place uint32) bool {
	t := w.im.chunks
	pos := t.position(place)
	r := t.record(place)
	if w.seen[r.BlobIndex].has(pos) {
		return true
	}
	w.seen[r.BlobIndex].add(pos)
	var c blob.Chunk
	t.decode(&c, &r)
	return w.yield(c)
}

// eachChunk yields the places of the chunk records of a regular file, and tells
// whether it got to the end.
func (im *Image) eachChunk(node uint64, yield func(place uint32) bool) bool {
	if im.v6 != nil {
		return im.v6.eachChunk(node, yield)
	}
	return im.v5.eachChunk(node, yield)
}

func (t *v6Tree) eachChunk(node uint64, yield func(place uint32) bool) bool {
	in, err := t.inode(node)
	if err != nil {
		return true
	}
	for off := uint64(0); off < in.Size; off += 1 << t.chunkBits {
		a, err := v6.DecodeChunkAddr(t.data.from(in.chunkAddrs() + off>>t.chunkBits*v6.ChunkAddrSize))
		if err != nil {
			return true
		}
		place, ok := t.chunks.find(a.BlobIndex, a.ChunkIndex)
		if ok && !yield(place) {
			return false
		}
	}
	return true
}

func (t *v5Tree) eachChunk(node uint64, yield func(place uint32) bool) bool {
	in, err := t.inode(node)
	if err != nil {
		return true
	}
	recs := t.chunkRecords(&in)
	for i := range uint64(in.ChildCount) {
		off := recs + i*layout.ChunkRecordSize
		t.pages.at(off)
		b, ok := t.data.slice(off, layout.ChunkRecordSize)
		if !ok {
			return true
		}
		if binary.LittleEndian.Uint32(b[recordFlagsAt:])&layout.ChunkHole == 0 && !yield(uint32(off/recordUnit)) {
			return false
		}
	}
	return true
}
