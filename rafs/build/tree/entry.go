package tree

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is what an Entry does.
type Kind uint8

// The kinds of entries.
const (
	// KindNode is a file, a folder and so on, whose type is in its mode.
	KindNode Kind = iota
	// KindHardLink is one more name of what Target, the path of an entry before it
	// or in a lower layer, names.
	KindHardLink
	// KindWhiteout removes what lower layers have at the path.
	KindWhiteout
	// KindOpaque hides what lower layers have in the folder.
	KindOpaque
)

// Entry is an entry of a layer.
type Entry struct {
	Kind Kind
	// Path is where the entry is: components joined by slashes, as in "a/b". "" is
	// the root.
	Path string
	// Name is what the source calls the entry, for errors; Path if empty.
	Name string
	Attr
	Target string // of a symlink, or the path that a hard link names
	Xattrs []Xattr
	// Inode, if not 0, is a number of the source: entries with equal numbers are
	// one inode of the layer, with the attributes and the chunks of the first.
	Inode uint64
}

func (e *Entry) name() string {
	if e.Name != "" {
		return e.Name
	}
	return e.Path
}

func (e *Entry) refuse(format string, args ...any) error {
	return &EntryError{Name: e.name(), Reason: fmt.Sprintf(format, args...)}
}

// ErrRefused means that an entry of a layer is not acceptable. Errors that wrap
// it are an *EntryError.
var ErrRefused = errors.New("entry refused")

// EntryError says which entry of a layer was refused, and why.
type EntryError struct {
	Name   string // as the source has it
	Reason string
}

func (e *EntryError) Error() string { return fmt.Sprintf("entry %q: %s", e.Name, e.Reason) }

func (e *EntryError) Unwrap() error { return ErrRefused }

// Limits bound what one layer may hold. Zero fields take the default.
type Limits struct {
	// Entries bounds entries and the folders that none describes; default 2 Mi.
	Entries int
	// Depth bounds the folders in a path; default 1024.
	Depth int
	// Meta bounds the bytes of names, link targets and xattrs together; default 512 MiB.
	Meta int64
	// Data bounds the bytes of all files together, holes counted; default 4 TiB.
	Data int64
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 2 << 20
	}
	if l.Depth == 0 {
		l.Depth = 1024
	}
	if l.Meta == 0 {
		l.Meta = 512 << 20
	}
	if l.Data == 0 {
		l.Data = 4 << 40
	}
	return l
}

const (
	maxName   = 255  // NAME_MAX, and what the format holds
	maxTarget = 4095 // PATH_MAX without the NUL
	// maxPath bounds a path in bytes. Linux stops at 4096, but an unpacker that
	// changes folders on its way may get further.
	maxPath = 64 << 10
)

// splitPath returns the components of a name, none for the root. A leading
// slash, empty components and "." mean nothing, as for every unpacker.
func splitPath(name string, depth int) ([]string, string) {
	if name == "" {
		return nil, "empty name"
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, "NUL in the name"
	}
	if len(name) > maxPath {
		return nil, fmt.Sprintf("path of %d bytes, want at most %d", len(name), maxPath)
	}
	parts := make([]string, 0, min(strings.Count(name, "/")+1, 16))
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, `".." in the name`
		case len(part) > maxName:
			return nil, fmt.Sprintf("name of %d bytes, want at most %d", len(part), maxName)
		}
		if len(parts) == depth {
			return nil, fmt.Sprintf("more than %d folders deep", depth)
		}
		parts = append(parts, part)
	}
	return parts, ""
}
