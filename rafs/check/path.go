package check

import (
	"fmt"
	"path"
	"slices"
	"unicode/utf8"

	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// quoted makes a name from an image fit to be printed.
func quoted(name []byte) string {
	if !utf8.Valid(name) {
		return fmt.Sprintf("%+q", name)
	}
	for _, r := range string(name) {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return fmt.Sprintf("%+q", name)
		}
	}
	return string(name)
}

// Limits of working out paths. Only violations need one, but looking for a name
// goes through all of a folder.
const (
	maxPathDepth   = 64
	maxPathEntries = 1 << 22 // looked at for all paths together
)

// v6Paths works out the paths of folders, going up by "..".
type v6Paths struct {
	c    *v6Check
	cost int
	last v6Folder
	name string
}

// of returns the path of a folder, or its nid where there is no way up.
func (p *v6Paths) of(f v6Folder) string {
	if p.name != "" && p.last == f {
		return p.name
	}
	p.last, p.name = f, p.find(f)
	return p.name
}

func (p *v6Paths) find(f v6Folder) string {
	var parts []string
	for uint64(f.nid) != uint64(p.c.super.RootNID) {
		if len(parts) == maxPathDepth || p.cost > maxPathEntries {
			parts = append(parts, fmt.Sprintf("(nid %d)", f.nid))
			break
		}
		name, ok := p.look(f.parent, func(ent *v6.Dirent, name []byte) bool {
			return ent.NID == uint64(f.nid) && string(name) != "." && string(name) != ".."
		})
		if !ok {
			parts = append(parts, fmt.Sprintf("(nid %d)", f.nid))
			break
		}
		parts = append(parts, quoted(name))
		up := f.parent
		if uint64(up) != uint64(p.c.super.RootNID) {
			p.look(f.parent, func(ent *v6.Dirent, name []byte) bool {
				if string(name) != ".." || ent.NID >= p.c.walk.slots {
					return false
				}
				up = uint32(ent.NID)
				return true
			})
		}
		f = v6Folder{f.parent, up}
	}
	slices.Reverse(parts)
	return "/" + path.Join(parts...)
}

// look finds an entry of a folder.
func (p *v6Paths) look(nid uint32, match func(*v6.Dirent, []byte) bool) ([]byte, bool) {
	in, err := p.c.inode(uint64(nid))
	if err != nil || !in.isDir() {
		return nil, false
	}
	buf := make([]byte, p.c.blockSize)
	for i := uint64(0); i<<p.c.blockBits < in.Size && p.cost <= maxPathEntries; i++ {
		off, size := p.c.blockOf(&in, i)
		if !p.c.src.read(buf[:size], off) || size < v6.DirentSize {
			return nil, false
		}
		n := int(le.Uint16(buf[8:])) / v6.DirentSize
		for j := 0; j < n && (j+1)*v6.DirentSize <= int(size); j++ {
			p.cost++
			ent, _ := v6.DecodeDirent(buf[j*v6.DirentSize:])
			if name, ok := looseName(buf[:size], j, n); ok && match(&ent, name) {
				return name, true
			}
		}
	}
	return nil, false
}

// looseName is direntName for a block that has not been checked.
func looseName(b []byte, j, n int) ([]byte, bool) {
	start := int(le.Uint16(b[j*v6.DirentSize+8:]))
	end := len(b)
	if j+1 < n && (j+2)*v6.DirentSize <= len(b) {
		end = int(le.Uint16(b[(j+1)*v6.DirentSize+8:]))
	}
	if start >= end || end > len(b) || end-start > maxName && j+1 < n {
		return nil, false
	}
	return direntName(b[:end], j, j+1), true
}
