package convert

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// generated makes a layer of n bytes: a few large files and many small ones, of
// text that compresses about three to one.
func generated(b *testing.B, n int) []byte {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Uint64()>>r.IntN(60))
	}
	var entries []entry
	for i, total := 0, 0; total < n; i++ {
		size := min(n-total, 500+r.IntN(20000))
		if i%100 == 0 {
			size = min(n-total, 3<<20)
		}
		data := make([]byte, 0, size+20)
		for len(data) < size {
			data = append(data, words[r.IntN(len(words))]...)
		}
		entries = append(entries, entry{Header: tar.Header{Name: fmt.Sprintf("d%d/f%d", i/100, i)}, data: string(data[:size])})
		total += size
	}
	return tarOf(b, entries...)
}

func BenchmarkConvert(b *testing.B) {
	data := generated(b, 32<<20)
	for _, c := range []compression{"", "gzip", "zstd"} {
		src := b.TempDir()
		newImage(b, c, data).layout(b, src, "")
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("from=%s/workers=%d", c, workers), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					o := Options{Source: src, Target: "oci:" + b.TempDir(), Workers: workers}
					if _, err := Convert(context.Background(), o); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
