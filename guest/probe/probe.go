// Package probe looks at a file tree the way a program does, through system
// calls, and writes down all that it can see: names, modes, owners, link counts,
// sizes, times, device numbers, link targets, extended attributes and the SHA-256
// of contents. The same code runs inside a guest, over a mounted image, and over
// the folder that an image was made from, so that the results can be compared.
//
// It trusts the kernel under it and nothing else: an error of any call on any
// entry ends the walk, nothing is passed over. It never writes.
//
// It imports the standard library and x/sys only: it is part of the guest's init.
package probe

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Entry is one line of a manifest. Strings that are no UTF-8 are "hex:" and the
// bytes in hexadecimal digits. Folders have no Nlink and no Size: file systems
// differ in what they say there.
type Entry struct {
	Path      string            `json:"path"` // absolute within the tree; "/" is its root
	Mode      string            `json:"mode"` // st_mode with the type, in octal digits
	UID       uint32            `json:"uid"`
	GID       uint32            `json:"gid"`
	Nlink     uint64            `json:"nlink,omitempty"`
	Size      int64             `json:"size"`
	Mtime     int64             `json:"mtime"` // seconds since 1970
	MtimeNsec int64             `json:"mtime_nsec"`
	Rdev      uint64            `json:"rdev,omitempty"` // device number as stat(2) gives it
	Link      string            `json:"link,omitempty"`
	SHA256    string            `json:"sha256,omitempty"` // of regular files
	Xattrs    map[string]string `json:"xattrs,omitempty"` // values in hexadecimal digits
}

// Walk calls yield for the root and everything below it, parents before their
// entries, each folder's entries in the order of their names' bytes.
func Walk(root string, yield func(Entry) error) error {
	return walk(root, "/", yield)
}

func walk(root, name string, yield func(Entry) error) error {
	full := root + name
	e, mode, err := look(full)
	if err != nil {
		return err
	}
	e.Path = text(name)
	if err := yield(e); err != nil {
		return err
	}
	if mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	names, err := readNames(full)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := walk(root, path.Join(name, n), yield); err != nil {
			return err
		}
	}
	return nil
}

// look describes one entry, without following a symbolic link.
func look(full string) (Entry, uint32, error) {
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return Entry{}, 0, fmt.Errorf("lstat %q: %w", full, err)
	}
	e := Entry{
		Mode: strconv.FormatUint(uint64(st.Mode), 8),
		UID:  st.Uid, GID: st.Gid,
		Mtime: st.Mtim.Sec, MtimeNsec: st.Mtim.Nsec,
	}
	var err error
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		e.Nlink, e.Size = uint64(st.Nlink), st.Size
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		var n int64
		n, e.SHA256, err = Hash(full, false)
		if err == nil && n != st.Size {
			err = fmt.Errorf("read %q: %d bytes, want %d as lstat says", full, n, st.Size)
		}
	case unix.S_IFLNK:
		e.Link, err = os.Readlink(full)
		e.Link = text(e.Link)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	if err != nil {
		return Entry{}, 0, err
	}
	e.Xattrs, err = xattrs(full)
	return e, st.Mode, err
}

// readNames lists a folder. The names come sorted and must differ: a folder that
// lists a name twice, or "." as an entry, is an error that a sorted list shows.
func readNames(full string) ([]string, error) {
	f, err := os.Open(full)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("readdir %q: %w", full, err)
	}
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			return nil, fmt.Errorf("readdir %q: lists %q twice", full, names[i])
		}
	}
	return names, nil
}

// buffers are reused: in an emulated machine a fresh one costs more than what most
// files take to read.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 128<<10)
	return &b
}}

// directBlock is a multiple of every device's and file system's block size.
const directBlock = 1 << 20

// Hash reads a file from its begin to its end and returns the number of bytes and
// their SHA-256. With direct, the reads go past the page cache.
func Hash(full string, direct bool) (int64, string, error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := *pooled
	if direct {
		flags |= unix.O_DIRECT
		mem, err := unix.Mmap(-1, 0, directBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return 0, "", fmt.Errorf("page-aligned buffer of %d bytes: %w", directBlock, err)
		}
		defer unix.Munmap(mem)
		buf = mem
	}
	fd, err := unix.Open(full, flags, 0)
	if err != nil {
		return 0, "", fmt.Errorf("open %q: %w", full, err)
	}
	f := os.NewFile(uintptr(fd), full)
	defer f.Close()
	h := sha256.New()
	// Neither side may offer a shortcut: CopyBuffer would use a larger buffer or a
	// system call of its own.
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
	if err != nil {
		return n, "", err
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(full string) (map[string]string, error) {
	names, err := sized(func(p []byte) (int, error) { return unix.Llistxattr(full, p) })
	if err == unix.EOPNOTSUPP || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr %q: %w", full, err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := sized(func(p []byte) (int, error) { return unix.Lgetxattr(full, name, p) })
		if err != nil {
			return nil, fmt.Errorf("getxattr %q %q: %w", full, name, err)
		}
		out[text(name)] = hex.EncodeToString(value)
	}
	return out, nil
}

// sized calls an xattr system call twice as its man page says: for the size, then
// for the bytes.
func sized(call func([]byte) (int, error)) ([]byte, error) {
	n, err := call(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	p := make([]byte, n)
	n, err = call(p)
	if err != nil {
		return nil, err
	}
	return p[:n], nil
}

// text makes a string that JSON carries unchanged.
func text(s string) string {
	if utf8.ValidString(s) && !strings.HasPrefix(s, "hex:") {
		return s
	}
	return "hex:" + hex.EncodeToString([]byte(s))
}
