package rafs

import (
	"fmt"
	"iter"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Blobs are the blobs that the images of one build refer to. Blobs with the same
// id are one, whichever image they come from. A build numbers them from 0.
type Blobs struct {
	list []*Records
	byID map[string]uint32
}

// Len is the number of blobs so far, and so the number of the next one.
func (b *Blobs) Len() uint32 { return uint32(len(b.list)) }

// Find returns the number of a blob by its id.
func (b *Blobs) Find(id string) (uint32, bool) {
	n, ok := b.byID[id]
	return n, ok
}

// Info returns what is known of a blob. Its Records are those that images use.
func (b *Blobs) Info(number uint32) (Info, *Records) {
	r := b.list[number]
	return r.info, r
}

// Info is what a bootstrap says of a blob.
type Info struct {
	ID string
	// Entry is the blob as the blob table of a v6 image has it, or would have it;
	// id and index mean nothing.
	Entry v6.BlobEntry
	// PrefetchSize is how many bytes of a v5 blob are to be read ahead.
	PrefetchSize uint32
}

// clean drops what does not apply to the blob. An image may have it all the same,
// and nobody looks at it there.
func (i *Info) clean() {
	e, f := &i.Entry, layout.Features(i.Entry.Features)
	if f&layout.FeatureHasTOC == 0 {
		e.TOCSize, e.TOCDigest = 0, [32]byte{}
	}
	if e.Cipher == 0 {
		e.MetaReserved = 0
		if f&layout.FeatureSeparate == 0 {
			e.MetaSize, e.MetaDigest = 0, [32]byte{}
		}
	}
}

// Image is one image whose blobs are known.
type Image struct {
	im      *image.Image
	blobs   *Blobs
	numbers []uint32 // of the image's blobs
}

// Add brings in the blobs of an image, which must stay open as long as any blob
// is in use. Fix, if not nil, is called for each of them and may change what the
// image says of it, or its id.
func (b *Blobs) Add(im *image.Image, fix func(*Info) error) (*Image, error) {
	infos, err := blobInfos(im)
	if err != nil {
		return nil, err
	}
	if b.byID == nil {
		b.byID = map[string]uint32{}
	}
	i := &Image{im: im, blobs: b}
	for index, info := range infos {
		if fix != nil {
			if err := fix(&info); err != nil {
				return nil, err
			}
		}
		info.clean()
		number, known := b.byID[info.ID]
		if known {
			if err := b.list[number].join(info, im, uint32(index)); err != nil {
				return nil, err
			}
		} else {
			number = b.Len()
			b.byID[info.ID] = number
			b.list = append(b.list, &Records{info: info, sources: []source{{im, uint32(index)}}})
		}
		i.numbers = append(i.numbers, number)
	}
	return i, nil
}

// Numbers are the numbers of the image's blobs by their index in the image.
func (i *Image) Numbers() []uint32 { return i.numbers }

// Ref finds the chunk of the build that a chunk of the image is. Where several
// images have the blob, they must agree on the chunk.
func (i *Image) Ref(blobIndex, chunkIndex uint32) (chunk.Ref, error) {
	ref := chunk.Ref{Blob: i.numbers[blobIndex], Index: chunkIndex}
	r := i.blobs.list[ref.Blob]
	if len(r.sources) == 1 {
		return ref, nil
	}
	mine, ok := sourceRecord(source{i.im, blobIndex}, chunkIndex)
	if !ok {
		return ref, fmt.Errorf("blob %s: no record of chunk %d", r.info.ID, chunkIndex)
	}
	first, err := r.Record(chunkIndex)
	if err != nil {
		return ref, err
	}
	if mine != first {
		return ref, fmt.Errorf("blob %s: two images contradict each other about chunk %d", r.info.ID, chunkIndex)
	}
	return ref, nil
}

// Records are what images say of the chunks of one blob. Only those chunks are
// there that an image uses.
type Records struct {
	info    Info
	sources []source
}

type source struct {
	im    *image.Image
	index uint32 // of the blob in the image
}

// join brings in another image with the same blob.
func (r *Records) join(info Info, im *image.Image, index uint32) error {
	a, b := &r.info.Entry, &info.Entry
	if a.ChunkSize != b.ChunkSize || a.Compressor != b.Compressor || a.Digester != b.Digester ||
		a.Cipher != b.Cipher || a.Cipher != 0 && a.MetaDigest != b.MetaDigest {
		return fmt.Errorf("blob %s: two images contradict each other about it: chunk size %d and %d, compressor %d and %d, digester %d and %d, cipher %d and %d",
			info.ID, a.ChunkSize, b.ChunkSize, a.Compressor, b.Compressor, a.Digester, b.Digester, a.Cipher, b.Cipher)
	}
	// A dictionary may tell less of a blob than the image that it was made from.
	if layout.Features(a.Features)&layout.FeatureChunkDictGenerated != 0 {
		r.info = info
	}
	r.sources = append(r.sources, source{im, index})
	return nil
}

// Len is how many chunks the blob has, or at least how many an image knows of.
func (r *Records) Len() uint32 {
	n := r.info.Entry.ChunkCount
	for _, s := range r.sources {
		n = max(n, s.im.Blobs()[s.index].ChunkCount)
	}
	return n
}

// Record returns what the first image that uses a chunk says of it.
func (r *Records) Record(i uint32) (chunk.Record, error) {
	for _, s := range r.sources {
		if rec, ok := sourceRecord(s, i); ok {
			return rec, nil
		}
	}
	return chunk.Record{}, fmt.Errorf("blob %s: no record of chunk %d", r.info.ID, i)
}

// All yields the records there are, in the order of the blob.
func (r *Records) All() iter.Seq2[chunk.Record, error] {
	return func(yield func(chunk.Record, error) bool) {
		for i := range r.Len() {
			if rec, err := r.Record(i); err == nil && !yield(rec, nil) {
				return
			}
		}
	}
}

func sourceRecord(s source, i uint32) (chunk.Record, bool) {
	r, ok := s.im.ChunkRecord(s.index, i)
	if !ok {
		return chunk.Record{}, false
	}
	return chunk.Record{
		Digest: r.Digest, Flags: r.Flags, CRC32: r.CRC32,
		CompressedOffset: r.CompressedOffset, UncompressedOffset: r.UncompressedOffset,
		CompressedSize: r.CompressedSize, UncompressedSize: r.UncompressedSize,
	}, true
}

// Learn makes the chunks of the image known to an index, as far as their digests
// are by digester and their bytes are in a blob like any other.
func (i *Image) Learn(index *chunk.Index, digester blob.Digester) error {
	const apart = layout.FeatureTarfs | layout.FeatureExternal
	for n, b := range i.im.Blobs() {
		if b.Digester != digester || layout.Features(b.Features)&apart != 0 {
			continue
		}
		for c := range i.im.BlobChunks(uint32(n)) {
			ref, err := i.Ref(uint32(n), c.Index)
			if err != nil {
				return err
			}
			if err := index.Add(c.Digest, c.UncompressedSize, ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// blobInfos decodes the blob table of an image, which has been checked.
func blobInfos(im *image.Image) ([]Info, error) {
	var infos []Info
	for i, b := range im.Blobs() {
		info := Info{ID: b.ID, PrefetchSize: b.PrefetchSize}
		if im.Super().Version == 6 {
			e, err := entryV6(im, i)
			if err != nil {
				return nil, fmt.Errorf("blob %d: %w", i, err)
			}
			info.Entry = e
		} else {
			info.Entry = v6.BlobEntry{
				ChunkSize: b.ChunkSize, ChunkCount: b.ChunkCount, Features: b.Features &^ uint32(layout.FeatureV5NoExtBlobTable),
				Compressor: uint32(b.Compressor), Digester: uint32(b.Digester),
				CompressedSize: b.CompressedSize, UncompressedSize: b.UncompressedSize,
			}
			if b.UncompressedSize == 0 { // old images do not say
				for c := range im.BlobChunks(uint32(i)) {
					info.Entry.UncompressedSize = max(info.Entry.UncompressedSize, c.UncompressedOffset+uint64(c.UncompressedSize))
				}
			}
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func entryV6(im *image.Image, i int) (v6.BlobEntry, error) {
	data := im.Bytes()
	ext, err := v6.DecodeExtSuper(data[v6.ExtSuperOffset:])
	if err != nil {
		return v6.BlobEntry{}, err
	}
	return v6.DecodeBlobEntry(data[ext.BlobTableOffset+uint64(i)*v6.BlobEntrySize:])
}
