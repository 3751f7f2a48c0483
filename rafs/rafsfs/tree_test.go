package rafsfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"path"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// plainStore reads chunks the shortest way. A chunk is ready once it was read.
type plainStore struct {
	blobs rafstest.Blobs

	mu   sync.Mutex
	seen map[blob.Digest][]byte
}

func (s *plainStore) chunk(c *blob.Chunk) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.seen[c.Digest]; ok {
		return data, nil
	}
	data, err := s.blobs.Read(&blob.Segment{Chunk: *c, Length: c.UncompressedSize})
	if err != nil {
		return nil, err
	}
	s.seen[c.Digest] = data
	return data, nil
}

func (s *plainStore) Ready(c *blob.Chunk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[c.Digest]
	return ok
}

// ReadReady finds the chunks of a range by their place, as a cache file would.
func (s *plainStore) ReadReady(b *blob.Info, dst [][]byte, off int64) (int, error) {
	return 0, fmt.Errorf("blob %s at %d: %w", b.ID, off, blob.ErrCorrupt)
}

func (s *plainStore) Read(_ context.Context, segs []blob.Segment, dst [][]byte) (int, error) {
	n := 0
	for i := range segs {
		if segs[i].Chunk.Blob == nil {
			n += scatter(dst, n, make([]byte, segs[i].Length))
			continue
		}
		data, err := s.chunk(&segs[i].Chunk)
		if err != nil {
			return n, err
		}
		n += scatter(dst, n, data[segs[i].Offset:][:segs[i].Length])
	}
	return n, nil
}

func scatter(dst [][]byte, skip int, src []byte) int {
	n := 0
	for _, part := range dst {
		if skip >= len(part) {
			skip -= len(part)
			continue
		}
		n += copy(part[skip:], src[n:])
		skip = 0
	}
	return n
}

// tree walks a file system as a guest does.
func tree(f *FS) iter.Seq2[rafstest.Entry, error] {
	return func(yield func(rafstest.Entry, error) bool) {
		var walk func(dir uint64, at string) bool
		walk = func(dir uint64, at string) bool {
			for e, err := range list(f, dir) {
				if err != nil {
					return yield(rafstest.Entry{Path: at}, err)
				}
				name := path.Join(at, e.name)
				entry, err := describe(f, name, &e.out)
				if !yield(entry, err) {
					return false
				}
				if entry.IsDir() && !walk(e.out.NodeId, name) {
					return false
				}
			}
			return true
		}
		walk(fuse.FUSE_ROOT_ID, "/")
	}
}

type listed struct {
	name string
	out  fuse.EntryOut
}

// list reads a folder in buffers of one page and looks every name up besides.
func list(f *FS, dir uint64) iter.Seq2[listed, error] {
	return func(yield func(listed, error) bool) {
		for off := uint64(0); ; {
			out := fuse.NewDirEntryList(make([]byte, 4096), off)
			in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir}, Offset: off, Size: 4096}
			if s := f.ReadDirPlus(nil, in, out); s != fuse.OK {
				yield(listed{}, fmt.Errorf("readdirplus of %d: %v", dir, s))
				return
			}
			entries, outs, err := fuse.ParseDirLookupEntries(out.Bytes())
			if err != nil || len(entries) == 0 {
				if err != nil {
					yield(listed{}, err)
				}
				return
			}
			for i, e := range entries {
				off = e.Off
				if e.Name == "." || e.Name == ".." {
					continue
				}
				var looked fuse.EntryOut
				s := f.Lookup(nil, &fuse.InHeader{NodeId: dir}, e.Name, &looked)
				if s != fuse.OK || looked != outs[i] || looked.Attr.Ino != e.Ino || looked.Attr.Mode&0o170000 != e.Mode {
					err = fmt.Errorf("lookup of %q in %d: %v %+v, listed %+v %+v", e.Name, dir, s, looked, e, outs[i])
				}
				if !yield(listed{e.Name, outs[i]}, err) {
					return
				}
			}
		}
	}
}

func describe(f *FS, name string, out *fuse.EntryOut) (rafstest.Entry, error) {
	a := &out.Attr
	e := rafstest.Entry{
		Path: name, Mode: a.Mode, UID: a.Uid, GID: a.Gid, Nlink: a.Nlink, Size: a.Size,
		Mtime: int64(a.Mtime), MtimeNsec: a.Mtimensec, Rdev: a.Rdev,
	}
	h := &fuse.InHeader{NodeId: out.NodeId}
	if a.Mode&0o170000 == fuse.S_IFLNK {
		target, s := f.Readlink(nil, h)
		if s != fuse.OK {
			return e, fmt.Errorf("readlink: %v", s)
		}
		e.Link = string(target)
	}
	if err := xattrs(f, h, &e); err != nil {
		return e, err
	}
	if !e.IsRegular() {
		return e, nil
	}
	sum := sha256.New()
	for off := uint64(0); ; {
		dst := [][]byte{make([]byte, 1000), make([]byte, 96<<10), make([]byte, 77)}
		n, s, ok := f.ReadNow(out.NodeId, off, dst)
		if !ok {
			n, s = f.ReadWait(context.Background(), out.NodeId, off, dst)
		}
		if s != fuse.OK {
			return e, fmt.Errorf("read at %d: %v", off, s)
		}
		if n == 0 {
			e.SHA256 = hex.EncodeToString(sum.Sum(nil))
			return e, nil
		}
		off += uint64(n)
		for _, part := range dst {
			sum.Write(part[:min(n, len(part))])
			n -= min(n, len(part))
		}
	}
}

func xattrs(f *FS, h *fuse.InHeader, e *rafstest.Entry) error {
	need, s := f.ListXAttr(nil, h, nil)
	if s != fuse.OK && s != fuse.ERANGE {
		return fmt.Errorf("listxattr: %v", s)
	}
	names := make([]byte, need)
	if n, s := f.ListXAttr(nil, h, names); s != fuse.OK || n != need {
		return fmt.Errorf("listxattr: %d bytes, %v; want %d", n, s, need)
	}
	for len(names) > 0 {
		end := 0
		for names[end] != 0 {
			end++
		}
		name := string(names[:end])
		names = names[end+1:]
		value := make([]byte, 64<<10)
		n, s := f.GetXAttr(nil, h, name, value)
		if s != fuse.OK {
			return fmt.Errorf("getxattr %q: %v", name, s)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[name] = string(value[:n])
	}
	return nil
}

func openCase(t testing.TB, c *rafstest.Case) *FS {
	t.Helper()
	im, err := image.Open(c.Bootstrap, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return New(im, &plainStore{blobs: c.Blobs, seen: map[blob.Digest][]byte{}}, Options{})
}

// anyFS is a file system of one image that has everything in it.
func anyFS(t testing.TB) *FS {
	t.Helper()
	for _, c := range rafstest.Core(t) {
		if c.Name == "v6-zstd-blake3" {
			return openCase(t, &c)
		}
	}
	t.Fatal("no such image")
	return nil
}

func TestTreeAsAGuestSeesIt(t *testing.T) {
	for _, c := range rafstest.Core(t) {
		t.Run(c.Name, func(t *testing.T) {
			f := openCase(t, &c)
			if c.Want == nil {
				for e, err := range tree(f) {
					if err != nil {
						t.Errorf("%s: %v", e.Path, err)
					}
				}
				return
			}
			rafstest.Compare(t, c.Want, tree(f))
		})
	}
}
