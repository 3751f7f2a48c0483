package build

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/rafsd/rafsd/rafs/build/source/estargz"
	"github.com/rafsd/rafsd/rafs/build/source/tarfs"
	"github.com/rafsd/rafsd/rafs/build/source/targz"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// reference builds an image over data that stays what it is.
func (c *creation) reference() error {
	f, err := openSource(c.ctx, c.opts.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	switch c.opts.Type {
	case TargzRef, EstargzRef:
		return c.targz(c.opts.watch(f))
	case TarTarfs:
		return c.tarfs(c.opts.watch(f))
	case TOCRef:
		return c.toc(c.opts.watch(f))
	}
	return fmt.Errorf("source type %s: %w", c.opts.Type, errors.ErrUnsupported)
}

// targz indexes a layer, gzip or plain. What is written is the index.
func (c *creation) targz(r io.Reader) error {
	o := c.opts
	to := targz.Options{
		Blob: c.foreign.Len(), ChunkSize: o.ChunkSize, Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir,
		Skip: o.skip(),
	}
	if c.dict != nil {
		to.Dict = c.dict
	}
	l, err := targz.Read(c.ctx, r, to)
	if err != nil {
		return err
	}
	c.layer, c.table, l.Tree = l.Tree, l.Table, nil
	contents := write.Contents{Table: l.Table, Data: write.Object{ID: l.ID, Size: l.Size}}
	if l.Contexts != nil {
		defer l.Contexts.Close()
		contents.Contexts = l.Contexts
	}
	if err := c.merge(); err != nil {
		return err
	}
	out := newBuffered(c.blobWriter())
	b, err := write.NewBlob(out, write.BlobOptions{
		Format: o.Format, Version: o.Version, TOC: o.TOC, InlineMeta: o.InlineMeta, Separate: true, Zran: l.Contexts != nil,
	})
	if err != nil {
		return err
	}
	if err := c.finish(b, out, contents, 0); err != nil {
		return err
	}
	return out.Flush()
}

// tarfs takes a tar as it is. Nothing is written but the bootstrap.
func (c *creation) tarfs(r io.Reader) error {
	o := c.opts
	l, err := tarfs.Read(c.ctx, r, tarfs.Options{
		Blob: c.foreign.Len(), ChunkSize: o.ChunkSize, Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir,
	})
	if err != nil {
		return err
	}
	c.layer, c.table, l.Tree = l.Tree, l.Table, nil
	if err := c.merge(); err != nil {
		return err
	}
	if l.Table.Len() > 0 {
		c.info = &write.BlobInfo{ID: cmp.Or(o.BlobID, l.ID), Table: l.Table, Entry: l.Entry()}
		c.result.BlobSize = l.Size
	}
	return c.bootstrap(c.info)
}

// toc takes the table of contents of an eStargz layer for the layer. Nothing is
// written but the bootstrap.
func (c *creation) toc(r io.Reader) error {
	o := c.opts
	l, err := estargz.ReadTOC(c.ctx, r, estargz.Options{
		Blob: c.foreign.Len(), ChunkSize: o.ChunkSize, Size: o.BlobDataSize, Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir,
	})
	if err != nil {
		return err
	}
	c.layer, c.table, l.Tree = l.Tree, l.Table, nil
	if err := c.merge(); err != nil {
		return err
	}
	if l.Table.Len() > 0 {
		// The digests are those of whoever made the layer.
		c.info = &write.BlobInfo{ID: o.BlobID, Table: l.Table, Entry: l.Entry(), Foreign: true}
		c.result.BlobSize = int64(o.BlobDataSize)
	}
	return c.bootstrap(c.info)
}

// skip tells of the entries that make a layer an eStargz, which are no part of its
// tree.
func (o *Options) skip() func(path string) bool {
	if o.Type == EstargzRafs || o.Type == EstargzRef {
		return estargz.Special
	}
	return nil
}
