package write

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/rafstest"
)

// FuzzBuild turns bytes into the choices of a build and a small tree, in one or
// two layers. The image must read back as the tree, and check must find nothing.
func FuzzBuild(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00 the quick brown fox jumps over the lazy dog"))
	for i := range 12 {
		seed := sha256.Sum256([]byte{byte(i)})
		f.Add(slices.Repeat(seed[:], 1+i*2))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<12 {
			return
		}
		g := &generator{data: data, dirs: []string{""}, want: map[string]*rafstest.Entry{}, inode: map[string][]string{}}
		fl := g.flavour()
		layers := g.tree(fl.inline)
		tars := [][]byte{layers[0].pack(t), layers[1].pack(t)}
		if fl.inline {
			tars = tars[:1]
		}
		b := buildAs(t, fl, 1+len(data)%3, tars...)
		im, dir, file := b.open(t, &fl)
		if err := check.Image(context.Background(), file); err != nil {
			t.Errorf("check: %v", err)
		}
		rafstest.Compare(t, g.entries(fl.Version == 5), rafstest.Tree(im, rafstest.Blobs{dir}))
	})
}

// generator makes choices of bytes; when they run out, it chooses 0.
type generator struct {
	data  []byte
	dirs  []string // paths without the leading slash, "" the root
	files []string // that a hard link may name
	want  map[string]*rafstest.Entry
	inode map[string][]string // names by the first
}

func (g *generator) byte() int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b)
}

func (g *generator) flavour() flavour {
	f := flavour{Options: Options{Version: 5 + g.byte()%2}}
	f.ChunkSize = 4096 << (g.byte() % 3)
	f.Compressor = []blob.Compressor{blob.CompressorZstd, blob.CompressorNone, blob.CompressorLZ4Block}[g.byte()%3]
	bits := g.byte()
	f.Digester = blob.Digester(bits & 1)
	f.inline, f.plain, f.crc = bits&2 != 0, bits&4 != 0, bits&8 != 0
	if f.Version == 5 {
		f.packed = bits&16 != 0
		return f
	}
	f.v2, f.encrypt = bits&16 != 0, bits&32 != 0
	if bits&64 != 0 {
		f.batch = 4096
	}
	return f
}

// layer is the entries of a tar.
type layer []entry

func (l layer) pack(t *testing.T) []byte { return pack(t, l...) }

func (g *generator) tree(single bool) (layers [2]layer) {
	for n := 0; len(g.data) > 0 && n < 200; n++ {
		e := g.entry(n)
		l := 0
		if !single && e.Typeflag != tar.TypeDir && g.byte()%3 == 0 {
			l = 1
		}
		// A link may name what an older entry of the same layer or a lower one is.
		if e.Typeflag == tar.TypeLink {
			l = 1
			if single {
				l = 0
			}
		}
		layers[l] = append(layers[l], e)
	}
	return layers
}

// name is a new name in a folder.
func (g *generator) name(n int) string {
	dir := g.dirs[g.byte()%len(g.dirs)]
	stem := []string{"f", "!", ".", "..x", "-", "\xff", "\n", "z" + strings.Repeat("l", g.byte()), "é"}[g.byte()%9]
	name := fmt.Sprintf("%s%d", stem, n)
	if len(name) > 255 {
		name = name[len(name)-255:]
	}
	return path.Join(dir, name)
}

func (g *generator) entry(n int) entry {
	name := g.name(n)
	e := entry{Header: tar.Header{
		Name: name, Mode: int64(g.byte()) << 4 & 0o7777, Uid: g.byte() << 8, Gid: g.byte(), Format: tar.FormatPAX,
		ModTime: time.Unix(int64(g.byte())<<26-1<<30, int64(g.byte())*3906249), PAXRecords: map[string]string{},
	}}
	w := &rafstest.Entry{
		Path: "/" + name, UID: uint32(e.Uid), GID: uint32(e.Gid), Nlink: 1, Mtime: e.ModTime.Unix(), MtimeNsec: uint32(e.ModTime.Nanosecond()),
	}
	kind := uint32(0)
	switch g.byte() % 8 {
	case 0:
		kind, e.Typeflag = 0o040000, tar.TypeDir
		g.dirs = append(g.dirs, name)
	case 1:
		kind, e.Typeflag, e.Linkname = 0o120000, tar.TypeSymlink, strings.Repeat("t", 1+g.byte()*16)
		w.Link, w.Size = e.Linkname, uint64(len(e.Linkname))
	case 2:
		kind, e.Typeflag, e.Devmajor, e.Devminor = 0o020000, tar.TypeChar, int64(1+g.byte()%64), int64(g.byte())
		w.Rdev = uint32(e.Devmajor<<8 | e.Devminor)
	case 3:
		kind, e.Typeflag = 0o010000, tar.TypeFifo
	case 4:
		if len(g.files) > 0 {
			return g.link(e)
		}
		fallthrough
	default:
		kind, e.Typeflag, e.data = 0o100000, tar.TypeReg, g.content()
		sum := sha256.Sum256([]byte(e.data))
		w.Size, w.SHA256 = uint64(len(e.data)), hex.EncodeToString(sum[:])
	}
	if kind == 0o120000 {
		e.Mode = 0o777
	}
	w.Mode = kind | uint32(e.Mode)
	g.xattrs(&e, w)
	g.want[name] = w
	if kind != 0o040000 {
		g.files, g.inode[name] = append(g.files, name), []string{name}
	}
	return e
}

// link makes one more name of an inode.
func (g *generator) link(e entry) entry {
	first := g.files[g.byte()%len(g.files)]
	e.Typeflag, e.Linkname = tar.TypeLink, first
	g.inode[first] = append(g.inode[first], e.Name)
	return e
}

func (g *generator) content() string {
	var b strings.Builder
	for range g.byte() % 5 {
		b.WriteString(strings.Repeat(string(rune('a'+g.byte()%3)), 4096))
	}
	b.WriteString(strings.Repeat("T", g.byte()*g.byte()%4096))
	for range g.byte() % 40 {
		b.WriteByte(byte(g.byte()))
	}
	return b.String()
}

func (g *generator) xattrs(e *entry, w *rafstest.Entry) {
	for i := range g.byte() % 4 {
		name := []string{"user.x", "trusted.t", "security.s"}[g.byte()%3] + fmt.Sprint(i)
		value := strings.Repeat("v", g.byte()*g.byte()%5000)
		e.PAXRecords["SCHILY.xattr."+name] = value
		if w.Xattrs == nil {
			w.Xattrs = map[string]string{}
		}
		w.Xattrs[name] = value
	}
}

// entries are what the image must have, by path.
func (g *generator) entries(v5 bool) (all []rafstest.Entry) {
	for _, w := range g.want {
		names := g.inode[strings.TrimPrefix(w.Path, "/")]
		if names == nil {
			names = []string{strings.TrimPrefix(w.Path, "/")}
		}
		for _, name := range names {
			e := *w
			e.Path = "/" + name
			if e.Nlink = uint32(len(names)); v5 && !e.IsRegular() {
				e.Nlink = 1 // v5 has hard links of regular files only
			}
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b rafstest.Entry) int { return cmp.Compare(a.Path, b.Path) })
	return all
}
