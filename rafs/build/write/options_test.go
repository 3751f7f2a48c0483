package write

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

func TestSectionsThatCannotBe(t *testing.T) {
	f := zstdBlake3
	gzip := f
	gzip.Compressor = blob.CompressorGzip
	for _, o := range []BlobOptions{
		{}, {Format: f, Version: 4}, {Format: f, Version: 5, TOC: true}, {Format: f, Version: 5, Cipher: &Cipher{Key: [32]byte{1}}},
		{Format: f, Version: 5, Batch: true}, {Format: f, Packed: true}, {Format: f, Zran: true}, {Format: f, Separate: true, Batch: true},
		{Format: f, Separate: true, Zran: true, Batch: true}, {Format: f, Separate: true, Cipher: &Cipher{Key: [32]byte{1}}}, {Format: gzip},
		{Format: f, Cipher: &Cipher{}}, // both halves of the key are equal
	} {
		if _, err := NewBlob(io.Discard, o); err == nil {
			t.Errorf("%+v: got no error", o)
		}
	}
	one := records{{UncompressedSize: 1, CompressedSize: 1, Digest: blob.Digest{1}}}
	good := Object{ID: strings.Repeat("a", 64), Size: 5}
	boot := func(io.Writer, *BlobInfo) error { return nil }
	for name, tc := range map[string]struct {
		o    BlobOptions
		data string
		c    Contents
	}{
		"no chunk":                      {BlobOptions{Format: f}, "", Contents{Table: records{}}},
		"contexts without batches":      {BlobOptions{Format: f}, "x", Contents{Table: one, Contexts: BatchContexts{}}},
		"batches without contexts":      {BlobOptions{Format: f, Batch: true}, "x", Contents{Table: one}},
		"no bootstrap":                  {BlobOptions{Format: f, InlineMeta: true}, "x", Contents{Table: one}},
		"a bootstrap that has no place": {BlobOptions{Format: f}, "x", Contents{Table: one, Bootstrap: boot}},
		"data in two places":            {BlobOptions{Format: f, Separate: true}, "x", Contents{Table: one, Data: good}},
		"data nowhere":                  {BlobOptions{Format: f, Separate: true}, "", Contents{Table: one}},
	} {
		b, err := NewBlob(io.Discard, tc.o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := io.WriteString(b, tc.data); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Finish(tc.c); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

// Each kind of tables for data that lies elsewhere.
func TestSeparateData(t *testing.T) {
	data := Object{ID: strings.Repeat("ab", 32), Size: 12345}
	table := records{
		{UncompressedSize: 4096, CompressedSize: 100, Digest: blob.Digest{1}, Flags: layout.ChunkCompressed},
		{UncompressedSize: 10, CompressedSize: 9, CompressedOffset: 50, UncompressedOffset: 4096, Digest: blob.Digest{2}, Flags: layout.ChunkCompressed, UnitOffset: 4096},
	}
	for _, tc := range []struct {
		name        string
		toc, inline bool
		sections    string
	}{
		{"plain", false, false, ""},
		{"toc", true, false, "blob.meta blob.meta.header blob.digest"},
		{"inline", false, true, ""},
		{"inline toc", true, true, "blob.meta blob.meta.header blob.digest image.boot"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := BlobOptions{Format: Format{ChunkSize: 1 << 20, Compressor: blob.CompressorGzip, Digester: blob.DigesterSHA256},
				TOC: tc.toc, InlineMeta: tc.inline, Separate: true, Zran: true}
			var out bytes.Buffer
			b, err := NewBlob(&out, o)
			if err != nil {
				t.Fatal(err)
			}
			c := Contents{Table: table, Data: data, Contexts: rawContexts{1, bytes.Repeat([]byte("context!"), 5)}}
			if tc.inline {
				c.Bootstrap = func(w io.Writer, info *BlobInfo) error {
					if info.ID != data.ID || info.Entry.MetaSize != 0 || info.Entry.CompressedSize != uint64(data.Size) {
						t.Errorf("inside: %s %+v", info.ID, info.Entry)
					}
					_, err := io.WriteString(w, "bootstrap")
					return err
				}
			}
			info, err := b.Finish(c)
			if err != nil {
				t.Fatal(err)
			}
			e := info.Entry
			if info.ID != data.ID || e.CompressedSize != uint64(data.Size) || e.MetaSize != uint64(out.Len()) ||
				hex.EncodeToString(e.MetaDigest[:]) != info.Object.ID || info.Object.Size != int64(out.Len()) || e.UncompressedSize != 8192 {
				t.Errorf("finished: %s %+v, wrote %+v", info.ID, e, info.Object)
			}
			p := dissect(t, out.Bytes(), &e)
			var names []string
			for _, s := range p.TOC {
				names = append(names, s.Name)
			}
			if got := strings.Join(names, " "); got != tc.sections {
				t.Errorf("sections %q, want %q", got, tc.sections)
			}
			want := v6.MetaHeader{Features: p.Header.Features, CICompressor: e.CICompressor, Entries: 2, CIUncompressedSize: 2*24 + 40,
				ZranOffset: 48, ZranSize: 40, ZranCount: 1}
			if diff := cmp.Diff(want, p.Header); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			second, err := v6.DecodeChunkInfoV2(p.CI[v6.ChunkInfoV2Size:])
			if err != nil || second.Flags != v6.ChunkInfoZran|v6.ChunkInfoCompressed || second.Data != v6.ZranData(0, 4096) {
				t.Errorf("second chunk: %+v, %v", second, err)
			}
		})
	}
}

// What V2 chunk information cannot hold is an error, not another number.
func TestChunksThatDoNotFit(t *testing.T) {
	big := records{{UncompressedSize: 1 << 24, CompressedSize: 1 << 24, Digest: blob.Digest{1}}}
	for _, v2 := range []bool{false, true} {
		b, err := NewBlob(io.Discard, BlobOptions{Format: Format{ChunkSize: 1 << 24}, V2: v2})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Finish(Contents{Table: big}); (err != nil) != v2 {
			t.Errorf("v2 %t: got %v", v2, err)
		}
	}
}

// failing takes so many bytes.
type failing int

var errFull = errors.New("no room")

func (f *failing) Write(p []byte) (int, error) {
	if *f -= failing(len(p)); *f < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// A disk that fills up, wherever it does, is an error of Finish and of Write.
func TestWritersThatFail(t *testing.T) {
	table := records{{UncompressedSize: 1, CompressedSize: 1, Digest: blob.Digest{1}}}
	for _, o := range []BlobOptions{
		{Format: zstdBlake3}, {Format: zstdBlake3, TOC: true}, {Format: zstdBlake3, TOC: true, InlineMeta: true},
		{Format: zstdBlake3, Cipher: &Cipher{Key: [32]byte{1}}},
	} {
		for room := failing(1); ; room += 97 {
			left := room
			b, err := NewBlob(&left, o)
			if err != nil {
				t.Fatal(err)
			}
			c := Contents{Table: table}
			if o.InlineMeta {
				c.Bootstrap = func(w io.Writer, _ *BlobInfo) error {
					_, err := w.Write(make([]byte, 9000))
					return err
				}
			}
			b.Write([]byte("x"))
			if _, err = b.Finish(c); err == nil {
				break
			}
			if !errors.Is(err, errFull) {
				t.Fatalf("%+v with room for %d bytes: %v", o, room, err)
			}
		}
	}
	layer, err := tree.ReadTar(context.Background(), bytes.NewReader(pack(t, file("a", ""), file("b/c", ""))), nil, tree.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	merged, err := tree.Merge(context.Background(), t.TempDir(), layer)
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for _, version := range []int{5, 6} {
		for room := failing(1); ; room += 997 {
			p, err := New(merged, nil, Options{Format: zstdBlake3, Version: version, TempDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			left := room
			err = Bootstrap(&left, p)
			p.Close()
			if err == nil {
				break
			}
			if !errors.Is(err, errFull) {
				t.Fatalf("v%d with room for %d bytes: %v", version, room, err)
			}
		}
	}
}

// The rules of nydus for what is covered by what, and which files count.
func TestPrefetchPatterns(t *testing.T) {
	f := flavour{Options: small}
	l := readLayer(t, &f, chunk.NewPool(1, 1, int(f.ChunkSize)), 0, pack(t,
		file("a/b/c", "x"), file("a/b/d/e", "x"), file("f", "x"), file("h/i", "x"), file("empty", ""), file("a/bb", "x")))
	merged, err := tree.Merge(context.Background(), t.TempDir(), l.layer)
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for _, tc := range []struct{ patterns, want string }{
		{"", ""},
		{"/a/b /a/b/c /a/b/d /a/b/d/e /f /h/i", "b f i"},
		{"/f /a/b/c /a/b", "f c b"},
		{"/", "/"},
		{"/f / /h", "f /"},
		{"/ /f", "/"},
		{"/a/bb /a/b /a/bb", "bb b"},
		{"/empty /f /none /f/x", "f"},
		{"f h//i/ /h/../f", "f i"},
	} {
		ids, err := prefetchNodes(merged, strings.Fields(tc.patterns))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, id := range ids {
			n, err := merged.Node(id)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, v5Name(&n))
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.patterns, got, tc.want)
		}
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, o := range []Options{{}, {Format: zstdBlake3, Version: 7}, {Format: zstdBlake3, Version: 5, Tarfs: true}} {
		if p, err := New(nil, nil, o); err == nil || p != nil {
			t.Errorf("%+v: got %v, %v", o, p, err)
		}
	}
}
