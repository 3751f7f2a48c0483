package estargz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rafsd/rafsd/internal/testenv"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/zran"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// image1 writes the image of one layer to a folder, with the chunk information as a
// node keeps it, and returns its bootstrap.
func image1(t testing.TB, dir string, layer, toc []byte, chunkSize uint32) string {
	t.Helper()
	l, err := ReadTOC(t.Context(), iotest.HalfReader(bytes.NewReader(toc)), Options{ChunkSize: chunkSize, Size: uint64(len(layer)), TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	checkChunks(t, l, layer)
	merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
	l.Tree = nil
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	id := blob.DigesterSHA256.Sum(layer).String()
	info := &write.BlobInfo{ID: id, Table: l.Table, Entry: l.Entry(), Foreign: true}
	var meta bytes.Buffer
	if err := info.WriteMeta(&meta); err != nil {
		t.Fatal(err)
	}
	plan, err := write.New(merged, []*write.BlobInfo{info}, write.Options{
		Format: write.Format{ChunkSize: chunkSize, Compressor: blob.CompressorGzip, Digester: blob.DigesterSHA256}, TempDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	var boot bytes.Buffer
	if err := plan.Write(&boot); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "image.boot")
	for name, b := range map[string][]byte{path: boot.Bytes(), filepath.Join(dir, id): layer, filepath.Join(dir, id+".blob.meta"): meta.Bytes()} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// checkChunks inflates all chunks.
func checkChunks(t testing.TB, l *Layer, layer []byte) {
	t.Helper()
	i := 0
	for r, err := range l.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]byte, r.UncompressedSize)
		if err := zran.DecodeMember(dst, layer[r.CompressedOffset:][:r.CompressedSize]); err != nil {
			t.Fatalf("chunk %d %+v: %v", i, r, err)
		}
		if got := blob.DigesterSHA256.Sum(dst); got != r.Digest {
			t.Errorf("chunk %d: digest %v, want %v", i, got, r.Digest)
		}
		i++
	}
}

func TestImage(t *testing.T) {
	dir := filepath.Join(testenv.Fixtures(t), "nydus-made")
	data, err := os.ReadFile(filepath.Join(dir, "tars/tarable.tar"))
	if err != nil {
		t.Fatal(err)
	}
	want := rafstest.Manifest(t, filepath.Join(dir, "trees/tarable.ndjson"))
	want = slices.DeleteFunc(want, func(e rafstest.Entry) bool {
		// No tar holds sockets, and JSON no names that are not UTF-8.
		return e.Path == "/special/sock" || strings.ToValidUTF8(e.Path, "") != e.Path
	})
	for _, size := range []uint32{4 << 20, 64 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			layer, toc := stargz(t, data, int(size))
			dir := t.TempDir()
			path := image1(t, dir, layer, toc, size)
			report, err := check.File(t.Context(), path, check.Options{Blobs: check.Folder(dir), Data: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Err(); err != nil {
				t.Error(err)
			}
			im, err := image.Open(path, image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			rafstest.Compare(t, want, func(yield func(rafstest.Entry, error) bool) {
				for e, err := range rafstest.Tree(im, rafstest.Blobs{dir}) {
					if !strings.ContainsRune(e.Path, '\ufffd') && !yield(e, err) {
						return
					}
				}
			})
		})
	}
}

const sum = `"chunkDigest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"`

func TestEntries(t *testing.T) {
	toc := `{"unknown":{"a":[1,2]},"version":1,"entries":[
		{"name":"./dir/","type":"dir","mode":493,"uid":1000,"gid":1001,"modtime":"2024-02-03T04:05:06.5+01:00","xattrs":{"user.b":"Yg==","user.a":"YQ=="}},
		{"name":".prefetch.landmark","type":"reg","size":1,"offset":3,` + sum + `},
		{"name":"dir/file","type":"reg","size":8195,"offset":100,"chunkSize":4096,"mode":2541,` + sum + `},
		{"name":"dir/file","type":"chunk","offset":200,"chunkOffset":4096,"chunkSize":4096,` + sum + `},
		{"name":"dir/file","type":"chunk","offset":300,"chunkOffset":8192,` + sum + `},
		{"name":"dir/link","type":"hardlink","linkName":"dir/file"},
		{"name":"null","type":"char","devMajor":300,"devMinor":70000},
		{"name":"sym","type":"symlink","linkName":"/any/where"},
		{"name":"empty","type":"reg","digest":"sha256:"},
		{"name":"last","type":"reg","size":4096,"offset":1000,` + sum + `}],"more":null}`
	for i := range 5 { // of the file's chunks and the last file's, of which the first two are equal
		toc = strings.Replace(toc, "sha256:0123456789abcdef", fmt.Sprint("sha256:0123456789abcde", []int{9, 1, 1, 2, 3}[i]), 1)
	}
	l, err := ReadTOC(t.Context(), strings.NewReader(toc), Options{Blob: 5, ChunkSize: 4096, Size: 9000, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
	l.Tree = nil
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for path, want := range map[string]string{
		"dir":      "mode 40755 1000:1001 rdev 0 time 1706929506.500000000 size 0 target \"\" xattrs [{user.a a} {user.b b}] chunks []",
		"dir/file": "mode 104755 0:0 rdev 0 time 0.000000000 size 8195 target \"\" xattrs [] chunks [{5 0} {5 0} {5 1}]",
		"dir/link": "mode 104755 0:0 rdev 0 time 0.000000000 size 8195 target \"\" xattrs [] chunks [{5 0} {5 0} {5 1}]",
		"null":     "mode 20000 0:0 rdev 286338160 time 0.000000000 size 0 target \"\" xattrs [] chunks []",
		"sym":      "mode 120000 0:0 rdev 0 time 0.000000000 size 10 target \"/any/where\" xattrs [] chunks []",
		"empty":    "mode 100000 0:0 rdev 0 time 0.000000000 size 0 target \"\" xattrs [] chunks []",
		"last":     "mode 100000 0:0 rdev 0 time 0.000000000 size 4096 target \"\" xattrs [] chunks [{5 2}]",
	} {
		n, ok, err := merged.Lookup(path)
		if err != nil || !ok {
			t.Errorf("%s: %t, %v", path, ok, err)
			continue
		}
		refs := []string{}
		for ref, err := range merged.Refs(&n) {
			if err != nil {
				t.Fatal(err)
			}
			refs = append(refs, fmt.Sprint(ref))
		}
		got := fmt.Sprintf("mode %o %d:%d rdev %d time %d.%09d size %d target %q xattrs %v chunks %v",
			n.Mode, n.UID, n.GID, n.Rdev, n.Mtime, n.MtimeNsec, n.Size, n.Target, n.Xattrs, refs)
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", path, got, want)
		}
	}
	if _, ok, err := merged.Lookup(".prefetch.landmark"); ok || err != nil {
		t.Errorf("a landmark is in the tree: %t, %v", ok, err)
	}
	// The last chunk ends where the most that it can take does, the others before the
	// next one.
	var got []string
	for r, err := range l.Table.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(r.CompressedOffset, r.CompressedSize, r.UncompressedOffset, r.UncompressedSize))
	}
	if want := []string{"100 100 0 4096", "300 154 4096 3", "1000 4247 8192 4096"}; !slices.Equal(got, want) {
		t.Errorf("chunks %q, want %q", got, want)
	}
	if e := l.Entry(); e.CompressedSize != 9000 || e.UncompressedSize != 12288 || e.ChunkCount != 3 {
		t.Errorf("entry %+v", e)
	}
}

func TestWhiteouts(t *testing.T) {
	toc := `{"version":1,"entries":[{"name":"a/.wh.gone","type":"reg"},{"name":"b/.wh..wh..opq","type":"reg"},{"name":".wh..wh.plnk/x","type":"reg"},
		{"name":"dev","type":"char"},{"name":"d","type":"dir","xattrs":{"trusted.overlay.opaque":"eQ=="}}]}`
	lower := `{"version":1,"entries":[{"name":"a/gone","type":"reg"},{"name":"b/hidden","type":"reg"},{"name":"dev","type":"reg"},{"name":"d/hidden","type":"reg"}]}`
	for _, c := range []struct {
		how  tree.Whiteouts
		want string
	}{
		{tree.WhiteoutOCI, "/ a b d hidden dev"},
		{tree.WhiteoutOverlay, "/ .wh..wh.plnk x a .wh.gone gone b .wh..wh..opq hidden d"},
		{tree.WhiteoutNone, "/ .wh..wh.plnk x a .wh.gone gone b .wh..wh..opq hidden d hidden dev"},
	} {
		var layers []*tree.Layer
		for _, text := range []string{lower, toc} {
			l, err := ReadTOC(t.Context(), strings.NewReader(text), Options{Size: 1, Whiteouts: c.how, TempDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Table.Close()
			layers = append(layers, l.Tree)
		}
		merged, err := tree.Merge(t.Context(), t.TempDir(), layers...)
		if err != nil {
			t.Fatal(err)
		}
		got := "/"
		for i := 1; i < merged.Len(); i++ {
			n, err := merged.Node(tree.ID(i))
			if err != nil {
				t.Fatal(err)
			}
			got += " " + n.Name
		}
		merged.Close()
		if got != c.want {
			t.Errorf("%v: got %q, want %q", c.how, got, c.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	file := func(fields string) string {
		return `{"version":1,"entries":[{"name":"f","type":"reg","offset":10,` + sum + `,` + fields + `}]}`
	}
	for name, c := range map[string]struct{ toc, want string }{
		"nothing":          {"", "unexpected EOF"},
		"an array":         {"[]", "want {"},
		"no version":       {`{"entries":[]}`, "version there: false"},
		"version 2":        {`{"version":2,"entries":[]}`, "version 2, want 1"},
		"entries twice":    {`{"version":1,"entries":[],"entries":7]}`, "invalid character"},
		"cut off":          {`{"version":1,"entries":[{"name":"x","type":"dir"}`, "unexpected EOF"},
		"long entry":       {`{"version":1,"entries":[{"name":"` + strings.Repeat("x", 2*maxEntry) + `"}]}`, "an entry of more than"},
		"type":             {`{"version":1,"entries":[{"name":"x","type":"door"}]}`, `type "door"`},
		"empty name":       {`{"version":1,"entries":[{"type":"dir"}]}`, "empty name"},
		"dots":             {`{"version":1,"entries":[{"name":"a/../b","type":"dir"}]}`, `".." in the name`},
		"owner":            {`{"version":1,"entries":[{"name":"x","type":"dir","uid":-1}]}`, "owner -1:0"},
		"device":           {`{"version":1,"entries":[{"name":"x","type":"block","devMajor":4096}]}`, "device 4096:0"},
		"time":             {`{"version":1,"entries":[{"name":"x","type":"dir","modtime":"yesterday"}]}`, `time "yesterday"`},
		"whiteout folder":  {`{"version":1,"entries":[{"name":".wh.x/y","type":"reg"}]}`, "used as a folder"},
		"whiteout of dots": {`{"version":1,"entries":[{"name":"x/.wh...","type":"reg"}]}`, `whiteout of ".."`},
		"chunk alone":      {`{"version":1,"entries":[{"name":"f","type":"chunk"}]}`, "not the last one"},
		"no chunks":        {file(`"size":9000,"chunkSize":4096`), "chunks for 4096 of 9000 bytes"},
		"large":            {file(`"size":9000`), "chunk of 9000 bytes"},
		"odd chunk":        {file(`"size":9000,"chunkSize":4000`), "chunk of 4000 bytes"},
		"huge":             {file(`"size":18446744073709551615,"chunkSize":4096`), "chunks for 4096"},
		"chunk beyond":     {file(`"size":100,"chunkSize":101`), "chunk of 101 bytes"},
		"inner offset":     {file(`"size":100,"innerOffset":512`), "within a gzip member"},
		"digest":           {strings.Replace(file(`"size":100`), "sha256:01", "sha512:01", 1), "chunk digest"},
		"digits":           {strings.Replace(file(`"size":100`), "sha256:01", "sha256:xx", 1), "chunk digest"},
		"offset":           {strings.Replace(file(`"size":100`), `"offset":10`, `"offset":1000`, 1), "within 1000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := ReadTOC(t.Context(), strings.NewReader(c.toc), Options{ChunkSize: 4096, Size: 1000, TempDir: t.TempDir()})
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := ReadTOC(t.Context(), strings.NewReader("{}"), Options{}); err == nil {
		t.Error("a layer of no size was accepted")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	broken := errors.New("broken")
	cancel(broken)
	if _, err := ReadTOC(ctx, strings.NewReader(file(`"size":1`)), Options{Size: 100}); !errors.Is(err, broken) {
		t.Errorf("cancelled: got %v", err)
	}
}

// FuzzReadTOC reads any table. Where it is accepted, the chunks of each file make up
// its size, they lie in order within the layer, and the tree can be planned.
func FuzzReadTOC(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":5000,"offset":10,"chunkSize":4096,`+sum+`},
		{"name":"f","type":"chunk","offset":20,"chunkOffset":4096,`+sum+`},{"name":"a/.wh.b","type":"reg"},{"name":"l","type":"hardlink","linkName":"f"}]}`), uint32(1000))
	f.Add([]byte(`{"version":1,"entries":[{"name":"x","type":"char","devMajor":1,"xattrs":{"user.a":"YQ=="},"modtime":"2024-02-03T04:05:06Z"}]}`), uint32(1))
	f.Fuzz(func(t *testing.T, toc []byte, size uint32) {
		l, err := ReadTOC(t.Context(), bytes.NewReader(toc), Options{ChunkSize: 4096, Size: uint64(size), TempDir: t.TempDir()})
		if err != nil {
			return
		}
		defer l.Close()
		var at, end uint64
		for r, err := range l.Table.All() {
			if err != nil || r.CompressedOffset+1 < end || r.CompressedSize == 0 || r.UncompressedOffset != at || r.UncompressedSize == 0 {
				t.Fatalf("chunk %+v, %v: want it at %d, from %d in the layer", r, err, at, end)
			}
			end, at = r.CompressedOffset+uint64(r.CompressedSize), (at+uint64(r.UncompressedSize)+4095)&^4095
		}
		if end > uint64(size) {
			t.Errorf("chunks end at %d of %d", end, size)
		}
		merged, err := tree.Merge(t.Context(), t.TempDir(), l.Tree)
		l.Tree = nil
		if errors.Is(err, tree.ErrRefused) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer merged.Close()
		for i := range merged.Len() {
			n, err := merged.Node(tree.ID(i))
			if err != nil {
				t.Fatal(err)
			}
			var have uint64
			for ref, err := range merged.Refs(&n) {
				r, err2 := l.Table.Record(ref.Index)
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				have += uint64(r.UncompressedSize)
			}
			if n.Type() == tree.TypeFile && have != n.Size {
				t.Errorf("%q: chunks of %d bytes, want %d", n.Name, have, n.Size)
			}
		}
	})
}
