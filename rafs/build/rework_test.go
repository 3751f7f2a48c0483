package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func local(t testing.TB, dirs ...string) backend.Backend {
	t.Helper()
	b, err := localfs.New(dirs[0], dirs[1:]...)
	must(t, err)
	t.Cleanup(func() { b.Close() })
	return b
}

// versions makes three images of one kind that have much in common, each of them
// with a blob of its own.
func versions(t testing.TB, version int, dir string) []*Result {
	t.Helper()
	var results []*Result
	for i := range 3 {
		names := map[string]string{
			"same":                            string(noise(1, 2<<20+77)),
			fmt.Sprintf("own%d", i):           string(noise(uint64(10+i), 300000)),
			"changes":                         string(noise(uint64(20+i/2), 5000)), // the first two have it in common
			"small/text":                      "in all of them",
			"small/" + strings.Repeat("d", i): "d",
		}
		o := options(t, layerDir(t, names))
		o.Version, o.BlobDir = version, dir
		results = append(results, create(t, o))
	}
	return results
}

func TestDictionary(t *testing.T) {
	for _, version := range []int{5, 6} {
		dir := t.TempDir()
		images := versions(t, version, dir)
		o := DictionaryOptions{Host: Host{TempDir: t.TempDir()}, BlobDir: t.TempDir()}
		for _, r := range images {
			o.Sources = append(o.Sources, r.Bootstrap)
		}
		dict, err := Dictionary(context.Background(), o)
		must(t, err)
		// Of the file in common three chunks, the text, and what only two have each.
		im := openTest(t, dict.Bootstrap)
		n := 0
		for i := range im.Blobs() {
			for range im.BlobChunks(uint32(i)) {
				n++
			}
		}
		if want := 6; n != want || !slices.Equal(dict.Blobs, []string{images[0].Blob, images[1].Blob}) {
			t.Errorf("v%d: %d chunks in blobs %q, want %d", version, n, dict.Blobs, want)
		}
		for e, err := range rafstest.Tree(im, rafstest.Blobs{dir}) {
			must(t, err)
			if !e.IsDir() && !strings.HasPrefix(e.Path, "/chunkdict/") {
				t.Errorf("v%d: %s in a dictionary", version, e.Path)
			}
		}
		next := options(t, layerDir(t, map[string]string{"same": string(noise(1, 2<<20+77)), "new": "new", "changes": string(noise(20, 5000))}))
		next.Version, next.ChunkDict = version, dict.Bootstrap
		r := create(t, next)
		if r.BlobSize > 8<<10 || !slices.Contains(r.Blobs, images[0].Blob) {
			t.Errorf("v%d: a blob of %d bytes, blobs %q; want one of what is new, and that of the first image", version, r.BlobSize, r.Blobs)
		}
		compare(t, r.Bootstrap, []string{dir, next.BlobDir}, dirEntries(t, next.Source))

		all := o
		all.MinImages, all.Bootstrap = 1, filepath.Join(t.TempDir(), "all.boot")
		every, err := Dictionary(context.Background(), all)
		must(t, err)
		if len(every.Blobs) != 3 {
			t.Errorf("v%d: blobs %q, want all three", version, every.Blobs)
		}
	}
}

func TestDictionaryRefused(t *testing.T) {
	dir := t.TempDir()
	six, five := versions(t, 6, dir)[0], versions(t, 5, dir)[0]
	o := DictionaryOptions{Sources: []string{six.Bootstrap, five.Bootstrap}, BlobDir: t.TempDir()}
	if _, err := Dictionary(context.Background(), o); !errors.Is(err, ErrInconsistent) {
		t.Errorf("got %v, want ErrInconsistent", err)
	}
	if _, err := Dictionary(context.Background(), DictionaryOptions{BlobDir: dir}); err == nil || !strings.Contains(err.Error(), "no source") {
		t.Errorf("got %v, want it to miss a source", err)
	}
	o.BlobDir = ""
	if _, err := Dictionary(context.Background(), o); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v, want it to miss a place", err)
	}
}

// Small blobs become one, in which is only what the image uses.
func TestCompact(t *testing.T) {
	for _, version := range []int{5, 6} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			testenv.LeakCheck(t)
			dir := t.TempDir()
			merged := merge(t, mergeOptions(t, layersOf(t, version, dir)...))
			var want []rafstest.Entry
			for e, err := range rafstest.Tree(openTest(t, merged.Bootstrap), rafstest.Blobs{dir}) {
				must(t, err)
				want = append(want, e)
			}
			o := CompactOptions{
				Source: merged.Bootstrap, Blobs: local(t, dir), BlobDir: t.TempDir(),
				Bootstrap: filepath.Join(t.TempDir(), "compact.boot"), Host: Host{TempDir: t.TempDir()},
			}
			r, err := Compact(context.Background(), o)
			must(t, err)
			if len(merged.Blobs) != 3 || len(r.Blobs) != 1 || r.Blob != r.Blobs[0] {
				t.Fatalf("blobs %q of %q, want one of three", r.Blobs, merged.Blobs)
			}
			compare(t, r.Bootstrap, []string{o.BlobDir}, want)
			// The two layers have the same large file: it is there once.
			if r.BlobSize > 1<<20+64<<10 {
				t.Errorf("blob of %d bytes, want no chunk twice", r.BlobSize)
			}

			again := o
			again.Source, again.Blobs = r.Bootstrap, local(t, o.BlobDir)
			if r, err := Compact(context.Background(), again); r != nil || err != nil {
				t.Errorf("got %v, %v; want nothing to do", r, err)
			}
			o.Layers = 4
			if r, err := Compact(context.Background(), o); r != nil || err != nil {
				t.Errorf("got %v, %v; want nothing to do for fewer than 4 layers", r, err)
			}
		})
	}
}

// A blob of which little is used is made anew, others stay.
func TestCompactLittleUsed(t *testing.T) {
	dir := t.TempDir()
	var sources []string
	for _, names := range []map[string]string{
		{"a": string(noise(1, 3<<20)), "b": string(noise(2, 1<<20)), "c": string(noise(3, 2<<20))},
		{".wh.a": "", ".wh.c": "", "d": string(noise(4, 2<<20))},
	} {
		o := options(t, layerDir(t, names))
		o.BlobDir, o.Bootstrap, o.InlineMeta, o.Whiteouts = dir, "", true, tree.WhiteoutNone
		sources = append(sources, filepath.Join(dir, create(t, o).Blob))
	}
	merged := merge(t, mergeOptions(t, sources...))
	o := CompactOptions{
		Source: merged.Bootstrap, Blobs: local(t, dir), BlobDir: t.TempDir(), MinUsedRatio: 50, BlobSize: 1,
		Bootstrap: filepath.Join(t.TempDir(), "compact.boot"),
	}
	r, err := Compact(context.Background(), o)
	must(t, err)
	if !slices.Equal(r.Blobs, []string{merged.Blobs[1], r.Blob}) || r.BlobSize > 1<<20+16<<10 {
		t.Errorf("blobs %q, a new one of %d bytes; want %s, which stays, and one of 1 MiB", r.Blobs, r.BlobSize, merged.Blobs[1])
	}
	compareFiles(t, r.Bootstrap, []string{dir, o.BlobDir}, map[string]string{"/b": string(noise(2, 1<<20)), "/d": string(noise(4, 2<<20))})
	o.MinUsedRatio = 10
	if r, err := Compact(context.Background(), o); r != nil || err != nil {
		t.Errorf("got %v, %v; want nothing to do", r, err)
	}
	o.MinUsedRatio = 100
	if _, err := Compact(context.Background(), o); err == nil {
		t.Error("a ratio of 100 % was accepted")
	}
}

// Chunks of every flavour can be stored anew.
func TestCompactFixtures(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/layers.ndjson"))
	for _, name := range []string{"v6-layers", "v5-layers", "v6-layers-toc", "v6-layers-batch", "v6-layers-encrypt"} {
		t.Run(name, func(t *testing.T) {
			o := CompactOptions{
				Source: filepath.Join(dir, "images", name, "image.boot"), Blobs: local(t, filepath.Join(dir, "blobs")),
				BlobDir: t.TempDir(), Bootstrap: filepath.Join(t.TempDir(), "compact.boot"), Cipher: testKey(),
			}
			r, err := Compact(context.Background(), o)
			must(t, err)
			if len(r.Blobs) != 1 {
				t.Errorf("blobs %q, want one", r.Blobs)
			}
			compare(t, r.Bootstrap, []string{o.BlobDir}, want)
			im := openTest(t, r.Bootstrap)
			if encrypted := im.Blobs()[0].Cipher != blob.CipherNone; encrypted != (name == "v6-layers-encrypt") {
				t.Errorf("the new blob is encrypted: %t", encrypted)
			}
		})
	}
}

func TestOptimize(t *testing.T) {
	src := source(t)
	want := dirEntries(t, src)
	for _, version := range []int{5, 6} {
		t.Run(fmt.Sprint("v", version), func(t *testing.T) {
			testenv.LeakCheck(t)
			first := options(t, src)
			first.Version, first.Prefetch = version, Prefetch{PrefetchFS, []string{"/many", "/sizes/15"}}
			base := create(t, first)
			list := `{"version":"v1","files":[{"path":"/text/link"},{"path":"/many/100","ranges":null},{"path":"relative"},
				{"path":"/sizes/3146228","ranges":[[1048576,1],[0,0]]},{"path":"/nope"},{"path":"/many"},{"path":"/many/100"}]}`
			files, err := ParsePrefetchFiles(strings.NewReader(list))
			must(t, err)
			o := OptimizeOptions{
				Source: base.Bootstrap, Blobs: local(t, first.BlobDir), Files: files,
				BlobDir: t.TempDir(), Bootstrap: filepath.Join(t.TempDir(), "optimized.boot"),
			}
			r, err := Optimize(context.Background(), o)
			must(t, err)
			if !slices.Equal(r.Blobs, []string{base.Blob, r.Blob}) {
				t.Errorf("blobs %q, want %s and a new one", r.Blobs, base.Blob)
			}
			compare(t, r.Bootstrap, []string{first.BlobDir, o.BlobDir}, want)
			im := openTest(t, r.Bootstrap)
			b := im.Blobs()[1]
			if layout.Features(b.Features)&layout.FeatureSeparatePrefetch == 0 {
				t.Errorf("features %v, want the blob marked", layout.Features(b.Features))
			}
			if len(im.Prefetch()) != 2 {
				t.Errorf("%d inodes to prefetch, want the 2 of before", len(im.Prefetch()))
			}
			// 70000 bytes, 700, and the second MiB.
			total := 0
			for c := range im.BlobChunks(1) {
				total += int(c.UncompressedSize)
			}
			if total != 70000+700+1<<20 {
				t.Errorf("%d bytes in the new blob, want %d", total, 70000+700+1<<20)
			}
			// Other names of a file, and other files with these chunks, follow.
			node, err := lookup(im, "/sizes/70000")
			must(t, err)
			segments, err := im.Segments(nil, node, 0, 1)
			must(t, err)
			if segments[0].Chunk.Blob != b {
				t.Error("the other name of a file has its data elsewhere")
			}
		})
	}
}

func TestPrefetchFiles(t *testing.T) {
	for list, want := range map[string]string{
		`{"version":"v2","files":[]}`:                                `version "v2"`,
		`/etc/passwd`:                                                "list of files",
		`{"version":"v1","files":[{"path":1}]}`:                      "list of files",
		strings.Repeat(" ", maxPrefetchList+1):                       "more than",
		`{"version":"v1","files":[{"path":"/a","ranges":[[-1,1]]}]}`: "list of files",
	} {
		if _, err := ParsePrefetchFiles(strings.NewReader(list)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: got %v, want %q", list, err, want)
		}
	}
	if files, err := ParsePrefetchFiles(strings.NewReader(" \n")); err != nil || len(files) != 0 {
		t.Errorf("nothing: got %v, %v", files, err)
	}
	f := PrefetchFile{Ranges: [][2]uint64{{10, 5}, {1<<64 - 2, 100}}}
	for _, tc := range []struct {
		off, n uint64
		want   bool
	}{{0, 10, false}, {0, 11, true}, {14, 1, true}, {15, 100, false}, {1<<64 - 1, 0, true}} {
		if got := f.wants(tc.off, tc.n); got != tc.want && tc.n > 0 {
			t.Errorf("%d+%d: got %t, want %t", tc.off, tc.n, got, tc.want)
		}
	}
}

// What has no chunks that could be stored anew is refused.
func TestReworkRefused(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	o := OptimizeOptions{
		Source: filepath.Join(dir, "images/v6-tar-tarfs/image.boot"), Blobs: local(t, filepath.Join(dir, "blobs")),
		BlobDir: t.TempDir(), Bootstrap: filepath.Join(t.TempDir(), "b"),
	}
	if _, err := Optimize(context.Background(), o); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want ErrUnsupported", err)
	}
	o.Source = filepath.Join(dir, "trees/layers.ndjson")
	if _, err := Optimize(context.Background(), o); err == nil || !strings.Contains(err.Error(), o.Source) {
		t.Errorf("got %v, want the name of what is no image", err)
	}
}
