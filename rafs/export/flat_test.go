package export_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	layout "github.com/rafsd/rafsd/rafs/layout/v6"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// flatDisk reads files of a disk as EROFS does that knows nothing of devices.
type flatDisk struct {
	*os.File
	super layout.Super
}

func (d *flatDisk) bytes(off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	if _, err := d.ReadAt(p, off); err != nil {
		return nil, fmt.Errorf("%d bytes at %#x: %w", n, off, err)
	}
	return p, nil
}

func openFlat(path string) (*flatDisk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d := &flatDisk{File: f}
	p, err := d.bytes(layout.SuperOffset, layout.SuperSize)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if d.super, err = layout.DecodeSuper(p); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, d.check()
}

func (d *flatDisk) check() error {
	n := 1 << d.super.BlockBits
	if n > layout.SuperOffset {
		n -= layout.SuperOffset
	}
	p, err := d.bytes(layout.SuperOffset, n)
	if err != nil {
		return err
	}
	clear(p[4:8])
	sum := ^crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli))
	switch s := &d.super; {
	case s.FeatureIncompat != 4 || s.FeatureCompat != 1 || s.ExtraDevices != 0 || s.DevtSlotOff != 0:
		return fmt.Errorf("superblock %+v, want no devices", s)
	case s.Checksum != sum:
		return fmt.Errorf("checksum %#x, want %#x", s.Checksum, sum)
	}
	fi, err := d.Stat()
	if err == nil && fi.Size() < int64(d.super.Blocks)<<d.super.BlockBits {
		err = fmt.Errorf("%d bytes for %d blocks", fi.Size(), d.super.Blocks)
	}
	return err
}

// file reads the file whose inode has this nid.
func (d *flatDisk) file(nid uint64) ([]byte, error) {
	off := int64(d.super.MetaBlkAddr)<<d.super.BlockBits + int64(nid)*layout.NIDUnit
	p, err := d.bytes(off, layout.ExtendedInodeSize)
	if err != nil {
		return nil, err
	}
	in, err := layout.DecodeInode(p)
	if err != nil {
		return nil, err
	}
	off = (off + int64(in.DiskSize()+in.XattrSize()) + 7) &^ 7
	chunk := int64(1) << (uint32(d.super.BlockBits) + in.U&layout.ChunkFormatBits)
	var out []byte
	for left := int64(in.Size); left > 0; left -= chunk {
		p, err := d.bytes(off, 8)
		if err != nil {
			return nil, err
		}
		if dev := binary.LittleEndian.Uint32(p); dev != 0 {
			return nil, fmt.Errorf("chunk address %x names a device", p)
		}
		data, err := d.bytes(int64(binary.LittleEndian.Uint32(p[4:]))<<d.super.BlockBits, int(min(chunk, left)))
		if err != nil {
			return nil, err
		}
		out = append(out, data...)
		off += 8
	}
	return out, nil
}

// compare holds all files of a disk against the image that it was made of.
func (d *flatDisk) compare(im *image.Image, blobs rafstest.Blobs) (files int, err error) {
	dirs := []uint64{image.Root}
	for len(dirs) > 0 {
		dir := dirs[0]
		dirs = dirs[1:]
		var nodes []uint64
		err := im.ReadDir(dir, 0, func(e image.Dirent) bool {
			switch {
			case string(e.Name) == "." || string(e.Name) == "..":
			case e.Type == unix.S_IFDIR:
				dirs = append(dirs, e.Node)
			case e.Type == unix.S_IFREG:
				nodes = append(nodes, e.Node)
			}
			return true
		})
		if err != nil {
			return files, err
		}
		for _, node := range nodes {
			want, err := content(im, blobs, node)
			if err != nil {
				return files, err
			}
			got, err := d.file(node - 2)
			if err != nil || !bytes.Equal(got, want) {
				return files, fmt.Errorf("inode %d has %d bytes, %w, want %d", node, len(got), err, len(want))
			}
			files++
		}
	}
	return files, nil
}

// content is the bytes of a file by the shortest way.
func content(im *image.Image, blobs rafstest.Blobs, node uint64) ([]byte, error) {
	var out []byte
	for seg, err := range export.FileSegments(im, node) {
		if err != nil {
			return nil, err
		}
		p, err := blobs.Read(&seg)
		if err != nil {
			return nil, err
		}
		out = append(out, p...)
	}
	return out, nil
}

// Every file lies on the disk where a reader without devices looks for it.
func TestBlockFlat(t *testing.T) {
	for _, c := range v6(t) {
		im, d := open(t, c)
		path, _ := disk(t, im, d, export.BlockOptions{})
		flat, err := openFlat(path)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		defer flat.Close()
		if n, err := flat.compare(im, c.Blobs); err != nil || n == 0 {
			t.Errorf("%s: after %d files: %v", c.Name, n, err)
		}
	}
}

// FuzzExport exports damaged images of both versions. What opens and comes out
// must be the tree that the image shows, as a tar and as a disk.
func FuzzExport(f *testing.F) {
	var cases []rafstest.Case
	for i, name := range []string{"v6-layers", "v5-layers", "v6-dict", "upstream-v6"} {
		c := named(f, rafstest.Core(f), name)
		cases = append(cases, c)
		size := len(read(f, c.Bootstrap))
		f.Add(uint8(i), []byte{})
		for off := 4096; off < size; off += 509 {
			f.Add(uint8(i), append(binary.LittleEndian.AppendUint32(nil, uint32(off)), byte(off), byte(off>>3)))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		c := cases[int(which)%len(cases)]
		boot := read(t, c.Bootstrap)
		for ; len(patches) >= 6; patches = patches[6:] {
			off := int(binary.LittleEndian.Uint32(patches)) % len(boot)
			boot[off] = patches[4]
			boot[(off+1)%len(boot)] = patches[5]
		}
		im, err := image.New(boot)
		if err != nil {
			return
		}
		d := data(t, im, c.Blobs)
		fuzzTar(t, c, im, d)
		fuzzDisk(t, c, im, d)
	})
}

// fuzzLimit bounds what a damaged image may become, as a few bytes can ask for a
// file of any size.
const fuzzLimit = 32 << 20

// bounded is memory that takes so much.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > fuzzLimit {
		return 0, errFull
	}
	return b.Buffer.Write(p)
}

// isBackend tells whether the blob cannot have what the image wants of it.
func isBackend(err error) bool {
	return errors.Is(err, backend.ErrNotFound) || errors.Is(err, backend.ErrRange) || errors.Is(err, blob.ErrBadID)
}

func fuzzTar(t *testing.T, c rafstest.Case, im *image.Image, d *export.Data) {
	var out bounded
	if _, err := export.Unpack(t.Context(), im, d, &out, export.UnpackOptions{}); err != nil {
		if !errors.Is(err, errFull) && !errors.Is(err, blob.ErrCorrupt) && !errors.Is(err, blob.ErrDigest) && !isBackend(err) {
			t.Errorf("tar: %v", err)
		}
		return
	}
	// What only an inode has, tar entries do not.
	strip := func(list []rafstest.Entry) []rafstest.Entry {
		for i := range list {
			e := &list[i]
			e.Nlink = 0
			e.Mode &= 0o177777 // v5 has room for more
			if kind := e.Mode & unix.S_IFMT; kind != unix.S_IFREG {
				e.Size = 0
			}
		}
		return list
	}
	want, _ := withoutSockets(strip(shows(t, rafstest.Case{Blobs: c.Blobs}, im)))
	rafstest.Compare(t, want, each(strip(readTar(t, &out.Buffer))))
}

func fuzzDisk(t *testing.T, c rafstest.Case, im *image.Image, d *export.Data) {
	path := t.TempDir() + "/disk"
	disk, err := export.Block(t.Context(), im, d, path, export.BlockOptions{})
	v5 := im.Super().Version == 5
	if err != nil {
		if !v5 && !errors.Is(err, blob.ErrCorrupt) && !errors.Is(err, blob.ErrDigest) && !errors.Is(err, image.ErrUnsupported) &&
			!errors.Is(err, unix.EFBIG) && !errors.Is(err, unix.ENOSPC) && !isBackend(err) {
			t.Errorf("disk: %v", err)
		}
		return
	}
	flat, err := openFlat(path)
	if err != nil {
		t.Fatalf("disk %+v: %v", disk, err)
	}
	defer flat.Close()
	if v5 {
		return // its nodes are not those of the disk
	}
	if _, err := flat.compare(im, c.Blobs); err != nil {
		t.Errorf("disk %+v: %v", disk, err)
	}
}
