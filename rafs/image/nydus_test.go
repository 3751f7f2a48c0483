package image_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func open(t testing.TB, path string) *image.Image {
	t.Helper()
	im, err := image.Open(path, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// checkCase compares all of an image with its manifest, content included.
func checkCase(t *testing.T, c rafstest.Case) {
	t.Helper()
	im := open(t, c.Bootstrap)
	if err := rafstest.Exercise(im); err != nil {
		t.Error(err)
	}
	if c.Want != nil {
		rafstest.Compare(t, c.Want, rafstest.Tree(im, c.Blobs))
		return
	}
	n := uint64(0)
	for e, err := range rafstest.Tree(im, c.Blobs) {
		if err != nil {
			t.Errorf("%q: %v", e.Path, err)
		}
		n++
	}
	if s := im.Super(); n != s.Names || n == 0 {
		t.Errorf("%d entries, want %d", n, s.Names)
	}
}

func TestCoreTrees(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		t.Run(c.Name, func(t *testing.T) { checkCase(t, c) })
	}
}

func TestNydusTrees(t *testing.T) {
	cases := rafstest.Nydus(t)
	if len(cases) < 42 {
		t.Errorf("%d images, want at least 42", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) { checkCase(t, c) })
	}
}

// Layer bootstraps are images as well, with whiteouts as plain files.
func TestNydusLayers(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	paths, err := filepath.Glob(filepath.Join(dir, "images/*/layers/*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no layers: %v", err)
	}
	for _, p := range paths {
		t.Run(filepath.Base(p)[:8], func(t *testing.T) {
			checkCase(t, rafstest.Case{Bootstrap: p, Blobs: rafstest.Blobs{filepath.Join(dir, "blobs")}})
		})
	}
}

func TestUpstreamTrees(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "upstream")
	v5Blobs := rafstest.Blobs{filepath.Join(dir, "v5-none-sha256/blobs")}
	for _, c := range []rafstest.Case{
		{Bootstrap: filepath.Join(dir, "v6-zstd-blake3/image.boot"), Blobs: rafstest.Blobs{filepath.Join(dir, "v6-zstd-blake3/blobs")}},
		{Bootstrap: filepath.Join(dir, "v5-none-sha256/image.boot"), Blobs: v5Blobs},
		{Bootstrap: filepath.Join(dir, "v5-none-blake3/image.boot"), Blobs: v5Blobs},
	} {
		t.Run(filepath.Base(filepath.Dir(c.Bootstrap)), func(t *testing.T) { checkCase(t, c) })
	}
}

func extract(data []byte) ([]byte, error) {
	var boot bytes.Buffer
	err := image.ExtractBootstrap(&boot, bytes.NewReader(data), int64(len(data)))
	return boot.Bytes(), err
}

// The blob's bootstrap is compressed and found by its table of contents, by tar
// headers alone, or is not there.
func TestExtractBootstrap(t *testing.T) {
	dir := testenv.Fixtures(t)
	everything := rafstest.Manifest(t, filepath.Join(dir, "nydus-made/trees/everything.ndjson"))
	for _, tt := range []struct {
		name, id string
	}{
		{"v6-inline-meta", "dd2def1adb812aefc7fb129d1a7d653c9b0111f24504f282b16bc23e2162c05e"},
		{"v6-inline-meta-toc", "6d557f3f0e0b64800428f500d6006567e21b9d1db835d12bd918f19ee7e0290b"},
		{"v5-inline-meta", "4f34e3eb2003a8309db68a1e474ab71b103e153d7031d3118c9ba0cb64448a14"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, "nydus-made/blobs", tt.id))
			if err != nil {
				t.Fatal(err)
			}
			boot, err := extract(data)
			if err != nil {
				t.Fatal(err)
			}
			im, err := image.NewWith(boot, image.Options{InlineBlobID: tt.id})
			if err != nil {
				t.Fatal(err)
			}
			if err := rafstest.Exercise(im); err != nil {
				t.Error(err)
			}
			rafstest.Compare(t, everything, rafstest.Tree(im, rafstest.Blobs{filepath.Join(dir, "nydus-made/blobs")}))
			if _, err := image.New(boot); !errors.Is(err, image.ErrUnsupported) {
				t.Errorf("without the blob's id: got %v, want %v", err, image.ErrUnsupported)
			}
		})
	}
}

// Before version 2.2 nydus-image named such a blob by the digest of its data
// alone, and did not say that the bootstrap is inside.
func TestExtractBootstrapOld(t *testing.T) {
	const file, id = "2fa78cad554b75ac91a4a125ed148d0ddeb25efa4aaa8bd80e5dc292690a4dca", "d788a0eac4ff9779bc2eae3842117a918d847d90fddbea1503f7c5296a4a7de3"
	path := filepath.Join(testenv.Fixtures(t), "upstream/toc", file)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := extract(data)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bootstrap := filepath.Join(dir, "image.boot")
	if err := os.WriteFile(bootstrap, boot, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(dir, id)); err != nil {
		t.Fatal(err)
	}
	checkCase(t, rafstest.Case{Bootstrap: bootstrap, Blobs: rafstest.Blobs{dir}})
}

func TestExtractBootstrapRefuses(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made/blobs")
	plain, err := os.ReadFile(filepath.Join(dir, "02b33a0c891e624546cebad3a809f334f756d10941e1e53f27dd4112121a0e03"))
	if err != nil {
		t.Fatal(err)
	}
	inline, err := os.ReadFile(filepath.Join(dir, "6d557f3f0e0b64800428f500d6006567e21b9d1db835d12bd918f19ee7e0290b"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(inline)
	flipped[970034+1000] ^= 1
	for _, tt := range []struct {
		name string
		data []byte
		want error
	}{
		{"no tar headers", plain, image.ErrNoBootstrap},
		{"empty", nil, image.ErrNoBootstrap},
		{"cut", inline[:len(inline)-1], image.ErrNoBootstrap},
		{"bootstrap damaged", flipped, image.ErrCorrupt},
	} {
		if _, err := extract(tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestNydusPrefetch(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made/images")
	for name, want := range map[string][]string{
		"v6-prefetch-root": {"/"},
		"v6-prefetch-list": {"/sizes/mixed-2m", "/many", "/names"},
		"v5-prefetch-list": {"/sizes/mixed-2m", "/many", "/names"},
		"v6-zstd-blake3":   nil,
		"v5-zstd-blake3":   nil,
	} {
		im := open(t, filepath.Join(dir, name, "image.boot"))
		var nodes []uint64
		for _, path := range want {
			node := image.Root
			for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
				if part == "" {
					continue
				}
				var err error
				if node, err = im.Lookup(node, part); err != nil {
					t.Fatalf("%s: %s: %v", name, path, err)
				}
			}
			nodes = append(nodes, node)
		}
		got := slices.Sorted(slices.Values(im.Prefetch()))
		slices.Sort(nodes)
		if !slices.Equal(got, nodes) {
			t.Errorf("%s: prefetch of %v, want %v", name, got, nodes)
		}
	}
}
