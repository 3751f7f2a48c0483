package write

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// someOf is what an image tells of a blob of which it uses some chunks.
type someOf struct {
	records
	t *testing.T
}

func (s someOf) Record(i uint32) (chunk.Record, error) {
	if s.records[i].UncompressedSize == 0 {
		return chunk.Record{}, errors.New("the image does not use it")
	}
	return s.records[i], nil
}

func (s someOf) All() iter.Seq2[chunk.Record, error] {
	s.t.Error("all chunks of a foreign blob were asked for")
	return s.records.All()
}

// dictOf makes a blob of chunks and a dictionary of some of them.
func dictOf(t *testing.T, o Options, letters, known string) (*BlobInfo, []byte, *chunk.Index) {
	t.Helper()
	f := flavour{Options: o}
	l := readLayer(t, &f, chunk.NewPool(1, 1, int(o.ChunkSize)), 0, pack(t, file("dict", chunks(letters))))
	defer l.layer.Close()
	info, err := l.blob.Finish(Contents{Table: l.table})
	if err != nil {
		t.Fatal(err)
	}
	table, index := recordsOf(t, info), chunk.NewIndex(t.TempDir())
	t.Cleanup(func() { index.Close() })
	for i, letter := range letters {
		if !bytes.ContainsRune([]byte(known), letter) {
			table[i] = chunk.Record{}
		} else if err := index.Add(table[i].Digest, table[i].UncompressedSize, chunk.Ref{Blob: 0, Index: uint32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	info.Table, info.Foreign = someOf{table, t}, true
	return info, l.out.Bytes(), index
}

// A layer over a dictionary takes from the dictionary's blob what that has, and
// nothing of that blob stands for anything else.
func TestForeignBlobs(t *testing.T) {
	for _, tc := range []struct {
		name, dict, known, file string
		blobs                   int
		used                    []int
	}{
		{"all of it", "abcd", "abcd", "dcba", 1, []int{4}},
		{"some of it", "abcd", "bd", "xbyd", 2, []int{2, 2}},
		{"none of it", "abcd", "abcd", "xyz", 1, []int{3}},
		{"what the dictionary does not know is stored again", "abcd", "a", "abcd", 2, []int{1, 3}},
	} {
		for _, version := range []int{5, 6} {
			t.Run(fmt.Sprintf("v%d %s", version, tc.name), func(t *testing.T) {
				o := small
				o.Version, o.TempDir = version, t.TempDir()
				dict, data, index := dictOf(t, o, tc.dict, tc.known)
				b := &built{data: map[string][]byte{dict.ID: data}}
				pool := chunk.NewPool(1, 1, int(o.ChunkSize))
				var out bytes.Buffer
				w, err := NewBlob(&out, BlobOptions{Format: o.Format, Version: version, TOC: version == 6})
				if err != nil {
					t.Fatal(err)
				}
				cutter, err := chunk.NewCutter(context.Background(), pool, w, chunk.Options{
					Blob: 1, Compressor: o.Compressor, Digester: o.Digester, Dict: index, TempDir: o.TempDir,
				})
				if err != nil {
					t.Fatal(err)
				}
				content := chunks(tc.file)
				layer, err := tree.ReadTar(context.Background(), bytes.NewReader(pack(t, file("f", content))), cutter, tree.ReadOptions{TempDir: o.TempDir})
				table, _, closeErr := cutter.Close()
				if err = errors.Join(err, closeErr); err != nil {
					t.Fatal(err)
				}
				defer table.Close()
				infos := []*BlobInfo{dict, nil}
				if table.Len() > 0 {
					if infos[1], err = w.Finish(Contents{Table: table}); err != nil {
						t.Fatal(err)
					}
					b.data[infos[1].ID] = out.Bytes()
				}
				merged, err := tree.Merge(context.Background(), o.TempDir, layer)
				if err != nil {
					t.Fatal(err)
				}
				defer merged.Close()
				b.write(t, merged, infos, o)
				want := map[string]string{"/f": fmt.Sprintf("%d %x", len(content), sha256.Sum256([]byte(content)))}
				if diff := cmp.Diff(want, b.verify(t)); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				if got := chunksByBlob(b.plan); !cmp.Equal(got, tc.used) {
					t.Errorf("chunks by blob %v, want %v", got, tc.used)
				}
			})
		}
	}
}

// chunksByBlob counts the chunks in use.
func chunksByBlob(p Plan) []int {
	m := chunkMapOf(p)
	counts := make([]int, len(m.blobs))
	for l, used := range m.inUse {
		for range used.all() {
			counts[m.number[l]]++
		}
	}
	return counts
}

func chunkMapOf(p Plan) *chunkMap {
	if v, ok := p.(*V5); ok {
		return v.chunks
	}
	return p.(*V6).chunks
}

// Of two blobs with one id, the one that was made here is listed.
func TestForeignBlobThatWasMadeAgain(t *testing.T) {
	o := small
	o.TempDir = t.TempDir()
	f := flavour{Options: o}
	own := readLayer(t, &f, chunk.NewPool(1, 1, int(o.ChunkSize)), 1, pack(t, file("f", chunks("ab"))))
	info, err := own.blob.Finish(Contents{Table: own.table})
	if err != nil {
		t.Fatal(err)
	}
	old := *info
	old.Foreign, old.Table = true, someOf{recordsOf(t, info), t}
	merged, err := tree.Merge(context.Background(), o.TempDir, own.layer)
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	for _, infos := range [][]*BlobInfo{{&old, info}, {nil, info, &old}} {
		p, err := New(merged, infos, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Blobs(); len(got) != 1 || got[0] != info {
			t.Errorf("blobs %v", got)
		}
		p.Close()
	}
	if _, err := New(merged, []*BlobInfo{&old}, o); err == nil {
		t.Error("refs into a blob that was not given: got no error")
	}
}
