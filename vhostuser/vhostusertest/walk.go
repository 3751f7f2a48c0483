package vhostusertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// Walk calls visit for everything below the directory node, in the order of
// READDIRPLUS, each directory before what it holds. Paths are relative to node.
// fs.SkipDir leaves a directory out.
func (c *Client) Walk(ctx context.Context, node uint64, visit func(path string, e Entry) error) error {
	return c.walk(ctx, node, "", visit)
}

func (c *Client) walk(ctx context.Context, node uint64, dir string, visit func(string, Entry) error) error {
	entries, err := c.ReadDirAll(ctx, node)
	if err != nil {
		return fmt.Errorf("walk /%s: %w", dir, err)
	}
	for _, d := range entries {
		name := path.Join(dir, d.Name)
		switch err := visit(name, d.Entry); {
		case errors.Is(err, fs.SkipDir):
			continue
		case err != nil:
			return err
		}
		if d.Entry.Attr.IsDir() {
			if err := c.walk(ctx, d.Entry.Node, name, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadDirAll returns all entries of a directory but "." and "..", with nodes and
// attributes. An entry that READDIRPLUS left without a node is looked up.
func (c *Client) ReadDirAll(ctx context.Context, node uint64) ([]Dirent, error) {
	fh, _, err := c.Opendir(ctx, node)
	if err != nil {
		return nil, err
	}
	var all []Dirent
	for off := uint64(0); ; {
		some, err := c.Readdirplus(ctx, node, fh, off, PageSize)
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			return all, c.Releasedir(ctx, node, fh)
		}
		for _, d := range some {
			off = d.Off
			if d.Name == "." || d.Name == ".." {
				continue
			}
			if d.Entry.Node == 0 {
				if d.Entry, err = c.Lookup(ctx, node, d.Name); err != nil {
					return nil, err
				}
			}
			all = append(all, d)
		}
	}
}

// ReadFile copies the content of a file of the given size to w, in requests of at
// most 128 KiB, as readahead makes them. A file that ends early or goes on is an
// error.
func (c *Client) ReadFile(ctx context.Context, w io.Writer, node, size uint64) error {
	fh, _, err := c.Open(ctx, node)
	if err != nil {
		return err
	}
	p := make([]byte, 128<<10)
	var off uint64
	for {
		n, err := c.Read(ctx, node, fh, off, p)
		if err != nil {
			return err
		}
		if _, err := w.Write(p[:n]); err != nil {
			return err
		}
		off += uint64(n)
		if n < len(p) {
			break
		}
	}
	if off != size {
		return fmt.Errorf("%w: node %d of %d bytes reads as %d", ErrProtocol, node, size, off)
	}
	return c.Release(ctx, node, fh)
}
