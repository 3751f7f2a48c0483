package rafsfs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/image"
)

// Lookup answers LOOKUP. A name that is not there is answered with node id 0 and
// a long validity, which makes the guest cache its absence; an error could not be
// cached (Linux fs/fuse/dir.c, fuse_lookup_name).
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	node, err := f.image.Lookup(h.NodeId, name)
	if errors.Is(err, image.ErrNotFound) {
		out.NodeId = 0
		out.SetEntryTimeout(Valid)
		return fuse.OK
	}
	if err == nil {
		err = f.fillEntry(out, node)
	}
	return f.status("lookup", h.NodeId, err)
}

// List yields the entries of a folder from off on, "." and ".." among them, until
// add returns false. The offset behind an entry is a function of the image. Names
// alias the image. With plus, out describes the inode, except for "." and "..":
// they go out without a node id, so that the guest takes no reference on them
// (Linux fs/fuse/readdir.c, parse_dirplusfile). Without plus out is nil. Neither
// may be kept.
func (f *FS) List(node, off uint64, plus bool, add func(name []byte, ino, next uint64, mode uint32, out *fuse.EntryOut) bool) fuse.Status {
	var entry fuse.EntryOut
	var out *fuse.EntryOut
	if plus {
		out = &entry
	}
	var failed error
	err := f.image.ReadDir(node, off, func(d image.Dirent) bool {
		if plus {
			entry = fuse.EntryOut{}
			if !isDots(d.Name) {
				if failed = f.fillEntry(out, d.Node); failed != nil {
					return false
				}
			}
		}
		return add(d.Name, d.Node, d.Next, d.Type, out)
	})
	return f.status("list", node, errors.Join(err, failed))
}

// ReadDir answers READDIR for callers that come through go-fuse.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, list *fuse.DirEntryList) fuse.Status {
	return f.fill(in, list, false)
}

// ReadDirPlus answers READDIRPLUS for callers that come through go-fuse.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, list *fuse.DirEntryList) fuse.Status {
	return f.fill(in, list, true)
}

// fill lists into go-fuse's buffer. An empty answer means the end of the folder to
// a guest, so a buffer that holds not even one entry is its mistake: EINVAL.
func (f *FS) fill(in *fuse.ReadIn, list *fuse.DirEntryList, plus bool) fuse.Status {
	full := false
	status := f.List(in.NodeId, in.Offset, plus, func(name []byte, ino, next uint64, mode uint32, out *fuse.EntryOut) bool {
		e := fuse.DirEntry{Name: string(name), Mode: mode, Ino: ino, Off: next}
		if !plus {
			full = !list.AddDirEntry(e)
			return !full
		}
		to := list.AddDirLookupEntry(e)
		if full = to == nil; !full {
			*to = *out
		}
		return !full
	})
	if status == fuse.OK && full && len(list.Bytes()) == 0 {
		return fuse.EINVAL
	}
	return status
}

func isDots(name []byte) bool {
	return len(name) <= 2 && name[0] == '.' && name[len(name)-1] == '.'
}
