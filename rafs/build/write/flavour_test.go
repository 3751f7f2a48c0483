package write

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// flavours are all ways to make an image that differ in more than a number.
var flavours = func() map[string]flavour {
	format := func(c blob.Compressor, d blob.Digester, chunkSize uint32) Options {
		return Options{Format: Format{ChunkSize: chunkSize, Compressor: c, Digester: d}}
	}
	zstd, lz4, none := blob.CompressorZstd, blob.CompressorLZ4Block, blob.CompressorNone
	const mib = 1 << 20
	all := map[string]flavour{
		"v6 zstd":              {Options: format(zstd, 0, mib), plain: true},
		"v6 lz4 sha256":        {Options: format(lz4, 1, mib), plain: true},
		"v6 none":              {Options: format(none, 0, mib), plain: true},
		"v6 toc":               {Options: format(zstd, 0, mib)},
		"v6 toc lz4":           {Options: format(lz4, 0, mib)},
		"v6 toc none":          {Options: format(none, 1, mib)},
		"v6 inline":            {Options: format(zstd, 0, mib), plain: true, inline: true},
		"v6 inline toc":        {Options: format(zstd, 0, mib), inline: true},
		"v6 crc":               {Options: format(zstd, 0, mib), v2: true, crc: true},
		"v6 batch":             {Options: format(zstd, 0, mib), batch: mib},
		"v6 batch lz4":         {Options: format(lz4, 0, mib), batch: 64 << 10, plain: true},
		"v6 batch inline":      {Options: format(zstd, 0, 4096), batch: 4096, inline: true, crc: true},
		"v6 encrypt":           {Options: format(zstd, 0, mib), encrypt: true, plain: true, crc: true},
		"v6 encrypt lz4":       {Options: format(lz4, 0, 64<<10), encrypt: true},
		"v6 encrypt none":      {Options: format(none, 0, 4096), encrypt: true},
		"v6 encrypt inline":    {Options: format(zstd, 0, mib), encrypt: true, inline: true},
		"v6 batch encrypt":     {Options: format(zstd, 0, mib), batch: 128 << 10, encrypt: true},
		"v6 chunk 4k":          {Options: format(zstd, 0, 4096)},
		"v6 chunk 16m":         {Options: format(zstd, 1, 16<<20), plain: true},
		"v6 id":                {Options: format(zstd, 0, mib), id: "the-id-of-a-blob"},
		"v6 id inline":         {Options: format(zstd, 0, mib), id: "the-id-of-a-blob", inline: true},
		"v5 zstd":              {Options: format(zstd, 0, mib), packed: true},
		"v5 lz4 sha256":        {Options: format(lz4, 1, mib), packed: true},
		"v5 none crc":          {Options: format(none, 0, mib), packed: true, crc: true},
		"v5 aligned":           {Options: format(zstd, 0, mib)},
		"v5 inline":            {Options: format(zstd, 0, mib), packed: true, inline: true},
		"v5 chunk 4k":          {Options: format(zstd, 1, 4096), packed: true, crc: true},
		"v5 chunk 16m":         {Options: format(lz4, 0, 16<<20), packed: true},
		"v5 prefetch":          {Options: format(zstd, 0, mib), packed: true},
		"v6 prefetch":          {Options: format(zstd, 0, mib)},
		"v6 prefetch the root": {Options: format(zstd, 0, mib), plain: true},
	}
	for name, f := range all {
		if name[1] == '5' {
			f.Version = 5
		}
		switch name[3:] {
		case "prefetch":
			f.Prefetch = []string{"/sizes/mixed-2m", "/many", "/names", "/many/none", "/none"}
		case "prefetch the root":
			f.Prefetch = []string{"/", "/many"}
		}
		all[name] = f
	}
	return all
}()

// open saves an image and opens it with rafs/image, from inside its blob if that
// is where it is.
func (b *built) open(t testing.TB, f *flavour) (im *image.Image, dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = b.save(t, dir)
	if f.inline {
		for id := range b.data {
			if id != f.id || len(b.data) == 1 {
				file = filepath.Join(dir, id)
			}
		}
	}
	im, err := image.Open(file, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im, dir, file
}

// Everything that a tree can have, in every flavour, reads back as it was; check
// finds nothing; and the same bytes come out however many workers there are.
func TestEveryFlavour(t *testing.T) {
	tars := fixtureTars(t, "everything.tar")
	want := rafstest.Manifest(t, filepath.Join(testenv.Fixtures(t), "nydus-made", "trees", "everything.ndjson"))
	want = slices.DeleteFunc(want, func(e rafstest.Entry) bool { return e.Path == "/special/sock" }) // not in a tar
	for name, f := range flavours {
		t.Run(name, func(t *testing.T) {
			b := buildAs(t, f, 1, tars...)
			im, dir, file := b.open(t, &f)
			if err := check.Image(context.Background(), file); err != nil {
				t.Errorf("check: %v", err)
			}
			rafstest.Compare(t, want, rafstest.Tree(im, rafstest.Blobs{dir}))
			if got, want := len(im.Prefetch()), min(3, len(f.Prefetch)); f.Prefetch != nil && f.Prefetch[0] != "/" && got != want {
				t.Errorf("%d inodes to prefetch, want %d", got, want)
			}
			again := buildAs(t, f, 7, tars...)
			if !bytes.Equal(again.bootstrap, b.bootstrap) {
				t.Error("another bootstrap with more workers")
			}
			if !cmp.Equal(b.data, again.data, cmp.Comparer(bytes.Equal)) {
				t.Error("other blobs with more workers")
			}
		})
	}
}

// The parts of the blobs that we write from chunks of our own are right: each
// section is where all tables say, and holds what they say.
func TestSectionsOfEveryFlavour(t *testing.T) {
	tars := fixtureTars(t, "layer1.tar")
	for name, f := range flavours {
		if f.Version == 5 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := buildAs(t, f, 2, tars...)
			info := b.plan.Blobs()[0]
			data := b.data[f.id]
			if f.id == "" {
				for _, data = range b.data {
					continue
				}
			}
			p := dissect(t, data, &info.Entry)
			if got := layout.Features(p.Header.Features); got != layout.Features(info.Entry.Features) {
				t.Errorf("header has features %v, bootstrap %v", got, layout.Features(info.Entry.Features))
			}
			all := recordsOf(t, info)
			if got := uint32(len(all)); got != info.Entry.ChunkCount || p.Header.Entries != got {
				t.Errorf("%d chunks, bootstrap says %d, header %d", got, info.Entry.ChunkCount, p.Header.Entries)
			}
			if f.inline && !bytes.Equal(p.Bootstrap, b.bootstrap) {
				t.Errorf("bootstrap inside has %d bytes, want %d", len(p.Bootstrap), len(b.bootstrap))
			}
			if f.plain == (len(p.Digests) > 0) || f.plain == (info.Entry.Features&uint32(layout.FeatureHasTOC) != 0) {
				t.Errorf("%d bytes of digests, features %v", len(p.Digests), layout.Features(info.Entry.Features))
			}
			if ext, err := v6.DecodeExtSuper(b.bootstrap[v6.ExtSuperOffset:]); err != nil || f.plain == (layout.Flags(ext.Flags)&layout.FlagInlinedChunkDigest != 0) {
				t.Errorf("flags %#x, %v", ext.Flags, err)
			}
			checkMetaFile(t, info, p)
		})
	}
}

// checkMetaFile holds what a node keeps of a blob against the blob.
func checkMetaFile(t *testing.T, info *BlobInfo, p *parts) {
	t.Helper()
	var out bytes.Buffer
	if err := info.WriteMeta(&out); err != nil {
		t.Fatal(err)
	}
	meta := out.Bytes()
	if int64(len(meta)) != info.MetaSize() || !bytes.Equal(meta[:len(p.CI)], p.CI) {
		t.Errorf("blob.meta of %d bytes, announced %d; chunk information %t", len(meta), info.MetaSize(), bytes.Equal(meta[:len(p.CI)], p.CI))
	}
	h, err := v6.DecodeMetaHeader(meta[len(meta)-v6.MetaHeaderSize:])
	h.CICompressedSize, h.Features = 0, p.Header.Features
	if err != nil || h != p.Header {
		t.Errorf("blob.meta has header %+v, %v, want %+v", h, err, p.Header)
	}
}

// What a cutter writes as a cache file is the uncompressed space of the blob.
func TestCacheFiles(t *testing.T) {
	for _, name := range []string{"v6 toc", "v6 batch", "v6 batch encrypt", "v6 encrypt", "v6 chunk 4k", "v6 inline toc"} {
		t.Run(name, func(t *testing.T) {
			f := flavours[name]
			f.cache = true
			b := buildAs(t, f, 2, fixtureTars(t, "tarable.tar")...)
			info := *b.plan.Blobs()[0]
			for id, data := range b.data {
				want := uncompressed(t, &info, data)
				got := b.cache[id]
				got = append(got, make([]byte, len(want)-len(got))...)
				if !bytes.Equal(got, want) {
					t.Errorf("cache file of %d bytes differs from the chunks", len(got))
				}
			}
		})
	}
}

// What the blob table says of a blob inside which the bootstrap is differs from
// what a merged image says of it afterwards.
func TestInfoOfABlobThatIsFinished(t *testing.T) {
	f := flavours["v6 inline toc"]
	pool := chunk.NewPool(1, 1, int(f.ChunkSize))
	l := readLayer(t, &f, pool, 0, fixtureTars(t, "layer1.tar")[0])
	defer l.layer.Close()
	var inside BlobInfo
	info, err := l.blob.Finish(Contents{Table: l.table, Bootstrap: func(w io.Writer, info *BlobInfo) error {
		inside = *info
		_, err := w.Write([]byte("bootstrap"))
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	const inlined = uint32(layout.FeatureInlinedFSMeta)
	if inside.ID != UnknownID || inside.Entry.Features&inlined == 0 || inside.Entry.TOCSize != 0 || inside.Entry.CompressedSize >= uint64(l.out.Len()) {
		t.Errorf("inside: %+v", inside.Entry)
	}
	toc := l.out.Bytes()[l.out.Len()-int(info.Entry.TOCSize):]
	if sum, err := sha256hex(bytes.NewReader(toc)); err != nil || sum != hex.EncodeToString(info.Entry.TOCDigest[:]) {
		t.Errorf("toc digest %x, bytes have %s, %v", info.Entry.TOCDigest, sum, err)
	}
	sum, err := sha256hex(bytes.NewReader(l.out.Bytes()))
	if err != nil || info.ID != sum || info.Object.ID != sum || info.Entry.Features&inlined != 0 || info.Entry.CompressedSize != uint64(l.out.Len()) {
		t.Errorf("finished: %s %+v, blob has sha256 %s and %d bytes", info.ID, info.Entry, sum, l.out.Len())
	}
}

// A layer without data has a blob all the same if its bootstrap is inside.
func TestNothingButABootstrap(t *testing.T) {
	for _, name := range []string{"v6 inline", "v6 inline toc", "v5 inline"} {
		t.Run(name, func(t *testing.T) {
			f := flavours[name]
			b := buildAs(t, f, 1, pack(t, file("d/empty", "")))
			if n := len(b.plan.Blobs()); n != 0 {
				t.Errorf("%d blobs, want none", n)
			}
			im, _, file := b.open(t, &f)
			if n := im.Super().Names; n != 2 {
				t.Errorf("%d names, want 2", n)
			}
			if _, err := os.Stat(file); err != nil || len(b.data) != 1 {
				t.Errorf("%d blobs written, %v", len(b.data), err)
			}
		})
	}
}
