package tree

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Merge applies layers in order, the lowest first, and returns the tree that a
// container sees. It takes the layers over: they must not be used afterwards.
func Merge(layers ...*Layer) (*Tree, error) {
	root := newFolder(true)
	for i, layer := range layers {
		m := merger{links: make(map[*Node]*Node, len(layer.links))}
		// Whiteouts and new entries of this layer come after its links were
		// resolved: they name what the layers below have.
		for _, link := range layer.links {
			node, why := find(root, link.target)
			if why != "" {
				return nil, fmt.Errorf("layer %d: %w", i+1, &EntryError{link.name, why})
			}
			m.links[link.node] = node
		}
		if err := m.merge(root, layer.root, ""); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return &Tree{Root: root}, nil
}

// find resolves a hard link target, following nothing.
func find(root *Node, target []string) (*Node, string) {
	node := root
	for _, part := range target {
		if node = node.Child(part); node == nil {
			return nil, fmt.Sprintf("hard link target %q does not exist", strings.Join(target, "/"))
		}
	}
	if node.IsDir() {
		return nil, fmt.Sprintf("hard link to the folder %q", strings.Join(target, "/"))
	}
	return node, ""
}

type merger struct {
	links map[*Node]*Node // what stood in for a link, and its inode below
}

// merge applies the folder up of a layer to the folder low of what lies below.
func (m *merger) merge(low, up *Node, dir string) error {
	if !up.implicit {
		low.setAttr(up)
	}
	if up.opaque {
		clear(low.children)
	}
	for name := range up.whiteouts {
		delete(low.children, name)
	}
	for _, name := range up.Names() {
		node := up.children[name]
		if target, ok := m.links[node]; ok {
			node = target
		}
		if !node.IsDir() {
			low.children[name] = node
			continue
		}
		full := path.Join(dir, name)
		below := low.children[name]
		if below == nil || !below.IsDir() {
			if below != nil && node.implicit {
				return throughFile(below, node, full)
			}
			below = newFolder(true)
			low.children[name] = below
		}
		if err := m.merge(below, node, full); err != nil {
			return err
		}
	}
	return nil
}

// throughFile says that a layer has entries beneath what is no folder in a lower
// layer. An unpacker would follow a symlink there.
func throughFile(below, up *Node, dir string) error {
	names := up.Names()
	for name := range up.whiteouts {
		names = append(names, whiteoutPrefix+name)
	}
	entry := dir
	if len(names) > 0 {
		entry = path.Join(dir, slices.Min(names))
	}
	if below.Type() == TypeLink {
		return &EntryError{entry, fmt.Sprintf("writes through the symlink %q of a lower layer", dir)}
	}
	return &EntryError{entry, fmt.Sprintf("%q is no folder in a lower layer", dir)}
}
