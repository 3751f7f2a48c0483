package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
)

// comparison walks two trees side by side, folder by folder, in the order of the
// names.
type comparison struct {
	*verification
	ctx   context.Context
	src   *sourceTree
	data  *export.Data // nil: bytes are not compared
	links map[tree.ID]uint64
	shown Event
}

// maxLinks bounds the inodes of several names whose links are compared.
const maxLinks = 1 << 18

// compare compares the files of the source with those of the target.
func (v *verification) compare(ctx context.Context, blobs backend.Backend) error {
	src, err := v.readSource(ctx)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer src.Close()
	c := &comparison{verification: v, ctx: ctx, src: src, links: map[tree.ID]uint64{}, shown: Event{What: "files"}}
	if blobs != nil {
		if c.data, err = export.NewData(v.im, blobs, nil); err != nil {
			return err
		}
		defer c.data.Close()
	}
	root, err := src.Node(tree.Root)
	if err != nil {
		return err
	}
	if err := c.attributes("/", &root, image.Root); err != nil {
		return err
	}
	if err := c.folder("/", tree.Root, image.Root); err != nil {
		return err
	}
	c.shown.Over = true
	v.tell(c.shown)
	return nil
}

// entry is an entry of a folder of the target.
type entry struct {
	name string
	node uint64
}

// entries lists a folder of the target without "." and "..".
func (c *comparison) entries(dir uint64) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		err := c.im.ReadDir(dir, 0, func(d image.Dirent) bool {
			if name := string(d.Name); name != "." && name != ".." {
				return yield(entry{name, d.Node}, nil)
			}
			return true
		})
		if err != nil {
			yield(entry{}, err)
		}
	}
}

// folder compares what two folders have.
func (c *comparison) folder(path string, src tree.ID, dst uint64) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	next, stop := iter.Pull2(c.entries(dst))
	defer stop()
	have, err, more := next()
	for n, srcErr := range c.src.Children(src) {
		if err := errors.Join(srcErr, err); err != nil {
			return err
		}
		for ; more && err == nil && have.name < n.Name; have, err, more = next() {
			c.find(Files, join(path, have.name), "the source has no such entry")
		}
		if err != nil {
			return err
		}
		if !more || have.name != n.Name {
			c.find(Files, join(path, n.Name), "is missing")
			continue
		}
		node := *n // valid until the next one
		if err := c.pair(join(path, n.Name), &node, have.node); err != nil {
			return err
		}
		have, err, more = next()
	}
	for ; more && err == nil; have, err, more = next() {
		c.find(Files, join(path, have.name), "the source has no such entry")
	}
	return err
}

func join(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// pair compares two entries of the same path.
func (c *comparison) pair(path string, n *tree.Node, node uint64) error {
	c.report.Entries++
	if err := c.attributes(path, n, node); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	attr, err := c.im.Attr(node)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if attr.Mode&tree.TypeMask != n.Type() {
		return nil // told with the attributes
	}
	switch n.Type() {
	case tree.TypeDir:
		return c.folder(path, n.ID, node)
	case tree.TypeLink:
		target, err := c.im.Readlink(node)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if string(target) != n.Target {
			c.find(Files, path, "points to %q, the source's to %q", target, n.Target)
		}
	}
	if c.link(path, n, node, attr.Nlink) || n.Type() != tree.TypeFile || attr.Size != n.Size {
		return nil
	}
	return c.content(path, n, node)
}

// link compares which names are one inode. It reports whether the inode has been
// compared under another name.
func (c *comparison) link(path string, n *tree.Node, node uint64, nlink uint32) (again bool) {
	if n.Inode == n.ID {
		if nlink > 1 && len(c.links) < maxLinks {
			c.links[n.ID] = node
		}
		return false
	}
	first, ok := c.links[n.Inode]
	if ok && first != node || !ok && nlink == 1 {
		c.find(Files, path, "is a file of its own, in the source a hard link")
		return false
	}
	return ok
}

// attributes compares all but names and content. Sizes are those of files and
// symlinks. Times may lack their nanoseconds, which nydus-image drops; that of the
// root is not kept by it.
func (c *comparison) attributes(path string, n *tree.Node, node uint64) error {
	a, err := c.im.Attr(node)
	if err != nil {
		return err
	}
	if a.Mode != n.Mode {
		c.find(Files, path, "mode %06o, the source has %06o", a.Mode, n.Mode)
	}
	if a.UID != n.UID || a.GID != n.GID {
		c.find(Files, path, "belongs to %d:%d, in the source to %d:%d", a.UID, a.GID, n.UID, n.GID)
	}
	if kind := n.Type(); (kind == tree.TypeFile || kind == tree.TypeLink) && a.Size != n.Size && a.Mode == n.Mode {
		c.find(Files, path, "%d bytes, the source has %d", a.Size, n.Size)
	} else if (kind == tree.TypeChar || kind == tree.TypeBlock) && a.Rdev != n.Rdev {
		c.find(Files, path, "device %#x, the source has %#x", a.Rdev, n.Rdev)
	}
	sameNsec := a.MtimeNsec == n.MtimeNsec || a.MtimeNsec == 0
	if path != "/" && (a.Mtime != n.Mtime || !sameNsec) {
		c.find(Files, path, "changed at %d.%09d, in the source at %d.%09d", a.Mtime, a.MtimeNsec, n.Mtime, n.MtimeNsec)
	}
	return c.xattrs(path, n, node)
}

func (c *comparison) xattrs(path string, n *tree.Node, node uint64) error {
	var have []tree.Xattr
	err := c.im.Xattrs(node, func(name string, value []byte) bool {
		have = append(have, tree.Xattr{Name: name, Value: string(value)})
		return true
	})
	if err != nil {
		return err
	}
	byName := func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) }
	want := slices.Clone(n.Xattrs)
	slices.SortFunc(want, byName)
	slices.SortFunc(have, byName)
	if !slices.Equal(want, have) {
		c.find(Files, path, "xattrs %.200q, the source has %.200q", have, want)
	}
	return nil
}

// content compares what a file holds.
func (c *comparison) content(path string, n *tree.Node, node uint64) error {
	c.report.Files++
	if c.data == nil {
		return nil
	}
	want, err := c.src.sum(n)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h := sha256.New()
	stream := c.data.Stream(c.ctx, export.FileSegments(c.im, node))
	size, err := io.Copy(h, stream)
	err = errors.Join(err, stream.Close())
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case errors.Is(err, blob.ErrDigest), errors.Is(err, blob.ErrCorrupt), errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrRange):
		c.find(Files, path, "cannot be read: %v", err)
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	c.report.Bytes += size
	if c.shown.Done += size; c.shown.Done/step != (c.shown.Done-size)/step {
		c.tell(c.shown)
	}
	if got := h.Sum(nil); [sha256.Size]byte(got) != want {
		c.find(Files, path, "content sha256:%s, the source has sha256:%s", hex.EncodeToString(got), hex.EncodeToString(want[:]))
	}
	return nil
}
