package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/rafsd/rafsd/rafs/layout/v5"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// patchSize is the size of one piece of damage in a fuzz input: where, how many
// bytes, what.
const patchSize = 9

func patch(patches []byte, off uint32, n uint8, v uint32) []byte {
	patches = binary.LittleEndian.AppendUint32(patches, off)
	patches = append(patches, n)
	return binary.LittleEndian.AppendUint32(patches, v)
}

// damaged applies patches to an image. A length of more than 4 cuts the image
// there instead.
func damaged(data, patches []byte) []byte {
	data = bytes.Clone(data)
	for ; len(patches) >= patchSize && len(data) > 0; patches = patches[patchSize:] {
		off := binary.LittleEndian.Uint32(patches) % uint32(len(data))
		if n := patches[4] % 6; n > 4 {
			data = data[:off:off]
		} else {
			copy(data[off:], patches[5:][:n])
		}
	}
	return data
}

// fuzzOpen damages valid images; one beyond the last stands for no image, so that
// the patches are taken as a bootstrap themselves.
func fuzzOpen(f *testing.F, names []string, get func(testing.TB, string) []byte, targets []uint32) {
	images := make([][]byte, 0, len(names))
	for i, name := range names {
		images = append(images, get(f, name))
		f.Add(uint8(i), []byte{})
		for _, off := range targets {
			for _, v := range []uint32{0, 1, 1<<31 - 1, 1<<32 - 1} {
				f.Add(uint8(i), patch(nil, off, 4, v))
			}
			f.Add(uint8(i), patch(nil, off, 5, 0))
		}
	}
	f.Add(uint8(len(names)), images[0])
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		n := int(which) % (len(images) + 1)
		if n == len(images) {
			survives(t, patches, "%d bytes", len(patches))
			return
		}
		survives(t, damaged(images[n], patches), "%s with patches %x", names[n], patches)
	})
}

// FuzzOpenV5 opens damaged v5 images. What opens must answer without
// contradicting itself.
func FuzzOpenV5(f *testing.F) {
	var targets []uint32
	for off := uint32(0); off < 80; off += 4 {
		targets = append(targets, off)
	}
	// The first slots of the inode table and the first records.
	for off := uint32(v5.SuperSize); off < v5.SuperSize+3*v5.InodeSize; off += 4 {
		targets = append(targets, off)
	}
	fuzzOpen(f, []string{"v5-layers", "v5-zstd-blake3"}, core, targets)
}

// FuzzOpenV6 opens damaged v6 images. What opens must answer without
// contradicting itself.
func FuzzOpenV6(f *testing.F) {
	var targets []uint32
	for off := uint32(v6.SuperOffset); off < v6.DevicesOffset+v6.DeviceSlotSize; off += 4 {
		targets = append(targets, off)
	}
	// The blob table and the root inode.
	for off := uint32(v6.BlockSize); off < v6.BlockSize+v6.BlobEntrySize; off += 8 {
		targets = append(targets, off, off+v6.BlockSize, off+2*v6.BlockSize)
	}
	fuzzOpen(f, []string{"v6-layers", "v6-dict", "upstream-v6", "v6-prefetch-root"}, core, targets)
}

// FuzzOpenFlavours is FuzzOpenV6 for images with batches, ciphers, contexts, and
// for tarfs.
func FuzzOpenFlavours(f *testing.F) {
	var targets []uint32
	for off := uint32(v6.BlockSize); off < v6.BlockSize+v6.BlobEntrySize; off += 4 {
		targets = append(targets, off, off+v6.BlockSize)
	}
	get := func(t testing.TB, name string) []byte { return nydusBoot(t, name).b }
	fuzzOpen(f, []string{"v6-layers-batch", "v6-layers-encrypt", "v6-targz-ref", "v6-tar-tarfs"}, get, targets)
}

// section appends a section with its tar header to a blob.
func section(blob []byte, name string, data []byte) []byte {
	h := v6.TarHeader{Name: name, Size: uint64(len(data))}
	return h.Append(append(blob, data...))
}

// FuzzExtractBootstrap looks for a bootstrap in any bytes. What it finds must be a
// part of them, or have the digest that they name.
func FuzzExtractBootstrap(f *testing.F) {
	boot := bytes.Repeat([]byte("bootstrap"), 10)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	packed := enc.EncodeAll(boot, nil)
	data := section(nil, v6.SectionData, []byte("data"))
	f.Add(data)
	f.Add(section(data, v6.SectionBootstrap, boot))
	for flags, b := range map[uint32][]byte{v6.TOCNone: boot, v6.TOCZstd: packed, v6.TOCLZ4Block: packed} {
		e := v6.TOCEntry{
			Flags: flags, Name: v6.SectionBootstrap, Digest: sha256.Sum256(boot),
			CompressedOffset: uint64(len(data)), CompressedSize: uint64(len(b)), UncompressedSize: uint64(len(boot)),
		}
		blob := section(bytes.Clone(data), v6.SectionBootstrap, b)
		f.Add(section(blob, v6.SectionTOC, e.Append(nil)))
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		got, err := extract(blob)
		if err != nil {
			return
		}
		sum := sha256.Sum256(got)
		if !bytes.Contains(blob, got) && !bytes.Contains(blob, sum[:]) {
			t.Errorf("found %d bytes that the blob neither has nor names", len(got))
		}
	})
}
