package write

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// records is a table of chunks in memory.
type records []chunk.Record

func (r records) Len() uint32                           { return uint32(len(r)) }
func (r records) Record(i uint32) (chunk.Record, error) { return r[i], nil }
func (r records) All() iter.Seq2[chunk.Record, error] {
	return func(yield func(chunk.Record, error) bool) {
		for i := range r {
			if !yield(r[i], nil) {
				return
			}
		}
	}
}

// rawContexts are contexts with their dictionaries as a blob has them.
type rawContexts struct {
	count uint32
	bytes []byte
}

func (c rawContexts) Count() uint32 { return c.count }
func (c rawContexts) Size() uint64  { return uint64(len(c.bytes)) }
func (c rawContexts) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.bytes)
	return int64(n), err
}

// parts is what a blob with tables consists of.
type parts struct {
	Data      []byte
	CI        []byte // as it was before compression and encryption
	Header    v6.MetaHeader
	Digests   []byte
	Bootstrap []byte
	TOC       []v6.TOCEntry
}

// dissect takes a blob apart by its tar headers, or without these by what the
// blob table says of it. Sizes of what is compressed are left out of the result.
func dissect(t testing.TB, object []byte, e *v6.BlobEntry) *parts {
	t.Helper()
	p := &parts{}
	sections := map[string][]byte{}
	if layout.Features(e.Features)&layout.FeatureHasTarHeader != 0 {
		for end := len(object); end > 0; {
			h, err := v6.DecodeTarHeader(object[end-v6.TarHeaderSize:])
			if err != nil {
				t.Fatalf("tar header before %d: %v", end, err)
			}
			end -= v6.TarHeaderSize
			sections[h.Name] = object[end-int(h.Size) : end]
			end -= int(h.Size)
		}
	} else {
		sections[v6.SectionData] = object[:e.CIOffset]
		sections[v6.SectionMeta] = object[e.CIOffset:]
	}
	p.Data, p.Digests = sections[v6.SectionData], sections[v6.SectionChunkDigest]
	if meta := sections[v6.SectionMeta]; e.ChunkCount > 0 {
		p.CI, p.Header = plainCI(t, meta, e)
	}
	if toc, ok := sections[v6.SectionTOC]; ok {
		var err error
		if p.TOC, err = v6.DecodeTOC(toc); err != nil {
			t.Fatal(err)
		}
		if boot, ok := sections[v6.SectionBootstrap]; ok {
			p.Bootstrap = unzstd(t, boot)
		}
		for i := range p.TOC {
			p.TOC[i].CompressedOffset, p.TOC[i].CompressedSize = 0, 0
			if p.TOC[i].Name == v6.SectionMetaHeader { // which has a size
				p.TOC[i].Digest = [32]byte{}
			}
		}
	} else {
		p.Bootstrap = sections[v6.SectionBootstrap]
	}
	return p
}

// plainCI decrypts and decompresses chunk information and its header.
func plainCI(t testing.TB, meta []byte, e *v6.BlobEntry) ([]byte, v6.MetaHeader) {
	t.Helper()
	ci, head := meta[:e.CICompressedSize], meta[e.CICompressedSize:]
	if e.Cipher != 0 {
		key := keyOf(t, e)
		var err error
		if ci, err = key.Decrypt(nil, ci); err != nil {
			t.Fatal(err)
		}
		if head, err = key.Decrypt(nil, head); err != nil {
			t.Fatal(err)
		}
	}
	h, err := v6.DecodeMetaHeader(head)
	if err != nil {
		t.Fatal(err)
	}
	if h.CICompressedSize != e.CICompressedSize || h.CIOffset != e.CIOffset || h.CIUncompressedSize != e.CIUncompressedSize ||
		h.Entries != e.ChunkCount || h.CICompressor != e.CICompressor {
		t.Errorf("header %+v does not agree with the blob table: %+v", h, e)
	}
	h.CICompressedSize = 0
	plain := make([]byte, e.CIUncompressedSize)
	if err := codec.Decode(blob.Compressor(e.CICompressor), plain, ci); err != nil {
		t.Fatal(err)
	}
	return plain, h
}

func cipherOf(e *v6.BlobEntry) *Cipher {
	if e.Cipher == 0 {
		return nil
	}
	c := &Cipher{Key: e.MetaDigest}
	binary.LittleEndian.PutUint64(c.IV[:8], e.MetaSize)
	binary.LittleEndian.PutUint64(c.IV[8:], e.MetaReserved)
	return c
}

func keyOf(t testing.TB, e *v6.BlobEntry) *xts.Key {
	t.Helper()
	c := cipherOf(e)
	key, err := xts.NewKey(c.Key, c.IV)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// nydusBlob is a blob that nydus-image wrote.
type nydusBlob struct {
	id     string
	entry  v6.BlobEntry
	object []byte // with the tables
	parts  *parts
}

func nydusFile(t testing.TB, name ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{testenv.Fixtures(t), "nydus-made"}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// nydusBlobs reads all blobs of a v6 image.
func nydusBlobs(t testing.TB, name string) []nydusBlob {
	t.Helper()
	var out struct{ Blobs []string }
	if err := json.Unmarshal(nydusFile(t, "images", name, "output.json"), &out); err != nil {
		t.Fatal(err)
	}
	var blobs []nydusBlob
	for i, id := range out.Blobs {
		b := nydusBlob{id: id}
		var boot []byte
		if _, err := os.Stat(filepath.Join(testenv.Fixtures(t), "nydus-made", "images", name, "image.boot")); err == nil {
			boot = nydusFile(t, "images", name, "image.boot")
		} else {
			boot = dissect(t, nydusFile(t, "blobs", id), &v6.BlobEntry{Features: uint32(layout.FeatureHasTarHeader)}).Bootstrap
		}
		ext, err := v6.DecodeExtSuper(boot[v6.ExtSuperOffset:])
		if err != nil {
			t.Fatal(err)
		}
		if b.entry, err = v6.DecodeBlobEntry(boot[int(ext.BlobTableOffset)+i*v6.BlobEntrySize:]); err != nil {
			t.Fatal(err)
		}
		if layout.Features(b.entry.Features)&layout.FeatureSeparate != 0 {
			id = hex.EncodeToString(b.entry.MetaDigest[:])
		}
		b.object = nydusFile(t, "blobs", id)
		b.parts = dissect(t, b.object, &b.entry)
		blobs = append(blobs, b)
	}
	return blobs
}

// options are those that nydus-image was given.
func (b *nydusBlob) options() BlobOptions {
	f := layout.Features(b.entry.Features)
	o := BlobOptions{
		Format: Format{ChunkSize: b.entry.ChunkSize, Compressor: blob.Compressor(b.entry.Compressor), Digester: blob.Digester(b.entry.Digester)},
		TOC:    f&layout.FeatureHasTOC != 0, InlineMeta: f&layout.FeatureInlinedFSMeta != 0, Separate: f&layout.FeatureSeparate != 0,
		Batch: f&layout.FeatureBatch != 0, Zran: f&layout.FeatureZran != 0,
	}
	o.Cipher = cipherOf(&b.entry)
	return o
}

// contents are the chunks and contexts, from the blob's own tables.
func (b *nydusBlob) contents(t testing.TB) Contents {
	t.Helper()
	var c Contents
	var table records
	f := layout.Features(b.entry.Features)
	ci := b.parts.CI
	for i := range b.entry.ChunkCount {
		var x v6.ChunkInfo
		var r chunk.Record
		var err error
		if f&layout.FeatureChunkInfoV2 != 0 {
			x, err = v6.DecodeChunkInfoV2(ci)
			ci = ci[v6.ChunkInfoV2Size:]
			for from, to := range map[uint8]uint32{v6.ChunkInfoCompressed: layout.ChunkCompressed, v6.ChunkInfoEncrypted: layout.ChunkEncrypted,
				v6.ChunkInfoBatch: layout.ChunkBatch, v6.ChunkInfoHasCRC32: layout.ChunkHasCRC32} {
				if x.Flags&from != 0 {
					r.Flags |= to
				}
			}
			if x.Flags&v6.ChunkInfoHasCRC32 != 0 {
				r.CRC32 = uint32(x.Data)
			} else {
				r.Unit, r.UnitOffset = v6.ZranPlace(x.Data)
			}
		} else {
			x, err = v6.DecodeChunkInfoV1(ci)
			ci = ci[v6.ChunkInfoV1Size:]
		}
		if err != nil {
			t.Fatal(err)
		}
		r.CompressedOffset, r.CompressedSize = x.CompressedOffset, x.CompressedSize
		r.UncompressedOffset, r.UncompressedSize = x.UncompressedOffset, x.UncompressedSize
		if len(b.parts.Digests) > 0 {
			r.Digest = blob.Digest(b.parts.Digests[32*i:])
		}
		table = append(table, r)
	}
	c.Table = table
	if len(ci) > 0 {
		c.Contexts = rawContexts{b.parts.Header.ZranCount, ci}
	}
	if f&layout.FeatureSeparate != 0 {
		c.Data = Object{ID: b.id, Size: int64(b.entry.CompressedSize)}
	}
	return c
}

// What nydus-image wrote, written again from what it consists of, is the same:
// section by section, and byte by byte where no compressor has a say.
func TestNydusBlobsWrittenAgain(t *testing.T) {
	for _, name := range []string{
		"v6-none-blake3", "v6-zstd-sha256", "v6-lz4_block-blake3", "v6-blob-toc", "v6-inline-meta", "v6-inline-meta-toc",
		"v6-batch-1m", "v6-batch-64k-lz4", "v6-encrypt", "v6-inline-encrypt-toc", "v6-layers-toc", "v6-layers-batch",
		"v6-layers-encrypt", "v6-targz-ref", "v6-chunk-4k", "v6-chunk-16m", "v6-bigdir",
	} {
		t.Run(name, func(t *testing.T) {
			for _, b := range nydusBlobs(t, name) {
				rewrite(t, &b)
			}
		})
	}
}

func rewrite(t *testing.T, b *nydusBlob) {
	o := b.options()
	var out bytes.Buffer
	w, err := NewBlob(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b.parts.Data); err != nil {
		t.Fatal(err)
	}
	c := b.contents(t)
	var inside *v6.BlobEntry
	if o.InlineMeta {
		c.Bootstrap = func(w io.Writer, info *BlobInfo) error {
			e := info.Entry
			e.ID = info.ID
			inside = &e
			_, err := w.Write(b.parts.Bootstrap)
			return err
		}
	}
	info, err := w.Finish(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := sha256.Sum256(out.Bytes()); hex.EncodeToString(got[:]) != info.Object.ID || info.Object.Size != int64(out.Len()) {
		t.Errorf("object %+v, wrote %d bytes with sha256 %x", info.Object, out.Len(), got)
	}
	if diff := cmp.Diff(b.parts, dissect(t, out.Bytes(), &info.Entry), cmp.Comparer(bytes.Equal)); diff != "" {
		t.Errorf("parts differ (-nydus +got):\n%s", diff)
	}
	if o.Compressor == blob.CompressorNone && !bytes.Equal(out.Bytes(), b.object) {
		t.Errorf("bytes differ")
	}
	if !o.Separate && info.ID != info.Object.ID {
		t.Errorf("blob %s is not named by its sha256 %s", info.ID, info.Object.ID)
	}
	if inside == nil {
		inside = &info.Entry
		inside.ID = b.entry.ID
	}
	want := b.entry
	dropSizes(&want)
	dropSizes(inside)
	if diff := cmp.Diff(want, *inside); diff != "" {
		t.Errorf("entry of the blob table (-nydus +got):\n%s", diff)
	}
}

// dropSizes leaves out of an entry what depends on how well something compresses.
func dropSizes(e *v6.BlobEntry) {
	f := layout.Features(e.Features)
	if f&layout.FeatureSeparate != 0 {
		e.MetaDigest, e.MetaSize = [32]byte{}, 0
	} else {
		e.CompressedSize = 0
	}
	e.CICompressedSize, e.TOCDigest, e.Index = 0, [32]byte{}, 0
}

func TestV5BlobWrittenAgain(t *testing.T) {
	const id = "4f34e3eb2003a8309db68a1e474ab71b103e153d7031d3118c9ba0cb64448a14"
	object := nydusFile(t, "blobs", id)
	p := dissect(t, object, &v6.BlobEntry{Features: uint32(layout.FeatureHasTarHeader)})
	super, err := v5.DecodeSuper(p.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	want, err := v5.DecodeExtBlobEntry(p.Bootstrap[super.ExtBlobTableOffset:])
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := NewBlob(&out, BlobOptions{Format: zstdBlake3, Version: 5, InlineMeta: true, Packed: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p.Data); err != nil {
		t.Fatal(err)
	}
	table := make(records, want.ChunkCount)
	table[want.ChunkCount-1] = chunk.Record{UncompressedOffset: want.UncompressedSize - 100, UncompressedSize: 100}
	info, err := w.Finish(Contents{Table: table, Bootstrap: func(w io.Writer, info *BlobInfo) error {
		if got := extBlobEntry(info); got != want || info.ID != UnknownID {
			t.Errorf("blob inside: %s %+v, want %+v", info.ID, got, want)
		}
		_, err := w.Write(p.Bootstrap)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), object) || info.ID != id {
		t.Errorf("blob %s of %d bytes, want %s of %d", info.ID, out.Len(), id, len(object))
	}
	if e := extBlobEntry(info); e.CompressedSize != uint64(len(object)) || layout.Features(e.Features) != layout.FeatureCapTarTOC|layout.FeatureHasTarHeader {
		t.Errorf("finished: %+v", e)
	}
}
