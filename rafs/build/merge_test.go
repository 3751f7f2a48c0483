package build

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

func mergeOptions(t testing.TB, sources ...string) MergeOptions {
	t.Helper()
	return MergeOptions{
		Host: Host{TempDir: t.TempDir()}, Sources: sources, Bootstrap: filepath.Join(t.TempDir(), "merged.boot"),
	}
}

func merge(t testing.TB, o MergeOptions) *Result {
	t.Helper()
	r, err := Merge(context.Background(), o)
	must(t, err)
	return r
}

// The layers that nydus-image made become the image that it made of them.
func TestMergeFixtures(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/layers.ndjson"))
	for _, name := range []string{"v6-layers", "v5-layers", "v6-layers-toc", "v6-layers-batch", "v6-layers-encrypt"} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(dir, "images", name)
			theirs := openTest(t, filepath.Join(at, "image.boot"))
			var sources, ids []string
			for _, b := range theirs.Blobs() {
				sources, ids = append(sources, filepath.Join(at, "layers", b.ID)), append(ids, b.ID)
			}
			r := merge(t, mergeOptions(t, sources...))
			if !slices.Equal(r.Blobs, ids) {
				t.Errorf("blobs %q, want %q", r.Blobs, ids)
			}
			compare(t, r.Bootstrap, []string{filepath.Join(dir, "blobs")}, want)
			ours := openTest(t, r.Bootstrap)
			for i, b := range ours.Blobs() {
				their := *theirs.Blobs()[i]
				their.MappedBlock = b.MappedBlock // goes by the size of the bootstrap
				if *b != their {
					t.Errorf("blob %d: got %+v, nydus-image has %+v", i, *b, their)
				}
			}
			// None of the merged tree has xattrs; nydus-image goes by its layers.
			if a, b := ours.Super(), theirs.Super(); a.Flags != b.Flags&^layout.FlagHasXattr || a.Inodes != b.Inodes || a.Names != b.Names {
				t.Errorf("super: got %+v, nydus-image has %+v", a, b)
			}
		})
	}
}

// A bootstrap beside its blob knows that by its id, whatever its file is called;
// but a digest as the name of the file counts.
func TestMergeNames(t *testing.T) {
	o := options(t, layerDir(t, map[string]string{"a": "a"}))
	r := create(t, o)
	if got := merge(t, mergeOptions(t, r.Bootstrap)).Blobs; !slices.Equal(got, []string{r.Blob}) {
		t.Errorf("blobs %q, want %s", got, r.Blob)
	}
	name := strings.Repeat("ab", 32)
	p := filepath.Join(o.BlobDir, name+".boot")
	must(t, os.Rename(r.Bootstrap, p))
	if got := merge(t, mergeOptions(t, p)).Blobs; !slices.Equal(got, []string{name}) {
		t.Errorf("blobs %q, want %s", got, name)
	}
	m := mergeOptions(t, p)
	m.BlobIDs = []string{"given"}
	if got := merge(t, m).Blobs; !slices.Equal(got, []string{"given"}) {
		t.Errorf("blobs %q, want the one that was given", got)
	}
}

// layersOf builds three layers with whiteouts as a converter does: the bootstrap
// inside each blob, whiteouts kept.
func layersOf(t testing.TB, version int, dir string) []string {
	t.Helper()
	var sources []string
	for i, names := range []map[string]string{
		{"keep": "k", "gone": "g", "d/x": "x", "d/sub/y": "y", "big": string(noise(3, 1<<20+5)), "replaced/f": "f"},
		{".wh.gone": "", "d/.wh..wh..opq": "", "d/new": "new", "replaced": "now a file", "empty/": ""},
		{"gone": "back", "d/.wh.nothing": "", "other": string(noise(3, 1<<20+5))},
	} {
		o := options(t, layerDir(t, names))
		o.Version, o.BlobDir, o.Bootstrap, o.InlineMeta, o.TOC, o.Whiteouts = version, dir, "", true, version == 6, tree.WhiteoutNone
		r := create(t, o)
		if len(r.Blobs) != 1 || r.Blobs[0] != r.Blob {
			t.Fatalf("layer %d: blobs %q, wrote %s", i, r.Blobs, r.Blob)
		}
		sources = append(sources, filepath.Join(dir, r.Blob))
	}
	return sources
}

func TestMergeOwnLayers(t *testing.T) {
	for _, version := range []int{5, 6} {
		dir := t.TempDir()
		sources := layersOf(t, version, dir)
		o := mergeOptions(t, sources...)
		o.Prefetch = Prefetch{PrefetchFS, []string{"/d", "/d/new", "/gone"}}
		for _, p := range sources {
			id := filepath.Base(p)
			st, err := os.Stat(p)
			must(t, err)
			o.BlobIDs = append(o.BlobIDs, strings.Repeat("0", 64)) // the digests win
			o.BlobDigests, o.BlobSizes = append(o.BlobDigests, id), append(o.BlobSizes, uint64(st.Size()))
		}
		r := merge(t, o)
		want := []string{"big", "d", "d/new", "empty", "gone", "keep", "other", "replaced"}
		if got := paths(t, r.Bootstrap); !slices.Equal(got, want) {
			t.Errorf("v%d: got %q, want %q", version, got, want)
		}
		compareFiles(t, r.Bootstrap, []string{dir}, map[string]string{
			"/gone": "back", "/d/new": "new", "/replaced": "now a file", "/keep": "k", "/other": string(noise(3, 1<<20+5)),
		})
		im := openTest(t, r.Bootstrap)
		if len(im.Prefetch()) != 2 || len(im.Blobs()) != 3 {
			t.Errorf("v%d: %d inodes to prefetch and %d blobs, want 2 and 3", version, len(im.Prefetch()), len(im.Blobs()))
		}
		for i, b := range im.Blobs() {
			// All that the blobs say of themselves is found out from them, too.
			if version == 6 && (b.TOCSize == 0 || b.TOCDigest == [32]byte{}) {
				t.Errorf("blob %d: no table of contents", i)
			}
			if b.ID != filepath.Base(sources[i]) || b.CompressedSize != o.BlobSizes[i] || layout.Features(b.Features)&layout.FeatureInlinedFSMeta != 0 {
				t.Errorf("v%d: blob %d is %+v, want %s of %d bytes without its bootstrap", version, i, b, filepath.Base(sources[i]), o.BlobSizes[i])
			}
		}
	}
}

// Bootstraps that were taken out of their blobs become the same image as the blobs do,
// if there is a backend to ask about these.
func TestMergeAsksBackend(t *testing.T) {
	dir := t.TempDir()
	blobs := layersOf(t, 6, dir)
	want := merge(t, mergeOptions(t, blobs...))
	o := mergeOptions(t)
	for _, path := range blobs {
		raw, err := os.ReadFile(path)
		must(t, err)
		var boot bytes.Buffer
		must(t, image.ExtractBootstrap(&boot, bytes.NewReader(raw), int64(len(raw))))
		taken := filepath.Join(t.TempDir(), filepath.Base(path)+".boot")
		must(t, os.WriteFile(taken, boot.Bytes(), 0o644))
		o.Sources = append(o.Sources, taken)
	}
	all := openTest(t, want.Bootstrap).Blobs()[0]
	if b := openTest(t, merge(t, o).Bootstrap).Blobs()[0]; b.CompressedSize >= all.CompressedSize || b.TOCSize != 0 {
		t.Errorf("nobody was asked, but the blob has %d of %d bytes, %d of them contents", b.CompressedSize, all.CompressedSize, b.TOCSize)
	}
	o.Blobs = local(t, dir)
	sameFiles(t, filepath.Dir(want.Bootstrap), filepath.Dir(merge(t, o).Bootstrap))
	o.Blobs = local(t, t.TempDir())
	if _, err := Merge(context.Background(), o); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("a backend without the blobs: %v, want ErrNotFound", err)
	}
}

// The same layers merged at once, or one after the other on a parent, show the
// same; a blob that nothing refers to any more is gone.
func TestMergeOnParent(t *testing.T) {
	for _, version := range []int{5, 6} {
		dir := t.TempDir()
		sources := layersOf(t, version, dir)
		all := merge(t, mergeOptions(t, sources...))
		first := merge(t, mergeOptions(t, sources[0]))
		o := mergeOptions(t, sources[1:]...)
		o.Parent = first.Bootstrap
		step := merge(t, o)
		sameFiles(t, filepath.Dir(all.Bootstrap), filepath.Dir(step.Bootstrap))

		opaque := options(t, layerDir(t, map[string]string{".wh..wh..opq": "", "only": "me"}))
		opaque.Version, opaque.Whiteouts, opaque.Bootstrap, opaque.InlineMeta = version, tree.WhiteoutNone, "", true
		top := create(t, opaque)
		r := merge(t, mergeOptions(t, append(sources, filepath.Join(opaque.BlobDir, top.Blob))...))
		if got := paths(t, r.Bootstrap); !slices.Equal(got, []string{"only"}) || !slices.Equal(r.Blobs, []string{top.Blob}) {
			t.Errorf("v%d: got %q and blobs %q, want one file and its blob", version, got, r.Blobs)
		}
	}
}

func TestMergeWithDictionary(t *testing.T) {
	content := string(noise(9, 1<<20))
	base := options(t, layerDir(t, map[string]string{"f": content}))
	dict := create(t, base)
	var sources []string
	dirs := []string{base.BlobDir}
	for _, names := range []map[string]string{{"a": content, "b": "b"}, {"c": content, "d": "d"}} {
		o := options(t, layerDir(t, names))
		o.ChunkDict = dict.Bootstrap
		o.Bootstrap = ""
		o.InlineMeta = true
		r := create(t, o)
		if !slices.Equal(r.Blobs, []string{dict.Blob, r.Blob}) {
			t.Fatalf("blobs %q, want the dictionary's and %s", r.Blobs, r.Blob)
		}
		sources, dirs = append(sources, filepath.Join(o.BlobDir, r.Blob)), append(dirs, o.BlobDir)
	}
	o := mergeOptions(t, sources...)
	if _, err := Merge(context.Background(), o); !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("got %v, want ErrInconsistent, since the dictionary is missing", err)
	}
	o.ChunkDict = dict.Bootstrap
	r := merge(t, o)
	if len(r.Blobs) != 3 || r.Blobs[0] != dict.Blob {
		t.Errorf("blobs %q, want the dictionary's and two more", r.Blobs)
	}
	compareFiles(t, r.Bootstrap, dirs, map[string]string{"/a": content, "/b": "b", "/c": content, "/d": "d"})
}

func TestMergeInconsistent(t *testing.T) {
	src := layerDir(t, map[string]string{"a": "a"})
	first := create(t, options(t, src)).Bootstrap
	for name, change := range map[string]func(*Options){
		"version":    func(o *Options) { o.Version = 5 },
		"chunk size": func(o *Options) { o.ChunkSize = 1 << 16 },
		"owners":     func(o *Options) { o.NoOwner = true },
	} {
		o := options(t, src)
		change(&o)
		other := create(t, o).Bootstrap
		_, err := Merge(context.Background(), mergeOptions(t, first, other))
		if !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), other) {
			t.Errorf("%s: got %v, want ErrInconsistent and %s", name, err, other)
		}
	}
	// Only v5 digests its inodes.
	for _, version := range []int{5, 6} {
		var sources []string
		for _, d := range []blob.Digester{blob.DigesterBlake3, blob.DigesterSHA256} {
			o := options(t, layerDir(t, map[string]string{d.String(): d.String()}))
			o.Version, o.Digester, o.Bootstrap = version, d, ""
			o.InlineMeta = true
			sources = append(sources, filepath.Join(o.BlobDir, create(t, o).Blob))
		}
		_, err := Merge(context.Background(), mergeOptions(t, sources...))
		if want := version == 5; errors.Is(err, ErrInconsistent) != want || (err != nil) != want {
			t.Errorf("v%d: got %v, want ErrInconsistent: %t", version, err, want)
		}
	}
}

func TestMergeRefused(t *testing.T) {
	src := options(t, layerDir(t, map[string]string{"a": "a"}))
	first := create(t, src).Bootstrap
	for name, tc := range map[string]struct {
		change func(*MergeOptions)
		want   string
	}{
		"no source":      {func(o *MergeOptions) { o.Sources = nil }, "no source"},
		"no output":      {func(o *MergeOptions) { o.Bootstrap = "" }, "nowhere to put"},
		"two ids":        {func(o *MergeOptions) { o.BlobIDs = []string{"a", "b"} }, "2 blob ids for 1 sources"},
		"two digests":    {func(o *MergeOptions) { o.BlobDigests = []string{"a", "b"} }, "2 blob digests"},
		"two sizes":      {func(o *MergeOptions) { o.BlobSizes = []uint64{1, 2} }, "2 blob sizes"},
		"two TOCs":       {func(o *MergeOptions) { o.TOCDigests = []string{"a", "b"} }, "2 digests of tables"},
		"two TOC sizes":  {func(o *MergeOptions) { o.TOCSizes = []uint64{1, 2} }, "2 sizes of tables"},
		"no digest":      {func(o *MergeOptions) { o.BlobDigests = []string{"xyz"} }, `digest "xyz"`},
		"no id":          {func(o *MergeOptions) { o.BlobIDs = []string{"../x"} }, "blob id"},
		"not there":      {func(o *MergeOptions) { o.Sources = []string{"/nope"} }, "/nope"},
		"no bootstrap":   {func(o *MergeOptions) { o.Sources = []string{filepath.Join(src.Source, "a")} }, "corrupt"},
		"a folder there": {func(o *MergeOptions) { o.Bootstrap = src.Source }, "is a folder"},
		"parent":         {func(o *MergeOptions) { o.Parent = "/nope" }, "parent /nope"},
		"dictionary":     {func(o *MergeOptions) { o.ChunkDict = "/nope" }, "chunk dictionary /nope"},
	} {
		t.Run(name, func(t *testing.T) {
			o := mergeOptions(t, first)
			dir := filepath.Dir(o.Bootstrap)
			tc.change(&o)
			if _, err := Merge(context.Background(), o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got := files(t, dir); len(got) > 0 {
				t.Errorf("left %q", got)
			}
		})
	}
}

// A layer may bring no data, only names or whiteouts.
func TestMergeLayerWithoutData(t *testing.T) {
	for _, version := range []int{5, 6} {
		for _, toc := range []bool{false, version == 6} {
			dir := t.TempDir()
			var sources, digests []string
			for i, names := range []map[string]string{{"a": "a", "b": "b"}, {".wh.a": "", "empty": "", "d/": ""}, {"c": "c"}} {
				o := options(t, layerDir(t, names))
				o.Version, o.BlobDir, o.Bootstrap, o.InlineMeta, o.TOC, o.Whiteouts = version, dir, "", true, toc, tree.WhiteoutNone
				o.Blob = filepath.Join(dir, strings.Repeat(string("abc"[i]), 64))
				r := create(t, o)
				if data := i != 1; (len(r.Blobs) == 1) != data {
					t.Errorf("v%d: layer %d has blobs %q", version, i, r.Blobs)
				}
				sources, digests = append(sources, o.Blob), append(digests, filepath.Base(o.Blob))
			}
			o := mergeOptions(t, sources...)
			o.BlobDigests = digests
			r := merge(t, o)
			if got := paths(t, r.Bootstrap); !slices.Equal(got, []string{"b", "c", "d", "empty"}) {
				t.Errorf("v%d, toc %t: got %q", version, toc, got)
			}
			if !slices.Equal(r.Blobs, []string{digests[0], digests[2]}) {
				t.Errorf("v%d, toc %t: blobs %q, want those of the layers with data", version, toc, r.Blobs)
			}
			compareFiles(t, r.Bootstrap, []string{dir}, map[string]string{"/b": "b", "/c": "c"})
		}
	}
}
