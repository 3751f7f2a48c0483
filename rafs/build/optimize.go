package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// PrefetchFile is a regular file that will be wanted first, or some of it.
type PrefetchFile struct {
	Path   string      // absolute
	Ranges [][2]uint64 // offset and size in bytes; nil is all of it
}

// maxPrefetchList bounds a list of files in bytes.
const maxPrefetchList = 64 << 20

// ParsePrefetchFiles reads the list of files that nydus-image optimize takes:
// {"version":"v1","files":[{"path":"/a","ranges":[[0,4096]]}]}. Files whose path
// is not absolute are left out, as there.
func ParsePrefetchFiles(r io.Reader) ([]PrefetchFile, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPrefetchList+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPrefetchList {
		return nil, fmt.Errorf("list of files to prefetch of more than %d bytes", maxPrefetchList)
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return nil, nil
	}
	var list struct {
		Version string
		Files   []PrefetchFile
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("list of files to prefetch: %w", err)
	}
	if list.Version != "v1" {
		return nil, fmt.Errorf("list of files to prefetch: version %q, want v1", list.Version)
	}
	var files []PrefetchFile
	for _, f := range list.Files {
		if strings.HasPrefix(f.Path, "/") {
			files = append(files, f)
		}
	}
	return files, nil
}

// OptimizeOptions say what Optimize makes of an image.
type OptimizeOptions struct {
	Host

	// Source is the path of the image's bootstrap, and Blobs has its blobs.
	Source string
	Blobs  backend.Backend
	// Files are what the new blob has, in this order. What does not exist in the
	// image, or is no regular file, is ignored.
	Files []PrefetchFile
	// Cipher encrypts the new blob of an encrypted image; made up by default.
	Cipher *write.Cipher

	// Bootstrap is the path of the new bootstrap, BlobDir takes the new blob.
	Bootstrap, BlobDir string
}

// Optimize gives an image one more blob, with the chunks that are wanted first
// and no others, so that a node can fetch it in one go. The blob is marked
// (layout.FeatureSeparatePrefetch); the others stay as they are.
func Optimize(ctx context.Context, o OptimizeOptions) (*Result, error) {
	o.setDefaults()
	w, err := newRework(ctx, &o.Host, o.Source, o.Blobs)
	if err != nil {
		return nil, err
	}
	defer w.close()
	w.dir, w.key = o.BlobDir, o.Cipher
	var failed error
	if err := w.move(w.wanted(&o, &failed)); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	for _, m := range w.made {
		m.info.Entry.Features |= uint32(layout.FeatureSeparatePrefetch)
	}
	return w.finish(o.Bootstrap, o.Limits)
}

// wanted lists the chunks of the files.
func (w *rework) wanted(o *OptimizeOptions, failed *error) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		for _, f := range o.Files {
			node, err := lookup(w.im, f.Path)
			if err != nil {
				o.Log.Warn("a file to prefetch is not in the image", "path", f.Path, "err", err)
				continue
			}
			off := uint64(0)
			for s, err := range export.FileSegments(w.im, node) {
				if err != nil {
					*failed = fmt.Errorf("%s: %w", f.Path, err)
					return
				}
				if s.Chunk.Blob != nil && f.wants(off, uint64(s.Length)) && !yield(s.Chunk) {
					return
				}
				off += uint64(s.Length)
			}
		}
	}
}

// wants tells whether any byte of n at off is wanted.
func (f *PrefetchFile) wants(off, n uint64) bool {
	if f.Ranges == nil {
		return true
	}
	for _, r := range f.Ranges {
		start, size := r[0], r[1]
		if start < off+n && (start >= off || size > off-start) && size > 0 {
			return true
		}
	}
	return false
}

// lookup finds a regular file, following nothing.
func lookup(im *image.Image, name string) (uint64, error) {
	node := image.Root
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		var err error
		if node, err = im.Lookup(node, part); err != nil {
			return 0, err
		}
	}
	a, err := im.Attr(node)
	if err == nil && a.Mode&tree.TypeMask != tree.TypeFile {
		err = errors.New("no regular file")
	}
	return node, err
}
