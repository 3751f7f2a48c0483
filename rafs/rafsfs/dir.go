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

// ReadDir answers READDIR. The offset of an entry is a function of the image.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	full := false
	err := f.image.ReadDir(in.NodeId, in.Offset, func(d image.Dirent) bool {
		full = !out.AddDirEntry(fuse.DirEntry{Name: string(d.Name), Mode: d.Type, Ino: d.Node, Off: d.Next})
		return !full
	})
	return f.listed("readdir", in.NodeId, out, full, err)
}

// ReadDirPlus answers READDIRPLUS. "." and ".." go out without a node id, so that
// the guest takes no reference on them (Linux fs/fuse/readdir.c, parse_dirplusfile).
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	full := false
	var failed error
	err := f.image.ReadDir(in.NodeId, in.Offset, func(d image.Dirent) bool {
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: string(d.Name), Mode: d.Type, Ino: d.Node, Off: d.Next})
		if full = e == nil; full {
			return false
		}
		if isDots(d.Name) {
			return true
		}
		failed = f.fillEntry(e, d.Node)
		return failed == nil
	})
	return f.listed("readdirplus", in.NodeId, out, full, errors.Join(err, failed))
}

// listed ends a listing. An empty answer means the end of the folder to a guest,
// so a buffer that holds not even one entry is its mistake and answered EINVAL.
func (f *FS) listed(op string, node uint64, out *fuse.DirEntryList, full bool, err error) fuse.Status {
	if err == nil && full && len(out.Bytes()) == 0 {
		return fuse.EINVAL
	}
	return f.status(op, node, err)
}

func isDots(name []byte) bool {
	return len(name) <= 2 && name[0] == '.' && name[len(name)-1] == '.'
}
