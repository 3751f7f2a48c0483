package image

import (
	"errors"
	"fmt"
)

// Why an image is refused. Errors of Open and New wrap one of these and name the
// offset in the bootstrap, the number found there and the rule that it breaks.
var (
	// ErrCorrupt means that the bootstrap breaks a rule of its format.
	ErrCorrupt = errors.New("corrupt image")
	// ErrUnsupported means that the image may be sound but needs a feature that
	// this reader lacks; the error names it.
	ErrUnsupported = errors.New("unsupported image")
	// ErrDigest means that the bootstrap is not the one that was asked for.
	ErrDigest = errors.New("bootstrap digest mismatch")
)

// Why a question about an inode has no answer. They are returned as they are,
// with nothing around them: a guest can ask for anything as often as it likes,
// so that refusing must cost nothing.
var (
	// ErrNode means that no inode of the image has this node id.
	ErrNode = errors.New("no such inode")
	// ErrNotFound means that a folder has no entry of this name.
	ErrNotFound = errors.New("no such entry")
	// ErrNotDir means that the inode is no folder.
	ErrNotDir = errors.New("not a folder")
	// ErrNotSymlink means that the inode is no symbolic link.
	ErrNotSymlink = errors.New("not a symbolic link")
	// ErrNotRegular means that the inode is no regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrNoXattr means that the inode has no extended attribute of this name.
	ErrNoXattr = errors.New("no such attribute")
)

// corrupt makes an error that wraps ErrCorrupt. The offset counts from the start
// of the bootstrap.
func corrupt(off uint64, format string, args ...any) error {
	return fmt.Errorf("%w: offset %#x: %s", ErrCorrupt, off, fmt.Sprintf(format, args...))
}

// unsupported makes an error that wraps ErrUnsupported.
func unsupported(off uint64, format string, args ...any) error {
	return fmt.Errorf("%w: offset %#x: %s", ErrUnsupported, off, fmt.Sprintf(format, args...))
}
