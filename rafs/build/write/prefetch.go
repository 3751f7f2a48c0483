package write

import (
	"path"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/oldtree"
)

// prefetchNodes finds the paths that exist, in their order, without those that
// an earlier one covers.
func prefetchNodes(root *tree.Node, paths []string) []*tree.Node {
	var nodes []*tree.Node
	var taken []string
	for _, p := range paths {
		p = path.Clean("/" + p)
		covered := slices.ContainsFunc(taken, func(t string) bool {
			return p == t || t == "/" || strings.HasPrefix(p, t+"/")
		})
		if node := lookup(root, p); node != nil && !covered {
			nodes = append(nodes, node)
			taken = append(taken, p)
		}
	}
	return nodes
}

func lookup(root *tree.Node, p string) *tree.Node {
	node := root
	for part := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if part == "" {
			break
		}
		if node = node.Child(part); node == nil {
			return nil
		}
	}
	return node
}
