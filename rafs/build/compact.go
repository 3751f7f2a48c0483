package build

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
)

// CompactOptions say which blobs of an image Compact makes anew, by the rules of
// nydus-image compact.
type CompactOptions struct {
	Host

	// Source is the path of the image's bootstrap, and Blobs has its blobs.
	Source string
	Blobs  backend.Backend

	// MinUsedRatio is the share of a blob that the image must use, in percent, so
	// that the blob is kept; 0 keeps all.
	MinUsedRatio int
	// BlobSize is the size in bytes below which blobs are put together; 10 MiB by
	// default. MaxSize is how large blobs become by that; 100 MiB by default.
	BlobSize, MaxSize uint64
	// Layers is the number of blobs below which nothing is done.
	Layers int
	// ChunkDict is the path of a bootstrap whose blobs stay as they are, and whose
	// chunks need not be stored again.
	ChunkDict string
	// Cipher encrypts the new blobs of an encrypted image; made up by default.
	Cipher *write.Cipher

	// Bootstrap is the path of the new bootstrap, BlobDir takes new blobs.
	Bootstrap, BlobDir string
}

// Compact stores the chunks that an image uses of little used and of small blobs
// in new ones. What the image does not use is not carried over. It returns nil if
// there is nothing to gain, and writes nothing then.
func Compact(ctx context.Context, o CompactOptions) (*Result, error) {
	o.setDefaults()
	if o.BlobSize == 0 {
		o.BlobSize = 10 << 20
	}
	if o.MaxSize == 0 {
		o.MaxSize = 100 << 20
	}
	if o.MinUsedRatio < 0 || o.MinUsedRatio > 99 {
		return nil, fmt.Errorf("used ratio of %d %%: want 0 to 99", o.MinUsedRatio)
	}
	w, err := newRework(ctx, &o.Host, o.Source, o.Blobs)
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.dir, w.key = o.BlobDir, o.Cipher
	kept := map[string]bool{}
	if o.ChunkDict != "" {
		dict, err := w.learn(o.ChunkDict)
		if err != nil {
			return nil, err
		}
		defer dict.Close()
		for _, b := range dict.Blobs() {
			kept[b.ID] = true
		}
	}
	if len(w.im.Blobs()) < o.Layers {
		return nil, nil
	}
	groups := compactGroups(w.im, kept, &o)
	if len(groups) == 0 {
		return nil, nil
	}
	for c := range w.chunks(slices.Concat(groups...)) {
		w.read.total += int64(c.UncompressedSize)
	}
	for _, g := range groups {
		if err := w.cut(w.chunks(g)); err != nil {
			return nil, err
		}
	}
	return w.finish(o.Bootstrap, o.Limits)
}

// learn makes a dictionary's chunks known. It must stay open.
func (w *rework) learn(path string) (*image.Image, error) {
	im, err := image.Open(path, image.Options{InlineBlobID: stem(path), InFile: true, TempDir: w.host.TempDir})
	if err != nil {
		return nil, fmt.Errorf("chunk dictionary %s: %w", path, err)
	}
	var known *rafs.Image
	if err = imageTraits(w.im).compare(imageTraits(im)); err == nil {
		known, err = w.blobs.Add(im, nil)
	}
	if err == nil {
		w.dict = chunk.NewIndex(w.host.TempDir)
		err = known.Learn(w.dict, w.im.Super().Digester)
	}
	if err != nil {
		im.Close()
		return nil, fmt.Errorf("chunk dictionary %s: %w", path, err)
	}
	return im, nil
}

// chunks lists what the image uses of some of its blobs, each chunk once.
func (w *rework) chunks(blobs []uint32) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		for _, b := range blobs {
			for c := range w.im.BlobChunks(b) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// candidate is a blob that may be made anew.
type candidate struct {
	index   uint32
	size    uint64 // of the blob if it stays, of what is used if not
	used    uint64 // bytes of the blob that the image uses
	rebuild bool
}

// compactGroups tells which blobs are made anew, those together that become one.
// Groups, and the blobs in each, are in the order of the blob table.
func compactGroups(im *image.Image, kept map[string]bool, o *CompactOptions) [][]uint32 {
	var all []*candidate
	for _, b := range im.Blobs() {
		if kept[b.ID] {
			continue
		}
		c := &candidate{index: b.Index, used: usedBytes(im, b)}
		c.size = max(b.CompressedSize, c.used)
		if c.used == 0 {
			continue // nothing refers to it: it is left out anyway
		}
		if c.used*100 < uint64(o.MinUsedRatio)*c.size {
			c.rebuild, c.size = true, c.used
		}
		all = append(all, c)
	}
	groups := mergeSmall(all, o)
	for _, c := range all {
		if c.rebuild && !slices.ContainsFunc(groups, func(g []uint32) bool { return slices.Contains(g, c.index) }) {
			groups = append(groups, []uint32{c.index})
		}
	}
	for _, g := range groups {
		slices.Sort(g)
	}
	slices.SortFunc(groups, func(a, b []uint32) int { return cmp.Compare(a[0], b[0]) })
	return groups
}

// mergeSmall puts small blobs together, the smallest first, as long as the sum
// stays below the limit (nydus builder/src/compact.rs, try_merge_blobs).
func mergeSmall(all []*candidate, o *CompactOptions) [][]uint32 {
	var small []*candidate
	for _, c := range all {
		if c.size < o.BlobSize {
			small = append(small, c)
		}
	}
	slices.SortStableFunc(small, func(a, b *candidate) int { return cmp.Compare(a.size, b.size) })
	var groups [][]uint32
	var group []uint32
	sum := uint64(0)
	for _, c := range small {
		if len(group) > 0 && sum+c.used > o.MaxSize {
			groups, group, sum = append(groups, group), nil, 0
		}
		group, sum = append(group, c.index), sum+c.used
	}
	groups = append(groups, group)
	return slices.DeleteFunc(groups, func(g []uint32) bool { return len(g) < 2 })
}

// usedBytes is how many bytes of a blob the image uses. Chunks that share a unit
// have no bytes of their own: there it is the share of the chunks.
func usedBytes(im *image.Image, b *blob.Info) uint64 {
	used, chunks, shared := uint64(0), uint64(0), false
	for c := range im.BlobChunks(b.Index) {
		used += uint64(c.CompressedSize)
		chunks++
		shared = shared || c.Shared
	}
	if shared && b.ChunkCount > 0 {
		return max(b.CompressedSize*chunks/uint64(b.ChunkCount), min(chunks, 1))
	}
	return used
}
