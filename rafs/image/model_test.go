package image_test

import (
	"slices"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// What a guest asks for all the time allocates nothing.
func TestHotCallsDoNotAllocate(t *testing.T) {
	for _, name := range []string{"v5-zstd-blake3", "v6-zstd-blake3"} {
		b := newBoot(t, name)
		im, dir, file, caps := b.im, b.node("/many"), b.node(mixed), b.node("/xattrs/cap")
		link := b.node("/links/abs")
		segs := make([]blob.Segment, 0, 16)
		n := 0
		count := func(image.Dirent) bool { n++; return true }
		for call, f := range map[string]func() error{
			"Attr":         func() error { _, err := im.Attr(file); return err },
			"Attr of none": func() error { im.Attr(1 << 40); return nil },
			"Lookup":       func() error { _, err := im.Lookup(image.Root, "many"); return err },
			"Lookup of none": func() error {
				im.Lookup(dir, "no such name")
				return nil
			},
			"ReadDir":  func() error { return im.ReadDir(dir, 0, count) },
			"Readlink": func() error { _, err := im.Readlink(link); return err },
			"Xattr":    func() error { _, err := im.Xattr(caps, "security.capability"); return err },
			"Xattr of none": func() error {
				im.Xattr(file, "security.capability")
				return nil
			},
			"Segments": func() error { _, err := im.Segments(segs, file, 12345, 1<<20); return err },
			"Chunk":    func() error { im.Chunk(0, 7); return nil },
		} {
			if err := f(); err != nil {
				t.Errorf("%s: %s: %v", name, call, err)
			}
			if got := testing.AllocsPerRun(100, func() { f() }); got != 0 {
				t.Errorf("%s: %s allocates %v times, want 0", name, call, got)
			}
		}
		if n == 0 {
			t.Errorf("%s: no entries", name)
		}
	}
}

// An offset is good for ever: reading a folder one entry at a time, each from
// another image of the same bytes, gives all of it.
func TestReadDirOffsets(t *testing.T) {
	for _, name := range []string{"v5-zstd-blake3", "v6-zstd-blake3"} {
		b := newBoot(t, name)
		again, err := image.New(core(t, name))
		if err != nil {
			t.Fatal(err)
		}
		images := []*image.Image{b.im, again}
		dir := b.node("/many")
		var want, got []string
		if err := b.im.ReadDir(dir, 0, func(d image.Dirent) bool { want = append(want, string(d.Name)); return true }); err != nil {
			t.Fatal(err)
		}
		for off := uint64(0); ; {
			before := off
			err := images[len(got)%2].ReadDir(dir, off, func(d image.Dirent) bool {
				got = append(got, string(d.Name))
				off = d.Next
				return false
			})
			if err != nil {
				t.Fatal(err)
			}
			if off == before {
				break
			}
		}
		if !slices.Equal(got, want) || len(got) < 300 {
			t.Errorf("%s: got %d entries one by one, want %d", name, len(got), len(want))
		}
	}
}

func TestWrongKinds(t *testing.T) {
	for _, name := range []string{"v5-zstd-blake3", "v6-zstd-blake3"} {
		b := newBoot(t, name)
		file, dir := b.node(mixed), b.node("/links")
		_, lookup := b.im.Lookup(file, "x")
		_, link := b.im.Readlink(dir)
		_, segs := b.im.Segments(nil, dir, 0, 1)
		_, xattr := b.im.Xattr(file, "user.none")
		for what, errs := range map[string][2]error{
			"lookup in a file":     {lookup, image.ErrNotDir},
			"readdir of a file":    {b.im.ReadDir(file, 0, func(image.Dirent) bool { return true }), image.ErrNotDir},
			"readlink of a folder": {link, image.ErrNotSymlink},
			"segments of a folder": {segs, image.ErrNotRegular},
			"no xattr":             {xattr, image.ErrNoXattr},
		} {
			if errs[0] != errs[1] {
				t.Errorf("%s: %s: got %v, want %v", name, what, errs[0], errs[1])
			}
		}
		for path, want := range map[string]uint64{"/": image.Root, "/links": image.Root} {
			if got, err := b.im.Lookup(b.node(path), ".."); err != nil || got != want {
				t.Errorf("%s: %s/.. = %d, %v, want %d", name, path, got, err, want)
			}
		}
	}
}

// All chunks of a tree are yielded, each once, those of its first file first.
func TestChunks(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		im := open(t, c.Bootstrap)
		type key struct{ blob, chunk uint32 }
		seen := map[key]bool{}
		for chunk := range im.Chunks([]uint64{1 << 40, image.Root, image.Root}) {
			k := key{chunk.Blob.Index, chunk.Index}
			if seen[k] {
				t.Errorf("%s: chunk %+v twice", c.Name, k)
			}
			seen[k] = true
			if found, ok := im.Chunk(k.blob, k.chunk); !ok || found != chunk {
				t.Errorf("%s: chunk %+v is %+v, %t, want %+v", c.Name, k, found, ok, chunk)
			}
		}
		want := 0
		for _, b := range im.Blobs() {
			for i := range b.ChunkCount {
				if _, ok := im.Chunk(b.Index, i); ok {
					want++
				}
			}
		}
		if len(seen) != want || want == 0 {
			t.Errorf("%s: %d chunks, want %d", c.Name, len(seen), want)
		}
		n := 0
		for range im.Chunks([]uint64{image.Root}) {
			if n++; n == 3 {
				break
			}
		}
		if n != min(3, want) {
			t.Errorf("%s: stopped after %d chunks", c.Name, n)
		}
	}
	b := newBoot(t, "v6-zstd-blake3")
	segs, err := b.im.Segments(nil, b.node(mixed), 0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for chunk := range b.im.Chunks([]uint64{b.node(mixed), b.node("/many")}) {
		if i < len(segs) && chunk != segs[i].Chunk {
			t.Errorf("chunk %d is %+v, want %+v", i, chunk, segs[i].Chunk)
		}
		i++
	}
	if i <= len(segs) {
		t.Errorf("%d chunks, the file alone has %d", i, len(segs))
	}
}

func TestCloseTwice(t *testing.T) {
	im, err := image.Open(rafstest.Core(t)[0].Bootstrap, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
}
