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
// device 0:0, or an empty file with an xattr in a folder that tells of such. The
// xattrs are "trusted." or, of an overlay that was mounted without privileges
// (userxattr), "user.".
const (
	overlayOpaque   = "opaque"
	overlayRedirect = "redirect"
	overlayMetacopy = "metacopy"
	overlayWhiteout = "whiteout"
)

var overlayPrefixes = []string{"trusted.overlay.", "user.overlay."}

// cutOverlay returns what follows the prefix in the name of an xattr of overlayfs.
func cutOverlay(name string) (string, bool) {
	for _, prefix := range overlayPrefixes {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return rest, true
		}
	}
	return "", false
}

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
			var err error
			if gone, err = marked(dir, name); err != nil {
				return false, fmt.Errorf("%q: %w", full, err)
			}
		}
		if !gone {
			return false, nil
		}
		return true, w.builder.Add(&tree.Entry{Kind: tree.KindWhiteout, Path: full, Name: full}, nil)
	}
	return false, nil
}

// marked tells whether an empty file is a whiteout by its xattr.
func marked(dir int, name string) (bool, error) {
	for _, prefix := range overlayPrefixes {
		_, err := nameXattrs(dir, name).get(prefix+overlayWhiteout, nil)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return false, fmt.Errorf("xattr %q: %w", prefix+overlayWhiteout, err)
		}
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

// errPartial means that an upper folder has a part of something only.
var errPartial = fmt.Errorf("the rest of it lies in a lower folder of the overlay: %w", tree.ErrRefused)

// passOver returns err, of an entry, unless it says that somebody else has the whole
// of it and wants to know.
func (w *walker) passOver(full string, err error) error {
	switch {
	case err == nil:
		return nil
	case w.opts.Partial != nil && errors.Is(err, errPartial):
		w.opts.Partial(full)
		return nil
	}
	return fmt.Errorf("%q: %w", full, err)
}

// overlayXattrs takes the marks of overlayfs off an entry of its upper folder:
// they describe that folder, and would describe the image wrongly when it is the
// lower layer of another overlay.
//
// What has its name or its data in a lower folder only is errPartial.
func (w *walker) overlayXattrs(e *tree.Entry) (opaque bool, err error) {
	if w.opts.Whiteouts != tree.WhiteoutOverlay {
		return false, nil
	}
	for _, x := range e.Xattrs {
		mark, _ := cutOverlay(x.Name)
		switch mark {
		case overlayOpaque:
			opaque = opaque || x.Value == "y"
		case overlayRedirect, overlayMetacopy:
			return false, fmt.Errorf("xattr %q: %w", x.Name, errPartial)
		}
	}
	e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x tree.Xattr) bool {
		_, ok := cutOverlay(x.Name)
		return ok
	})
	return opaque, nil
}
