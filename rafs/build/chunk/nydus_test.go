package chunk

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// Files of the sizes that nydus-image had go into the batches that it made.
func TestBatchesAsNydusMakesThem(t *testing.T) {
	for name, batchSize := range map[string]uint32{"v6-batch-1m": 1 << 20, "v6-batch-64k-lz4": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			infos, want := nydusBatches(t, name)
			var tail bytes.Buffer // what is before the tail of a long file, which the dictionary knows
			tail.Write(make([]byte, 1<<20))
			dict := NewIndex("")
			defer dict.Close()
			if err := dict.Add(blob.DigesterBlake3.Sum(tail.Bytes()), 1<<20, Ref{9, 9}); err != nil {
				t.Fatal(err)
			}
			c, err := NewCutter(t.Context(), NewPool(2, 1, 1<<20), io.Discard, Options{BatchSize: batchSize, Dict: dict})
			if err != nil {
				t.Fatal(err)
			}
			seen := map[uint32]uint32{} // by size
			for _, info := range infos {
				data := make([]byte, info.UncompressedSize)
				seen[info.UncompressedSize]++
				copy(data, binary.LittleEndian.AppendUint32(nil, seen[info.UncompressedSize]))
				file := data
				if info.Flags&v6.ChunkInfoBatch == 0 && info.UncompressedSize < batchSize/2 {
					file = append(bytes.Clone(tail.Bytes()), data...)
				}
				if err := c.File(bytes.NewReader(file), int64(len(file)), ignore); err != nil {
					t.Fatal(err)
				}
			}
			table, batches, err := c.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			if int(table.Len()) != len(infos) || len(batches) != len(want) || len(want) < 2 {
				t.Fatalf("%d chunks in %d batches, want %d in %d", table.Len(), len(batches), len(infos), len(want))
			}
			for i, b := range batches {
				if b.UncompressedSize != want[i] {
					t.Errorf("batch %d: %d bytes, want %d", i, b.UncompressedSize, want[i])
				}
			}
			for i, info := range infos {
				r, err := table.Record(uint32(i))
				if err != nil {
					t.Fatal(err)
				}
				if info.Flags&v6.ChunkInfoBatch != 0 && (r.Unit != uint32(info.Data>>32) || r.UnitOffset != uint32(info.Data)) || r.UncompressedOffset != info.UncompressedOffset {
					t.Errorf("chunk %d: %+v, want %+v", i, r, info)
				}
			}
		})
	}
}

// nydusBatches reads the chunk information of a fixture, and the sizes of its
// batches.
func nydusBatches(t *testing.T, name string) (infos []v6.ChunkInfo, batches []uint32) {
	t.Helper()
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	im, err := image.Open(filepath.Join(dir, "images", name, "image.boot"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	info := im.Blobs()[0]
	data, err := os.ReadFile(filepath.Join(dir, "blobs", info.ID))
	if err != nil {
		t.Fatal(err)
	}
	ci := info.ChunkInfo
	table := make([]byte, ci.UncompressedSize)
	if err := codec.Decode(ci.Compressor, table, data[ci.Offset:][:ci.CompressedSize]); err != nil {
		t.Fatal(err)
	}
	for range info.ListedChunks {
		i, err := v6.DecodeChunkInfoV2(table)
		if err != nil {
			t.Fatal(err)
		}
		infos, table = append(infos, i), table[v6.ChunkInfoV2Size:]
	}
	for len(table) > 0 {
		b, err := v6.DecodeBatchContext(table)
		if err != nil {
			t.Fatal(err)
		}
		batches, table = append(batches, b.UncompressedSize), table[v6.BatchContextSize:]
	}
	return infos, batches
}
