package unit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/codec/unit"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	v6 "github.com/rafsd/rafsd/rafs/layout/v6"
)

// sample is a blob of two batches, with a chunk of its own between them.
type sample struct {
	info   *blob.Info
	chunks []blob.Chunk
	header v6.MetaHeader
	ci     []byte
	raw    []byte
	units  [][]byte
}

func newSample(t testing.TB) *sample {
	t.Helper()
	s := &sample{info: &blob.Info{ID: "blob", Compressor: blob.CompressorLZ4Block,
		Features: uint32(layout.FeatureBatch | layout.FeatureChunkInfoV2 | layout.FeatureAligned)}}
	var infos []v6.ChunkInfo
	var contexts []byte
	at := uint64(0)
	for n, sizes := range [][]uint32{{100, 5000, 1}, {9}, {4096, 77}} {
		start := uint64(len(s.raw))
		var plain []byte
		for _, size := range sizes {
			i := v6.ChunkInfo{UncompressedOffset: at, CompressedOffset: start, UncompressedSize: size, CompressedSize: size}
			if n != 1 {
				i.CompressedSize, i.Flags = 0, v6.ChunkInfoCompressed|v6.ChunkInfoBatch
				i.Data = v6.ZranData(uint32(n/2), uint32(len(plain)))
			}
			s.chunks = append(s.chunks, blob.Chunk{Blob: s.info, Index: uint32(len(infos)), Shared: n != 1, UncompressedOffset: at, UncompressedSize: size})
			infos = append(infos, i)
			plain = append(plain, bytes.Repeat([]byte{byte(len(infos))}, int(size))...)
			at += uint64(size+4095) &^ 4095
		}
		out := plain
		if n != 1 {
			var err error
			if out, _, err = codec.Encode(s.info.Compressor, nil, plain); err != nil {
				t.Fatal(err)
			}
			contexts = (&v6.BatchContext{CompressedSize: uint32(len(out)), UncompressedSize: uint32(len(plain))}).Append(contexts)
			s.units = append(s.units, plain)
		}
		s.raw = append(s.raw, out...)
	}
	for i := range infos {
		var err error
		if s.ci, err = infos[i].AppendV2(s.ci); err != nil {
			t.Fatal(err)
		}
	}
	s.header = v6.MetaHeader{Entries: uint32(len(infos)), ZranOffset: uint64(len(s.ci)), ZranSize: uint64(len(contexts)), ZranCount: 2}
	s.ci = append(s.ci, contexts...)
	s.info.ChunkCount, s.info.ListedChunks = uint32(len(infos)), uint32(len(infos))
	s.info.CompressedSize, s.info.UncompressedSize = uint64(len(s.raw)), at
	s.info.ChunkInfo = blob.Section{Offset: uint64(len(s.raw)), CompressedSize: uint64(len(s.ci)), UncompressedSize: uint64(len(s.ci))}
	s.header.CIOffset, s.header.CICompressedSize, s.header.CIUncompressedSize = uint64(len(s.raw)), uint64(len(s.ci)), uint64(len(s.ci))
	return s
}

func (s *sample) table() (*unit.Table, error) {
	return unit.New(s.info, s.header.Append(nil), bytes.NewReader(s.ci))
}

// A unit that promises more than its bytes can decode to is refused before anybody
// makes room for it.
func TestPromises(t *testing.T) {
	s := newSample(t)
	at := s.header.ZranOffset
	c, err := v6.DecodeBatchContext(s.ci[at:])
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []uint32{c.UncompressedSize, (c.CompressedSize + 1) * 256, (c.CompressedSize+1)*256 + 1, blob.MaxUnitSize} {
		c.UncompressedSize = out
		copy(s.ci[at:], c.Append(nil))
		table, err := s.table()
		if err != nil {
			t.Fatal(err)
		}
		want := out <= (c.CompressedSize+1)*256
		if _, err := table.Find(&s.chunks[0]); (err == nil) != want || !want && !errors.Is(err, blob.ErrCorrupt) {
			t.Errorf("%d bytes from %d: %v", out, c.CompressedSize, err)
		}
	}
}

// nydus-image keeps contexts of a gzip stream that no chunk is in: then there may be
// more of them than chunks. Of a batch there is always a chunk.
func TestSpareContexts(t *testing.T) {
	for feature, want := range map[layout.Features]bool{layout.FeatureZran: true, layout.FeatureBatch: false} {
		s := newSample(t)
		const spare = 2000
		s.ci = append(s.ci, make([]byte, spare*v6.ZranContextSize)...)
		s.header.ZranCount, s.header.ZranSize = s.header.ZranCount+spare, s.header.ZranSize+spare*v6.ZranContextSize
		s.header.CICompressedSize, s.header.CIUncompressedSize = uint64(len(s.ci)), uint64(len(s.ci))
		s.info.ChunkInfo.CompressedSize, s.info.ChunkInfo.UncompressedSize = uint64(len(s.ci)), uint64(len(s.ci))
		s.info.Features = uint32(feature | layout.FeatureChunkInfoV2 | layout.FeatureAligned)
		if _, err := s.table(); (err == nil) != want {
			t.Errorf("%d contexts more than chunks with features %s: %v", spare, feature, err)
		}
	}
}

func TestBatch(t *testing.T) {
	s := newSample(t)
	table, err := s.table()
	if err != nil {
		t.Fatal(err)
	}
	wantUnit, off := []uint32{0, 0, 0, 9, 1, 1}, []uint32{0, 100, 5100, 0, 0, 4096}
	for i := range s.chunks {
		p, err := table.Find(&s.chunks[i])
		if i == 3 {
			if !errors.Is(err, blob.ErrCorrupt) {
				t.Errorf("chunk of its own: %+v, %v, want %v", p, err, blob.ErrCorrupt)
			}
			continue
		}
		if err != nil || p.Unit.Number != wantUnit[i] || p.Offset != off[i] {
			t.Fatalf("chunk %d: %+v, %v, want unit %d, offset %d", i, p, err, wantUnit[i], off[i])
		}
		dst := make([]byte, p.Unit.OutSize)
		if err := table.Decode(&p.Unit, dst, s.raw[p.Unit.Offset:][:p.Unit.Size]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst, s.units[p.Unit.Number]) {
			t.Errorf("unit %d: wrong bytes", p.Unit.Number)
		}
	}
	for chunk, want := range map[int][]uint32{0: {1, 2}, 1: {2, 0}, 2: {1, 0}, 4: {5}, 5: {4}} {
		p, err := table.Find(&s.chunks[chunk])
		if err != nil {
			t.Fatal(err)
		}
		var got []uint32
		table.Neighbours(&p.Unit, uint32(chunk), func(i uint32) bool { got = append(got, i); return true })
		if len(got) != len(want) || len(got) > 0 && !bytes.Equal(bytes32(got), bytes32(want)) {
			t.Errorf("neighbours of chunk %d: %v, want %v", chunk, got, want)
		}
	}
}

// panicking is chunk information whose reader gives up.
type panicking struct{ *bytes.Reader }

func (panicking) ReadAt([]byte, int64) (int, error) { panic("no") }

func TestADecoderThatPanicsIsAnError(t *testing.T) {
	s := newSample(t)
	s.info.Features = uint32(layout.FeatureZran | layout.FeatureChunkInfoV2)
	table, err := unit.New(s.info, s.header.Append(nil), panicking{})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Decode(&unit.Unit{Size: 1, OutSize: 1}, make([]byte, 1), []byte{0}); !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("got %v, want %v", err, blob.ErrCorrupt)
	}
}

func bytes32(v []uint32) (b []byte) {
	for _, n := range v {
		b = append(b, byte(n))
	}
	return b
}

func TestHeaderMustAgree(t *testing.T) {
	for name, spoil := range map[string]func(*sample){
		"entries":            func(s *sample) { s.header.Entries-- },
		"compressor":         func(s *sample) { s.header.CICompressor = 3 },
		"offset":             func(s *sample) { s.header.CIOffset++ },
		"compressed size":    func(s *sample) { s.header.CICompressedSize-- },
		"uncompressed size":  func(s *sample) { s.header.CIUncompressedSize++ },
		"contexts elsewhere": func(s *sample) { s.header.ZranOffset -= 24 },
		"contexts overflow":  func(s *sample) { s.header.ZranSize = 1<<64 - 1 },
		"contexts too long":  func(s *sample) { s.header.ZranSize += 40 },
		"too many contexts":  func(s *sample) { s.header.ZranCount = 3 },
		"more than chunks":   func(s *sample) { s.header.ZranCount = 7 },
		"no such feature":    func(s *sample) { s.info.Features &^= uint32(layout.FeatureBatch) },
		"too short":          func(s *sample) { s.info.ChunkInfo.UncompressedSize = 100 },
		"too long":           func(s *sample) { s.info.ChunkInfo.UncompressedSize = 1 << 40 },
		"nothing":            func(s *sample) { s.info.ChunkInfo.CompressedSize = 0 },
	} {
		s := newSample(t)
		spoil(s)
		if _, err := s.table(); !errors.Is(err, blob.ErrCorrupt) {
			t.Errorf("%s: got %v, want %v", name, err, blob.ErrCorrupt)
		}
	}
	s := newSample(t)
	h := s.header.Append(nil)
	h[0] ^= 1
	if _, err := unit.New(s.info, h, bytes.NewReader(s.ci)); !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("magic: got %v, want %v", err, blob.ErrCorrupt)
	}
	s = newSample(t)
	table, err := unit.New(s.info, s.header.Append(nil), bytes.NewReader(s.ci[:len(s.ci)-1]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Find(&s.chunks[5]); !errors.Is(err, blob.ErrCorrupt) {
		t.Errorf("cut: got %v, want %v", err, blob.ErrCorrupt)
	}
}

// TestFixtures finds and decodes every chunk of the images that nydus-image made.
func TestFixtures(t *testing.T) {
	made := filepath.Join(testenv.Fixtures(t), "nydus-made")
	for _, name := range []string{"v6-batch-1m", "v6-batch-64k-lz4", "v6-layers-batch", "v6-targz-ref"} {
		im, err := image.Open(filepath.Join(made, "images", name, "image.boot"), image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		found := 0
		for _, info := range im.Blobs() {
			ci, header := chunkInfo(t, filepath.Join(made, "blobs"), info)
			table, err := unit.New(info, header, bytes.NewReader(ci))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(made, "blobs", info.ID))
			if err != nil {
				t.Fatal(err)
			}
			decoded := map[unit.Unit][]byte{}
			for i := range info.ChunkCount {
				c, ok := im.Chunk(info.Index, i)
				if !ok || !c.Shared {
					continue
				}
				p, err := table.Find(&c)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				dst := decoded[p.Unit]
				if dst == nil {
					dst = make([]byte, p.Unit.OutSize)
					if err := table.Decode(&p.Unit, dst, raw[p.Unit.Offset:][:p.Unit.Size]); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					decoded[p.Unit] = dst
				}
				if got := info.Digester.Sum(dst[p.Offset:][:c.UncompressedSize]); got != c.Digest {
					t.Errorf("%s: chunk %d has digest %v, want %v", name, i, got, c.Digest)
				}
				found++
			}
		}
		if found == 0 {
			t.Errorf("%s: no chunk shares a unit", name)
		}
	}
}

// chunkInfo reads what a blob tells of its chunks, plain, and its header.
func chunkInfo(t *testing.T, dir string, info *blob.Info) (ci, header []byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, info.MetaID))
	if err != nil {
		t.Fatal(err)
	}
	s := &info.ChunkInfo
	end := s.Offset + s.CompressedSize
	ci, header = raw[s.Offset:end], raw[end:][:unit.HeaderSize]
	if s.Compressor == blob.CompressorZstd {
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if ci, err = d.DecodeAll(ci, nil); err != nil {
			t.Fatal(err)
		}
	} else if s.Compressor == blob.CompressorLZ4Block {
		plain := make([]byte, s.UncompressedSize)
		if err := codec.Decode(s.Compressor, plain, ci); err != nil {
			t.Fatal(err)
		}
		ci = plain
	}
	return ci, header
}

// TestFile reads what a node keeps: padded, with the header behind.
func TestFile(t *testing.T) {
	const id = "233c72f2b6b698c07021c4da367cfe2dff4f049efbaa885ca0ff760ea297865a"
	path := filepath.Join(testenv.Fixtures(t), "upstream/zran", id+".blob.meta")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v6.DecodeMetaHeader(b[len(b)-unit.HeaderSize:])
	if err != nil {
		t.Fatal(err)
	}
	info := &blob.Info{
		ID: id, Features: uint32(layout.FeatureZran | layout.FeatureChunkInfoV2), ListedChunks: h.Entries,
		ChunkInfo: blob.Section{Compressor: blob.Compressor(h.CICompressor), Offset: h.CIOffset, CompressedSize: h.CICompressedSize, UncompressedSize: h.CIUncompressedSize},
	}
	if got := unit.FileSize(info); got != int64(len(b)) {
		t.Errorf("file of %d bytes, want %d", len(b), got)
	}
	table, err := unit.ReadFile(info, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	units := map[uint32]bool{}
	for i := range h.Entries {
		e, err := v6.DecodeChunkInfoV2(b[i*v6.ChunkInfoV2Size:])
		if err != nil {
			t.Fatal(err)
		}
		p, err := table.Find(&blob.Chunk{Blob: info, Index: i, Shared: true, UncompressedOffset: e.UncompressedOffset, UncompressedSize: e.UncompressedSize})
		if err != nil {
			t.Fatal(err)
		}
		units[p.Unit.Number] = true
	}
	if len(units) != 21 {
		t.Errorf("%d units, want 21", len(units))
	}
}

// FuzzTable: whatever chunk information says, a place lies in its unit, a unit in
// the blob and within the limits, and what is decoded is as long as it says.
func FuzzTable(f *testing.F) {
	s := newSample(f)
	f.Add(s.header.Append(nil)[:64], s.ci, uint32(s.info.Features), uint64(len(s.raw)))
	f.Add(s.header.Append(nil)[:64], s.ci, uint32(layout.FeatureZran|layout.FeatureChunkInfoV2), uint64(1<<30))
	f.Fuzz(func(t *testing.T, head, ci []byte, features uint32, size uint64) {
		h := make([]byte, unit.HeaderSize)
		copy(h, s.header.Append(nil))
		copy(h[:64], head)
		info := *s.info
		info.Features, info.CompressedSize = features, size
		info.ListedChunks = uint32(len(ci) / v6.ChunkInfoV2Size)
		table, err := unit.New(&info, h, bytes.NewReader(ci))
		if err != nil {
			if !errors.Is(err, blob.ErrCorrupt) {
				t.Fatalf("%v does not wrap %v", err, blob.ErrCorrupt)
			}
			return
		}
		for i := range min(info.ListedChunks+1, 64) {
			c := blob.Chunk{Blob: &info, Index: i, Shared: true, UncompressedSize: 1}
			if int(i) < len(s.chunks) {
				c = s.chunks[i]
			}
			p, err := table.Find(&c)
			if err != nil {
				continue
			}
			u := p.Unit
			if u.OutSize > blob.MaxUnitSize || u.Size > 2*blob.MaxUnitSize || uint64(p.Offset)+uint64(c.UncompressedSize) > uint64(u.OutSize) {
				t.Fatalf("chunk of %d bytes at %+v", c.UncompressedSize, p)
			}
			if end := u.Offset + uint64(u.Size); end < u.Offset || size != 0 && end > size {
				t.Fatalf("%+v in a blob of %d bytes", u, size)
			}
			seen := map[uint32]bool{i: true}
			table.Neighbours(&u, i, func(j uint32) bool {
				if seen[j] || j >= info.ListedChunks {
					t.Fatalf("chunk %d is a neighbour of %d twice, or is not there", j, i)
				}
				seen[j] = true
				return true
			})
			if u.Size < 1<<16 && u.OutSize < 1<<16 {
				dst := make([]byte, u.OutSize)
				_ = table.Decode(&u, dst, append(s.raw, make([]byte, u.Size)...)[:u.Size])
			}
		}
	})
}
