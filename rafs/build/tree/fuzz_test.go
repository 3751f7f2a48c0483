package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var fuzzLimits = Limits{Entries: 400, Depth: 20, Meta: 1 << 20, Data: 1 << 16}

// FuzzLayers turns bytes into the tars of a few layers: the bytes are the tars
// themselves, or tell what entries they have. Layers that are read, spilled and
// merged must be what the model makes of them, and be refused where it refuses.
func FuzzLayers(f *testing.F) {
	f.Add(false, []byte("abcdefghijklmnopqrstuvwxyz0123456789"))
	f.Add(true, pack(f, file("a/b", "1"), link("c", "a/b"), symlink("d", "e"), file("a/.wh.x", "")))
	f.Fuzz(func(t *testing.T, raw bool, data []byte) {
		if !raw {
			data = data[:min(len(data), 400)] // the accepting takes its square
			compareWithModel(t, program(t, data)...)
			return
		}
		half := len(data) / 1024 * 512
		compareWithModel(t, data[:half], data[half:])
	})
}

func TestRandomLayers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range 200 {
		data := make([]byte, 20+r.IntN(300))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		if compareWithModel(t, program(t, data)...) {
			accepted++
		}
		if t.Failed() {
			t.Fatalf("program %x", data)
		}
	}
	if accepted < 50 {
		t.Errorf("%d of 200 programs make a tree, want more to compare", accepted)
	}
}

// program makes tars: every few bytes are an entry. There are few names, so that
// entries meet. What the model refuses is mostly left out, or little would ever
// become a tree.
func program(t testing.TB, data []byte) (tars [][]byte) {
	t.Helper()
	var entries []entry
	var lower []*model
	accepted := func(e entry) bool {
		m, err := modelLayer(pack(t, append(entries[:len(entries):len(entries)], e)...), fuzzLimits, WhiteoutOCI)
		if err != nil {
			return false
		}
		_, err = modelMerge(append(lower[:len(lower):len(lower)], m)...)
		return err == nil
	}
	next := func() byte {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return b
	}
	name := func(b byte) string {
		parts := []string{"a", "b", "a!"}
		full := parts[b%3]
		for b /= 3; b%4 != 3 && len(full) < 8; b /= 4 {
			full += "/" + parts[b%4]
		}
		return full
	}
	for len(data) > 0 && len(tars) < 5 {
		kind, at := next(), name(next())
		e := entry{Header: tar.Header{Name: at, Mode: int64(kind) * 3 % 0o1000, Uid: int(kind), ModTime: time.Unix(int64(kind), 0)}}
		switch kind % 16 {
		case 0:
			tars = append(tars, pack(t, entries...))
			if m, err := modelLayer(tars[len(tars)-1], fuzzLimits, WhiteoutOCI); err == nil {
				lower = append(lower, m)
			}
			entries = nil
			continue
		case 1, 2, 3, 4:
			e.Typeflag, e.Name = tar.TypeDir, at+"/"
		case 5, 6, 7:
			e.Typeflag, e.data = tar.TypeReg, fmt.Sprint(len(data))
		case 8:
			e.Typeflag, e.Linkname = tar.TypeSymlink, name(next())
		case 9, 10, 11, 12:
			e.Typeflag, e.Linkname = tar.TypeLink, name(next())
		case 13:
			e.Typeflag, e.Name = tar.TypeReg, path.Join(path.Dir(at), ".wh."+path.Base(at))
		case 14:
			e.Typeflag, e.Name = tar.TypeReg, at+"/.wh..wh..opq"
		case 15:
			e.Typeflag = tar.TypeFifo
		}
		if kind >= 250 || accepted(e) {
			entries = append(entries, e)
		}
	}
	return append(tars, pack(t, entries...))
}

// compareWithModel reports whether the layers make a tree.
func compareWithModel(t testing.TB, tars ...[]byte) bool {
	t.Helper()
	var models []*model
	var want []string
	var modelErr error
	for _, data := range tars {
		m, err := modelLayer(data, fuzzLimits, WhiteoutOCI)
		if err != nil {
			modelErr = err
			break
		}
		models = append(models, m)
	}
	if modelErr == nil {
		var root *modelNode
		if root, modelErr = modelMerge(models...); modelErr == nil {
			want = root.list()
		}
	}
	for _, memory := range []int{300, 0} {
		got, err := listAll(t, memory, tars)
		if errors.Is(err, ErrRefused) != errors.Is(modelErr, errModel) || (err == nil) != (modelErr == nil) {
			t.Errorf("memory %d: got %v, the model says %v", memory, err, modelErr)
		}
		if err == nil && modelErr == nil {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("memory %d: tree (-model +got):\n%s", memory, diff)
			}
		}
	}
	return modelErr == nil
}

// listAll reads layers and lists their tree with everything that there is.
func listAll(t testing.TB, budget int, tars [][]byte) (out []string, err error) {
	t.Helper()
	var files memory
	var layers []*Layer
	for _, data := range tars {
		l, err := ReadTar(context.Background(), bytes.NewReader(data), &files, ReadOptions{Limits: fuzzLimits, Memory: budget})
		if err != nil {
			for _, l := range layers {
				l.Close()
			}
			return nil, err
		}
		layers = append(layers, l)
	}
	tr, err := Merge(context.Background(), "", layers...)
	if err != nil {
		return nil, err
	}
	defer tr.Close()
	paths := map[ID]string{Root: ""}
	for id := range ID(tr.Len()) {
		n, err := tr.Node(id)
		if err != nil {
			t.Fatal(err)
		}
		full := path.Join(paths[n.Parent], n.Name)
		paths[id] = full
		if n.Inode != id {
			out = append(out, full+" == "+paths[n.Inode])
			continue
		}
		var content strings.Builder
		for ref, err := range tr.Refs(&n) {
			if err != nil {
				t.Fatal(err)
			}
			content.WriteString(files.files[ref.Index])
		}
		out = append(out, describeNode(full, &n.Attr, n.Target, content.String(), n.Xattrs))
	}
	return out, nil
}
