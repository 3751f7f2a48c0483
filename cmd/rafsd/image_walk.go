package main

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// walkImage visits every name of an image, folders before what is in them. Paths
// are fit to be printed.
func walkImage(ctx context.Context, im *image.Image, visit func(path string, node uint64) error) error {
	type folder struct {
		path string
		node uint64
	}
	if err := visit("/", image.Root); err != nil {
		return err
	}
	todo := []folder{{"", image.Root}}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		first := len(todo)
		var inner error
		err := im.ReadDir(at.node, 0, func(d image.Dirent) bool {
			name := string(d.Name)
			if name == "." || name == ".." {
				return true
			}
			path := at.path + "/" + plain(name)
			if inner = visit(path, d.Node); inner == nil && d.Type == unix.S_IFDIR {
				todo = append(todo, folder{path, d.Node})
			}
			return inner == nil
		})
		if err != nil {
			return fmt.Errorf("folder %s: %w", at.path, err)
		}
		if inner != nil {
			return inner
		}
		for i, j := first, len(todo)-1; i < j; i, j = i+1, j-1 {
			todo[i], todo[j] = todo[j], todo[i]
		}
	}
	return nil
}

// eachSegment visits the ranges of a regular file's bytes: chunks and holes.
func eachSegment(im *image.Image, node, size uint64, visit func(off uint64, s *blob.Segment) error) error {
	var segments []blob.Segment
	for off := uint64(0); off < size; {
		var err error
		if segments, err = im.Segments(segments[:0], node, off, uint32(min(window, size-off))); err != nil {
			return err
		}
		if len(segments) == 0 {
			return fmt.Errorf("no data at %d of %d bytes", off, size)
		}
		for i := range segments {
			if err := visit(off, &segments[i]); err != nil {
				return err
			}
			off += uint64(segments[i].Length)
		}
	}
	return nil
}

// lookup finds a path of an image; a path that is not there is no error.
func lookup(im *image.Image, path string) (uint64, bool) {
	node := image.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		next, err := im.Lookup(node, name)
		if err != nil {
			return 0, false
		}
		node = next
	}
	return node, true
}
