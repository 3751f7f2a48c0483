package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rafsd/rafsd/rafs/build/chunk"
)

// Cutter takes the contents of files.
type Cutter interface {
	// File reads size bytes of r and tells add the chunks they became, in order.
	File(r io.Reader, size int64, add func(chunk.Ref) error) error
}

// Whiteouts is how a layer says what lower layers lose.
type Whiteouts uint8

const (
	// WhiteoutOCI is that of the OCI image specification: files whose names begin
	// with ".wh.".
	WhiteoutOCI Whiteouts = iota
	// WhiteoutOverlay is that of Linux' overlayfs: character devices 0:0, and the
	// xattr trusted.overlay.opaque=y of a folder, which the tree does not keep.
	WhiteoutOverlay
	// WhiteoutNone keeps all of these as the files that they are.
	WhiteoutNone
)

func (w Whiteouts) String() string {
	switch w {
	case WhiteoutOCI:
		return "oci"
	case WhiteoutOverlay:
		return "overlayfs"
	}
	return "none"
}

// overlayOpaque is the xattr of an opaque folder of overlayfs.
const overlayOpaque = "trusted.overlay.opaque"

// ReadOptions say how to read a layer. Zero fields take the default.
type ReadOptions struct {
	Limits Limits
	// TempDir takes what is spilled; os.TempDir by default.
	TempDir string
	// Whiteouts is WhiteoutOCI by default.
	Whiteouts Whiteouts
	// Memory bounds what sorting the entries takes, in bytes; 1 MiB by default.
	Memory int
	// Skip, if not nil, tells of paths, as in Entry.Path, whose entries are passed
	// over.
	Skip func(path string) bool
}

// ReadTar reads a layer from an uncompressed tar stream, which it leaves after
// the archive's end. Files are cut as they pass.
func ReadTar(ctx context.Context, r io.Reader, files Cutter, o ReadOptions) (*Layer, error) {
	b, err := NewBuilder(BuilderOptions{TempDir: o.TempDir, Limits: o.Limits, Memory: o.Memory})
	if err != nil {
		return nil, err
	}
	t := &tarReader{tar: tar.NewReader(r), files: files, builder: b, whiteouts: o.Whiteouts, skip: o.Skip}
	l, err := t.read(ctx)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return l, nil
}

type tarReader struct {
	tar       *tar.Reader
	files     Cutter
	builder   *Builder
	whiteouts Whiteouts
	skip      func(path string) bool // or nil
	last      string                 // name of the entry before, for errors
	dropped   int                    // xattrs
}

func (t *tarReader) read(ctx context.Context) (*Layer, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		hdr, err := t.tar.Next()
		if errors.Is(err, io.EOF) {
			t.builder.layer.DroppedXattrs += t.dropped
			return t.builder.Layer()
		}
		if err != nil {
			return nil, fmt.Errorf("tar entry %d, after %q: %w", t.builder.layer.Entries+1, t.last, err)
		}
		t.last = hdr.Name
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue // comments of git archive and the like
		}
		if err := t.entry(hdr); err != nil {
			return nil, err
		}
	}
}

// entry adds an entry to the layer.
func (t *tarReader) entry(hdr *tar.Header) error {
	e := Entry{Name: hdr.Name}
	if hdr.Name == "" {
		return e.refuse("empty name")
	}
	parts, why := splitPath(hdr.Name, t.builder.opts.Limits.Depth)
	if why != "" {
		return e.refuse("%s", why)
	}
	e.Path = strings.Join(parts, "/")
	if t.skip != nil && t.skip(e.Path) {
		return nil
	}
	if t.whiteouts == WhiteoutOCI {
		for _, part := range parts {
			if strings.HasPrefix(part, whiteoutPrefix) {
				return t.whiteout(&e, parts)
			}
		}
	}
	if hdr.Typeflag == tar.TypeLink {
		e.Kind, e.Target = KindHardLink, hdr.Linkname
		return t.builder.Add(&e, nil)
	}
	opaque, err := t.describe(hdr, &e)
	if err != nil {
		return err
	}
	if e.Type() == TypeFile {
		return t.contents(&e)
	}
	if err := t.builder.Add(&e, nil); err != nil || !opaque {
		return err
	}
	return t.builder.Add(&Entry{Kind: KindOpaque, Path: e.Path, Name: e.Name}, nil)
}

// whiteout adds what lower layers lose.
func (t *tarReader) whiteout(e *Entry, parts []string) error {
	for i, part := range parts {
		if strings.HasPrefix(part, whiteoutMeta) && part != whiteoutOpaque {
			return t.builder.count(e) // of aufs, with all that is beneath it
		}
		if strings.HasPrefix(part, whiteoutPrefix) && i < len(parts)-1 {
			return e.refuse("whiteout %q used as a folder", part)
		}
	}
	base := len(parts) - 1
	if parts[base] == whiteoutOpaque {
		e.Kind, e.Path = KindOpaque, strings.Join(parts[:base], "/")
		return t.builder.Add(e, nil)
	}
	name := parts[base][len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return e.refuse("whiteout of %q", name)
	}
	parts[base] = name
	e.Kind, e.Path = KindWhiteout, strings.Join(parts, "/")
	return t.builder.Add(e, nil)
}

// contents passes a file's bytes to the cutter and adds the file.
func (t *tarReader) contents(e *Entry) error {
	if err := t.builder.size(e); err != nil {
		return err
	}
	if e.Size == 0 {
		return t.builder.Add(e, nil)
	}
	list := listBuilder{layer: t.builder.layer}
	if err := t.files.File(t.tar, int64(e.Size), list.add); err != nil {
		return &fileError{e.Name, err}
	}
	return t.builder.add(e, list.list)
}

// fileError is a failure to read or to store a file that was not refused.
type fileError struct {
	name string
	err  error
}

func (e *fileError) Error() string { return fmt.Sprintf("entry %q: %v", e.name, e.err) }

func (e *fileError) Unwrap() error { return e.err }
