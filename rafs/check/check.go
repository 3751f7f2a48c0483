// Package check looks for everything that is wrong with a bootstrap: what
// rafs/image refuses, and beyond that what a reader can live with but a builder
// must not write, such as wrong link counts, tables that do not agree, or chunks
// that nobody uses.
//
// It trusts nothing in the bootstrap and bounds its memory by what rafs/image
// bounds. It never reads blobs.
package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// maxViolations is how many violations are listed before they are only counted.
const maxViolations = 1000

// Violation is one rule that a bootstrap breaks.
type Violation struct {
	// Where is a path in the image, or a part of the bootstrap.
	Where string
	// What says what is there and what was wanted.
	What string
}

func (v Violation) String() string { return v.Where + ": " + v.What }

// Error lists violations.
type Error struct {
	Violations []Violation
	// More is how many there are beyond those listed.
	More int
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Violations)+1)
	for _, v := range e.Violations {
		lines = append(lines, v.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return fmt.Sprintf("%d violations: %s", len(e.Violations)+e.More, strings.Join(lines, "; "))
}

// Image checks the bootstrap in a file. The error is an *Error if the bootstrap
// is wrong, and something else if it could not be read.
func Image(ctx context.Context, file string) error {
	c := &checker{ctx: ctx}
	im, err := image.Open(file, image.Options{})
	switch {
	case errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrUnsupported):
		return &Error{Violations: []Violation{{"bootstrap", err.Error()}}}
	case err != nil:
		return err
	}
	defer im.Close()
	c.im = im
	c.use = make([]map[uint32]bool, len(im.Blobs()))
	for i := range c.use {
		c.use[i] = map[uint32]bool{}
	}
	if err := c.tree(); err != nil {
		return err
	}
	if im.Super().Version == 6 {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := c.v6(f); err != nil {
			return err
		}
	}
	if len(c.found.Violations) > 0 {
		return &c.found
	}
	return nil
}

type checker struct {
	ctx   context.Context
	im    *image.Image
	found Error

	use   []map[uint32]bool // chunks in use by blob
	names map[uint64]uint32 // of each inode that is no folder
	links map[uint64]uint32 // what each of these says of its names
	first map[uint64]string // and its first name
}

func (c *checker) fail(where, format string, args ...any) {
	if len(c.found.Violations) == maxViolations {
		c.found.More++
		return
	}
	c.found.Violations = append(c.found.Violations, Violation{where, fmt.Sprintf(format, args...)})
}

// tree walks all names. The model has proven that folders form a tree.
func (c *checker) tree() error {
	c.names, c.links, c.first = map[uint64]uint32{}, map[uint64]uint32{}, map[uint64]string{}
	if err := c.folder(image.Root, "/"); err != nil {
		return err
	}
	for node, names := range c.names {
		if links := c.links[node]; links != names {
			c.fail(c.first[node], "link count %d, has %d names", links, names)
		}
	}
	return nil
}

func (c *checker) folder(node uint64, dir string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	attr, err := c.im.Attr(node)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if err := c.attributes(node, dir); err != nil {
		return err
	}
	folders := uint32(0)
	var inner error
	err = c.im.ReadDir(node, 0, func(d image.Dirent) bool {
		name := string(d.Name)
		if name == "." || name == ".." {
			return true
		}
		full := path.Join(dir, name)
		if d.Type == modeDir {
			folders++
			inner = c.folder(d.Node, full)
		} else {
			inner = c.file(d.Node, full)
		}
		return inner == nil
	})
	if err = errors.Join(err, inner); err != nil {
		return err
	}
	if want := 2 + folders; attr.Nlink != want {
		c.fail(dir, "link count %d, has %d folders in it, want %d", attr.Nlink, folders, want)
	}
	return nil
}

const (
	modeMask    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
)

func (c *checker) file(node uint64, name string) error {
	c.names[node]++
	if c.names[node] > 1 {
		return nil
	}
	attr, err := c.im.Attr(node)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.links[node], c.first[node] = attr.Nlink, name
	if err := c.attributes(node, name); err != nil {
		return err
	}
	if attr.Mode&modeMask == modeRegular {
		return c.data(node, attr.Size, name)
	}
	return nil
}

func (c *checker) attributes(node uint64, name string) error {
	has := false
	err := c.im.Xattrs(node, func(string, []byte) bool {
		has = true
		return false
	})
	if err != nil {
		return fmt.Errorf("%s: xattrs: %w", name, err)
	}
	if has && c.im.Super().Flags&layout.FlagHasXattr == 0 {
		c.fail(name, "has xattrs, the superblock says that nothing has")
	}
	return nil
}
