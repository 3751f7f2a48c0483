package build

import (
	"errors"
	"fmt"
	"os"

	"github.com/rafsd/rafsd/rafs/build/source/targz"
	"github.com/rafsd/rafsd/rafs/build/write"
)

// reference builds an image over data that stays what it is.
func (c *creation) reference() error {
	switch c.opts.Type {
	case TargzRef, EstargzRef:
		return c.targz()
	}
	return fmt.Errorf("source type %s: %w", c.opts.Type, errors.ErrUnsupported)
}

// targz indexes a layer, gzip or plain. What is written is the index.
func (c *creation) targz() error {
	o := c.opts
	f, err := os.Open(o.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	to := targz.Options{
		Blob: c.foreign.Len(), ChunkSize: o.ChunkSize, Limits: o.Limits, Whiteouts: o.Whiteouts, TempDir: o.TempDir,
		Skip: o.skip(),
	}
	if c.dict != nil {
		to.Dict = c.dict
	}
	l, err := targz.Read(c.ctx, f, to)
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
	if err := c.finish(b, contents, 0); err != nil {
		return err
	}
	return out.Flush()
}

// skip tells of the entries that make a layer an eStargz, which are no part of its
// tree (stargz-snapshotter docs/estargz.md).
func (o *Options) skip() func(path string) bool {
	if o.Type != EstargzRafs && o.Type != EstargzRef {
		return nil
	}
	return func(path string) bool {
		return path == "stargz.index.json" || path == ".prefetch.landmark" || path == ".no.prefetch.landmark"
	}
}
