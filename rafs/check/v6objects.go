package check

import (
	"encoding/hex"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// v6Object is the check of one blob of a v6 image: the object with the data, and
// what it, or a second object, tells of it.
type v6Object struct {
	*v6Check
	i     int
	entry *v6Blob
	data  *object // nil: not there
	meta  *object // nil: not there
	key   *xts.Key
	ci    *plainCI // nil: cannot be read
	// digests is where the digests of the chunks are in meta; 0: nowhere.
	digests uint64
	chunks  *chunkData // nil: data is not asked for
}

func (c *v6Check) checkBlobs() {
	if c.opts.Blobs == nil || c.chunks == nil {
		return
	}
	objects := make([]*v6Object, len(c.blobs))
	for i := range c.blobs {
		objects[i] = &v6Object{v6Check: c, i: i, entry: &c.blobs[i]}
		objects[i].openAll()
		defer objects[i].close()
		if c.done() {
			return
		}
	}
	if c.tarfs {
		return // there are no digests, nor anything to compare
	}
	c.eachRecord(func(b int, off uint64, _ bool, r *layout.ChunkRecord) bool {
		objects[b].record(off, r)
		return true
	})
}

func (o *v6Object) close() {
	if o.data != nil {
		o.data.Close()
	}
	if o.meta != nil && o.meta != o.data {
		o.meta.Close()
	}
	if o.ci != nil {
		o.ci.close()
	}
}

// openAll opens the objects of a blob and checks what they say about themselves.
func (o *v6Object) openAll() {
	e := o.entry
	inside := o.inside && holdsItself(layout.Features(e.Features), len(o.blobs))
	id := o.blobID(layout.Features(e.Features), e.ID)
	if inside && !e.has(layout.FeatureSeparate) {
		o.data = &object{Blob: o.whole, c: o.checker, name: "the blob"}
	} else {
		o.data = o.open(blobPlace(o.i), id)
	}
	o.meta = o.data
	if o.data != nil && !inside && e.has(layout.FeatureCapTarTOC) && uint64(o.data.Size()) != e.CompressedSize && !e.has(loose|layout.FeatureInlinedFSMeta) {
		o.fail(e.off+88, blobPlace(o.i), "%d bytes, the object has %d", e.CompressedSize, o.data.Size())
	}
	if e.has(layout.FeatureSeparate) {
		if inside {
			o.meta = &object{Blob: o.whole, c: o.checker, name: "the blob"}
		} else {
			o.meta = o.open(blobPlace(o.i), hex.EncodeToString(e.MetaDigest[:]))
		}
	}
	if e.has(layout.FeatureEncrypted) {
		var iv [16]byte
		le.PutUint64(iv[:], e.MetaSize)
		le.PutUint64(iv[8:], e.MetaReserved)
		o.key, _ = xts.NewKey(e.MetaDigest, iv) // a key of two equal halves opens nothing
	}
	if o.meta != nil && !o.tarfs && e.CIUncompressedSize > 0 && !e.members() { // an eStargz has none, whatever the table says
		o.checkSections()
		o.readCI()
	}
	if o.opts.Data && o.data != nil {
		if !inside {
			o.data.checkID(id, e.has(layout.FeatureInlinedChunkDigest|layout.FeatureInlinedFSMeta))
		}
		o.chunks = newChunkData(o.data, blob.Compressor(e.Compressor), blob.Digester(e.Digester))
		o.chunks.key = o.key
		o.openUnits()
	}
}

// info is what package unit wants to know of a blob.
func (o *v6Object) info() *blob.Info {
	e := o.entry
	return &blob.Info{
		Index: e.Index, ID: e.ID, Features: e.Features, Compressor: blob.Compressor(e.Compressor), Digester: blob.Digester(e.Digester),
		ChunkSize: e.ChunkSize, ChunkCount: e.ChunkCount, ListedChunks: e.ChunkCount,
		CompressedSize: e.CompressedSize, UncompressedSize: e.UncompressedSize,
		ChunkInfo: blob.Section{
			Compressor: blob.Compressor(e.CICompressor), Offset: e.CIOffset,
			CompressedSize: e.CICompressedSize, UncompressedSize: e.CIUncompressedSize,
		},
	}
}

func (o *v6Object) openUnits() {
	if !o.entry.has(layout.FeatureBatch|layout.FeatureZran) || o.ci == nil {
		return
	}
	t, err := unit.New(o.info(), o.ci.header[:], o.ci)
	if err != nil {
		o.fail(o.entry.CIOffset, o.meta, "%v", err)
		return
	}
	o.chunks.units = t
}

// record holds a record of the chunk table against what the blob says of the
// chunk, and against its data.
func (o *v6Object) record(off uint64, r *layout.ChunkRecord) {
	if o.ci != nil && !o.entry.has(loose) {
		o.compare(r)
	}
	if o.digests != 0 {
		var sum [32]byte
		at := o.digests + uint64(r.Index)*uint64(len(sum))
		if o.meta.bytes(sum[:], at) && sum != r.Digest {
			o.fail(at, o.meta, "chunk %d has digest %x, the bootstrap says %x", r.Index, sum, r.Digest)
		}
	}
	if o.chunks == nil || r.Digest == [32]byte{} {
		return
	}
	shared := o.entry.has(layout.FeatureZran) || o.rules(o.i).batched(r)
	switch {
	case !shared:
		o.chunks.check(r, nil)
	case o.chunks.units != nil:
		c := blob.Chunk{Index: r.Index, UncompressedOffset: r.UncompressedOffset, UncompressedSize: r.UncompressedSize}
		p, err := o.chunks.units.Find(&c)
		if err != nil {
			o.fail(o.entry.CIOffset, o.meta, "%v", err)
			return
		}
		o.chunks.check(r, &p)
	}
}

// compare holds a record against the blob's own chunk information.
func (o *v6Object) compare(r *layout.ChunkRecord) {
	v2 := o.entry.has(layout.FeatureChunkInfoV2)
	size := uint64(v6.ChunkInfoV1Size)
	if v2 {
		size = v6.ChunkInfoV2Size
	}
	var b [v6.ChunkInfoV2Size]byte
	at := uint64(r.Index) * size
	if at+size > o.entry.CIUncompressedSize {
		return // said already
	}
	if _, err := o.ci.ReadAt(b[:size], int64(at)); err != nil {
		o.err = err
		return
	}
	ci, _ := v6.DecodeChunkInfoV1(b[:])
	if v2 {
		ci, _ = v6.DecodeChunkInfoV2(b[:])
	}
	if ci.UncompressedOffset != r.UncompressedOffset || ci.UncompressedSize != r.UncompressedSize {
		o.fail(at, o.ci, "chunk %d has %d bytes at %#x uncompressed, the bootstrap says %d at %#x",
			r.Index, ci.UncompressedSize, ci.UncompressedOffset, r.UncompressedSize, r.UncompressedOffset)
	}
	if o.rules(o.i).batched(r) || o.entry.has(layout.FeatureZran) {
		return // what it takes is its unit's
	}
	if ci.CompressedOffset != r.CompressedOffset || ci.CompressedSize != r.CompressedSize {
		o.fail(at, o.ci, "chunk %d takes %d bytes at %#x, the bootstrap says %d at %#x",
			r.Index, ci.CompressedSize, ci.CompressedOffset, r.CompressedSize, r.CompressedOffset)
	}
	if c := r.Flags&layout.ChunkCompressed != 0; ci.IsCompressed(v2) != c {
		o.fail(at, o.ci, "chunk %d is compressed: %t, the bootstrap says %t", r.Index, ci.IsCompressed(v2), c)
	}
	if v2 && ci.Flags&v6.ChunkInfoHasCRC32 != 0 && r.Flags&layout.ChunkHasCRC32 != 0 && uint32(ci.Data) != r.CRC32 {
		o.fail(at, o.ci, "chunk %d has CRC %#x, the bootstrap says %#x", r.Index, uint32(ci.Data), r.CRC32)
	}
}
