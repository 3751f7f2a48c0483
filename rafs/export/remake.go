package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"sort"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// space is the chunks of one blob of a v5 image, put into blocks of EROFS: v5 has
// them one behind the other, at any byte. It is the table of a blob with these
// chunks, uncompressed, of which nothing but the places is meant.
type space struct {
	im     *image.Image
	blob   *blob.Info
	index  []uint32 // number of each chunk in the image, ascending
	blocks []uint32 // where it begins
	end    uint64   // in blocks
}

func newSpace(im *image.Image, b *blob.Info) (*space, error) {
	s := &space{im: im, blob: b}
	for c := range im.BlobChunks(b.Index) {
		if s.end > math.MaxUint32 {
			return nil, fmt.Errorf("%w: blob %s needs more than %d blocks", image.ErrUnsupported, b.ID, uint32(math.MaxUint32))
		}
		s.index, s.blocks = append(s.index, c.Index), append(s.blocks, uint32(s.end))
		s.end += (uint64(c.UncompressedSize) + v6.BlockSize - 1) / v6.BlockSize
	}
	return s, nil
}

// find returns the position of a chunk.
func (s *space) find(index uint32) (uint32, bool) {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i] >= index })
	return uint32(i), i < len(s.index) && s.index[i] == index
}

// Len implements write.Table.
func (s *space) Len() uint32 { return uint32(len(s.index)) }

// Record implements write.Table.
func (s *space) Record(i uint32) (chunk.Record, error) {
	c, ok := s.im.Chunk(s.blob.Index, s.index[i])
	if !ok {
		return chunk.Record{}, fmt.Errorf("chunk %d of blob %s: %w", s.index[i], s.blob.ID, image.ErrCorrupt)
	}
	off := uint64(s.blocks[i]) * v6.BlockSize
	return chunk.Record{
		Digest: c.Digest, CompressedOffset: off, UncompressedOffset: off,
		CompressedSize: c.UncompressedSize, UncompressedSize: c.UncompressedSize,
	}, nil
}

// All implements write.Table.
func (s *space) All() iter.Seq2[chunk.Record, error] {
	return func(yield func(chunk.Record, error) bool) {
		for i := range s.Len() {
			if r, err := s.Record(i); !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (s *space) info() *write.BlobInfo {
	size := s.end * v6.BlockSize
	return &write.BlobInfo{ID: s.blob.ID, Table: s, Foreign: true, Entry: v6.BlobEntry{
		ChunkSize: s.im.Super().ChunkSize, ChunkCount: s.Len(),
		Compressor: uint32(blob.CompressorNone), Digester: uint32(s.blob.Digester),
		Features:       uint32(layout.FeatureAligned | layout.FeatureCapTarTOC),
		CompressedSize: size, UncompressedSize: size,
		CIUncompressedSize: uint64(s.Len()) * v6.ChunkInfoV1Size, CICompressedSize: uint64(s.Len()) * v6.ChunkInfoV1Size,
	}}
}

// remade is the metadata of a v5 image made anew as that of EROFS.
type remade struct {
	im     *image.Image
	spaces []*space // by the blobs of the v5 image
	blobs  []uint32 // by the same, their number in the new one
}

// remake makes the metadata of EROFS for a v5 image. What does not fit into memory
// goes to nameless files in tempDir.
func remake(ctx context.Context, im *image.Image, tempDir string) (r *remade, err error) {
	r = &remade{}
	var infos []*write.BlobInfo
	for _, b := range im.Blobs() {
		s, err := newSpace(im, b)
		if err != nil {
			return nil, err
		}
		r.spaces, infos = append(r.spaces, s), append(infos, s.info())
	}
	layer, err := rafs.Read(ctx, im, rafs.Options{
		TempDir: tempDir, Whiteouts: tree.WhiteoutNone,
		Ref: func(blobIndex, chunkIndex uint32) (chunk.Ref, error) {
			i, ok := r.spaces[blobIndex].find(chunkIndex)
			if !ok {
				return chunk.Ref{}, fmt.Errorf("chunk %d of blob %d: %w", chunkIndex, blobIndex, image.ErrCorrupt)
			}
			return chunk.Ref{Blob: blobIndex, Index: i}, nil
		},
	})
	if err != nil {
		return nil, err
	}
	t, err := tree.Merge(ctx, tempDir, layer)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	super := im.Super()
	plan, err := write.NewV6(t, infos, write.Options{
		Format:  write.Format{ChunkSize: super.ChunkSize, Compressor: blob.CompressorNone, Digester: super.Digester},
		TempDir: tempDir,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plan.Close()) }()
	r.number(infos, plan.Blobs())
	r.im, err = bootstrap(plan, tempDir)
	return r, err
}

// number notes what blobs are called in the new image.
func (r *remade) number(before, after []*write.BlobInfo) {
	r.blobs = make([]uint32, len(before))
	for i, b := range before {
		r.blobs[i] = math.MaxUint32 // no file needs it
		for j, a := range after {
			if a == b {
				r.blobs[i] = uint32(j)
			}
		}
	}
}

// bootstrap opens the image that a plan makes.
func bootstrap(plan write.Plan, tempDir string) (im *image.Image, err error) {
	f, err := os.CreateTemp(tempDir, "rafsd-export-*.boot")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	w := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(plan.Write(w), w.Flush()); err != nil {
		return nil, err
	}
	return image.Open(f.Name(), image.Options{InFile: true, TempDir: tempDir})
}

// place is the blob of the new image that has a chunk, and where in it; false if
// no file needs the blob.
func (r *remade) place(c *blob.Chunk) (blobIndex uint32, off int64, ok bool) {
	n := r.blobs[c.Blob.Index]
	i, found := r.spaces[c.Blob.Index].find(c.Index)
	if n == math.MaxUint32 || !found {
		return 0, 0, false
	}
	return n, int64(r.spaces[c.Blob.Index].blocks[i]) * v6.BlockSize, true
}
