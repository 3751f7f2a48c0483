package image_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// core reads the bootstrap of an image of rafstest.Core.
func core(t testing.TB, name string) []byte {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name == name {
			data, err := os.ReadFile(c.Bootstrap)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatalf("no image %s", name)
	return nil
}

// survives opens bytes that may be anything: they are refused for a reason, or
// make an image that contradicts itself nowhere. It tells which.
func survives(t *testing.T, data []byte, what string, args ...any) bool {
	t.Helper()
	im, err := image.New(data)
	if err != nil {
		if !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, image.ErrUnsupported) {
			t.Errorf(what+": error %v wraps neither %v nor %v", append(args, err, image.ErrCorrupt, image.ErrUnsupported)...)
		}
		return false
	}
	if err := rafstest.Exercise(im); err != nil {
		t.Errorf(what+": %v", append(args, err)...)
	}
	return true
}

// Each byte of a small image is damaged in two ways, every few of a larger one.
func TestFlippedBytes(t *testing.T) {
	for _, tt := range []struct {
		name string
		step int
	}{
		{"v5-layers", 1}, {"v6-layers", 1}, {"upstream-v6", 3}, {"v5-zstd-blake3", 211}, {"v6-zstd-blake3", 211},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := core(t, tt.name)
			opened := 0
			for i := 0; i < len(data); i += tt.step {
				was := data[i]
				for _, mask := range []byte{1 << (i % 8), 0xff} {
					data[i] = was ^ mask
					if survives(t, data, "byte %#x ^ %#x", i, mask) {
						opened++
					}
				}
				data[i] = was
			}
			t.Logf("%d of %d damaged images could be opened", opened, 2*((len(data)+tt.step-1)/tt.step))
		})
	}
}

func TestTruncated(t *testing.T) {
	for _, tt := range []struct {
		name string
		step int
	}{
		{"v5-layers", 1}, {"v6-layers", 1}, {"v5-zstd-blake3", 101}, {"v6-zstd-blake3", 101},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data := core(t, tt.name)
			for n := 0; n < len(data); n += tt.step {
				// A copy, so that what lies behind the end belongs to nobody.
				survives(t, bytes.Clone(data[:n]), "%d of %d bytes", n, len(data))
			}
		})
	}
}

// What happens to the file after Open, even by a writer who had it open before,
// cannot matter.
func TestFileChangesAfterOpen(t *testing.T) {
	for _, name := range []string{"v5-layers", "v6-layers"} {
		t.Run(name, func(t *testing.T) {
			data := core(t, name)
			path := filepath.Join(t.TempDir(), "image.boot")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			im := open(t, path)
			want, err := image.New(data)
			if err != nil {
				t.Fatal(err)
			}
			same := func(when string) {
				t.Helper()
				if err := rafstest.Exercise(im); err != nil {
					t.Errorf("%s: %v", when, err)
				}
				if got, want := walk(t, im), walk(t, want); got != want {
					t.Errorf("%s: got\n%s\nwant\n%s", when, got, want)
				}
				if got, want := im.Super(), want.Super(); got != want {
					t.Errorf("%s: got %+v, want %+v", when, got, want)
				}
			}
			same("untouched")
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, len(data)), 0); err != nil {
				t.Fatal(err)
			}
			same("overwritten")
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
			same("truncated")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			same("removed")
		})
	}
}

// walk renders names and places of data of a whole image.
func walk(t *testing.T, im *image.Image) string {
	t.Helper()
	var out bytes.Buffer
	var below func(node uint64)
	below = func(node uint64) {
		err := im.ReadDir(node, 0, func(d image.Dirent) bool {
			out.Write(d.Name)
			out.WriteByte('\n')
			if d.Type == 0o040000 && string(d.Name) != "." && string(d.Name) != ".." {
				below(d.Node)
			}
			if segs, err := im.Segments(nil, d.Node, 0, 1<<31); err == nil {
				for _, s := range segs {
					out.WriteString(s.Chunk.Digest.String())
					out.WriteByte('\n')
				}
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
	below(image.Root)
	return out.String()
}

func TestDigestOfBootstrap(t *testing.T) {
	for _, c := range rafstest.Core(t)[:1] {
		im := open(t, c.Bootstrap)
		sum := im.Super().SHA256
		again, err := image.Open(c.Bootstrap, image.Options{SHA256: &sum})
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		sum[0] ^= 1
		if _, err := image.Open(c.Bootstrap, image.Options{SHA256: &sum}); !errors.Is(err, image.ErrDigest) {
			t.Errorf("got %v, want %v", err, image.ErrDigest)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no image\n"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "absent"): os.ErrNotExist,
		empty:                        image.ErrCorrupt,
		text:                         image.ErrCorrupt,
	} {
		if _, err := image.Open(path, image.Options{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
	}
}
