package rafs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/image"
)

// How a layer of an OCI image says that something is gone (image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, opaqueName aside
)

// How overlayfs does (Documentation/filesystems/overlayfs.rst), as far as nydus
// knows it (builder/src/core/overlay.rs).
const overlayOpaque = "trusted.overlay.opaque"

const modeChar = 0o020000

// whiteout adds an entry if it is one that removes what a lower layer has, and
// tells whether it was.
func (w *walker) whiteout(dir, full string, a *image.Attr) (bool, error) {
	switch w.opts.Whiteouts {
	case tree.WhiteoutOCI:
		name := full[strings.LastIndexByte(full, '/')+1:]
		gone, ok := strings.CutPrefix(name, whiteoutPrefix)
		switch {
		case !ok:
			return false, nil
		case name == opaqueName:
			return true, w.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: dir, Name: full}, nil)
		case strings.HasPrefix(name, aufsPrefix):
			return true, nil
		case gone == "" || gone == "." || gone == "..":
			return false, &tree.EntryError{Name: full, Reason: fmt.Sprintf("whiteout of %q", gone)}
		}
		return true, w.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: strings.TrimSuffix(full, name) + gone, Name: full}, nil)
	case tree.WhiteoutOverlay:
		if a.Mode&modeMask != modeChar || a.Rdev != 0 {
			return false, nil
		}
		return true, w.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: full, Name: full}, nil)
	}
	return false, nil
}

// whiteoutFolder refuses what is in a folder that is a whiteout, as in a tar. With
// a folder of aufs all that is beneath it is passed over.
func (w *walker) whiteoutFolder(full, name string, node uint64) error {
	if strings.HasPrefix(name, aufsPrefix) && name != opaqueName {
		return nil
	}
	var inside string
	err := w.im.ReadDir(node, 0, func(d image.Dirent) bool {
		if child := string(d.Name); child != "." && child != ".." {
			inside = child
		}
		return inside == ""
	})
	if err == nil && inside != "" {
		err = &tree.EntryError{Name: full + "/" + inside, Reason: fmt.Sprintf("whiteout %q used as a folder", name)}
	}
	return err
}

// addFolder adds a folder, and whether it hides what lower layers have in it.
func (w *walker) addFolder(e *tree.Entry) error {
	opaque := false
	if w.opts.Whiteouts == tree.WhiteoutOverlay {
		e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x tree.Xattr) bool {
			opaque = opaque || x.Name == overlayOpaque && x.Value == "y"
			return x.Name == overlayOpaque
		})
	}
	if err := w.builder.Add(e, nil); err != nil || !opaque {
		return err
	}
	return w.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: e.Path, Name: e.Path}, nil)
}
