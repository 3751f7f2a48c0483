package rafstest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir yields all entries below a folder of this machine, as a program sees them:
// the tree that a mounted image shows. It needs to be run by root to see
// trusted.* attributes.
func Dir(root string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if path == root {
				return err
			}
			e := Entry{Path: strings.TrimPrefix(path, root)}
			if err == nil {
				err = stat(&e, path)
			}
			if !yield(e, err) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Entry{Path: root}, err)
		}
	}
}

func stat(e *Entry, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("no stat of %s", path)
	}
	e.Mode, e.UID, e.GID = st.Mode, st.Uid, st.Gid
	e.Nlink, e.Size = uint32(st.Nlink), uint64(st.Size)
	e.Mtime, e.MtimeNsec = st.Mtim.Sec, uint32(st.Mtim.Nsec)
	if t := e.Mode & syscall.S_IFMT; t == syscall.S_IFCHR || t == syscall.S_IFBLK {
		e.Rdev = encodeDev(st.Rdev)
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		e.Link, err = os.Readlink(path)
	case fi.Mode().IsRegular():
		e.SHA256, err = hashFile(path)
	}
	if err != nil {
		return err
	}
	e.Xattrs, err = listXattrs(path)
	return err
}

// encodeDev is how the kernel packs a device number into 32 bits
// (new_encode_dev, include/linux/kdev_t.h).
func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func listXattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	var out map[string]string
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %q: %w", name, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = string(value[:n])
	}
	return out, nil
}
