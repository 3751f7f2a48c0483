package write

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// entry is an entry of a tar: a header, and the data that gives it its size.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// small are chunks of one block, so that short files have many.
var small = Options{Format: Format{ChunkSize: 4096, Compressor: blob.CompressorZstd}}

// chunks makes data of one chunk a letter.
func chunks(letters string) string {
	var b strings.Builder
	for _, l := range letters {
		b.WriteString(strings.Repeat(string(l), 4096))
	}
	return b.String()
}

// verify reads the image with rafs/image and checks every rule, and returns the
// contents of its files by path.
func (b *built) verify(t testing.TB) map[string]string {
	t.Helper()
	dir := t.TempDir()
	bootstrap := b.save(t, dir)
	if err := check.Image(context.Background(), bootstrap); err != nil {
		t.Errorf("check: %v", err)
	}
	im, err := image.Open(bootstrap, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	got := map[string]string{}
	for e, err := range rafstest.Tree(im, rafstest.Blobs{dir}) {
		if err != nil {
			t.Fatalf("%s: %v", e.Path, err)
		}
		switch {
		case e.IsRegular():
			got[e.Path] = fmt.Sprintf("%d %v", e.Size, e.SHA256)
		case e.Link != "":
			got[e.Path] = "-> " + e.Link
		default:
			got[e.Path] = fmt.Sprintf("%o", e.Mode)
		}
	}
	return got
}

func TestFixturesReadBack(t *testing.T) {
	for _, tc := range []struct {
		tree string
		tars []string
		o    Options
	}{
		{"tarable.ndjson", []string{"tarable.tar"}, Options{Format: zstdBlake3}},
		{"tarable.ndjson", []string{"tarable.tar"}, Options{Format: Format{ChunkSize: 1 << 16, Compressor: blob.CompressorLZ4Block, Digester: blob.DigesterSHA256}}},
		{"layers.ndjson", []string{"layer1.tar", "layer2.tar", "layer3.tar"}, Options{Format: Format{ChunkSize: 1 << 24}}},
		{"layers.ndjson", []string{"layer1.tar", "layer2.tar", "layer3.tar"}, Options{Format: zstdBlake3, Prefetch: []string{"/tree", "/keep2/f", "/tree/a", "/none"}}},
	} {
		t.Run(fmt.Sprintf("%s-%v-%d", tc.tree, tc.o.Compressor, tc.o.ChunkSize), func(t *testing.T) {
			b := build(t, tc.o, 2, fixtureTars(t, tc.tars...)...)
			dir := t.TempDir()
			bootstrap := b.save(t, dir)
			if err := check.Image(context.Background(), bootstrap); err != nil {
				t.Errorf("check: %v", err)
			}
			im, err := image.Open(bootstrap, image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			want := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", tc.tree))
			want = slices.DeleteFunc(want, func(e rafstest.Entry) bool { return e.Path == "/special/sock" }) // not in a tar
			rafstest.Compare(t, want, rafstest.Tree(im, rafstest.Blobs{dir}))
			if got, want := len(im.Prefetch()), min(2, len(tc.o.Prefetch)); got != want {
				t.Errorf("%d inodes to prefetch, want %d", got, want)
			}
		})
	}
}

// Every section of a blob is where its tables say, by each of the three ways to
// find it: the blob table, the table of contents, and the tar headers backwards.
func TestBlobDescribesItself(t *testing.T) {
	b := build(t, small, 2, pack(t, file("a", chunks("abcdefg")+"tail"), file("b", chunks("ab"))))
	info := b.plan.Blobs()[0]
	data := b.data[info.ID]
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != info.ID || info.Object.Size != int64(len(data)) {
		t.Errorf("id %s of %d bytes, want the sha256 %x of %d", info.ID, info.Object.Size, got, len(data))
	}
	toc, err := v6.DecodeTOC(data[len(data)-int(info.Entry.TOCSize) : len(data)-v6.TarHeaderSize])
	if err != nil {
		t.Fatal(err)
	}
	if got := sha256.Sum256(data[len(data)-int(info.Entry.TOCSize):]); got != info.Entry.TOCDigest {
		t.Errorf("toc digest %x, want %x", info.Entry.TOCDigest, got)
	}
	byName := map[string]v6.TOCEntry{}
	for _, e := range toc {
		byName[e.Name] = e
		section := data[e.CompressedOffset:][:e.CompressedSize]
		switch {
		case e.Name == v6.SectionData: // with its tar header, as nydus has it
			section = data[:e.CompressedSize+v6.TarHeaderSize]
		case e.Flags == v6.TOCZstd:
			plain := make([]byte, e.UncompressedSize)
			if err := codec.Decode(blob.CompressorZstd, plain, section); err != nil {
				t.Fatal(err)
			}
			section = plain
		}
		if got := sha256.Sum256(section); got != e.Digest {
			t.Errorf("toc entry %s: digest %x, bytes have %x", e.Name, e.Digest, got)
		}
	}
	var names []string
	for end := len(data); end > 0; {
		h, err := v6.DecodeTarHeader(data[end-v6.TarHeaderSize:])
		if err != nil {
			t.Fatalf("tar header before %d: %v", end, err)
		}
		names = append(names, h.Name)
		end -= v6.TarHeaderSize + int(h.Size)
	}
	if diff := cmp.Diff([]string{"rafs.blob.toc", "blob.digest", "blob.meta", "image.blob"}, names); diff != "" {
		t.Errorf("tar sections from the end (-want +got):\n%s", diff)
	}
	h, err := v6.DecodeMetaHeader(data[byName[v6.SectionMetaHeader].CompressedOffset:])
	if err != nil {
		t.Fatal(err)
	}
	e := info.Entry
	want := v6.MetaHeader{Features: e.Features, CICompressor: e.CICompressor, Entries: 8, CIOffset: byName[v6.SectionMeta].CompressedOffset,
		CICompressedSize: byName[v6.SectionMeta].CompressedSize, CIUncompressedSize: 8 * 16}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("meta header (-want +got):\n%s", diff)
	}
	checkMeta(t, info, h, data)
}

func recordsOf(t testing.TB, info *BlobInfo) (all records) {
	t.Helper()
	for r, err := range info.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// checkMeta looks at the form of the chunk information that nodes keep.
func checkMeta(t *testing.T, info *BlobInfo, h v6.MetaHeader, data []byte) {
	t.Helper()
	var out bytes.Buffer
	if err := info.WriteMeta(&out); err != nil {
		t.Fatal(err)
	}
	meta := out.Bytes()
	if got, want := len(meta), v6.BlockSize+v6.MetaHeaderSize; got != want || info.MetaSize() != int64(want) {
		t.Fatalf("meta of %d bytes, want %d, announced %d", got, want, info.MetaSize())
	}
	if got, err := v6.DecodeMetaHeader(meta[v6.BlockSize:]); err != nil || got != h {
		t.Errorf("meta header: got %+v, %v; want %+v", got, err, h)
	}
	all := recordsOf(t, info)
	for i, r := range all {
		ci, err := v6.DecodeChunkInfoV1(meta[i*v6.ChunkInfoV1Size:])
		want := v6.ChunkInfo{UncompressedOffset: r.UncompressedOffset, UncompressedSize: r.UncompressedSize,
			CompressedOffset: r.CompressedOffset, CompressedSize: r.CompressedSize}
		if err != nil || ci != want {
			t.Errorf("chunk info %d: got %+v, %v; want %+v", i, ci, err, want)
		}
	}
	digests := data[len(data)-int(info.Entry.TOCSize)-v6.TarHeaderSize-32*len(all):]
	for i, r := range all {
		if got := blob.Digest(digests[32*i:][:32]); got != r.Digest {
			t.Errorf("digest section, chunk %d: got %v, want %v", i, got, r.Digest)
		}
	}
}

// Chunks are shared across layers where that is safe.
func TestSharingAcrossLayers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		layers []string // contents of the file fN in layer N, a letter a chunk
		blobs  int      // in the image
		used   string   // chunk records by blob
	}{
		{"nothing shared", []string{"ab", "cd"}, 2, "2 2"},
		{"a whole layer again", []string{"abc", "abc"}, 1, "3"},
		{"a part of a lower layer", []string{"abc", "ca"}, 1, "3"},
		{"old and new chunks", []string{"abc", "xcya"}, 2, "3 2"},
		{"a tail at the place where Linux would read on in the wrong blob", []string{"abc", "abx"}, 2, "3 3"},
		{"blobs of equal bytes in layers that differ", []string{"a", "ab", "ab"}, 2, "1 2"},
		{"three blobs in one file", []string{"a", "xb", "bay"}, 3, "1 2 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tars [][]byte
			want := map[string]string{}
			for i, letters := range tc.layers {
				name, data := fmt.Sprintf("f%d", i), chunks(letters)
				tars = append(tars, pack(t, file(name, data)))
				want["/"+name] = fmt.Sprintf("%d %x", len(data), sha256.Sum256([]byte(data)))
			}
			b := build(t, small, 2, tars...)
			if diff := cmp.Diff(want, b.verify(t)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if got := len(b.plan.Blobs()); got != tc.blobs {
				t.Errorf("%d blobs, want %d", got, tc.blobs)
			}
			if got := strings.Trim(fmt.Sprint(chunksByBlob(b.plan)), "[]"); got != tc.used {
				t.Errorf("chunk records by blob: %s, want %s", got, tc.used)
			}
		})
	}
}

// aroundABlock makes a layer of what the format stores in several ways, depending
// on sizes: at the places where a folder, a symlink or xattrs no longer fit beside
// the inode. The second result is what verify says of it.
func aroundABlock(t testing.TB) (layer []byte, want map[string]string) {
	t.Helper()
	want = map[string]string{}
	var entries []entry
	for n := 3900; n < 4096; n += 7 {
		target := strings.Repeat("t", n)
		entries = append(entries, entry{tar.Header{Name: fmt.Sprintf("s%d", n), Typeflag: tar.TypeSymlink, Linkname: target}, ""})
		want[fmt.Sprintf("/s%d", n)] = "-> " + target
	}
	for _, size := range []int{1, 3000, 4000, 4096, 65535} {
		name := fmt.Sprintf("x%d", size)
		pax := map[string]string{"SCHILY.xattr.trusted.v": strings.Repeat("v", size), "SCHILY.xattr.trusted.w": "w"}
		entries = append(entries,
			entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: pax}, "data"},
			entry{tar.Header{Name: "d" + name + "/", Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX, PAXRecords: pax}, ""},
			entry{tar.Header{Name: "s" + name, Typeflag: tar.TypeSymlink, Linkname: "t", Format: tar.FormatPAX, PAXRecords: pax}, ""},
			file("d"+name+"/f", ""))
		want["/"+name] = fmt.Sprintf("4 %x", sha256.Sum256([]byte("data")))
		want["/d"+name], want["/s"+name] = "40755", "-> t"
		want["/d"+name+"/f"] = fmt.Sprintf("0 %x", sha256.Sum256(nil))
	}
	for _, n := range []int{0, 1, 14, 15, 16, 17, 40, 300} { // names of 255 bytes: 15 fill a block
		dir := fmt.Sprintf("n%d", n)
		entries = append(entries, entry{tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, ""})
		want["/"+dir] = "40755"
		for i := range n {
			name := fmt.Sprintf("%s/!%0254d", dir, i)
			entries = append(entries, entry{tar.Header{Name: name, Typeflag: tar.TypeFifo, Mode: 0o600}, ""})
			want["/"+name] = "10600"
		}
	}
	return pack(t, entries...), want
}

func TestSizesAroundABlock(t *testing.T) {
	layer, want := aroundABlock(t)
	b := build(t, small, 1, layer)
	if diff := cmp.Diff(want, b.verify(t)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

func TestImageWithoutData(t *testing.T) {
	b := build(t, Options{Format: zstdBlake3}, 1, pack(t, file("d/empty", "")), pack(t))
	if n := len(b.plan.Blobs()); n != 0 {
		t.Errorf("%d blobs, want none", n)
	}
	want := map[string]string{"/d": "40755", "/d/empty": fmt.Sprintf("0 %x", sha256.Sum256(nil))}
	if diff := cmp.Diff(want, b.verify(t)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	ext, err := v6.DecodeExtSuper(b.bootstrap[v6.ExtSuperOffset:])
	if err != nil || layout.Flags(ext.Flags)&layout.FlagInlinedChunkDigest != 0 {
		t.Errorf("flags %#x, %v: want none of blobs", ext.Flags, err)
	}
}

func TestSameBytesWithAnyNumberOfWorkers(t *testing.T) {
	tars := fixtureTars(t, "layer1.tar", "layer2.tar", "tarable.tar")
	want := build(t, Options{Format: zstdBlake3}, 1, tars...)
	for _, workers := range []int{2, 9} {
		got := build(t, Options{Format: zstdBlake3}, workers, tars...)
		if !bytes.Equal(got.bootstrap, want.bootstrap) {
			t.Errorf("%d workers: another bootstrap than with one", workers)
		}
		if diff := cmp.Diff(want.data, got.data, cmp.Comparer(bytes.Equal)); diff != "" {
			t.Errorf("%d workers: other blobs than with one", workers)
		}
	}
}

func TestFormatsThatCannotBe(t *testing.T) {
	for _, f := range []Format{
		{}, {ChunkSize: 2048}, {ChunkSize: 5000}, {ChunkSize: 32 << 20}, {ChunkSize: 4096, Compressor: 9}, {ChunkSize: 4096, Digester: 2},
	} {
		if err := f.Check(); err == nil {
			t.Errorf("%+v: got no error", f)
		}
	}
	for _, f := range []Format{{ChunkSize: 4096}, {ChunkSize: 16 << 20, Compressor: blob.CompressorLZ4Block, Digester: 1}} {
		if err := f.Check(); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
}
