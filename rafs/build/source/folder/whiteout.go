package folder

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/build/tree"
)

// How a layer of an OCI image says that something is gone (image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, opaqueName aside
)

// How overlayfs does (Documentation/filesystems/overlayfs.rst): a character
// device 0:0, or an empty file with an xattr in a folder that tells of such.
const (
	overlayPrefix   = "trusted.overlay."
	overlayOpaque   = overlayPrefix + "opaque"
	overlayRedirect = overlayPrefix + "redirect"
	overlayMetacopy = overlayPrefix + "metacopy"
	overlayWhiteout = overlayPrefix + "whiteout"
)

// whiteout adds an entry if it is one that removes what a lower layer has, and
// tells whether it was.
func (w *walker) whiteout(dir int, rel, name string, st *unix.Stat_t) (bool, error) {
	switch w.opts.Whiteouts {
	case tree.WhiteoutOCI:
		gone, ok := strings.CutPrefix(name, whiteoutPrefix)
		switch {
		case !ok:
			return false, nil
		case name == opaqueName:
			return true, w.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: rel, Name: path.Join(rel, name)}, nil)
		case strings.HasPrefix(name, aufsPrefix):
			return true, nil
		case gone == "" || gone == "." || gone == "..":
			return false, &tree.EntryError{Name: path.Join(rel, name), Reason: fmt.Sprintf("whiteout of %q", gone)}
		}
		return true, w.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: path.Join(rel, gone), Name: path.Join(rel, name)}, nil)
	case tree.WhiteoutOverlay:
		full := path.Join(rel, name)
		gone := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
		if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
			_, err := nameXattrs(dir, name).get(overlayWhiteout, nil)
			if gone = err == nil; !gone && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				return false, fmt.Errorf("%q: xattr %q: %w", full, overlayWhiteout, err)
			}
		}
		if !gone {
			return false, nil
		}
		return true, w.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: full, Name: full}, nil)
	}
	return false, nil
}

// addFolder adds a folder, and whether it hides what lower layers have in it.
func (w *walker) addFolder(fd int, e *tree.Entry) error {
	opaque, err := w.xattrs(e, fdXattrs(fd))
	if err != nil {
		return err
	}
	if err := w.builder.Add(e, nil); err != nil || !opaque {
		return err
	}
	return w.builder.Add(&tree.Entry{Kind: tree.KindOpaque, Path: e.Path, Name: e.Path}, nil)
}

// overlayXattrs takes the marks of overlayfs off an entry of its upper folder:
// they describe that folder, and would describe the image wrongly when it is the
// lower layer of another overlay.
//
// What has its name or its data in a lower folder only is refused.
func (w *walker) overlayXattrs(e *tree.Entry) (opaque bool, err error) {
	if w.opts.Whiteouts != tree.WhiteoutOverlay {
		return false, nil
	}
	for _, x := range e.Xattrs {
		switch x.Name {
		case overlayOpaque:
			opaque = opaque || x.Value == "y"
		case overlayRedirect, overlayMetacopy:
			return false, fmt.Errorf("xattr %q: the rest of it lies in a lower folder of the overlay: %w", x.Name, tree.ErrRefused)
		}
	}
	e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x tree.Xattr) bool { return strings.HasPrefix(x.Name, overlayPrefix) })
	return opaque, nil
}
