package build

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/folder"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
)

// Create makes an image of a source. When it returns an error, there is nothing
// new under any of the names that it was to write, but for a fifo, whose reader
// has got whatever came before the error.
func Create(ctx context.Context, o Options) (*Result, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	c := &creation{ctx: ctx, opts: &o, started: time.Now()}
	defer c.close()
	if err := c.open(); err != nil {
		return nil, err
	}
	switch {
	case o.Type.isRef() || o.Type == TarTarfs:
		if err := c.reference(); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
	default:
		if err := c.native(); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Source, err)
		}
	}
	return c.publish()
}

// creation is one run of Create.
type creation struct {
	ctx     context.Context
	opts    *Options
	started time.Time

	images  []*image.Image // parent and dictionary; open until the end
	foreign rafs.Blobs
	parent  *tree.Layer
	dict    *chunk.Index // nil without parent and dictionary

	layer *tree.Layer
	tree  *tree.Tree
	table *chunk.Table
	info  *write.BlobInfo // nil: no data that is new

	blob  *output // nil: to be written nowhere
	cache *cacheOutput
	boot  bootstrapFile

	result Result
}

func (c *creation) close() {
	c.blob.discard()
	c.cache.discard()
	c.boot.discard()
	closeAll(c.layer, c.parent)
	if c.tree != nil {
		c.tree.Close()
	}
	if c.table != nil {
		c.table.Close()
	}
	if c.dict != nil {
		c.dict.Close()
	}
	for _, im := range c.images {
		im.Close()
	}
}

func closeAll(layers ...*tree.Layer) {
	for _, l := range layers {
		if l != nil {
			l.Close()
		}
	}
}

// open opens what the image builds upon, and where the blob goes.
func (c *creation) open() error {
	o := c.opts
	if o.Parent != "" {
		im, err := c.openImage("parent", o.Parent)
		if err != nil {
			return err
		}
		known, err := c.foreign.Add(im, nil)
		if err == nil {
			c.parent, err = rafs.Read(c.ctx, im, rafs.Options{
				TempDir: o.TempDir, Limits: o.Limits, Whiteouts: tree.WhiteoutNone, Ref: known.Ref,
			})
		}
		if err == nil {
			err = c.learn(known)
		}
		if err != nil {
			return fmt.Errorf("parent %s: %w", o.Parent, err)
		}
	}
	if o.ChunkDict != "" {
		im, err := c.openImage("chunk dictionary", o.ChunkDict)
		if err != nil {
			return err
		}
		known, err := c.foreign.Add(im, nil)
		if err == nil {
			err = c.learn(known)
		}
		if err != nil {
			return fmt.Errorf("chunk dictionary %s: %w", o.ChunkDict, err)
		}
	}
	return c.openBlob()
}

// openImage opens a bootstrap that the new image must be consistent with.
func (c *creation) openImage(what, path string) (*image.Image, error) {
	im, err := image.Open(path, image.Options{InlineBlobID: stem(path), InFile: true, TempDir: c.opts.TempDir})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	c.images = append(c.images, im)
	o := c.opts
	want := traits{version: o.Version, chunkSize: o.ChunkSize, owners: !o.NoOwner, digester: o.Digester, compressor: &o.Compressor}
	if err := want.compare(imageTraits(im)); err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	return im, nil
}

// learn makes the chunks of an image known to the cutter.
func (c *creation) learn(known *rafs.Image) error {
	if c.dict == nil {
		c.dict = chunk.NewIndex(c.opts.TempDir)
	}
	return known.Learn(c.dict, c.opts.Digester)
}

func (c *creation) openBlob() (err error) {
	o := c.opts
	if err := checkTarget(o.Bootstrap); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	switch {
	case o.Type == TOCRef || o.Type == TarTarfs:
	case o.CacheDir != "":
		c.cache, err = newCacheOutput(o.CacheDir)
	case o.Blob != "":
		c.blob, err = newOutput(o.Blob)
	default:
		c.blob, err = newOutputIn(o.BlobDir)
	}
	if err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	return nil
}

// blobWriter is where the bytes of the blob go.
func (c *creation) blobWriter() io.Writer {
	if c.blob == nil {
		return io.Discard
	}
	return c.blob
}

// native builds an image whose blob has the data in chunks of its own.
func (c *creation) native() error {
	o := c.opts
	key, cipher, err := o.cipher()
	if err != nil {
		return err
	}
	out := newBuffered(c.blobWriter())
	b, err := write.NewBlob(out, write.BlobOptions{
		Format: o.Format, Version: o.Version, TOC: o.TOC, InlineMeta: o.InlineMeta,
		Packed: o.Version == 5 && !o.AlignedChunks, Batch: o.BatchSize > 0, Cipher: key, ID: o.BlobID,
	})
	if err != nil {
		return err
	}
	co := chunk.Options{
		Blob: c.foreign.Len(), Compressor: o.Compressor, Digester: o.Digester, ChunkSize: o.ChunkSize,
		Packed: o.Version == 5 && !o.AlignedChunks, BatchSize: o.BatchSize, Cipher: cipher, CRC: o.Encrypt,
		TempDir: o.TempDir,
	}
	counted := &counter{own: co.Blob, aligned: !co.Packed}
	if c.dict != nil {
		counted.dict, counted.foreign = c.dict, &c.foreign
		co.Dict = counted
	}
	if c.cache != nil {
		co.CacheOut = c.cache.data
	}
	cutter, err := chunk.NewCutter(c.ctx, chunk.NewPool(o.Workers, 1, int(o.ChunkSize)), b, co)
	if err != nil {
		return err
	}
	counted.files = cutter
	readErr := c.read(counted)
	var batches []chunk.Batch
	c.table, batches, err = cutter.Close()
	if readErr != nil && !errors.Is(readErr, err) { // a failed write has often reached the reader
		err = errors.Join(readErr, err)
	}
	if err != nil {
		return err
	}
	contents := write.Contents{Table: c.table}
	if o.BatchSize > 0 {
		contents.Contexts = write.BatchContexts(batches)
	}
	if err := c.merge(); err != nil {
		return err
	}
	if err := c.finish(b, out, contents, counted.first); err != nil {
		return err
	}
	return out.Flush()
}

// cipher returns the key of an encrypted blob, for its table and for its chunks.
func (o *Options) cipher() (*write.Cipher, *xts.Key, error) {
	if !o.Encrypt {
		return nil, nil, nil
	}
	key := o.Cipher
	if key == nil {
		key = &write.Cipher{}
		rand.Read(key.Key[:]) // never fails
		rand.Read(key.IV[:])
	}
	cipher, err := xts.NewKey(key.Key, key.IV)
	return key, cipher, err
}

// read reads the source into a layer.
func (c *creation) read(files *counter) (err error) {
	o := c.opts
	if o.Type == Directory {
		files.seen = &watched{tell: o.Progress}
		c.layer, err = folder.Read(c.ctx, o.Source, files, folder.Options{
			TempDir: o.TempDir, Limits: o.Limits, Whiteouts: o.Whiteouts, NoOwner: o.NoOwner,
			First: o.Prefetch.absolute(), FirstDone: files.firstDone,
		})
		return err
	}
	f, err := openSource(c.ctx, o.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := tree.Decompress(newReader(o.watch(f)))
	if err != nil {
		return err
	}
	defer plain.Close()
	c.layer, err = tree.ReadTar(c.ctx, plain, files, tree.ReadOptions{
		Limits: o.Limits, TempDir: o.TempDir, Whiteouts: o.Whiteouts, Skip: o.skip(),
	})
	if err != nil {
		return err
	}
	// Whoever feeds a fifo must be able to get rid of what follows the archive, and
	// a checksum at the end of what was compressed counts too.
	_, err = io.Copy(io.Discard, plain)
	return err
}

// merge puts the layer on that of the parent.
func (c *creation) merge() (err error) {
	c.result.DroppedXattrs = c.layer.DroppedXattrs
	layers := []*tree.Layer{c.layer}
	if c.parent != nil {
		layers = []*tree.Layer{c.parent, c.layer}
	}
	c.parent, c.layer = nil, nil
	if c.tree, err = tree.Merge(c.ctx, c.opts.TempDir, layers...); err == nil {
		c.result.Names = c.tree.Len()
	}
	return err
}

// finish ends the blob, which goes through out, and writes the bootstrap into it or
// after it. The blob begins with the first chunks.
func (c *creation) finish(b *write.Blob, out *bufio.Writer, contents write.Contents, first uint32) error {
	o := c.opts
	if o.InlineMeta {
		contents.Bootstrap = func(w io.Writer, info *write.BlobInfo) error {
			if err := c.bootstrap(info); err != nil {
				return err
			}
			return c.boot.copyTo(w)
		}
	}
	if contents.Table.Len() == 0 && !o.InlineMeta {
		c.blob.discard()
		c.blob = nil
		return c.bootstrap(nil)
	}
	info, err := b.Finish(contents)
	if err == nil {
		err = c.blob.startSync(out)
	}
	if err != nil {
		return err
	}
	if c.info = info; info != nil && first > 0 && o.Prefetch.Policy == PrefetchBlob {
		last, err := contents.Table.Record(first - 1)
		if err != nil {
			return err
		}
		info.PrefetchSize = uint32(min(last.CompressedOffset+uint64(last.CompressedSize), 1<<32-1))
	}
	if o.InlineMeta {
		return nil
	}
	return c.bootstrap(info)
}

// bootstrap writes the bootstrap over the tree. Own is the blob of the source, or
// nil if it has none.
func (c *creation) bootstrap(own *write.BlobInfo) error {
	o := c.opts
	return c.boot.emit(c.ctx, &o.Host, o.outputDir(), c.tree, append(foreignInfos(&c.foreign), own), write.Options{
		Format: o.Format, Version: o.Version, Prefetch: o.Prefetch.table(), ImplicitOwners: o.NoOwner, Tarfs: o.Type == TarTarfs,
	})
}

// publish gives everything its name: the blob first, then the bootstrap that
// needs it.
func (c *creation) publish() (*Result, error) {
	o, r := c.opts, &c.result
	r.Version, r.Compressor = o.Version, o.Compressor
	if c.info != nil {
		r.Blob, r.BlobSize = c.info.ID, max(r.BlobSize, c.info.Object.Size)
	}
	if c.cache != nil && c.info != nil {
		if err := c.cache.publish(c.info); err != nil {
			return nil, fmt.Errorf("blob cache: %w", err)
		}
	}
	if o.Type == TOCRef && o.BlobDir != "" && c.info != nil {
		// The layer has none inside, and nydusd refuses such a blob without it.
		if err := publishMeta(o.BlobDir, c.info); err != nil {
			return nil, fmt.Errorf("chunk information: %w", err)
		}
	}
	if c.blob != nil {
		var err error
		if o.Blob != "" {
			err = c.blob.publish()
		} else {
			err = c.blob.publishAs(cmp.Or(o.BlobID, c.info.Object.ID))
		}
		if err != nil {
			return nil, fmt.Errorf("blob: %w", err)
		}
	}
	var err error
	if r.Bootstrap, err = c.boot.publish(o.Bootstrap, o.outputDir()); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	r.Blobs, r.Inodes = c.boot.blobs, c.boot.inodes
	for i, id := range r.Blobs {
		if id == write.UnknownID { // as the bootstrap inside the blob has to call it
			r.Blobs[i] = r.Blob
		}
	}
	r.Trace = map[string]float64{"total_build_time": time.Since(c.started).Seconds()}
	return r, nil
}

// cacheOutput is a blob as a node keeps it.
type cacheOutput struct {
	dir  string
	data *output
}

func newCacheOutput(dir string) (*cacheOutput, error) {
	data, err := newOutputIn(dir)
	if err != nil {
		return nil, err
	}
	return &cacheOutput{dir: dir, data: data}, nil
}

func (c *cacheOutput) publish(info *write.BlobInfo) error {
	// The cache of a node is as long as the blob's uncompressed space.
	if err := c.data.Truncate(int64(info.Entry.UncompressedSize)); err != nil {
		return err
	}
	if err := publishMeta(c.dir, info); err != nil {
		return err
	}
	return c.data.publishAs(info.ID + ".blob.data")
}

// publishMeta puts the chunk information of a blob into a folder, as a node keeps it.
func publishMeta(dir string, info *write.BlobInfo) error {
	meta, err := newOutputIn(dir)
	if err != nil {
		return err
	}
	out := newBuffered(meta)
	err = info.WriteMeta(out)
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		err = meta.publishAs(info.ID + ".blob.meta")
	}
	if err != nil {
		meta.discard()
	}
	return err
}

func (c *cacheOutput) discard() {
	if c != nil {
		c.data.discard()
	}
}

// outputDir is the folder of the bootstrap; empty if it has no file of its own.
func (o *Options) outputDir() string {
	if o.InlineMeta {
		return ""
	}
	return bootstrapDir(o.Bootstrap, o.BlobDir)
}
