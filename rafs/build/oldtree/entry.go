package tree

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRefused means that an entry of a layer is not acceptable. Errors that wrap
// it are an *EntryError.
var ErrRefused = errors.New("entry refused")

// EntryError says which entry of a layer was refused, and why.
type EntryError struct {
	Name   string // as the tar has it
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
)

// splitPath returns the components of a tar name, none for the root. A leading
// slash, empty components and "." mean nothing, as for every unpacker.
func splitPath(name string, depth int) ([]string, string) {
	if name == "" {
		return nil, "empty name"
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, "NUL in the name"
	}
	var parts []string
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
