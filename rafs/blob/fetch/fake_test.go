package fetch_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
)

// image is a blob with its chunk table. It is a fetch.Catalog.
type image struct {
	info   *blob.Info
	chunks []blob.Chunk
	raw    []byte   // the blob
	plain  [][]byte // what each chunk holds
}

func (im *image) Chunk(b, i uint32) (blob.Chunk, bool) {
	if b != 0 || int(i) >= len(im.chunks) {
		return blob.Chunk{}, false
	}
	return im.chunks[i], true
}

// newImage makes a blob of chunks of these sizes, every third one incompressible.
// Under testing/synctest no zstd: its coders keep channels from bubble to bubble.
func newImage(t testing.TB, c blob.Compressor, d blob.Digester, sizes ...int) *image {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(len(sizes)), uint64(c)))
	im := &image{info: &blob.Info{
		ID: strings.Repeat("5a", 32), Compressor: c, Digester: d, ChunkCount: uint32(len(sizes)),
	}}
	var at uint64
	for i, n := range sizes {
		p := make([]byte, n)
		for j := range p {
			p[j] = byte(r.Uint32())
			if i%3 != 2 {
				p[j] = 'a' + p[j]&3
			}
		}
		enc, compressed, err := codec.Encode(c, nil, p)
		if err != nil {
			t.Fatal(err)
		}
		im.chunks = append(im.chunks, blob.Chunk{
			Blob: im.info, Index: uint32(i), Compressed: compressed,
			CompressedOffset: uint64(len(im.raw)), CompressedSize: uint32(len(enc)),
			UncompressedOffset: at, UncompressedSize: uint32(n), Digest: d.Sum(p),
		})
		at += uint64(n+4095) &^ 4095
		im.raw = append(im.raw, enc...)
		im.plain = append(im.plain, p)
	}
	im.info.CompressedSize, im.info.UncompressedSize = uint64(len(im.raw)), at
	return im
}

// repeat gives n times size.
func repeat(n, size int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = size
	}
	return out
}

// source is a backend of one blob in memory.
type source struct {
	data     []byte
	requests atomic.Int32
	// before, if set, runs before each read is answered and may fail it or spoil
	// what is read.
	before func(ctx context.Context, p []byte, off int64) (done bool, err error)
}

func (s *source) Open(string) (backend.Reader, error) { return s, nil }
func (s *source) Close() error                        { return nil }
func (s *source) Size(context.Context) (int64, error) { return int64(len(s.data)), nil }
func (s *source) ReadRange(ctx context.Context, p []byte, off int64) error {
	s.requests.Add(1)
	if s.before != nil {
		if done, err := s.before(ctx, p, off); done || err != nil {
			return err
		}
	}
	if off < 0 || off+int64(len(p)) > int64(len(s.data)) {
		return fmt.Errorf("%w: %d bytes at %d", backend.ErrRange, len(p), off)
	}
	copy(p, s.data[off:])
	return ctx.Err()
}

// engine makes an engine over a blob that ends with the test.
func engine(t testing.TB, im *image, o fetch.Options) *fetch.Engine {
	t.Helper()
	o.Blobs, o.Catalog = []*blob.Info{im.info}, im
	if o.Backend == nil {
		o.Backend = &source{data: im.raw}
	}
	e, err := fetch.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if s := e.Stats(); s.BytesNow != 0 || s.RequestsNow != 0 {
			t.Errorf("%d bytes and %d requests are left in flight", s.BytesNow, s.RequestsNow)
		}
	})
	return e
}

// segment is n bytes at off of chunk i.
func (im *image) segment(i, off, n int) blob.Segment {
	return blob.Segment{Chunk: im.chunks[i], Offset: uint32(off), Length: uint32(n)}
}

// whole is the segments of the chunks from i to below j.
func (im *image) whole(i, j int) (segs []blob.Segment, want []byte) {
	for ; i < j; i++ {
		segs = append(segs, im.segment(i, 0, len(im.plain[i])))
		want = append(want, im.plain[i]...)
	}
	return segs, want
}

// pieces cuts n bytes of memory into slices of odd sizes with room behind.
func pieces(n int) [][]byte {
	var out [][]byte
	for size := 1; n > 0; size = size*3 + 7 {
		k := min(size, n)
		out = append(out, make([]byte, k), nil)
		n -= k
	}
	return append(out, make([]byte, 16))
}

// read reads segments and reports wrong bytes; the error is the caller's matter.
func read(t testing.TB, ctx context.Context, e *fetch.Engine, segs []blob.Segment, want []byte) error {
	t.Helper()
	dst := pieces(len(want))
	n, err := e.Read(ctx, segs, dst)
	if err != nil {
		return err
	}
	if n != len(want) {
		t.Errorf("read %d bytes, want %d", n, len(want))
	}
	got := bytes.Join(dst, nil)
	if !bytes.Equal(got[:len(want)], want) {
		t.Errorf("%d segments from chunk %d on: wrong bytes", len(segs), segs[0].Chunk.Index)
	}
	if !bytes.Equal(got[len(want):], make([]byte, 16)) {
		t.Error("wrote behind the segments")
	}
	return nil
}

// folder is a cache folder in memory. Its files live as long as it does.
type folder struct {
	mu    sync.Mutex
	files map[string]*memFile
	// fail, if set, may fail an operation (open, preadv, pwrite) on a file.
	fail atomic.Pointer[func(op, name string) error]
}

func newFolder() *folder { return &folder{files: map[string]*memFile{}} }

func (f *folder) failWith(fn func(op, name string) error) {
	if fn == nil {
		f.fail.Store(nil)
		return
	}
	f.fail.Store(&fn)
}

func (f *folder) check(op, name string) error {
	if fn := f.fail.Load(); fn != nil {
		return (*fn)(op, name)
	}
	return nil
}

func (f *folder) Close() error { return nil }

func (f *folder) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, name)
	return nil
}

func (f *folder) Open(name string, _ bool) (cache.File, error) {
	if err := f.check("open", name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[name] == nil {
		f.files[name] = &memFile{folder: f, name: name}
	}
	return f.files[name], nil
}

// file finds the one file whose name ends so.
func (f *folder) file(t testing.TB, ext string) *memFile {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, file := range f.files {
		if strings.HasSuffix(name, ext) {
			return file
		}
	}
	t.Fatalf("no file *%s in the cache", ext)
	return nil
}

type memFile struct {
	folder *folder
	name   string
	mu     sync.Mutex
	data   []byte
}

func (f *memFile) Preadv(dst [][]byte, off int64) (int, error) {
	if err := f.folder.check("preadv", f.name); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, d := range dst {
		if off+int64(n) >= int64(len(f.data)) {
			break
		}
		n += copy(d, f.data[off+int64(n):])
	}
	return n, nil
}

func (f *memFile) Pwrite(p []byte, off int64) (int, error) {
	if err := f.folder.check("pwrite", f.name); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if off+int64(len(p)) > int64(len(f.data)) {
		return 0, io.ErrShortWrite
	}
	return copy(f.data[off:], p), nil
}

func (f *memFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *memFile) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data = append(f.data[:min(n, int64(len(f.data)))], make([]byte, max(0, n-int64(len(f.data))))...)
	return nil
}

func (f *memFile) Lock() (func(), error) { return func() {}, nil }
func (f *memFile) Close() error          { return nil }

// flip inverts one bit of the byte at i.
func (f *memFile) flip(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data[i] ^= 0x08
}
