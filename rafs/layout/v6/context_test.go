package v6

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
)

// A cached blob.meta that nydus made: chunk information, contexts and their
// dictionaries, padded to blocks, then the header.
func TestZranContextsOfNydus(t *testing.T) {
	name := filepath.Join(testenv.Fixtures(t), "upstream/zran/233c72f2b6b698c07021c4da367cfe2dff4f049efbaa885ca0ff760ea297865a.blob.meta")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := DecodeMetaHeader(b[len(b)-MetaHeaderSize:])
	if err != nil {
		t.Fatal(err)
	}
	if h.Entries != 163 || h.ZranCount != 21 || h.ZranOffset != 163*ChunkInfoV2Size {
		t.Fatalf("header %+v", h)
	}
	table := b[h.ZranOffset:][:h.ZranSize]
	var dicts, out uint64
	for i := range h.ZranCount {
		rec := table[i*ZranContextSize:]
		c, err := DecodeZranContext(rec)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Append(nil); !bytes.Equal(got, rec[:ZranContextSize]) {
			t.Errorf("context %d %+v: encoded %x, want %x", i, c, got, rec[:ZranContextSize])
		}
		// Contexts overlap: a chunk starts in the middle of a deflate block.
		if c.DictOffset != dicts || c.CtxBits > 7 || c.DictSize > MaxZranDict || i > 0 && c.OutOffset <= out {
			t.Errorf("context %d %+v: want dictionary at %d, output from beyond %d", i, c, dicts, out)
		}
		dicts, out = dicts+uint64(c.DictSize), c.OutOffset
	}
	if want := h.ZranSize - 21*ZranContextSize; dicts != want {
		t.Errorf("dictionaries of %d bytes, want %d", dicts, want)
	}
	for i := range h.Entries {
		c, err := DecodeChunkInfoV2(b[i*ChunkInfoV2Size:])
		if err != nil {
			t.Fatal(err)
		}
		unit, off := ZranPlace(c.Data)
		if c.Flags != ChunkInfoZran|ChunkInfoCompressed || unit >= h.ZranCount || ZranData(unit, off) != c.Data {
			t.Errorf("chunk %d %+v: context %d, offset %d", i, c, unit, off)
			continue
		}
		ctx, _ := DecodeZranContext(table[unit*ZranContextSize:])
		if uint64(off)+uint64(c.UncompressedSize) > uint64(ctx.OutLen) {
			t.Errorf("chunk %d ends at %d of context %d, which has %d bytes", i, uint64(off)+uint64(c.UncompressedSize), unit, ctx.OutLen)
		}
	}
}
