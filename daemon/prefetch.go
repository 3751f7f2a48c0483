package daemon

import (
	"context"
	"iter"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// prefetch fetches ahead of the guest what the configuration, the command line and
// the image say, in this order. What fails is logged: the guest's own reads try
// again.
func (d *parts) prefetch(ctx context.Context, o *Options) {
	p := o.Config.Prefetch()
	if d.cache == nil || !p.Enable && len(o.PrefetchFiles) == 0 {
		return
	}
	nodes := d.image.Prefetch()
	if len(o.PrefetchFiles) > 0 {
		nodes = d.resolve(o)
	}
	err := d.engine.Prefetch(ctx, d.image.Chunks(nodes))
	if err == nil && p.All {
		err = d.engine.Prefetch(ctx, allChunks(d.image))
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		o.Log.Warn("prefetch ended early", "err", err)
	default:
		o.Log.Info("prefetch done", "bytes", d.engine.Stats().PrefetchBytes)
	}
}

// resolve finds the nodes of the files of --prefetch-files.
func (d *parts) resolve(o *Options) []uint64 {
	var nodes []uint64
	for _, path := range o.PrefetchFiles {
		node, err := lookup(d.image, path)
		if err != nil {
			o.Log.Warn("prefetch file not found", "path", path, "err", err)
			continue
		}
		nodes = append(nodes, node)
	}
	return nodes
}

func lookup(im *image.Image, path string) (node uint64, err error) {
	node = image.Root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if node, err = im.Lookup(node, name); err != nil {
			return 0, err
		}
	}
	return node, nil
}

// allChunks yields every chunk of every blob in the blob's order.
func allChunks(im *image.Image) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		for _, b := range im.Blobs() {
			for i := range b.ChunkCount {
				if c, ok := im.Chunk(b.Index, i); ok && !yield(c) {
					return
				}
			}
		}
	}
}
