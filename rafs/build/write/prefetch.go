package write

import (
	"path"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/tree"
)

// wanted is a folder on the way to paths that are looked for.
type wanted struct {
	children map[string]*wanted
	pattern  int // which path ends here; -1: none
}

func newWanted() *wanted { return &wanted{children: map[string]*wanted{}, pattern: -1} }

// add puts a path below w unless an earlier one covers it.
func (w *wanted) add(p string, pattern int) {
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+p), "/"), "/") {
		if w.pattern >= 0 {
			return
		}
		if part == "" {
			break // the root
		}
		next := w.children[part]
		if next == nil {
			next = newWanted()
			w.children[part] = next
		}
		w = next
	}
	if w.pattern < 0 {
		w.pattern = pattern
	}
}

// prefetchNodes finds the paths that exist, in their order, without those that
// an earlier one covers. An empty file is no use to fetch (nydus
// builder/src/core/prefetch.rs).
func prefetchNodes(t *tree.Tree, paths []string) ([]tree.ID, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	root := newWanted()
	for i, p := range paths {
		root.add(p, i)
	}
	found := make([]tree.ID, len(paths))
	const none = ^tree.ID(0)
	for i := range found {
		found[i] = none
	}
	type folder struct {
		id   tree.ID
		want *wanted
	}
	if root.pattern >= 0 {
		found[root.pattern] = tree.Root
	}
	for todo := []folder{{tree.Root, root}}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for n, err := range t.Children(dir.id) {
			if err != nil {
				return nil, err
			}
			want := dir.want.children[n.Name]
			if want == nil {
				continue
			}
			if want.pattern >= 0 && (n.Type() != tree.TypeFile || n.Size > 0) {
				found[want.pattern] = n.ID
			}
			if n.IsDir() && len(want.children) > 0 {
				todo = append(todo, folder{n.ID, want})
			}
		}
	}
	return slices.DeleteFunc(found, func(id tree.ID) bool { return id == none }), nil
}
