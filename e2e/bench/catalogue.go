package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// entry is one file of a daemon's tree.
type entry struct {
	path, name   string
	node, parent uint64
	attr         vhostusertest.Attr
	fh           uint64 // of the files that are read by rows
	open         bool
}

// reference is what the folder says of one file.
type reference struct {
	mode, uid, gid uint32
	size           uint64
	link           string
	sum            [sha256.Size]byte
}

// readReference reads the whole folder.
func readReference(tree string) (map[string]reference, error) {
	out := map[string]reference{}
	err := filepath.WalkDir(tree, func(full string, d fs.DirEntry, err error) error {
		if err != nil || full == tree {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(full, &st); err != nil {
			return err
		}
		r := reference{mode: st.Mode, uid: st.Uid, gid: st.Gid}
		switch {
		case d.Type().IsRegular():
			r.size = uint64(st.Size)
			r.sum, err = hashFile(full)
		case d.Type()&fs.ModeSymlink != 0:
			r.link, err = os.Readlink(full)
		}
		out[strings.TrimPrefix(full, tree+"/")] = r
		return err
	})
	return out, err
}

func hashFile(name string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// maxWrong bounds the differences that are reported.
const maxWrong = 10

// check walks the daemon's whole tree, reads every byte and compares everything
// with the folder. Afterwards the daemon is warm. It returns what it saw, sorted
// by path.
func check(ctx context.Context, c *vhostusertest.Client, want map[string]reference) ([]entry, error) {
	nodes := map[string]uint64{".": vhostusertest.RootNode}
	var entries []entry
	var wrong []error
	err := c.Walk(ctx, vhostusertest.RootNode, func(p string, e vhostusertest.Entry) error {
		nodes[p] = e.Node
		entries = append(entries, entry{path: p, name: path.Base(p), node: e.Node, parent: nodes[path.Dir(p)], attr: e.Attr})
		if err := checkOne(ctx, c, e, want[p]); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", p, err))
			if len(wrong) == maxWrong {
				return errors.New("and perhaps more")
			}
		}
		return ctx.Err()
	})
	if len(entries) != len(want) && err == nil {
		err = fmt.Errorf("the tree has %d entries: want %d", len(entries), len(want))
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return entries, errors.Join(append(wrong, err)...)
}

func checkOne(ctx context.Context, c *vhostusertest.Client, e vhostusertest.Entry, want reference) error {
	if e.Attr.Mode != want.mode || e.Attr.UID != want.uid || e.Attr.GID != want.gid {
		return fmt.Errorf("mode %o of %d:%d: want %o of %d:%d", e.Attr.Mode, e.Attr.UID, e.Attr.GID, want.mode, want.uid, want.gid)
	}
	switch {
	case e.Attr.IsSymlink():
		link, err := c.Readlink(ctx, e.Node)
		if err == nil && link != want.link {
			err = fmt.Errorf("link to %q: want %q", link, want.link)
		}
		return err
	case e.Attr.IsRegular():
		h := sha256.New()
		if e.Attr.Size != want.size {
			return fmt.Errorf("%d bytes: want %d", e.Attr.Size, want.size)
		}
		if err := c.ReadFile(ctx, h, e.Node, e.Attr.Size); err != nil {
			return err
		}
		if [sha256.Size]byte(h.Sum(nil)) != want.sum {
			return errors.New("the content differs")
		}
	}
	return nil
}

// largest returns the indexes of the n largest files, in the order of entries.
func largest(entries []entry, n int) []int {
	var files []int
	for i, e := range entries {
		if e.attr.IsRegular() {
			files = append(files, i)
		}
	}
	slices.SortStableFunc(files, func(a, b int) int {
		return cmp.Compare(entries[b].attr.Size, entries[a].attr.Size)
	})
	files = files[:min(n, len(files))]
	slices.Sort(files)
	return files
}
