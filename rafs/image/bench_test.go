package image_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// benchImages are the folder of 10,000 names and, in v6, the tree whose files
// have the most chunks.
func benchImages(b *testing.B, names ...string) map[string]*image.Image {
	dir := filepath.Join(testenv.Fixtures(b), "nydus-made/images")
	out := map[string]*image.Image{}
	for _, n := range names {
		out[n] = open(b, filepath.Join(dir, n, "image.boot"))
	}
	return out
}

// bigdir is the folder of 10,000 names and its names.
func bigdir(b *testing.B, im *image.Image) (uint64, []string, []uint64) {
	dir := uint64(0)
	err := im.ReadDir(image.Root, 0, func(d image.Dirent) bool {
		if string(d.Name) != "." && string(d.Name) != ".." {
			dir = d.Node
		}
		return true
	})
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	var nodes []uint64
	err = im.ReadDir(dir, 0, func(d image.Dirent) bool {
		names = append(names, string(d.Name))
		nodes = append(nodes, d.Node)
		return true
	})
	if err != nil || len(names) != 10002 {
		b.Fatalf("%d names, %v, want 10002", len(names), err)
	}
	return dir, names, nodes
}

func BenchmarkAttr(b *testing.B) {
	for name, im := range benchImages(b, "v5-bigdir", "v6-bigdir") {
		_, _, nodes := bigdir(b, im)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := im.Attr(nodes[i%len(nodes)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for name, im := range benchImages(b, "v5-bigdir", "v6-bigdir") {
		dir, names, _ := bigdir(b, im)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := im.Lookup(dir, names[i*7919%len(names)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Names that are not there are what a shell asks for most.
func BenchmarkLookupMiss(b *testing.B) {
	for name, im := range benchImages(b, "v5-bigdir", "v6-bigdir") {
		dir, _, _ := bigdir(b, im)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := im.Lookup(dir, "no such name"); err != image.ErrNotFound {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkStrangers(b *testing.B) {
	for name, im := range benchImages(b, "v5-bigdir", "v6-bigdir") {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				if _, err := im.Attr(1<<40 + i); err != image.ErrNode {
					b.Fatal(err)
				}
			}
		})
	}
}

// One operation is 10,002 entries, in pieces of 100 as a guest asks for them.
func BenchmarkReadDir(b *testing.B) {
	for name, im := range benchImages(b, "v5-bigdir", "v6-bigdir") {
		dir, _, _ := bigdir(b, im)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			off, n := uint64(0), 0
			piece := func(d image.Dirent) bool {
				off = d.Next
				n++
				return n%100 != 0
			}
			for b.Loop() {
				off, n = 0, 0
				for last := -1; n != last; {
					last = n
					if err := im.ReadDir(dir, off, piece); err != nil {
						b.Fatal(err)
					}
				}
				if n != 10002 {
					b.Fatalf("%d entries", n)
				}
			}
		})
	}
}

// One operation is a read of 1 MiB: one or two chunks, or 256 of 4 KiB.
func BenchmarkSegments(b *testing.B) {
	for name, im := range benchImages(b, "v5-zstd-blake3", "v6-zstd-blake3", "v5-chunk-4k", "v6-chunk-4k") {
		dir, err := im.Lookup(image.Root, "sizes")
		if err != nil {
			b.Fatal(err)
		}
		node, err := im.Lookup(dir, "mixed-2m")
		if err != nil {
			b.Fatal(err)
		}
		for _, size := range []uint32{4096, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dK", name, size>>10), func(b *testing.B) {
				b.ReportAllocs()
				var segs []blob.Segment
				for b.Loop() {
					if segs, err = im.Segments(segs[:0], node, 0, size); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(segs)), "segments")
			})
		}
	}
}

func BenchmarkChunk(b *testing.B) {
	for name, im := range benchImages(b, "v5-chunk-4k", "v6-chunk-4k") {
		n := im.Blobs()[0].ChunkCount
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := uint32(0); b.Loop(); i++ {
				if _, ok := im.Chunk(0, i%n); !ok {
					b.Fatalf("no chunk %d", i%n)
				}
			}
		})
	}
}

func BenchmarkXattrMiss(b *testing.B) {
	for name, im := range benchImages(b, "v5-zstd-blake3", "v6-zstd-blake3") {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := im.Xattr(image.Root, "security.capability"); err != image.ErrNoXattr {
					b.Fatal(err)
				}
			}
		})
	}
}

// Open reads, seals, hashes and checks 10,000 inodes; in v5 it also computes
// their digests.
func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(testenv.Fixtures(b), "nydus-made/images")
	for _, name := range []string{"v5-bigdir", "v6-bigdir", "v5-chunk-4k", "v6-chunk-4k", "v5-zstd-sha256"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				im, err := image.Open(filepath.Join(dir, name, "image.boot"), image.Options{})
				if err != nil {
					b.Fatal(err)
				}
				im.Close()
			}
		})
	}
}
