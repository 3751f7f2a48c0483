// Package treetest makes layers of any size out of a seed, as a tar stream that
// is never stored: for tests and benchmarks of what must not grow with a layer.
//
// The same shape gives the same bytes, everywhere. And it asks of the sources that
// make layers what all of them have to refuse.
package treetest

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// Shape says what a layer has.
type Shape struct {
	Seed    uint64
	Entries int
	// Bytes is the size of all files together. Most of it is in a few large files,
	// as in root file systems.
	Bytes int64
}

// Read returns the layer as a tar stream. It must be read to the end or closed.
func (s Shape) Read() io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		out := bufio.NewWriterSize(w, 64<<10)
		w.CloseWithError(errors.Join(s.Write(out), out.Flush()))
	}()
	return r
}

// Write writes the layer as a tar.
func (s Shape) Write(w io.Writer) error {
	g := &generator{shape: s, r: rand.New(rand.NewPCG(s.Seed, 0x7472)), tar: tar.NewWriter(w), left: s.Bytes}
	g.pool = make([]byte, 0, poolSize)
	for len(g.pool) < poolSize-64 {
		g.pool = fmt.Appendf(g.pool, "%x the ", g.r.Uint64()>>g.r.IntN(60))
	}
	for i := range s.Entries {
		if err := g.entry(i); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return g.tar.Close()
}

const poolSize = 1 << 20

type generator struct {
	shape Shape
	r     *rand.Rand
	tar   *tar.Writer
	pool  []byte // text that compresses about two to one
	left  int64  // bytes that files still have to have
	dir   string
	files []string // some files of the folder, for links
}

// entry writes entry i: a folder now and then, and what lies in it.
func (g *generator) entry(i int) error {
	h := &tar.Header{
		Mode: 0o644, Uid: g.r.IntN(2000), Gid: g.r.IntN(2000), Format: tar.FormatPAX,
		ModTime: time.Unix(1.7e9+int64(g.r.IntN(1e8)), int64(g.r.IntN(1e9))),
	}
	kind := g.r.IntN(100)
	if i == 0 || kind < 4 {
		g.dir = strings.Repeat(fmt.Sprintf("level-%d/", g.r.IntN(40)), g.r.IntN(5)) + fmt.Sprintf("folder-%d", i)
		g.files = g.files[:0]
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, g.dir+"/", 0o755
		return g.tar.WriteHeader(h)
	}
	h.Name = fmt.Sprintf("%s/file-%x.%d", g.dir, g.r.Uint32(), i)
	switch {
	case kind < 8:
		h.Typeflag, h.Linkname = tar.TypeSymlink, fmt.Sprintf("../target/of/link-%d", g.r.IntN(1000))
		return g.tar.WriteHeader(h)
	case kind < 11 && len(g.files) > 0:
		h.Typeflag, h.Linkname = tar.TypeLink, g.files[g.r.IntN(len(g.files))]
		return g.tar.WriteHeader(h)
	case kind < 13:
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.origin": h.Name, "SCHILY.xattr.security.selinux": "system_u:object_r:bin_t:s0"}
	}
	if len(g.files) < 20 {
		g.files = append(g.files, h.Name)
	}
	return g.file(h, g.size(i))
}

// size spreads the bytes over what is left of the entries.
func (g *generator) size(i int) int64 {
	mean := g.left / int64(g.shape.Entries-i)
	var n int64
	switch kind := g.r.IntN(1000); {
	case i == g.shape.Entries-1:
		n = g.left
	case kind < 30:
		n = 0
	case kind < 990:
		n = g.r.Int64N(min(2*mean, 8<<10) + 1)
	default: // one of a hundred has nearly all
		n = g.r.Int64N(180*mean + 1)
	}
	n = min(n, g.left)
	g.left -= n
	return n
}

func (g *generator) file(h *tar.Header, n int64) error {
	h.Typeflag, h.Size = tar.TypeReg, n
	if err := g.tar.WriteHeader(h); err != nil {
		return err
	}
	for n > 0 {
		// Every piece begins where none did before, nearly always.
		var mark [12]byte
		for i := range mark {
			mark[i] = byte('a' + g.r.IntN(16))
		}
		k, err := g.tar.Write(mark[:min(n, int64(len(mark)))])
		if err != nil {
			return err
		}
		n -= int64(k)
		at := g.r.IntN(len(g.pool) / 2)
		if k, err = g.tar.Write(g.pool[at:][:min(n, int64(len(g.pool)/2))]); err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}
