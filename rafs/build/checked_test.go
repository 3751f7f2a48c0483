package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// stored is an image in memory: its bootstrap, and what lies beside it.
type stored struct {
	name    string
	boot    []byte
	ids     []string // of objects, in order
	objects map[string][]byte
	tar     []byte // what it unpacks to
}

// oddTar is a small archive of all that there is, with contents at the edges of
// chunks, of blocks of a cipher, and of its padding.
func oddTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		h.Size, h.Mode = int64(len(content)), 0o644
		must(t, w.WriteHeader(&h))
		_, err := w.Write(content)
		must(t, err)
	}
	for i, content := range [][]byte{
		nil, []byte("1"), []byte("15 bytes in all"), []byte("sixteen bytes !!"), []byte("5 bytes of text\x01\x78\x90"),
		noise(1, 4096), text(4097, "text "), append(noise(1, 4096), text(9000, "more ")...), bytes.Repeat([]byte{0}, 5000), noise(2, 9000),
	} {
		add(tar.Header{Name: fmt.Sprintf("d%d/file%d", i%3, i)}, content)
	}
	for _, h := range []tar.Header{
		{Name: "d0/link", Typeflag: tar.TypeLink, Linkname: "d0/file0"}, {Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "d0/file3"},
		{Name: "fifo", Typeflag: tar.TypeFifo}, {Name: "dev", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 300},
		{Name: "x", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
	} {
		add(h, nil)
	}
	must(t, w.Close())
	return b.Bytes()
}

// everyFlavour are small images of one tar in all forms that there are.
func everyFlavour(t testing.TB) []*stored {
	t.Helper()
	plain := oddTar(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(plain)
	must(t, err, z.Close())
	var out []*stored
	for _, f := range []struct {
		name string
		kind SourceType
		set  func(o *Options)
	}{
		{"v5", TarRafs, func(o *Options) { o.Version, o.Digester = 5, blob.DigesterSHA256 }},
		{"v5 raw", TarRafs, func(o *Options) { o.Version, o.Compressor = 5, blob.CompressorNone }},
		{"v6", TarRafs, func(*Options) {}},
		{"v6 contents", TarRafs, func(o *Options) { o.TOC, o.Compressor = true, blob.CompressorNone }},
		{"v6 batches", TarRafs, func(o *Options) { o.BatchSize, o.Compressor = 4096, blob.CompressorLZ4Block }},
		{"v6 secret", TarRafs, func(o *Options) {
			o.BatchSize, o.Encrypt, o.Cipher = 4096, true, &write.Cipher{Key: [32]byte{1, 31: 2}}
		}},
		{"v6 gzip", TargzRef, func(*Options) {}},
		{"v6 tar", TarTarfs, func(*Options) {}},
	} {
		o := options(t, filepath.Join(t.TempDir(), "layer"))
		source := plain
		if f.kind == TargzRef {
			source = packed.Bytes()
		}
		must(t, os.WriteFile(o.Source, source, 0o600))
		o.Type, o.ChunkSize = f.kind, 4096
		f.set(&o)
		r := create(t, o)
		s := &stored{name: f.name, objects: map[string][]byte{}}
		s.boot, err = os.ReadFile(r.Bootstrap)
		must(t, err)
		for _, name := range files(t, o.BlobDir) {
			if name != "image.boot" {
				s.objects[name], err = os.ReadFile(filepath.Join(o.BlobDir, name))
				must(t, err)
			}
		}
		if f.kind == TargzRef || f.kind == TarTarfs {
			s.objects[r.Blob] = source
		}
		for id := range s.objects {
			s.ids = append(s.ids, id)
		}
		slices.Sort(s.ids)
		s.tar, err = s.unpack(t, s.image(t), 1<<30)
		must(t, err)
		out = append(out, s)
	}
	return out
}

func (s *stored) image(t testing.TB) *image.Image {
	t.Helper()
	im, err := image.New(s.boot)
	must(t, err)
	t.Cleanup(func() { im.Close() })
	return im
}

var errLimit = errors.New("more than the test takes")

type limited struct {
	bytes.Buffer
	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.limit {
		return 0, errLimit
	}
	return l.Buffer.Write(p)
}

// unpack reads all of an image with the objects of s.
func (s *stored) unpack(t testing.TB, im *image.Image, limit int) ([]byte, error) {
	t.Helper()
	data, err := export.NewData(im, memory{s.objects}, nil)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	out := limited{limit: limit}
	_, err = export.Unpack(context.Background(), im, data, &out, export.UnpackOptions{})
	return out.Bytes(), err
}

// memory has objects for a reader.
type memory struct{ objects map[string][]byte }

func (m memory) Close() error { return nil }

func (m memory) Open(id string) (backend.Reader, error) {
	return object(m.objects[id]), blob.CheckID(id)
}

type object []byte

func (o object) Size(context.Context) (int64, error) {
	if o == nil {
		return 0, backend.ErrNotFound
	}
	return int64(len(o)), nil
}

func (o object) ReadRange(_ context.Context, p []byte, off int64) error {
	if o == nil {
		return backend.ErrNotFound
	}
	if off < 0 || off > int64(len(o)) || copy(p, o[off:]) < len(p) {
		return backend.ErrRange
	}
	return nil
}

// forCheck has the same objects for check.
type forCheck struct{ objects map[string][]byte }

type checked struct{ *bytes.Reader }

func (checked) Close() error { return nil }

func (f forCheck) Open(_ context.Context, id string) (check.Blob, error) {
	data, ok := f.objects[id]
	if !ok {
		return nil, os.ErrNotExist
	}
	return checked{bytes.NewReader(data)}, nil
}

// changeSize is the size of one change: an offset, a number of bytes and up to
// four of them. More than four cut the bytes there.
const changeSize = 9

func changed(data, changes []byte) []byte {
	data = bytes.Clone(data)
	for ; len(changes) >= changeSize && len(data) > 0; changes = changes[changeSize:] {
		off := binary.LittleEndian.Uint32(changes) % uint32(len(data))
		if n := changes[4] % 6; n > 4 {
			data = data[:off]
		} else {
			copy(data[off:], changes[5:][:n])
		}
	}
	return data
}

// change gives an image of which one part has changed: the bootstrap, or an object.
func (s *stored) change(part int, changes []byte) *stored {
	c := *s
	if part %= 1 + len(s.ids); part == 0 {
		c.boot = changed(s.boot, changes)
		return &c
	}
	c.objects = map[string][]byte{}
	for i, id := range s.ids {
		c.objects[id] = s.objects[id]
		if i+1 == part {
			c.objects[id] = changed(s.objects[id], changes)
		}
	}
	return &c
}

func (s *stored) verdict(t testing.TB) error {
	t.Helper()
	r, err := check.Reader(context.Background(), bytes.NewReader(s.boot), int64(len(s.boot)), check.Options{Blobs: forCheck{s.objects}, Data: true})
	must(t, err)
	return r.Err()
}

// agree holds what readers make of a changed image against each other: what check
// finds right can be read whole, and with the right bootstrap nothing is read but
// the right bytes.
func (s *stored) agree(t testing.TB, before *stored) {
	t.Helper()
	verdict := s.verdict(t)
	im, err := image.New(s.boot)
	if err != nil {
		if verdict == nil {
			t.Errorf("check finds right what cannot be opened: %v", err)
		}
		return
	}
	defer im.Close()
	got, err := s.unpack(t, im, 1<<20)
	switch {
	case errors.Is(err, errLimit):
	case err != nil && verdict == nil:
		t.Errorf("check finds right what cannot be read: %v", err)
	case err == nil && bytes.Equal(s.boot, before.boot) && !bytes.Equal(got, before.tar):
		t.Error("other bytes than the bootstrap has digests of")
	}
}

// FuzzChecked changes images of every form, in their bootstraps and in what lies
// beside these.
func FuzzChecked(f *testing.F) {
	images := everyFlavour(f)
	for i, s := range images {
		for part := range 1 + len(s.ids) {
			f.Add(uint8(i), uint8(part), []byte{})
			size := len(s.boot)
			if part > 0 {
				size = len(s.objects[s.ids[part-1]])
			}
			for off := 0; off < size; off += 499 {
				f.Add(uint8(i), uint8(part), append(binary.LittleEndian.AppendUint32(nil, uint32(off)), 2, byte(off), 1, 0, 0))
			}
		}
	}
	f.Fuzz(func(t *testing.T, which, part uint8, changes []byte) {
		s := images[int(which)%len(images)]
		s.change(int(part), changes).agree(t, s)
	})
}

// What check finds right of changed v6 images, Linux shows as the reader does.
func TestCheckedImagesInLinux(t *testing.T) {
	testenv.NeedsRoot(t)
	testenv.NeedsTool(t, "losetup", "mount")
	r := rand.New(rand.NewPCG(6, 7))
	for _, s := range everyFlavour(t) {
		im := s.image(t)
		if im.Super().Version != 6 {
			continue
		}
		for found := 0; found < 6; {
			change := binary.LittleEndian.AppendUint32(nil, r.Uint32())
			change = append(change, 1+byte(r.Uint32())%2, byte(r.Uint32()), byte(r.Uint32()), 0, 0)
			c := s.change(0, change)
			if bytes.Equal(c.boot, s.boot) || c.verdict(t) != nil {
				continue
			}
			found++
			c.mounts(t, change)
		}
	}
}

// mounts has Linux show an image.
func (s *stored) mounts(t *testing.T, change []byte) {
	t.Helper()
	im, dir := s.image(t), t.TempDir()
	for id, data := range s.objects {
		must(t, os.WriteFile(filepath.Join(dir, id), data, 0o600))
	}
	data, err := export.NewData(im, memory{s.objects}, nil)
	must(t, err)
	defer data.Close()
	disk := filepath.Join(t.TempDir(), "disk")
	_, err = export.Block(t.Context(), im, data, disk, export.BlockOptions{})
	must(t, err)
	want := slices.Collect(func(yield func(rafstest.Entry) bool) {
		for e, err := range rafstest.Tree(im, rafstest.Blobs{dir}) {
			must(t, err)
			if !yield(e) {
				return
			}
		}
	})
	for _, line := range rafstest.Diff(want, rafstest.Dir(testenv.MountEROFS(t, disk))) {
		t.Errorf("%s with %x: %s", s.name, change, line)
	}
}
