package folder

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// attrs are the two calls that read the xattrs of one inode.
type attrs struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
}

func fdXattrs(fd int) attrs {
	return attrs{
		list: func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) },
	}
}

// nameXattrs reads those of what cannot be opened without consequences. The
// folder is named by its descriptor, and its entry is not followed.
func nameXattrs(dir int, name string) attrs {
	p := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	return attrs{
		list: func(buf []byte) (int, error) { return unix.Llistxattr(p, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Lgetxattr(p, name, buf) },
	}
}

// maxNames is what the kernel lists at most, in bytes (XATTR_LIST_MAX).
const maxNames = 64 << 10

// xattrs reads the xattrs of an inode into its entry. The result tells whether
// they say that a folder hides what lower layers have in it.
func (w *walker) xattrs(e *tree.Entry, a attrs) (opaque bool, err error) {
	n, err := a.list(nil)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list xattrs: %w", err)
	}
	buf := make([]byte, maxNames)
	if n, err = a.list(buf); err != nil {
		return false, fmt.Errorf("list xattrs: %w", err)
	}
	if n == 0 { // overlayfs counts those that it does not list
		return false, nil
	}
	names := bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0})
	for _, raw := range names {
		name := string(raw)
		value := make([]byte, v6.MaxXattrValue+1)
		n, err := a.get(name, value)
		if errors.Is(err, unix.ENODATA) {
			return false, fmt.Errorf("%w: xattr %q is gone", ErrChanged, name)
		}
		if err != nil {
			return false, fmt.Errorf("xattr %q: %w", name, err)
		}
		e.Xattrs = append(e.Xattrs, tree.Xattr{Name: name, Value: string(value[:n])})
	}
	return w.overlayXattrs(e)
}
