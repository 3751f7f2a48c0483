package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
)

const size = 8 << 10 // of a chunk in these tests

func random(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range data {
		data[i] = byte(r.IntN(5)) // compresses
	}
	return data
}

// cut makes a blob of files and returns what came of it.
func cut(t *testing.T, workers int, files ...[]byte) (refs [][]Ref, records []Record, data []byte) {
	t.Helper()
	refs, records, _, data = cutWith(t, workers, Options{Blob: 3, Compressor: blob.CompressorZstd}, files...)
	return refs, records, data
}

func cutWith(t *testing.T, workers int, o Options, files ...[]byte) (refs [][]Ref, records []Record, batches []Batch, data []byte) {
	t.Helper()
	var out bytes.Buffer
	c, err := NewCutter(context.Background(), NewPool(workers, 1, size), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		var r []Ref
		if err := c.File(bytes.NewReader(f), int64(len(f)), collect(&r)); err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		refs = append(refs, r)
	}
	table, batches, err := c.Close()
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range table.All() {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	if err := table.Close(); err != nil {
		t.Error(err)
	}
	return refs, records, batches, out.Bytes()
}

func collect(refs *[]Ref) func(Ref) error {
	return func(r Ref) error { *refs = append(*refs, r); return nil }
}

func ignore(Ref) error { return nil }

func decode(t *testing.T, r Record, data []byte) []byte {
	t.Helper()
	src := data[r.CompressedOffset:][:r.CompressedSize]
	if r.CompressedSize == r.UncompressedSize {
		return src
	}
	dst := make([]byte, r.UncompressedSize)
	if err := codec.Decode(blob.CompressorZstd, dst, src); err != nil {
		t.Fatal(err)
	}
	return dst
}

func TestFilesComeBack(t *testing.T) {
	testenv.LeakCheck(t)
	incompressible := make([]byte, 3*size+100)
	for i, r := 0, rand.New(rand.NewPCG(1, 1)); i < len(incompressible); i++ {
		incompressible[i] = byte(r.Uint32())
	}
	files := [][]byte{
		random(1, 1), random(2, size-1), random(3, size), random(4, size+1), random(5, 10*size+7),
		incompressible, make([]byte, 5*size), []byte("x"),
	}
	for _, workers := range []int{1, 2, 8} {
		refs, records, data := cut(t, workers, files...)
		next := uint64(0)
		for i, r := range records {
			if r.UncompressedOffset != next {
				t.Errorf("chunk %d at %#x of the uncompressed space, want %#x", i, r.UncompressedOffset, next)
			}
			next = (next + uint64(r.UncompressedSize) + Align - 1) / Align * Align
			if got := blob.DigesterBlake3.Sum(decode(t, r, data)); got != r.Digest {
				t.Errorf("chunk %d: digest %v, want %v", i, got, r.Digest)
			}
		}
		for i, f := range files {
			var got []byte
			for _, ref := range refs[i] {
				if ref.Blob != 3 {
					t.Fatalf("file %d: ref to blob %d, want 3", i, ref.Blob)
				}
				got = append(got, decode(t, records[ref.Index], data)...)
			}
			if !bytes.Equal(got, f) {
				t.Errorf("%d workers: file %d of %d bytes came back as other %d bytes", workers, i, len(f), len(got))
			}
		}
	}
}

func TestEqualChunksAreStoredOnce(t *testing.T) {
	a, b := random(1, size), random(2, size)
	refs, records, data := cut(t, 2, bytes.Join([][]byte{a, b, a}, nil), b, append(append([]byte{}, b...), a[:5]...))
	want := [][]Ref{{{3, 0}, {3, 1}, {3, 0}}, {{3, 1}}, {{3, 1}, {3, 2}}}
	if diff := cmp.Diff(want, refs); diff != "" {
		t.Errorf("refs (-want +got):\n%s", diff)
	}
	last := records[len(records)-1]
	if got, want := uint64(len(data)), last.CompressedOffset+uint64(last.CompressedSize); len(records) != 3 || got != want {
		t.Errorf("%d chunks in %d bytes, want 3 in %d", len(records), got, want)
	}
}

func TestSameBytesWithAnyNumberOfWorkers(t *testing.T) {
	var files [][]byte
	for i := range 200 {
		files = append(files, random(uint64(i%150), 1+i*97))
	}
	_, wantRecords, want := cut(t, 1, files...)
	for _, workers := range []int{2, 5, 32} {
		_, records, got := cut(t, workers, files...)
		if !bytes.Equal(got, want) || !cmp.Equal(records, wantRecords) {
			t.Errorf("%d workers: another blob than with one", workers)
		}
	}
}

// failing fails from the n-th write on.
type failing struct{ n int }

var errFull = errors.New("disk full")

func (f *failing) Write(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestErrorsEndIt(t *testing.T) {
	testenv.LeakCheck(t)
	pool := NewPool(2, 1, size)
	data := random(1, 100*size)
	start := func(ctx context.Context, pool *Pool, out io.Writer, o Options) *Cutter {
		c, err := NewCutter(ctx, pool, out, o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for n := range 4 {
		c := start(context.Background(), pool, &failing{n}, Options{Compressor: blob.CompressorNone, BatchSize: size})
		fileErr := c.File(bytes.NewReader(data[:10]), 10, ignore)
		if fileErr == nil {
			fileErr = c.File(bytes.NewReader(data), int64(len(data)), ignore)
		}
		_, _, err := c.Close()
		if !errors.Is(err, errFull) || fileErr != nil && !errors.Is(fileErr, errFull) {
			t.Errorf("write %d fails: got %v and %v, want %v", n, fileErr, err, errFull)
		}
		if _, _, again := c.Close(); !errors.Is(again, errFull) {
			t.Errorf("second close: got %v, want %v", again, errFull)
		}
	}
	for _, o := range []Options{{}, {BatchSize: size}} {
		c := start(context.Background(), pool, io.Discard, o)
		if err := c.File(strings.NewReader("short"), 6, ignore); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("short file: got %v, want %v", err, io.ErrUnexpectedEOF)
		}
		if table, _, err := c.Close(); err != nil || table.Len() != 0 {
			t.Errorf("close: %v", err)
		}
	}
	why := errors.New("enough")
	c := start(context.Background(), pool, io.Discard, Options{})
	if err := c.File(strings.NewReader("text"), 4, func(Ref) error { return why }); !errors.Is(err, why) {
		t.Errorf("who takes the refs fails: got %v, want %v", err, why)
	}
	c.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	c = start(ctx, NewPool(1, 0, size), &failing{0}, Options{})
	if err := c.File(bytes.NewReader(data), int64(len(data)), ignore); !errors.Is(err, why) && !errors.Is(err, errFull) {
		t.Errorf("cancelled: got %v, want %v", err, why)
	}
	c.Close()
	// What was taken from the pool must be back, or another layer would hang.
	if got, want := len(pool.slots)+len(pool.small), pool.size(); got != want {
		t.Errorf("pool has %d of %d buffers", got, want)
	}
	if got := len(pool.workers); got != 0 {
		t.Errorf("pool has %d busy workers", got)
	}
}

func BenchmarkCut(b *testing.B) {
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := bytes.Repeat(random(1, 997), n/997+1)[:n]
			b.SetBytes(int64(n))
			b.ReportAllocs()
			pool := NewPool(2, 1, 1<<20)
			c, err := NewCutter(context.Background(), pool, io.Discard, Options{Compressor: blob.CompressorZstd})
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				data[0], data[1], data[2], data[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
				if err := c.File(bytes.NewReader(data), int64(n), ignore); err != nil {
					b.Fatal(err)
				}
			}
			table, _, err := c.Close()
			if err != nil {
				b.Fatal(err)
			}
			table.Close()
		})
	}
}

// BenchmarkIndex adds chunks that are new to an index of n, most of which is in a
// file.
func BenchmarkIndex(b *testing.B) {
	for _, n := range []int{10_000, 2_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			index := NewIndex(b.TempDir())
			defer index.Close()
			var d blob.Digest
			next := func() {
				d = blob.DigesterBlake3.Sum(d[:])
				if err := index.Add(d, 1, Ref{}); err != nil {
					b.Fatal(err)
				}
			}
			for range n {
				next()
			}
			for b.Loop() {
				next()
			}
		})
	}
}
