package write

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/tree/treetest"
)

// BenchmarkBootstrap plans and writes the bootstrap of a layer of many small files.
func BenchmarkBootstrap(b *testing.B) {
	const entries = 100_000
	dir := b.TempDir()
	pool := chunk.NewPool(2, 1, blob.DefaultChunkSize)
	w, err := NewBlob(io.Discard, BlobOptions{Format: zstdBlake3, TOC: true})
	if err != nil {
		b.Fatal(err)
	}
	cutter, err := chunk.NewCutter(context.Background(), pool, w, chunk.Options{Compressor: blob.CompressorZstd, TempDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	data := treetest.Shape{Seed: 1, Entries: entries, Bytes: entries * 200}.Read()
	layer, err := tree.ReadTar(context.Background(), data, cutter, tree.ReadOptions{TempDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	table, _, err := cutter.Close()
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	info, err := w.Finish(Contents{Table: table})
	if err != nil {
		b.Fatal(err)
	}
	merged, err := tree.Merge(context.Background(), dir, layer)
	if err != nil {
		b.Fatal(err)
	}
	defer merged.Close()
	for _, version := range []int{5, 6} {
		b.Run(fmt.Sprintf("v%d", version), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := New(merged, []*BlobInfo{info}, Options{Format: zstdBlake3, Version: version, TempDir: dir})
				if err != nil {
					b.Fatal(err)
				}
				if err := Bootstrap(io.Discard, p); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(p.Size())
				p.Close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/entries, "ns/entry")
		})
	}
}
