package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// nydusBoot is the bootstrap of an image that nydus-image made, to be damaged.
func nydusBoot(t testing.TB, name string) *boot {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testenv.Fixtures(t), "nydus-made/images", name, "image.boot"))
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.New(bytes.Clone(data))
	if err != nil {
		t.Fatal(err)
	}
	return &boot{t, data, im}
}

// Damage to images with batches, ciphers, contexts and tar files.
func TestFlippedFlavours(t *testing.T) {
	for _, name := range []string{"v6-batch-64k-lz4", "v6-layers-encrypt", "v6-targz-ref", "v6-tar-tarfs"} {
		t.Run(name, func(t *testing.T) {
			b := nydusBoot(t, name)
			tables := int(b.blobTable()) + int(b.ext(16)&0xffffffff)
			for i := range b.b {
				if i%5 != 0 || i > tables && i%485 != 0 {
					continue
				}
				was := b.b[i]
				for _, mask := range []byte{1 << (i % 8), 0xff} {
					b.b[i] = was ^ mask
					survives(t, b.b, "byte %#x ^ %#x", i, mask)
				}
				b.b[i] = was
			}
			for n := 0; n < len(b.b); n += 1009 {
				survives(t, bytes.Clone(b.b[:n]), "%d of %d bytes", n, len(b.b))
			}
		})
	}
}

func TestTarfs(t *testing.T) {
	b := nydusBoot(t, "v6-tar-tarfs")
	if s := b.im.Super(); s.BlockSize != 512 || s.Flags&layout.FlagTarfs == 0 {
		t.Errorf("blocks of %d bytes, flags %s", s.BlockSize, s.Flags)
	}
	info, found := b.im.Blobs()[0], uint32(0)
	for i := range info.ChunkCount {
		c, ok := b.im.Chunk(0, i)
		r, rok := b.im.ChunkRecord(0, i)
		if !ok || !rok || c.Digest != (blob.Digest{}) || c.CompressedOffset != c.UncompressedOffset || r.CompressedOffset != c.CompressedOffset || r.Index != i {
			t.Errorf("chunk %d is %+v, %t, record %+v, %t", i, c, ok, r, rok)
			continue
		}
		found++
	}
	if found != 368 {
		t.Errorf("%d chunks, want 368", found)
	}
	file := b.node("/links/nearly-page")
	if link, err := b.im.Readlink(file); err != nil || len(link) != 4000 {
		t.Errorf("link of %d bytes, %v, want 4000", len(link), err)
	}
}

// tarInode is the offset of an inode of an image with blocks of 512 bytes.
func (b *boot) tarInode(path string) uint64 {
	return b.ext512() + b.nid(path)*v6.NIDUnit
}

func (b *boot) ext512() uint64 { return uint64(b.b[v6.SuperOffset+40]) * 512 }

func TestTarfsRules(t *testing.T) {
	const feature, id = 84, 0
	for _, r := range []rule{
		{"name", func(b *boot) { b.b[b.blobTable()+id], b.b[v6.DevicesOffset] = 'x', 'x' }, image.ErrUnsupported, "without a SHA-256"},
		{"aligned", func(b *boot) { b.b[b.blobTable()+feature] |= 1 }, image.ErrCorrupt, "features aligned,tarfs"},
		{"no tarfs", func(b *boot) { b.b[b.blobTable()+feature] &^= 0x40 }, image.ErrCorrupt, "features cap-tar-toc"},
		{"zran", func(b *boot) { b.b[b.blobTable()+feature] |= 0xc }, image.ErrCorrupt, "zran"},
		{"sizes", func(b *boot) { b.u64(b.blobTable()+96, 1) }, image.ErrCorrupt, "1 uncompressed"},
		{"blocks", func(b *boot) { b.b[v6.SuperOffset+12] = 12 }, image.ErrUnsupported, "blocks of 4096"},
		{"no flag", func(b *boot) { b.b[v6.ExtSuperOffset+1] &^= 2 }, image.ErrUnsupported, "blocks of 512"},
		{"few chunks", func(b *boot) { b.u32(b.blobTable()+72, 10) }, image.ErrCorrupt, "blob 0 has 10 chunks"},
		{"beyond", func(b *boot) { b.u32(b.addr("/many/f0002")+4, 1<<31) }, image.ErrCorrupt, "blob 0 has 0x992000 bytes"},
		{"blob", func(b *boot) { b.b[b.addr("/many/f0002")+2] = 9 }, image.ErrCorrupt, "chunk of blob 8"},
		{"contradiction", func(b *boot) { copy(b.b[b.addr("/many/f0002"):][:4], b.b[b.addr("/many/f0001"):]) }, image.ErrCorrupt, "contradicts the address"},
	} {
		t.Run(r.name, func(t *testing.T) {
			b := nydusBoot(t, "v6-tar-tarfs")
			r.damage(b)
			_, err := image.New(b.b)
			if !errors.Is(err, r.err) || !strings.Contains(err.Error(), r.says) {
				t.Errorf("got %v\nwant %v with %q", err, r.err, r.says)
			}
		})
	}
}

// addr is the offset of the first chunk address of a file of a tarfs image.
func (b *boot) addr(path string) uint64 {
	b.Helper()
	off := b.tarInode(path)
	in, err := v6.DecodeInode(b.b[off:])
	if err != nil || in.Layout != v6.LayoutChunkBased {
		b.Fatalf("%s: %+v, %v", path, in, err)
	}
	return (off + uint64(in.DiskSize()+in.XattrSize()) + 7) &^ 7
}

func TestBlobsOfEveryFlavour(t *testing.T) {
	for name, want := range map[string]struct {
		shared, encrypted bool
		cipher            blob.Cipher
		separate          bool
	}{
		"v6-zstd-blake3": {},
		"v6-batch-1m":    {shared: true},
		"v6-encrypt":     {encrypted: true, cipher: blob.CipherAES128XTS},
		"v6-targz-ref":   {shared: true, separate: true},
		"v6-tar-tarfs":   {},
	} {
		im := nydusBoot(t, name).im
		b := im.Blobs()[0]
		if b.Cipher != want.cipher || (b.MetaID != b.ID) != want.separate {
			t.Errorf("%s: cipher %v, metadata in %s of %s", name, b.Cipher, b.MetaID, b.ID)
		}
		var shared, encrypted bool
		for i := range b.ChunkCount {
			if c, ok := im.Chunk(0, i); ok {
				shared, encrypted = shared || c.Shared, encrypted || c.Encrypted
			}
		}
		if shared != want.shared || encrypted != want.encrypted {
			t.Errorf("%s: shared %t, encrypted %t, want %+v", name, shared, encrypted, want)
		}
	}
}

// A dictionary counts the chunks that it kept; what the image uses may be numbered
// higher, and lie behind what it calls the end.
func TestBlobsOfDictionaries(t *testing.T) {
	for _, f := range []layout.Features{layout.FeatureChunkDictGenerated, layout.FeatureSeparatePrefetch} {
		b := newBoot(t, "v6-zstd-blake3")
		at := b.blobTable()
		b.u32(at+72, 1)
		b.u64(at+96, 4096)
		if _, err := image.New(b.b); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("without the feature: %v, want %v", err, image.ErrCorrupt)
		}
		b.u32(at+84, uint32(f)|uint32(b.im.Blobs()[0].Features))
		im, err := image.New(b.b)
		if err != nil {
			t.Fatal(err)
		}
		got, want := im.Blobs()[0], b.im.Blobs()[0]
		if got.ChunkCount != want.ChunkCount || got.ListedChunks != 1 || got.UncompressedSize < want.UncompressedSize-4096 {
			t.Errorf("%s: %d chunks, %d listed, %d bytes, want %d, 1, %d", f, got.ChunkCount, got.ListedChunks, got.UncompressedSize, want.ChunkCount, want.UncompressedSize)
		}
		if err := rafstest.Exercise(im); err != nil {
			t.Error(err)
		}
	}
}

func TestExternalBlobs(t *testing.T) {
	b := newBoot(t, "v6-zstd-blake3")
	b.u32(b.blobTable()+84, uint32(layout.FeatureExternal)|b.im.Blobs()[0].Features)
	clear(b.b[b.record(3):][:32])
	if _, err := image.New(b.b); !errors.Is(err, image.ErrUnsupported) {
		t.Errorf("got %v, want %v", err, image.ErrUnsupported)
	}
	im, err := image.NewWith(b.b, image.Options{External: true})
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := im.Chunk(0, 3); !ok || c.Digest != (blob.Digest{}) {
		t.Errorf("chunk 3: %+v, %t, want no digest", c, ok)
	}
}

// An image opens by its bootstrap, or by the blob that has it inside.
func TestOpenBlobs(t *testing.T) {
	const id = "6d557f3f0e0b64800428f500d6006567e21b9d1db835d12bd918f19ee7e0290b"
	path := filepath.Join(testenv.Fixtures(t), "nydus-made/blobs", id)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	renamed := filepath.Join(t.TempDir(), "layer.blob")
	if err := os.WriteFile(renamed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	for _, tt := range []struct {
		path string
		opts image.Options
		want string
	}{
		{path, image.Options{}, id},
		{renamed, image.Options{}, hex.EncodeToString(sum[:])},
		{renamed, image.Options{InlineBlobID: id}, id},
	} {
		im, err := image.Open(tt.path, tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		if b := im.Blobs()[0]; b.ID != tt.want || b.MetaID != tt.want {
			t.Errorf("%s: blob %s, metadata in %s, want %s", tt.path, b.ID, b.MetaID, tt.want)
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
	im, err := image.OpenAt(bytes.NewReader(data), int64(len(data)), image.Options{InlineBlobID: id})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := image.OpenAt(bytes.NewReader(data), int64(len(data)), image.Options{}); !errors.Is(err, image.ErrUnsupported) {
		t.Errorf("without the blob's id: %v, want %v", err, image.ErrUnsupported)
	}
	for name, data := range map[string][]byte{"nothing": nil, "anything": bytes.Repeat([]byte("any"), 5000), "a blob": data[:len(data)/2]} {
		if _, err := image.OpenAt(bytes.NewReader(data), int64(len(data)), image.Options{InlineBlobID: id}); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want %v", name, err, image.ErrCorrupt)
		}
	}
}

// A blob without data begins with its bootstrap, and still is a blob.
func TestOpenBlobWithoutData(t *testing.T) {
	for _, name := range []string{"v5-zstd-blake3", "v6-zstd-blake3"} {
		boot := core(t, name)
		want, err := image.New(bytes.Clone(boot))
		if err != nil {
			t.Fatal(err)
		}
		data := (&v6.TarHeader{Name: v6.SectionBootstrap, Size: uint64(len(boot))}).Append(bytes.Clone(boot))
		im, err := image.OpenAt(bytes.NewReader(data), int64(len(data)), image.Options{InlineBlobID: "blob"})
		if err != nil {
			t.Fatal(err)
		}
		if got := im.Super(); got != want.Super() {
			t.Errorf("%s: got %+v, want %+v", name, got, want.Super())
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Where the data is an object that somebody else made, a bootstrap names that, and
// the blob it lies in is the one with the metadata.
func TestBootstrapBesideTheData(t *testing.T) {
	b := newBoot(t, "v6-zstd-blake3")
	id := b.im.Blobs()[0].ID
	b.u32(b.blobTable()+84, b.im.Blobs()[0].Features|uint32(layout.FeatureSeparate|layout.FeatureInlinedFSMeta))
	clear(b.b[b.blobTable()+168:][:40])
	im, err := image.NewWith(b.b, image.Options{InlineBlobID: "meta"})
	if err != nil {
		t.Fatal(err)
	}
	if got := im.Blobs()[0]; got.ID != id || got.MetaID != "meta" {
		t.Errorf("blob %s, metadata in %s, want %s and meta", got.ID, got.MetaID, id)
	}
}
