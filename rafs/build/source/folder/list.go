package folder

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// batch is how many names of a folder are held at a time. A folder with more is
// listed once for each batch.
const batch = 16 << 10

// lister yields the names of a folder by bytes, a batch at a time: either those
// of its sub-folders, or all others.
type lister struct {
	fd      int
	folders bool

	last string // the largest name so far
	more bool   // last is one
	done bool
}

// next returns the next names, none when there are no more.
func (l *lister) next() ([]string, error) {
	if l.done {
		return nil, nil
	}
	if _, err := unix.Seek(l.fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var names []string
	limit, full := "", false
	err := l.read(func(name []byte) {
		if l.more && string(name) <= l.last || full && string(name) >= limit {
			return
		}
		if names = append(names, string(name)); len(names) == 2*batch {
			slices.Sort(names)
			clear(names[batch:])
			names = names[:batch]
			limit, full = names[batch-1], true
		}
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	// A file system may list a name twice while its folder changes.
	names = slices.Compact(names)
	if l.done = !full && len(names) <= batch; len(names) > batch {
		names = names[:batch]
	}
	if len(names) > 0 {
		l.last, l.more = names[len(names)-1], true
	}
	return names, nil
}

// Offsets in a struct linux_dirent64, which getdents fills.
const (
	direntLenAt  = 16
	direntTypeAt = 18
	direntNameAt = 19
)

// read passes the names of the wanted kind to add. The bytes are reused.
func (l *lister) read(add func(name []byte)) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(l.fd, buf) })
		if err != nil || n == 0 {
			return err
		}
		for rest := buf[:n]; len(rest) > direntNameAt; {
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
			if (kind == unix.DT_DIR) == l.folders {
				add(name)
			}
		}
	}
}

// kind asks for what a file system does not tell in its listing. What is gone
// meanwhile is left to the caller, who will find out.
func (l *lister) kind(name string) (byte, error) {
	var st unix.Stat_t
	switch err := unix.Fstatat(l.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return unix.DT_REG, nil
	case err != nil:
		return 0, err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return unix.DT_DIR, nil
	}
	return unix.DT_REG, nil
}
