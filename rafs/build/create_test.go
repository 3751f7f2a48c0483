package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// The tars of the fixtures, of which nydus-image refuses one.
func TestTars(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	for _, name := range []string{"everything", "tarable"} {
		for _, version := range []int{5, 6} {
			o := options(t, filepath.Join(dir, "tars", name+".tar"))
			o.Type, o.Version = TarRafs, version
			r := create(t, o)
			want := rafstest.Manifest(t, filepath.Join(dir, "trees", name+".ndjson"))
			// A tar has no sockets.
			want = slices.DeleteFunc(want, func(e rafstest.Entry) bool { return e.Mode&tree.TypeMask == tree.TypeSocket })
			compare(t, r.Bootstrap, []string{o.BlobDir}, want)
		}
	}
}

// What comes through a fifo, and goes into one, is the same.
func TestFifos(t *testing.T) {
	src := source(t)
	work := t.TempDir()
	tarball := filepath.Join(work, "layer.tar.gz")
	out, err := exec.Command("tar", "-C", src, "--xattrs", "--format=pax", "--sort=name", "-czf", tarball, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	plain := options(t, tarball)
	plain.Type, plain.InlineMeta, plain.TOC, plain.Bootstrap = TarRafs, true, true, ""
	want := create(t, plain)

	in, blobOut := filepath.Join(work, "in"), filepath.Join(work, "out")
	must(t, unix.Mkfifo(in, 0o600), unix.Mkfifo(blobOut, 0o600))
	fed := make(chan error, 1)
	go func() {
		data, err := os.ReadFile(tarball)
		if err == nil {
			err = os.WriteFile(in, append(data, make([]byte, 1<<20)...), 0)
		}
		fed <- err
	}()
	var got bytes.Buffer
	read := make(chan error, 1)
	go func() {
		f, err := os.Open(blobOut)
		if err == nil {
			_, err = io.Copy(&got, f)
			f.Close()
		}
		read <- err
	}()
	piped := plain
	piped.Source, piped.Blob, piped.BlobDir = in, blobOut, ""
	if _, err := Create(context.Background(), piped); err == nil {
		t.Error("zeros after the gzip stream were taken for a part of it")
	}
	<-fed
	<-read
	got.Reset()
	go func() {
		data, err := os.ReadFile(tarball)
		if err == nil {
			err = os.WriteFile(in, data, 0)
		}
		fed <- err
	}()
	go func() {
		f, err := os.Open(blobOut)
		if err == nil {
			_, err = io.Copy(&got, f)
			f.Close()
		}
		read <- err
	}()
	r, err := Create(context.Background(), piped)
	must(t, err, <-fed, <-read)
	data, err := os.ReadFile(filepath.Join(plain.BlobDir, want.Blob))
	must(t, err)
	if r.Blob != want.Blob || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("blob %s of %d bytes, want %s of %d", r.Blob, got.Len(), want.Blob, len(data))
	}
}

// A build that fails leaves what was there, and nothing else.
func TestFailureLeavesNothing(t *testing.T) {
	src := source(t)
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(stop)
	for name, tc := range map[string]struct {
		ctx    context.Context
		change func(*Options)
		want   string
	}{
		"cancelled":      {ctx, func(*Options) {}, "stop"},
		"no source":      {context.Background(), func(o *Options) { o.Source = filepath.Join(src, "nope") }, "nope"},
		"no tar":         {context.Background(), func(o *Options) { o.Type, o.Source = TarRafs, filepath.Join(src, "sizes/70000") }, "tar"},
		"too many files": {context.Background(), func(o *Options) { o.Limits.Entries = 100 }, "more than 100 entries"},
		"a folder there": {context.Background(), func(o *Options) { o.Bootstrap = src }, src},
	} {
		t.Run(name, func(t *testing.T) {
			testenv.LeakCheck(t)
			o := options(t, src)
			put(t, o.BlobDir, "image.boot", []byte("old"))
			tc.change(&o)
			_, err := Create(tc.ctx, o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got := files(t, o.BlobDir); !slices.Equal(got, []string{"image.boot"}) {
				t.Errorf("left %q", got)
			}
			if old, err := os.ReadFile(filepath.Join(o.BlobDir, "image.boot")); err != nil || string(old) != "old" {
				t.Errorf("the old bootstrap is %q, %v", old, err)
			}
			if got := files(t, o.TempDir); len(got) > 0 {
				t.Errorf("left %q in the work folder", got)
			}
		})
	}
}

func TestOptionsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"version":          {func(o *Options) { o.Version = 4 }, "version 4"},
		"toc in v5":        {func(o *Options) { o.Version, o.TOC = 5, true }, "needs version 6"},
		"encrypted v5":     {func(o *Options) { o.Version, o.Encrypt = 5, true }, "needs version 6"},
		"batch in v5":      {func(o *Options) { o.Version, o.BatchSize = 5, 1<<16 }, "needs version 6"},
		"batch size":       {func(o *Options) { o.BatchSize = 5000 }, "batch size 5000"},
		"batch too large":  {func(o *Options) { o.BatchSize, o.ChunkSize = 1<<20, 1<<16 }, "batch size 1048576"},
		"chunk size":       {func(o *Options) { o.ChunkSize = 3 << 12 }, "chunk size 12288"},
		"compressor":       {func(o *Options) { o.Compressor = blob.Compressor(9) }, "compressor"},
		"no output":        {func(o *Options) { o.BlobDir = "" }, "nowhere to put the blob"},
		"no bootstrap":     {func(o *Options) { o.BlobDir, o.Bootstrap, o.Blob = "", "", "b" }, "nowhere to put the bootstrap"},
		"inline and path":  {func(o *Options) { o.InlineMeta = true }, "want no path"},
		"blob id":          {func(o *Options) { o.BlobID = "../x" }, "blob id"},
		"type":             {func(o *Options) { o.Type = "zip" }, `"zip"`},
		"ref v5":           {func(o *Options) { o.Type, o.Version = TargzRef, 5 }, "version 5 cannot be"},
		"ref with id":      {func(o *Options) { o.Type, o.BlobID = TargzRef, "x" }, "a blob id cannot be"},
		"index without id": {func(o *Options) { o.Type = TOCRef }, "no blob id"},
		"tarfs with dict":  {func(o *Options) { o.Type, o.ChunkDict = TarTarfs, "x" }, "a chunk dictionary cannot be"},
		"no source":        {func(o *Options) { o.Source = "" }, "no source"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, t.TempDir())
			tc.change(&o)
			if _, err := Create(context.Background(), o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// A folder without data has a bootstrap and no blob, unless it is inside of one.
func TestNoData(t *testing.T) {
	src := layerDir(t, map[string]string{"a/": "", "b": ""})
	for _, version := range []int{5, 6} {
		o := options(t, src)
		o.Version = version
		r := create(t, o)
		if got := files(t, o.BlobDir); !slices.Equal(got, []string{"image.boot"}) || r.Blob != "" || len(r.Blobs) != 0 {
			t.Errorf("v%d: files %q, result %+v; want only a bootstrap", version, got, r)
		}
		compare(t, r.Bootstrap, nil, dirEntries(t, src))
	}
}

func TestNames(t *testing.T) {
	src := source(t)
	t.Run("by digest", func(t *testing.T) {
		o := options(t, src)
		o.Bootstrap = ""
		r := create(t, o)
		data, err := os.ReadFile(r.Bootstrap)
		must(t, err)
		if sum := blob.DigesterSHA256.Sum(data); filepath.Base(r.Bootstrap) != sum.String() || filepath.Dir(r.Bootstrap) != o.BlobDir {
			t.Errorf("bootstrap at %s, want it under its digest %s in %s", r.Bootstrap, sum, o.BlobDir)
		}
		data, err = os.ReadFile(filepath.Join(o.BlobDir, r.Blob))
		must(t, err)
		if sum := blob.DigesterSHA256.Sum(data); sum.String() != r.Blob {
			t.Errorf("blob %s has the digest %s", r.Blob, sum)
		}
	})
	t.Run("given", func(t *testing.T) {
		o := options(t, src)
		o.BlobID = "my-blob"
		r := create(t, o)
		if !slices.Equal(r.Blobs, []string{"my-blob"}) {
			t.Errorf("blobs %q, want my-blob", r.Blobs)
		}
		compare(t, r.Bootstrap, []string{o.BlobDir}, dirEntries(t, src))
	})
	t.Run("a path", func(t *testing.T) {
		o := options(t, src)
		o.Blob = filepath.Join(t.TempDir(), "the.blob")
		create(t, o)
		if got := files(t, filepath.Dir(o.Blob)); !slices.Equal(got, []string{"the.blob"}) {
			t.Errorf("got %q, want the.blob", got)
		}
	})
	t.Run("thrown away", func(t *testing.T) {
		o := options(t, src)
		o.Blob, o.Bootstrap = os.DevNull, os.DevNull
		create(t, o)
		if st, err := os.Stat(os.DevNull); err != nil || st.Mode().IsRegular() {
			t.Fatalf("%s was replaced", os.DevNull)
		}
	})
}

// What a node would have in its cache, without a blob.
func TestCacheDir(t *testing.T) {
	src := source(t)
	plain := options(t, src)
	plain.Compressor = blob.CompressorNone
	want := create(t, plain)
	o := options(t, src)
	o.CacheDir, o.BlobDir = t.TempDir(), ""
	r := create(t, o)
	if r.Blob != want.Blob {
		t.Errorf("blob %s, want the one of compressor none, %s", r.Blob, want.Blob)
	}
	if got := files(t, o.CacheDir); !slices.Equal(got, []string{r.Blob + ".blob.data", r.Blob + ".blob.meta"}) {
		t.Fatalf("got %q, want data and meta of %s", got, r.Blob)
	}
	im := openTest(t, r.Bootstrap)
	data, err := os.ReadFile(filepath.Join(o.CacheDir, r.Blob+".blob.data"))
	must(t, err)
	if uint64(len(data)) != im.Blobs()[0].UncompressedSize {
		t.Errorf("%d bytes of data, want %d", len(data), im.Blobs()[0].UncompressedSize)
	}
	for c := range im.BlobChunks(0) {
		got := data[c.UncompressedOffset:][:c.UncompressedSize]
		if im.Blobs()[0].Digester.Sum(got) != c.Digest {
			t.Fatalf("chunk %d is not what its digest says", c.Index)
		}
	}
}

func TestPrefetchPolicies(t *testing.T) {
	src := source(t)
	list := []string{"/many/007", "/text", "/many/008", "/many/007"}
	for _, version := range []int{5, 6} {
		o := options(t, src)
		o.Version, o.Prefetch = version, Prefetch{PrefetchFS, list}
		im := openTest(t, create(t, o).Bootstrap)
		if got := len(im.Prefetch()); got != 3 {
			t.Errorf("v%d: %d inodes to prefetch, want 3", version, got)
		}
		if size := im.Blobs()[0].PrefetchSize; size != 0 {
			t.Errorf("v%d: %d bytes to prefetch, want none by policy fs", version, size)
		}
		o = options(t, src)
		o.Version, o.Prefetch = version, Prefetch{PrefetchBlob, list}
		im = openTest(t, create(t, o).Bootstrap)
		if got := len(im.Prefetch()); got != 0 {
			t.Errorf("v%d: %d inodes to prefetch, want none by policy blob", version, got)
		}
		end, inList := uint64(0), map[uint32]bool{}
		for _, p := range []string{"/many/007", "/text/4097", "/text/3146228", "/many/008"} {
			node, err := lookup(im, p)
			must(t, err)
			segments, err := im.Segments(nil, node, 0, 1<<30)
			must(t, err)
			for _, s := range segments {
				inList[s.Chunk.Index] = true
				end = max(end, s.Chunk.CompressedOffset+uint64(s.Chunk.CompressedSize))
			}
		}
		if !inList[0] || version == 5 && uint64(im.Blobs()[0].PrefetchSize) < end || version == 5 && uint64(im.Blobs()[0].PrefetchSize) > im.Blobs()[0].CompressedSize/2 {
			t.Errorf("v%d: prefetch size %d of %d, chunks of the list end at %d, the first is of the list: %t",
				version, im.Blobs()[0].PrefetchSize, im.Blobs()[0].CompressedSize, end, inList[0])
		}
	}
}

func TestParentAndDictionary(t *testing.T) {
	shared := string(noise(7, 2<<20+100))
	low := layerDir(t, map[string]string{"keep": "k", "gone": "g", "d/x": "x", "big": shared})
	up := layerDir(t, map[string]string{".wh.gone": "", "d/.wh..wh..opq": "", "d/y": "new", "copy": shared, "more": shared[:1<<20] + "tail"})
	for _, version := range []int{5, 6} {
		for _, how := range []string{"parent", "dictionary", "both"} {
			first := options(t, low)
			first.Version = version
			base := create(t, first)
			o := options(t, up)
			o.Version = version
			want := []string{"copy", "d", "d/y", "more"}
			if how != "dictionary" {
				o.Parent = base.Bootstrap
				want = []string{"big", "copy", "d", "d/y", "keep", "more"}
			}
			if how != "parent" {
				o.ChunkDict = base.Bootstrap
			}
			r := create(t, o)
			if got := paths(t, r.Bootstrap); !slices.Equal(got, want) {
				t.Errorf("v%d %s: got %q, want %q", version, how, got, want)
			}
			if !slices.Equal(r.Blobs, []string{base.Blob, r.Blob}) || r.BlobSize > 8<<10 {
				t.Errorf("v%d %s: blobs %q, a new one of %d bytes; want %s and one of what is new", version, how, r.Blobs, r.BlobSize, base.Blob)
			}
			compareFiles(t, r.Bootstrap, []string{first.BlobDir, o.BlobDir}, map[string]string{"/copy": shared, "/d/y": "new", "/more": shared[:1<<20] + "tail"})
		}
	}
}

// compareFiles holds some files of an image against what they must have.
func compareFiles(t testing.TB, bootstrap string, blobs []string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for e, err := range rafstest.Tree(openTest(t, bootstrap), rafstest.Blobs(blobs)) {
		must(t, err)
		got[e.Path] = e.SHA256
	}
	for name, content := range want {
		if sum := blob.DigesterSHA256.Sum([]byte(content)); got[name] != sum.String() {
			t.Errorf("%s: sha256 %s, want %s", name, got[name], sum)
		}
	}
}

// A dictionary of another kind would be of no use, or of harm.
func TestInconsistent(t *testing.T) {
	src := layerDir(t, map[string]string{"a": "a"})
	base := options(t, src)
	dict := create(t, base).Bootstrap
	for name, change := range map[string]func(*Options){
		"version":    func(o *Options) { o.Version = 5 },
		"chunk size": func(o *Options) { o.ChunkSize = 1 << 16 },
		"owners":     func(o *Options) { o.NoOwner = true },
	} {
		for _, parent := range []bool{false, true} {
			o := options(t, src)
			if o.ChunkDict = dict; parent {
				o.Parent, o.ChunkDict = dict, ""
			}
			change(&o)
			if _, err := Create(context.Background(), o); !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), dict) {
				t.Errorf("%s, parent %t: got %v, want ErrInconsistent and %s", name, parent, err, dict)
			}
		}
	}
}

// Version 5 has one compressor for all blobs.
func TestOneCompressor(t *testing.T) {
	src := layerDir(t, map[string]string{"a": strings.Repeat("a", 5000)})
	base := options(t, src)
	base.Version, base.Compressor = 5, blob.CompressorLZ4Block
	first := create(t, base)
	empty := options(t, layerDir(t, map[string]string{"empty": ""}))
	empty.Version = 5
	none := create(t, empty)
	other := options(t, layerDir(t, map[string]string{"b": strings.Repeat("b", 5000)}))
	other.Version, other.Parent = 5, first.Bootstrap
	if _, err := Create(context.Background(), other); !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), "lz4_block") {
		t.Errorf("parent: got %v, want ErrInconsistent", err)
	}
	other.Parent = ""
	if _, err := Merge(context.Background(), mergeOptions(t, first.Bootstrap, create(t, other).Bootstrap)); !errors.Is(err, ErrInconsistent) {
		t.Errorf("merge: got %v, want ErrInconsistent", err)
	}
	m := mergeOptions(t, none.Bootstrap, first.Bootstrap, none.Bootstrap)
	m.BlobIDs = []string{"none", first.Blob, "none"}
	r := merge(t, m)
	if r.Compressor != blob.CompressorLZ4Block {
		t.Errorf("compressor %v, want that of the layer with data", r.Compressor)
	}
	compareFiles(t, r.Bootstrap, []string{base.BlobDir}, map[string]string{"/a": strings.Repeat("a", 5000)})
}

// A chunk of the dictionary that would follow one of the new blob by its block
// number is stored again: Linux would read on in the wrong device.
func TestDictionaryNeighbours(t *testing.T) {
	c0, c1, c2 := string(noise(1, 4096)), string(noise(2, 4096)), string(noise(3, 4096))
	base := options(t, layerDir(t, map[string]string{"f": c0 + c1 + c2}))
	base.ChunkSize = 4096
	dict := create(t, base)
	changed := string(noise(4, 4096))
	o := options(t, layerDir(t, map[string]string{"f": changed + c1 + c2, "g": c0 + changed}))
	o.ChunkSize, o.ChunkDict = 4096, dict.Bootstrap
	r := create(t, o)
	compareFiles(t, r.Bootstrap, []string{base.BlobDir, o.BlobDir}, map[string]string{"/f": changed + c1 + c2, "/g": c0 + changed})
	im := openTest(t, r.Bootstrap)
	for _, name := range []string{"/f", "/g"} {
		node, err := lookup(im, name)
		must(t, err)
		segments, err := im.Segments(nil, node, 0, 1<<20)
		must(t, err)
		for i := 1; i < len(segments); i++ {
			a, b := segments[i-1].Chunk, segments[i].Chunk
			if a.Blob != b.Blob && a.UncompressedOffset+4096 == b.UncompressedOffset {
				t.Errorf("%s: chunk %d of blob %d follows chunk %d of blob %d", name, b.Index, b.Blob.Index, a.Index, a.Blob.Index)
			}
		}
	}
	if im.Super().Flags&layout.FlagExplicitUIDGID == 0 {
		t.Error("owners are not explicit")
	}
}

func TestNoOwner(t *testing.T) {
	o := options(t, layerDir(t, map[string]string{"a": "a"}))
	o.NoOwner, o.Whiteouts = true, tree.WhiteoutNone
	if im := openTest(t, create(t, o).Bootstrap); im.Super().Flags&layout.FlagExplicitUIDGID != 0 {
		t.Error("owners are explicit")
	}
}

// A layer that stays what it is, indexed; merged, it is the image.
func TestTargzRef(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/tarable.ndjson"))
	want = slices.DeleteFunc(want, func(e rafstest.Entry) bool { return e.Mode&tree.TypeMask == tree.TypeSocket })
	plain, err := os.ReadFile(filepath.Join(dir, "tars/tarable.tar"))
	must(t, err)
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	_, err = z.Write(plain)
	must(t, err, z.Close())
	for _, inline := range []bool{false, true} {
		o := options(t, filepath.Join(t.TempDir(), "layer.tar.gz"))
		must(t, os.WriteFile(o.Source, gz.Bytes(), 0o600))
		layer := blob.DigesterSHA256.Sum(gz.Bytes()).String()
		must(t, os.WriteFile(filepath.Join(o.BlobDir, layer), gz.Bytes(), 0o600))
		o.Type, o.TOC = TargzRef, true
		if o.InlineMeta = inline; inline {
			o.Bootstrap = ""
		}
		r := create(t, o)
		if r.Blob != layer || !slices.Equal(r.Blobs, []string{layer}) {
			t.Errorf("blobs %q, want the layer, %s", r.Blobs, layer)
		}
		at := r.Bootstrap
		if inline {
			for _, name := range files(t, o.BlobDir) {
				if name != layer {
					at = merge(t, mergeOptions(t, filepath.Join(o.BlobDir, name))).Bootstrap
				}
			}
		}
		im := openTest(t, at)
		b := im.Blobs()[0]
		if b.ID != layer || b.MetaID == layer || b.MetaID == "" || b.CompressedSize != uint64(gz.Len()) {
			t.Errorf("inline %t: blob %+v, want the layer and its index apart", inline, b)
		}
		if _, err := os.Stat(filepath.Join(o.BlobDir, b.MetaID)); err != nil {
			t.Errorf("inline %t: the index: %v", inline, err)
		}
		compare(t, at, []string{o.BlobDir}, want)
	}
}

// A tar that stays what it is; two of them, merged.
func TestTarfs(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/tarable.ndjson"))
	want = slices.DeleteFunc(want, func(e rafstest.Entry) bool { return e.Mode&tree.TypeMask == tree.TypeSocket })
	o := options(t, filepath.Join(dir, "tars/tarable.tar"))
	o.Type = TarTarfs
	r := create(t, o)
	plain, err := os.ReadFile(o.Source)
	must(t, err)
	id := blob.DigesterSHA256.Sum(plain).String()
	if r.Blob != id || r.BlobSize != int64(len(plain)) {
		t.Errorf("blob %s of %d bytes, want %s of %d", r.Blob, r.BlobSize, id, len(plain))
	}
	if got := files(t, o.BlobDir); !slices.Equal(got, []string{"image.boot"}) {
		t.Errorf("wrote %q, want only a bootstrap", got)
	}
	blobs := t.TempDir()
	must(t, os.WriteFile(filepath.Join(blobs, id), plain, 0o600))
	compare(t, r.Bootstrap, []string{blobs}, want)

	sources := []string{r.Bootstrap}
	for _, name := range []string{"layer1", "layer2"} {
		o := options(t, filepath.Join(dir, "tars", name+".tar"))
		o.Type, o.Whiteouts = TarTarfs, tree.WhiteoutNone
		r := create(t, o)
		data, err := os.ReadFile(o.Source)
		must(t, err, os.WriteFile(filepath.Join(blobs, r.Blob), data, 0o600))
		sources = append(sources, r.Bootstrap)
	}
	merged := merge(t, mergeOptions(t, sources...))
	if len(merged.Blobs) != 3 || merged.Blobs[0] != id {
		t.Errorf("blobs %q, want three, the first %s", merged.Blobs, id)
	}
	for _, err := range rafstest.Tree(openTest(t, merged.Bootstrap), rafstest.Blobs{blobs}) {
		must(t, err)
	}
}

// Of an eStargz layer the table of contents is enough, and the files that make it
// one are no part of it.
func TestEstargz(t *testing.T) {
	member := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write(data)
		must(t, err, z.Close())
		return b.Bytes()
	}
	big, small := noise(1, 4<<20+100), []byte("small")
	var layer bytes.Buffer
	offsets := []int{}
	for _, part := range [][]byte{big[:4<<20], big[4<<20:], small} {
		offsets = append(offsets, layer.Len())
		layer.Write(member(part))
	}
	sum := func(data []byte) string { return "sha256:" + blob.DigesterSHA256.Sum(data).String() }
	toc := fmt.Sprintf(`{"version":1,"entries":[
		{"name":"d/","type":"dir","mode":493},
		{"name":"d/big","type":"reg","size":%d,"mode":420,"offset":%d,"chunkSize":%d,"digest":%q,"chunkDigest":%q},
		{"name":"d/big","type":"chunk","offset":%d,"chunkOffset":%d,"chunkSize":100,"chunkDigest":%q},
		{"name":"small","type":"reg","size":5,"mode":420,"offset":%d,"digest":%q,"chunkDigest":%q},
		{"name":".prefetch.landmark","type":"reg","size":1,"offset":%d,"mode":420}]}`,
		len(big), offsets[0], 4<<20, sum(big), sum(big[:4<<20]), offsets[1], 4<<20, sum(big[4<<20:]), offsets[2], sum(small), sum(small), offsets[2])
	o := options(t, filepath.Join(t.TempDir(), "stargz.index.json"))
	must(t, os.WriteFile(o.Source, []byte(toc), 0o600))
	o.Type, o.BlobID, o.BlobDataSize, o.ChunkSize = TOCRef, blob.DigesterSHA256.Sum(layer.Bytes()).String(), uint64(layer.Len()), 0
	r := create(t, o)
	if r.Blob != o.BlobID || r.BlobSize != int64(layer.Len()) {
		t.Errorf("blob %s of %d bytes, want the layer, %s of %d", r.Blob, r.BlobSize, o.BlobID, layer.Len())
	}
	if got := files(t, o.BlobDir); !slices.Equal(got, []string{o.BlobID + ".blob.meta", "image.boot"}) {
		t.Errorf("wrote %q, want the chunk information and a bootstrap", got)
	}
	if got := paths(t, r.Bootstrap); !slices.Equal(got, []string{"d", "d/big", "small"}) {
		t.Errorf("got %q, want d, d/big and small", got)
	}
	blobs := t.TempDir()
	must(t, os.WriteFile(filepath.Join(blobs, o.BlobID), layer.Bytes(), 0o600))
	im := openTest(t, r.Bootstrap)
	data, err := export.NewData(im, local(t, blobs), nil)
	must(t, err)
	defer data.Close()
	for name, want := range map[string][]byte{"/d/big": big, "/small": small} {
		node, err := lookup(im, name)
		must(t, err)
		s := data.Stream(t.Context(), export.FileSegments(im, node))
		got, err := io.ReadAll(s)
		must(t, err, s.Close())
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, want these %d", name, len(got), len(want))
		}
	}

	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, name := range []string{".prefetch.landmark", "f", "stargz.index.json", "d/stargz.index.json"} {
		must(t, w.WriteHeader(&tar.Header{Name: name, Size: 1, Mode: 0o644}))
		_, err := w.Write([]byte("x"))
		must(t, err)
	}
	must(t, w.Close())
	for _, kind := range []SourceType{EstargzRafs, EstargzRef} {
		o := options(t, filepath.Join(t.TempDir(), "layer"))
		must(t, os.WriteFile(o.Source, member(archive.Bytes()), 0o600))
		o.Type = kind
		if got := paths(t, create(t, o).Bootstrap); !slices.Equal(got, []string{"d", "d/stargz.index.json", "f"}) {
			t.Errorf("%s: got %q, want what is no part of the format", kind, got)
		}
	}
}

// No two outputs have one place, and none has that of the source: whatever was
// written first would be lost.
func TestPlacesApart(t *testing.T) {
	for what, change := range map[string]func(o *Options){
		"bootstrap and blob": func(o *Options) { o.Blob = filepath.Join(o.BlobDir, ".", "x", "..", "image.boot") },
		"link to the blob": func(o *Options) {
			o.Blob = filepath.Join(o.BlobDir, "blob")
			must(t, os.WriteFile(o.Blob, nil, 0o600), os.Link(o.Blob, o.Bootstrap))
		},
		"bootstrap over the source": func(o *Options) { o.Bootstrap = o.Source },
		"blob over the source":      func(o *Options) { o.Blob = o.Source },
	} {
		o := options(t, filepath.Join(t.TempDir(), "layer.tar"))
		o.Type = TarRafs
		must(t, os.WriteFile(o.Source, make([]byte, 1024), 0o600))
		change(&o)
		if _, err := Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "would be") {
			t.Errorf("%s: got %v, want a refusal", what, err)
		}
		if st, err := os.Stat(o.Source); err != nil || st.Size() != 1024 {
			t.Errorf("%s: the source is %v, %v", what, st, err)
		}
	}
}
