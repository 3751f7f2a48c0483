package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/oldchunk"
)

// Whiteouts of the OCI image specification, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	// Names with this prefix, the opaque one aside, are bookkeeping of aufs.
	whiteoutMeta = ".wh..wh."
)

// Cutter takes the contents of files.
type Cutter interface {
	// File reads size bytes of r and returns the chunks they became.
	File(r io.Reader, size int64) ([]chunk.Ref, error)
}

// Layer is one layer as its tar has it, before it is merged.
type Layer struct {
	// Entries is the number of entries in the tar.
	Entries int
	// Bytes is the size of all files together.
	Bytes int64
	// DroppedXattrs counts xattrs in namespaces that EROFS and Linux do not have,
	// which are left out as unpackers leave them out.
	DroppedXattrs int

	root  *Node
	links []*belowLink
}

// belowLink is a hard link whose target is in no entry before it: the target
// must be in a lower layer.
type belowLink struct {
	node   *Node // stands in until Merge
	name   string
	target []string
}

// ReadLayer reads a layer from an uncompressed tar stream, which it leaves after
// the archive's end. Files are cut as they pass. The order of entries counts as
// it does for an unpacker: the last entry of a name wins.
func ReadLayer(ctx context.Context, r io.Reader, files Cutter, limits Limits) (*Layer, error) {
	l := &layerReader{
		tar:    tar.NewReader(r),
		files:  files,
		limits: limits.withDefaults(),
		layer:  &Layer{root: newFolder(true)},
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hdr, err := l.tar.Next()
		if errors.Is(err, io.EOF) {
			return l.layer, nil
		}
		if err != nil {
			return nil, fmt.Errorf("tar entry %d, after %q: %w", l.layer.Entries+1, l.last, err)
		}
		l.last = hdr.Name
		if err := l.entry(hdr); err != nil {
			return nil, err
		}
	}
}

type layerReader struct {
	tar    *tar.Reader
	files  Cutter
	limits Limits
	layer  *Layer
	last   string // name of the entry before, for errors
	nodes  int    // entries and folders so far
	meta   int64  // bytes of names, targets and xattrs so far
}

func refuse(hdr *tar.Header, format string, args ...any) error {
	return &EntryError{Name: hdr.Name, Reason: fmt.Sprintf(format, args...)}
}

// entry adds one entry to the layer.
func (l *layerReader) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // comments of git archive and the like
	}
	l.layer.Entries++
	if err := l.count(hdr); err != nil {
		return err
	}
	parts, why := splitPath(hdr.Name, l.limits.Depth)
	if why != "" {
		return refuse(hdr, "%s", why)
	}
	if err := l.spend(hdr, len(hdr.Name)+len(hdr.Linkname)); err != nil {
		return err
	}
	if len(parts) == 0 {
		return l.rootEntry(hdr)
	}
	for _, part := range parts {
		if strings.HasPrefix(part, whiteoutPrefix) {
			return l.whiteout(hdr, parts)
		}
	}
	dir, err := l.parent(hdr, parts[:len(parts)-1])
	if err != nil {
		return err
	}
	return l.add(hdr, dir, parts)
}

// count counts what becomes an inode, entry or folder that no entry describes.
func (l *layerReader) count(hdr *tar.Header) error {
	l.nodes++
	if l.nodes > l.limits.Entries {
		return refuse(hdr, "more than %d entries and folders in one layer", l.limits.Entries)
	}
	return nil
}

// spend counts bytes that stay in memory until the image is written.
func (l *layerReader) spend(hdr *tar.Header, n int) error {
	l.meta += int64(n)
	if l.meta > l.limits.Meta {
		return refuse(hdr, "names, targets and xattrs of the layer take more than %d bytes", l.limits.Meta)
	}
	return nil
}

func (l *layerReader) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return refuse(hdr, "type %q for the root, want a folder", hdr.Typeflag)
	}
	node, err := l.node(hdr)
	if err != nil {
		return err
	}
	l.layer.root.setAttr(node)
	l.layer.root.implicit = false
	return nil
}

// whiteout notes what lower layers lose.
func (l *layerReader) whiteout(hdr *tar.Header, parts []string) error {
	for i, part := range parts {
		if strings.HasPrefix(part, whiteoutMeta) && part != whiteoutOpaque {
			return nil // of aufs, with all that is beneath it
		}
		if strings.HasPrefix(part, whiteoutPrefix) && i < len(parts)-1 {
			return refuse(hdr, "whiteout %q used as a folder", part)
		}
	}
	dir, err := l.parent(hdr, parts[:len(parts)-1])
	if err != nil {
		return err
	}
	base := parts[len(parts)-1]
	if base == whiteoutOpaque {
		dir.opaque = true
		return nil
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return refuse(hdr, "whiteout of %q", name)
	}
	if dir.whiteouts == nil {
		dir.whiteouts = map[string]struct{}{}
	}
	dir.whiteouts[name] = struct{}{}
	return nil
}

// parent finds the folder that an entry lies in. What the tar does not have is
// made, owned by root with mode 0755; a lower layer's attributes win over it.
func (l *layerReader) parent(hdr *tar.Header, parts []string) (*Node, error) {
	dir := l.layer.root
	for i, part := range parts {
		next := dir.children[part]
		switch {
		case next == nil:
			if err := l.count(hdr); err != nil {
				return nil, err
			}
			next = newFolder(true)
			dir.children[part] = next
		case next.IsDir():
		case next.Type() == TypeLink:
			return nil, refuse(hdr, "writes through the symlink %q", strings.Join(parts[:i+1], "/"))
		default:
			return nil, refuse(hdr, "%q is no folder", strings.Join(parts[:i+1], "/"))
		}
		dir = next
	}
	return dir, nil
}

// add puts an entry into its folder, in place of an older one of that name.
func (l *layerReader) add(hdr *tar.Header, dir *Node, parts []string) error {
	name := parts[len(parts)-1]
	if hdr.Typeflag == tar.TypeLink {
		node, err := l.hardLink(hdr, parts)
		if err != nil {
			return err
		}
		dir.children[name] = node
		return nil
	}
	node, err := l.node(hdr)
	if err != nil {
		return err
	}
	old := dir.children[name]
	if node.IsDir() {
		if old != nil && old.IsDir() {
			old.setAttr(node)
			old.implicit = false
			return nil
		}
		// What was removed here hid a lower folder of this name.
		node.opaque = old != nil
	}
	dir.children[name] = node
	return nil
}

// hardLink finds the inode that a hard link names: among the entries before it,
// or else, when the layers are merged, in the lower ones.
func (l *layerReader) hardLink(hdr *tar.Header, parts []string) (*Node, error) {
	if strings.HasPrefix(hdr.Linkname, "/") {
		return nil, refuse(hdr, "absolute hard link target %q", hdr.Linkname)
	}
	target, why := splitPath(hdr.Linkname, l.limits.Depth)
	if why != "" {
		return nil, refuse(hdr, "hard link target %q: %s", hdr.Linkname, why)
	}
	if strings.Join(target, "/") == strings.Join(parts, "/") {
		return nil, refuse(hdr, "hard link to itself")
	}
	node := l.layer.root
	for i, part := range target {
		if node.folder == nil {
			return nil, refuse(hdr, "hard link target %q: %q is no folder", hdr.Linkname, strings.Join(target[:i], "/"))
		}
		if node = node.children[part]; node == nil {
			return l.linkBelow(hdr, target), nil
		}
	}
	if node.IsDir() {
		if node.implicit && len(target) > 0 {
			return l.linkBelow(hdr, target), nil // Merge says what it is
		}
		return nil, refuse(hdr, "hard link to the folder %q", hdr.Linkname)
	}
	return node, nil
}

func (l *layerReader) linkBelow(hdr *tar.Header, target []string) *Node {
	link := &belowLink{node: &Node{}, name: hdr.Name, target: target}
	l.layer.links = append(l.layer.links, link)
	return link.node
}
