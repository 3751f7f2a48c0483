package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// CopyOptions say what to copy of an image.
type CopyOptions struct {
	// Platforms to take from an index; all by default, which keeps its digest. One
	// that is left alone is copied as an image, not as an index.
	Platforms Platforms
	// Referrers are copied, too: what says of the image that it is about it.
	Referrers bool
	// Parallel is how many blobs are on their way at the same time; 3 by default.
	Parallel int
	// Progress is told how it goes, if not nil. It is called by several goroutines,
	// but never at the same time.
	Progress func(Event)
}

// Event is news of a blob on its way.
type Event struct {
	Digest v1.Hash
	// Done and Total are bytes.
	Done, Total int64
	State       State
}

// State is what happened to a blob.
type State int

// A blob is on its way, has arrived, or was there before.
const (
	Sending State = iota
	Sent
	Present
)

func (s State) String() string { return [...]string{"sending", "sent", "present"}[s] }

// Copied is what Copy did.
type Copied struct {
	// Root is what the name of the target means now.
	Root *Document
	// Images is the number of manifests, Blobs and Bytes what was sent, Present and
	// PresentBytes what was there.
	Images, Blobs, Present, Referrers int
	Bytes, PresentBytes               int64
}

// Copy copies an image. Blobs come first, manifests next, the name last; started
// again after a failure it sends only what is missing.
func Copy(ctx context.Context, dst Target, src Source, o CopyOptions) (*Copied, error) {
	if o.Parallel <= 0 {
		o.Parallel = 3
	}
	c := &copier{dst: dst, src: src, o: o, seen: map[v1.Hash]bool{}}
	root, err := c.choose(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.document(ctx, root, 0, false); err != nil {
		return nil, err
	}
	if err := dst.Tag(ctx, root); err != nil {
		return nil, err
	}
	c.result.Root = root
	return &c.result, nil
}

type copier struct {
	dst    Target
	src    Source
	o      CopyOptions
	seen   map[v1.Hash]bool // documents and blobs that were begun
	mu     sync.Mutex       // guards result, and is held while Progress runs
	result Copied
}

// choose is the source's root, cut down to the platforms that are wanted.
func (c *copier) choose(ctx context.Context) (*Document, error) {
	root := c.src.Root()
	if !root.MediaType.IsIndex() || len(c.o.Platforms) == 0 {
		return root, nil
	}
	index, err := root.Index()
	if err != nil {
		return nil, err
	}
	chosen, err := c.o.Platforms.choose(root, index)
	switch {
	case err != nil:
		return nil, err
	case len(chosen) == len(index.Manifests) && len(chosen) > 1:
		return root, nil
	case len(chosen) == 1:
		return c.src.Document(ctx, chosen[0])
	}
	return Reindex(root, chosen)
}

// maxDepth bounds indexes in indexes and referrers of referrers.
const maxDepth = 4

// document copies what a document refers to and, unless it is the root, itself.
func (c *copier) document(ctx context.Context, doc *Document, depth int, put bool) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d documents deep", doc.Digest, maxDepth)
	}
	if c.seen[doc.Digest] {
		return nil
	}
	c.seen[doc.Digest] = true
	var err error
	if doc.MediaType.IsIndex() {
		err = c.index(ctx, doc, depth)
	} else {
		err = c.image(ctx, doc)
	}
	if err != nil {
		return err
	}
	if put {
		if err := c.dst.Document(ctx, doc); err != nil {
			return err
		}
	}
	if c.o.Referrers {
		return c.referrers(ctx, doc, depth)
	}
	return nil
}

func (c *copier) index(ctx context.Context, doc *Document, depth int) error {
	index, err := doc.Index()
	if err != nil {
		return err
	}
	for _, d := range index.Manifests {
		child, err := c.src.Document(ctx, d)
		if err != nil {
			return err
		}
		if err := c.document(ctx, child, depth+1, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) referrers(ctx context.Context, doc *Document, depth int) error {
	found, err := c.src.Referrers(ctx, doc.Digest)
	if err != nil {
		return err
	}
	for _, d := range found {
		child, err := c.src.Document(ctx, v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
		if err != nil {
			return fmt.Errorf("referrer of %s: %w", doc.Digest, err)
		}
		if !c.seen[child.Digest] {
			c.result.Referrers++
		}
		if err := c.document(ctx, child, depth+1, true); err != nil {
			return err
		}
	}
	return nil
}

// image copies the blobs of an image.
func (c *copier) image(ctx context.Context, doc *Document) error {
	m, err := doc.Manifest()
	if err != nil {
		return err
	}
	c.result.Images++
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.o.Parallel)
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if !d.MediaType.IsDistributable() && len(d.URLs) > 0 || c.seen[d.Digest] {
			continue // lies where its URLs say
		}
		c.seen[d.Digest] = true
		group.Go(func() error { return c.blob(ctx, d) })
	}
	if err := errors.Join(c.referenced(ctx, m, group), group.Wait()); err != nil {
		return fmt.Errorf("image %s: %w", doc.Digest, err)
	}
	return nil
}

// referenced copies the OCI layers that the blobs of an image only index: a reader
// of the image needs them beside these.
func (c *copier) referenced(ctx context.Context, m *v1.Manifest, group *errgroup.Group) error {
	for _, d := range m.Layers {
		name := d.Annotations[artifact.AnnotationRef]
		if name == "" {
			continue
		}
		digest, err := v1.NewHash(name)
		if err != nil {
			return fmt.Errorf("layer %s refers to %q: %w", d.Digest, name, err)
		}
		if c.seen[digest] {
			continue
		}
		c.seen[digest] = true
		size, err := c.src.Stat(ctx, digest)
		if err != nil {
			return fmt.Errorf("layer %s refers to %s: %w", d.Digest, digest, err)
		}
		group.Go(func() error { return c.blob(ctx, v1.Descriptor{Digest: digest, Size: size}) })
	}
	return nil
}

func (c *copier) blob(ctx context.Context, d v1.Descriptor) error {
	sent, err := c.dst.Blob(ctx, d, func(ctx context.Context, from int64) (io.ReadCloser, error) {
		r, err := c.src.Blob(ctx, d, from)
		if err != nil {
			return nil, err
		}
		return &observed{ReadCloser: r, c: c, d: d, at: from, told: from}, nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := Event{Digest: d.Digest, Done: d.Size, Total: d.Size, State: Present}
	if sent {
		e.State = Sent
		c.result.Blobs++
		c.result.Bytes += d.Size
	} else {
		c.result.Present++
		c.result.PresentBytes += d.Size
	}
	if c.o.Progress != nil {
		c.o.Progress(e)
	}
	return nil
}

// progressStep is how many bytes pass between two events.
const progressStep = 256 << 10

// observed tells what passes.
type observed struct {
	io.ReadCloser
	c        *copier
	d        v1.Descriptor
	at, told int64
}

func (o *observed) Read(p []byte) (int, error) {
	n, err := o.ReadCloser.Read(p)
	o.at += int64(n)
	if o.c.o.Progress != nil && o.at-o.told >= progressStep {
		o.told = o.at
		o.c.mu.Lock()
		o.c.o.Progress(Event{Digest: o.d.Digest, Done: o.at, Total: o.d.Size})
		o.c.mu.Unlock()
	}
	return n, err
}
