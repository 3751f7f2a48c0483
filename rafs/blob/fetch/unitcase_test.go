package fetch_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// objects is a backend of several objects in memory.
type objects map[string]*source

func (o objects) Close() error { return nil }
func (o objects) Open(id string) (backend.Reader, error) {
	if s := o[id]; s != nil {
		return s, nil
	}
	return &source{before: func(context.Context, []byte, int64) (bool, error) { return false, backend.ErrNotFound }}, nil
}

func (o objects) requests() (n int32) {
	for _, s := range o {
		n += s.requests.Load()
	}
	return n
}

// unitImage is an image of one blob whose chunks lie in units, or are encrypted,
// or both.
type unitImage struct {
	image
	objects map[string][]byte
	// file is what a bootstrap layer carries of the blob.
	file []byte
	// units has the chunks of each; ci is where chunk information lies.
	units  [][]int
	ci     blob.Section
	key    *xts.Key
	infos  []v6.ChunkInfo
	tables []byte // contexts and dictionaries
	count  uint32 // of contexts
}

var unitKinds = []string{"batch", "batch-encrypted", "batch-toc", "encrypted", "zran"}

// newUnitImage makes an image of a kind: units of chunks of these sizes. A batch of
// one chunk is none.
func newUnitImage(t testing.TB, kind string, units ...[]int) *unitImage {
	t.Helper()
	im := &unitImage{units: make([][]int, len(units))}
	im.info = &blob.Info{
		ID: strings.Repeat("5a", 32), MetaID: strings.Repeat("5a", 32), Compressor: blob.CompressorLZ4Block,
		Features: uint32(layout.FeatureAligned | layout.FeatureChunkInfoV2), ChunkSize: 1 << 20,
	}
	if strings.Contains(kind, "encrypted") {
		im.info.Cipher, im.info.Key = blob.CipherAES128XTS, blob.Key{XTS: [32]byte{1, 31: 2}, IV: [16]byte{3}}
		im.info.Features |= uint32(layout.FeatureEncrypted)
		im.key = encryptionKey(t, im.info)
	}
	r, at := rand.New(rand.NewPCG(uint64(len(units)), 7)), uint64(0)
	for u, sizes := range units {
		for _, n := range sizes {
			p := make([]byte, n)
			for j := range p {
				p[j] = 'a' + byte(r.Uint32())&3
			}
			im.units[u] = append(im.units[u], len(im.plain))
			im.plain = append(im.plain, p)
			im.chunks = append(im.chunks, blob.Chunk{
				Blob: im.info, Index: uint32(len(im.chunks)), Encrypted: im.key != nil,
				UncompressedOffset: at, UncompressedSize: uint32(n), Digest: im.info.Digester.Sum(p),
			})
			at += uint64(n+4095) &^ 4095
		}
	}
	im.info.ChunkCount, im.info.ListedChunks, im.info.UncompressedSize = uint32(len(im.chunks)), uint32(len(im.chunks)), at
	im.infos = make([]v6.ChunkInfo, len(im.chunks))
	for i, c := range im.chunks {
		im.infos[i].UncompressedOffset, im.infos[i].UncompressedSize = c.UncompressedOffset, c.UncompressedSize
	}
	if kind == "zran" {
		im.addZran(t)
	} else {
		im.addBatches(t, strings.HasPrefix(kind, "batch"))
	}
	im.addMeta(t, kind)
	return im
}

func encryptionKey(t testing.TB, info *blob.Info) *xts.Key {
	t.Helper()
	k, err := xts.NewKey(info.Key.XTS, info.Key.IV)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// store appends what was compressed to the blob, encrypted if it is to be.
func (im *unitImage) store(p []byte) (off uint64, size uint32) {
	if im.key != nil {
		p = im.key.Encrypt(nil, p)
	}
	off = uint64(len(im.raw))
	im.raw = append(im.raw, p...)
	return off, uint32(len(p))
}

func (im *unitImage) encode(t testing.TB, p []byte) ([]byte, bool) {
	t.Helper()
	out, compressed, err := codec.Encode(im.info.Compressor, nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return out, compressed
}

// addBatches makes a batch of every unit of several chunks; all else is chunks of
// their own.
func (im *unitImage) addBatches(t testing.TB, batches bool) {
	if batches {
		im.info.Features |= uint32(layout.FeatureBatch)
	}
	for u, chunks := range im.units {
		if batches && len(chunks) > 1 {
			im.addBatch(t, chunks)
			continue
		}
		im.units[u] = nil
		for _, i := range chunks {
			c := &im.chunks[i]
			out, compressed := im.encode(t, im.plain[i])
			c.Compressed = compressed
			c.CompressedOffset, c.CompressedSize = im.store(out)
			im.infos[i].CompressedOffset, im.infos[i].CompressedSize = c.CompressedOffset, c.CompressedSize
		}
	}
}

func (im *unitImage) addBatch(t testing.TB, chunks []int) {
	var plain []byte
	for _, i := range chunks {
		im.chunks[i].Shared = true
		im.infos[i].Flags, im.infos[i].Data = v6.ChunkInfoBatch|v6.ChunkInfoCompressed, v6.ZranData(im.count, uint32(len(plain)))
		plain = append(plain, im.plain[i]...)
	}
	out, _ := im.encode(t, plain)
	off, size := im.store(out)
	for _, i := range chunks {
		im.infos[i].CompressedOffset = off
	}
	im.tables = (&v6.BatchContext{CompressedSize: size, UncompressedSize: uint32(len(plain))}).Append(im.tables)
	im.count++
}

// addZran makes a gzip stream of the chunks with a context for each unit, at a
// flush, and something between chunks as a tar file has.
func (im *unitImage) addZran(t testing.TB) {
	im.info.Compressor = blob.CompressorGzip
	im.info.Features |= uint32(layout.FeatureZran | layout.FeatureSeparate)
	var out bytes.Buffer
	var plain, dicts []byte
	z := gzip.NewWriter(&out)
	write := func(p []byte) {
		plain = append(plain, p...)
		if _, err := z.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("something before"))
	for u, chunks := range im.units {
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
		dict := plain[max(0, len(plain)-v6.MaxZranDict):]
		c := v6.ZranContext{InOffset: uint64(out.Len()), OutOffset: uint64(len(plain)), DictOffset: uint64(len(dicts)), DictSize: uint32(len(dict))}
		dicts = append(dicts, dict...)
		for _, i := range chunks {
			im.chunks[i].Shared, im.chunks[i].Compressed = true, true
			im.infos[i].Flags, im.infos[i].Data = v6.ChunkInfoZran|v6.ChunkInfoCompressed, v6.ZranData(uint32(u), uint32(uint64(len(plain))-c.OutOffset))
			write(im.plain[i])
			write([]byte("a header"))
		}
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
		c.InLen, c.OutLen = uint32(uint64(out.Len())-c.InOffset), uint32(uint64(len(plain))-c.OutOffset)
		im.tables = c.Append(im.tables)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	im.raw, im.tables, im.count = out.Bytes(), append(im.tables, dicts...), uint32(len(im.units))
	sum := sha256.Sum256(im.raw)
	im.info.ID = hex.EncodeToString(sum[:])
}

// addMeta makes the chunk information, behind the data or in an object of its own.
func (im *unitImage) addMeta(t testing.TB, kind string) {
	t.Helper()
	var plain []byte
	for i := range im.infos {
		var err error
		if plain, err = im.infos[i].AppendV2(plain); err != nil {
			t.Fatal(err)
		}
	}
	contexts := uint64(len(plain))
	plain = append(plain, im.tables...)
	meta, im2 := im.raw, im.info
	if kind == "zran" {
		meta, im2.CompressedSize = nil, uint64(len(im.raw))
	}
	how := blob.CompressorLZ4Block
	if kind == "batch-zstd" {
		how = blob.CompressorZstd
	}
	if strings.HasSuffix(kind, "raw") {
		how = blob.CompressorNone
	}
	ci, _, err := codec.Encode(how, nil, plain)
	if how == blob.CompressorNone {
		ci, err = plain, nil // of any size
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(ci) == len(plain) {
		how = blob.CompressorNone
	}
	if im.key != nil {
		ci = im.key.Encrypt(nil, ci)
	}
	im2.ChunkInfo = blob.Section{Compressor: how, Offset: uint64(len(meta)), CompressedSize: uint64(len(ci)), UncompressedSize: uint64(len(plain))}
	h := v6.MetaHeader{
		Entries: im2.ListedChunks, CICompressor: uint32(how), CIOffset: im2.ChunkInfo.Offset, CICompressedSize: uint64(len(ci)),
		CIUncompressedSize: uint64(len(plain)), ZranOffset: contexts, ZranSize: uint64(len(im.tables)), ZranCount: im.count,
	}
	header := h.Append(nil)
	im.file = append(append(bytes.Clone(plain), make([]byte, -len(plain)&4095)...), header...)
	if im.key != nil {
		header = im.key.Encrypt(nil, header)
	}
	meta = append(append(bytes.Clone(meta), ci...), header...)
	if kind == "batch-toc" {
		meta = im.addTOC(meta, plain, h.Append(nil))
	}
	im.ci = im2.ChunkInfo
	if kind == "zran" {
		sum := sha256.Sum256(meta)
		im2.MetaID, im2.MetaSize = hex.EncodeToString(sum[:]), uint64(len(meta))
		im.objects = map[string][]byte{im2.ID: im.raw, im2.MetaID: meta}
		return
	}
	im2.CompressedSize = uint64(len(meta))
	im.objects = map[string][]byte{im2.ID: meta}
}

func (im *unitImage) addTOC(object, ci, header []byte) []byte {
	var toc []byte
	for _, e := range []v6.TOCEntry{
		{Name: v6.SectionMeta, Digest: sha256.Sum256(ci)}, {Name: v6.SectionMetaHeader, Digest: sha256.Sum256(header)},
	} {
		toc = e.Append(toc)
	}
	toc = (&v6.TarHeader{Name: v6.SectionTOC, Size: uint64(len(toc))}).Append(toc)
	im.info.TOCDigest, im.info.TOCSize = sha256.Sum256(toc), uint32(len(toc))
	return append(object, toc...)
}

// backend serves the image's objects.
func (im *unitImage) backend() objects {
	o := objects{}
	for id, data := range im.objects {
		o[id] = &source{data: data}
	}
	return o
}

// engine makes an engine over the image; without a backend over its own.
func (im *unitImage) engine(t testing.TB, o fetch.Options) *fetch.Engine {
	t.Helper()
	if o.Backend == nil {
		o.Backend = im.backend()
	}
	return engine(t, &im.image, o)
}

// readEach reads chunk after chunk and counts those that fail; what does not fail
// must be right.
func (im *unitImage) readEach(t testing.TB, e *fetch.Engine, failed func(i int, err error)) {
	t.Helper()
	for i := range im.chunks {
		segs, want := im.whole(i, i+1)
		if err := read(t, t.Context(), e, segs, want); err != nil {
			failed(i, fmt.Errorf("chunk %d: %w", i, err))
		}
	}
}
