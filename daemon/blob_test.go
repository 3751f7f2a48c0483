package daemon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// A blob of the source that has its bootstrap inside is an image by itself.
func TestABootstrapInsideABlobOfTheSource(t *testing.T) {
	testenv.LeakCheck(t)
	for _, c := range rafstest.Nydus(t) {
		if filepath.Base(filepath.Dir(c.Bootstrap)) != "blobs" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			id := filepath.Base(c.Bootstrap)
			socket := start(t, Options{Bootstrap: "sha256:" + id, Config: localConfig(t, c.Blobs[0], t.TempDir())})
			checkTree(t, socket, c.Want, vhostusertest.Options{})
		})
	}
	c := coreCase(t, "v6-zstd-blake3")
	blobs, err := filepath.Glob(filepath.Join(c.Blobs[0], "*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(err)
	}
	_, err = open(t.Context(), &Options{Bootstrap: "sha256:" + filepath.Base(blobs[0]), Config: localConfig(t, c.Blobs[0], t.TempDir()), Log: discard()})
	if !errors.Is(err, image.ErrNoBootstrap) {
		t.Errorf("blob without a bootstrap: %v, want %v", err, image.ErrNoBootstrap)
	}
}

// Chunk information beside the bootstrap is used, and if it is damaged, done
// without.
func TestChunkInformationBesideTheBootstrap(t *testing.T) {
	testenv.LeakCheck(t)
	for _, c := range rafstest.Nydus(t) {
		if c.Name != "v6-targz-ref" {
			continue
		}
		im, err := image.Open(c.Bootstrap, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		info := im.Blobs()[0]
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		boot, err := os.ReadFile(c.Bootstrap)
		if err != nil {
			t.Fatal(err)
		}
		data := t.TempDir() // has the layer only, and not the object with its metadata
		layer, err := os.ReadFile(filepath.Join(c.Blobs[0], info.ID))
		if err == nil {
			err = os.WriteFile(filepath.Join(data, info.ID), layer, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		file := metaFile(t, filepath.Join(c.Blobs[0], info.MetaID), int(info.ChunkInfo.Offset), int(info.ChunkInfo.CompressedSize))
		dir := t.TempDir()
		for name, b := range map[string][]byte{"image.boot": boot, info.MetaID + ".blob.meta": file} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		socket := start(t, Options{Bootstrap: filepath.Join(dir, "image.boot"), Config: localConfig(t, data, t.TempDir())})
		checkTree(t, socket, c.Want, vhostusertest.Options{})

		clear(file[:24*100])
		if err := os.WriteFile(filepath.Join(dir, info.MetaID+".blob.meta"), file, 0o600); err != nil {
			t.Fatal(err)
		}
		socket = start(t, Options{Bootstrap: filepath.Join(dir, "image.boot"), Config: localConfig(t, c.Blobs[0], t.TempDir())})
		checkTree(t, socket, c.Want, vhostusertest.Options{})
	}
}

// metaFile is what a converter makes of the chunk information in a blob.
func metaFile(t *testing.T, path string, off, size int) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := rafstest.Unzstd(t, raw[off:][:size])
	plain = append(plain, make([]byte, -len(plain)&4095)...)
	return append(bytes.Clone(plain), raw[off+size:][:4096]...)
}
