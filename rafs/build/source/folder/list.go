package folder

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// batch is how many names of a folder are held at a time. A folder with more is
// listed once for each batch.
const batch = 16 << 10

// listed is a name, and what it is as far as the listing tells (DT_REG and so on).
type listed struct {
	name string
	kind byte
}

// lister yields the names of a folder by bytes, a batch at a time: either those
// of its sub-folders, or all others.
type lister struct {
	fd      int
	folders bool
	buf     []byte // what the kernel fills; made if it is nil

	// What was seen of sub-folders while the others were listed, unless that are
	// more than room. Sorted once next has returned.
	subs     []listed
	room     int
	overflow bool

	last string // the largest name so far
	more bool   // last is one
	done bool
}

// next returns the next names, none when there are no more.
func (l *lister) next() ([]listed, error) {
	if l.done {
		return nil, nil
	}
	if _, err := unix.Seek(l.fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []listed
	limit, full := "", false
	l.subs, l.overflow = nil, false
	err := l.read(func(name []byte, kind byte) {
		if (kind == unix.DT_DIR) != l.folders {
			l.sub(name, kind)
			return
		}
		if l.more && string(name) <= l.last || full && string(name) >= limit {
			return
		}
		if names = append(names, listed{string(name), kind}); len(names) == 2*batch {
			sortNames(names)
			clear(names[batch:])
			names = names[:batch]
			limit, full = names[batch-1].name, true
		}
	})
	if err != nil {
		return nil, err
	}
	names, l.subs = sortNames(names), sortNames(l.subs)
	if l.done = !full && len(names) <= batch; len(names) > batch {
		names = names[:batch]
	}
	if len(names) > 0 {
		l.last, l.more = names[len(names)-1].name, true
	}
	return names, nil
}

// sub keeps the name of a sub-folder for later.
func (l *lister) sub(name []byte, kind byte) {
	if l.overflow = l.overflow || len(l.subs) >= l.room; l.overflow {
		l.subs = nil
		return
	}
	l.subs = append(l.subs, listed{string(name), kind})
}

// sortNames sorts names. A file system may list one twice while its folder
// changes.
func sortNames(names []listed) []listed {
	slices.SortFunc(names, func(a, b listed) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(names, func(a, b listed) bool { return a.name == b.name })
}

// Offsets in a struct linux_dirent64, which getdents fills.
const (
	direntLenAt  = 16
	direntTypeAt = 18
	direntNameAt = 19
)

// listSize is what is asked of the kernel at once, in bytes.
const listSize = 64 << 10

// read passes all names to add. The bytes are reused.
func (l *lister) read(add func(name []byte, kind byte)) error {
	if l.buf == nil {
		l.buf = make([]byte, listSize)
	}
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(l.fd, l.buf) })
		if err != nil || n == 0 {
			return err
		}
		for rest := l.buf[:n]; len(rest) > direntNameAt; {
			size := int(binary.NativeEndian.Uint16(rest[direntLenAt:]))
			name, _, _ := bytes.Cut(rest[direntNameAt:size], []byte{0})
			kind := rest[direntTypeAt]
			rest = rest[size:]
			if s := string(name); s == "." || s == ".." {
				continue
			}
			if kind == unix.DT_UNKNOWN {
				if kind, err = l.kind(string(name)); err != nil {
					return err
				}
			}
			add(name, kind)
		}
	}
}

// kind asks for what a file system does not tell in its listing: whether a name
// is a folder's. What is gone meanwhile is left to the caller, who will find out.
func (l *lister) kind(name string) (byte, error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(l.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return unix.DT_UNKNOWN, nil
	case err != nil:
		return 0, err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return unix.DT_DIR, nil
	}
	return unix.DT_UNKNOWN, nil
}
