package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// model is an unpacker as simple as can be: it holds everything in memory and
// does one entry after the other. It is what a layer and a merge are compared
// with.
type model struct {
	root   *modelNode
	limits Limits
	nodes  int
	links  []modelLink // into lower layers, in order
}

type modelLink struct {
	node   *modelNode
	target []string
}

type modelNode struct {
	attr     Attr
	target   string
	xattrs   []Xattr
	data     string
	children map[string]*modelNode // of a folder

	implicit, opaque bool
	whiteouts        map[string]bool
}

var errModel = errors.New("refused by the model")

func newModelFolder() *modelNode {
	return &modelNode{
		attr: Attr{Mode: TypeDir | 0o755}, implicit: true,
		children: map[string]*modelNode{}, whiteouts: map[string]bool{},
	}
}

// modelLayer unpacks a tar. Errors of the tar itself come as they are.
func modelLayer(data []byte, limits Limits, whiteouts Whiteouts) (*model, error) {
	m := &model{root: newModelFolder(), limits: limits.withDefaults()}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, err
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := m.entry(r, hdr, whiteouts); err != nil {
			return nil, err
		}
	}
}

func (m *model) count() error {
	if m.nodes++; m.nodes > m.limits.Entries {
		return errModel
	}
	return nil
}

func (m *model) entry(r io.Reader, hdr *tar.Header, whiteouts Whiteouts) error {
	parts, why := splitPath(hdr.Name, m.limits.Depth)
	if why != "" || m.count() != nil {
		return errModel
	}
	if at := slices.IndexFunc(parts, func(p string) bool { return strings.HasPrefix(p, ".wh.") }); at >= 0 && whiteouts == WhiteoutOCI {
		return m.whiteout(parts, at)
	}
	e := Entry{Name: hdr.Name}
	opaque := false
	if hdr.Typeflag != tar.TypeLink {
		var err error
		if opaque, err = (&tarReader{whiteouts: whiteouts}).describe(hdr, &e); err != nil {
			return errModel
		}
	}
	if len(parts) == 0 {
		if !e.IsDir() {
			return errModel
		}
		m.root.attr, m.root.xattrs, m.root.implicit, m.root.opaque = e.Attr, e.Xattrs, false, m.root.opaque || opaque
		return nil
	}
	dir, err := m.parent(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	old := dir.children[name]
	node := &modelNode{attr: e.Attr, target: e.Target, xattrs: e.Xattrs}
	switch {
	case e.Kind == KindWhiteout:
		dir.whiteouts[name] = true
		return nil
	case hdr.Typeflag == tar.TypeLink:
		if node, err = m.hardLink(hdr, parts); err != nil {
			return err
		}
	case e.IsDir():
		if old != nil && old.children != nil {
			old.attr, old.xattrs, old.implicit, old.opaque = e.Attr, e.Xattrs, false, old.opaque || opaque
			return nil
		}
		node.children, node.whiteouts = map[string]*modelNode{}, map[string]bool{}
		node.opaque = old != nil || opaque
	case e.Type() == TypeLink:
		if n := len(e.Target); n == 0 || n > maxTarget || strings.Contains(e.Target, "\x00") {
			return errModel
		}
		node.attr.Size = uint64(len(e.Target))
	case e.Type() == TypeFile:
		if m.limits.Data -= hdr.Size; m.limits.Data < 0 {
			return errModel
		}
		data := make([]byte, hdr.Size)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		node.data = string(data)
	}
	dir.children[name] = node
	return nil
}

func (m *model) whiteout(parts []string, at int) error {
	for i, part := range parts[at:] {
		switch {
		case strings.HasPrefix(part, ".wh..wh.") && part != ".wh..wh..opq":
			return nil
		case strings.HasPrefix(part, ".wh.") && at+i < len(parts)-1:
			return errModel
		}
	}
	dir, err := m.parent(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	switch name := strings.TrimPrefix(parts[len(parts)-1], ".wh."); name {
	case ".wh..opq":
		dir.opaque = true
	case "", ".", "..":
		return errModel
	default:
		dir.whiteouts[name] = true
	}
	return nil
}

func (m *model) parent(parts []string) (*modelNode, error) {
	dir := m.root
	for _, part := range parts {
		next := dir.children[part]
		if next == nil {
			if err := m.count(); err != nil {
				return nil, err
			}
			next = newModelFolder()
			dir.children[part] = next
		}
		if next.children == nil {
			return nil, errModel
		}
		dir = next
	}
	return dir, nil
}

func (m *model) hardLink(hdr *tar.Header, parts []string) (*modelNode, error) {
	target, why := splitPath(hdr.Linkname, m.limits.Depth)
	if why != "" || strings.HasPrefix(hdr.Linkname, "/") || slices.Equal(target, parts) || len(target) == 0 {
		return nil, errModel
	}
	node := m.root
	for _, part := range target {
		if node.children == nil {
			return nil, errModel
		}
		if node = node.children[part]; node == nil {
			return m.below(target), nil
		}
	}
	switch {
	case node.children == nil:
		return node, nil
	case node.implicit:
		return m.below(target), nil
	}
	return nil, errModel
}

func (m *model) below(target []string) *modelNode {
	m.links = append(m.links, modelLink{&modelNode{}, target})
	return m.links[len(m.links)-1].node
}

// modelMerge applies layers one after the other.
func modelMerge(layers ...*model) (*modelNode, error) {
	root := newModelFolder()
	for _, m := range layers {
		links := map[*modelNode]*modelNode{}
		for _, link := range m.links {
			node := root
			for _, part := range link.target {
				if node = node.children[part]; node == nil {
					return nil, errModel
				}
			}
			if node.children != nil {
				return nil, errModel
			}
			links[link.node] = node
		}
		if err := modelApply(root, m.root, links); err != nil {
			return nil, err
		}
	}
	return root, nil
}

func modelApply(low, up *modelNode, links map[*modelNode]*modelNode) error {
	if !up.implicit {
		low.attr, low.xattrs = up.attr, up.xattrs
	}
	if up.opaque {
		clear(low.children)
	}
	for name := range up.whiteouts {
		delete(low.children, name)
	}
	for name, node := range up.children {
		if to := links[node]; to != nil {
			node = to
		}
		if node.children == nil {
			low.children[name] = node
			continue
		}
		below := low.children[name]
		if below == nil || below.children == nil {
			if below != nil && node.implicit {
				return errModel
			}
			below = newModelFolder()
			low.children[name] = below
		}
		if err := modelApply(below, node, links); err != nil {
			return err
		}
	}
	return nil
}

// list describes a tree as listAll does.
func (n *modelNode) list() (out []string) {
	first := map[*modelNode]string{}
	var walk func(n *modelNode, at string)
	walk = func(n *modelNode, at string) {
		out = append(out, describeNode(at, &n.attr, n.target, n.data, n.xattrs))
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			c, full := n.children[name], path.Join(at, name)
			if older, ok := first[c]; ok {
				out = append(out, full+" == "+older)
			} else {
				first[c] = full
				walk(c, full)
			}
		}
	}
	walk(n, "")
	return out
}

func describeNode(at string, a *Attr, target, data string, xattrs []Xattr) string {
	size := a.Size
	if a.IsDir() {
		size = 0
	}
	return fmt.Sprintf("%q %o %d:%d %x %d.%09d %d -> %q %q %q", at, a.Mode, a.UID, a.GID, a.Rdev, a.Mtime, a.MtimeNsec, size, target, data, xattrs)
}
