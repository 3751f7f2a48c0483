package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
)

// conversion is that of one image.
type conversion struct {
	*run
	source *source
	layers []*layer
	cache  *cache // nil: none
	boot   string // digest of the bootstrap layer, once there is one
}

func (c *conversion) tell(e Event) {
	e.Layers = len(c.layers)
	c.report(e)
}

// digest is what events call a layer; that of the bootstrap is -1.
func (c *conversion) digest(i int) string {
	if i < 0 {
		return c.boot
	}
	return c.source.layers[i].desc.Digest.String()
}

// number is that of a layer's blob.
func (c *conversion) number(i int) uint32 { return c.dict.first() + uint32(i) }

// image converts an image and stores its blobs.
func (r *run) image(ctx context.Context, src *source) (*store.Document, error) {
	c := &conversion{run: r, source: src, layers: make([]*layer, len(src.layers))}
	defer c.closeLayers()
	if r.opts.Cache.Name != "" {
		var err error
		if c.cache, err = openCache(ctx, r.opts.Cache, *src.configFile.Platform(), r.opts.WorkDir); err != nil {
			return nil, err
		}
		defer c.cache.close()
	}
	if err := c.convertLayers(ctx); err != nil {
		return nil, err
	}
	i, err := c.assemble(ctx)
	if err != nil {
		return nil, err
	}
	defer i.close()
	if err := c.store(ctx, i); err != nil {
		return nil, err
	}
	size := i.bootstrap.desc.Size
	c.tell(Event{Layer: -1, Digest: c.boot, Stage: StageDone, Done: size, Total: size})
	if c.cache != nil {
		if err := c.storeCache(ctx); err != nil {
			return nil, fmt.Errorf("build cache %s: %w", r.opts.Cache.Name, err)
		}
	}
	c.describe(i)
	return i.doc, nil
}

// rafsImage is a finished image, not stored yet but for its blobs.
type rafsImage struct {
	tree              *tree.Tree
	plan              write.Plan
	blobs             []blobLayer
	bootstrap, config *piece
	file              *os.File // of the bootstrap layer
	diffID            v1.Hash  // of the bootstrap layer
	doc               *store.Document
}

// blobLayer is a blob of the image.
type blobLayer struct {
	*piece
	info  *write.BlobInfo
	layer int // that it was made of; -1 if it is the dictionary's
}

func (i *rafsImage) close() {
	if i.plan != nil {
		_ = i.plan.Close() // temporary files
	}
	if i.tree != nil {
		_ = i.tree.Close()
	}
	if i.file != nil {
		_ = i.file.Close()
	}
}

// assemble merges the layers and makes bootstrap, configuration and manifest.
func (c *conversion) assemble(ctx context.Context) (i *rafsImage, err error) {
	trees, infos := make([]*tree.Layer, len(c.layers)), c.dict.infos()
	for n, l := range c.layers {
		trees[n], infos = l.tree, append(infos, l.info)
		l.tree = nil // Merge takes it over
	}
	i = &rafsImage{}
	defer func() {
		if err != nil {
			i.close()
			i = nil
		}
	}()
	if i.tree, err = tree.Merge(ctx, c.opts.WorkDir, trees...); err != nil {
		return i, err
	}
	plan, err := write.New(i.tree, infos, write.Options{
		Format: c.opts.format(), Version: c.opts.Format.Version, Prefetch: c.opts.Prefetch, TempDir: c.opts.WorkDir,
	})
	if err != nil {
		return i, err
	}
	i.plan = plan
	for _, info := range plan.Blobs() {
		b, err := c.blobLayer(info)
		if err != nil {
			return i, err
		}
		i.blobs = append(i.blobs, b)
	}
	if err := i.packBootstrap(ctx, &c.opts, nil, c.docker()); err != nil {
		return i, fmt.Errorf("bootstrap: %w", err)
	}
	c.boot = i.bootstrap.desc.Digest.String()
	return i, c.documents(i)
}

// blobLayer finds what is stored for a blob of the plan.
func (c *conversion) blobLayer(info *write.BlobInfo) (blobLayer, error) {
	for n, l := range c.layers {
		if l.info == info {
			return blobLayer{l.blob(), info, n}, nil
		}
	}
	p, err := c.dict.piece(info)
	return blobLayer{p, info, -1}, err
}

// packBootstrap writes the bootstrap, checks it, and packs it. Metas are the chunk
// information of blobs that were there before.
func (i *rafsImage) packBootstrap(ctx context.Context, o *Options, metas map[string]*os.File, docker bool) error {
	plain, err := o.tempFile()
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := write.Bootstrap(plain, i.plan); err != nil {
		return err
	}
	if err := check.Image(ctx, fmt.Sprintf("/proc/self/fd/%d", plain.Fd())); err != nil {
		return fmt.Errorf("what was written is wrong, please report this: %w", err)
	}
	return i.packLayer(o, docker, func(w io.Writer) error {
		return writeBootstrap(w, io.NewSectionReader(plain, 0, i.plan.Size()), i.plan, o.Format.Version, metas)
	})
}

// packLayer makes the bootstrap layer of a tar.
func (i *rafsImage) packLayer(o *Options, docker bool, tar func(io.Writer) error) (err error) {
	if i.file, err = o.tempFile(); err != nil {
		return err
	}
	stored, diff := sha256.New(), sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(i.file, stored), 128<<10)
	packer := gzip.NewWriter(out)
	if err := tar(io.MultiWriter(packer, diff)); err != nil {
		return err
	}
	if err := packer.Close(); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	size, err := i.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	i.diffID = hashOf(diff)
	i.bootstrap = filePiece(i.file, v1.Descriptor{MediaType: types.OCILayer, Digest: hashOf(stored), Size: size})
	if docker {
		i.bootstrap.desc.MediaType = types.DockerLayer
	}
	return nil
}

// writeBootstrap writes the tar of a bootstrap layer: the bootstrap, and in v6
// beside it the chunk information of each blob, which spares nodes a request a
// blob.
func writeBootstrap(w io.Writer, bootstrap io.Reader, plan write.Plan, version int, metas map[string]*os.File) error {
	out := tar.NewWriter(w)
	file := func(name string, size int64, body func(io.Writer) error) error {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444, Format: tar.FormatGNU}
		if err := out.WriteHeader(hdr); err != nil {
			return err
		}
		return body(out)
	}
	dir := &tar.Header{Typeflag: tar.TypeDir, Name: artifact.BootstrapDir + "/", Mode: 0o755, Format: tar.FormatGNU}
	if err := out.WriteHeader(dir); err != nil {
		return err
	}
	err := file(artifact.BootstrapFile, plan.Size(), func(w io.Writer) error {
		_, err := io.Copy(w, bootstrap)
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range plan.Blobs() {
		size, body := b.MetaSize, b.WriteMeta
		if f := metas[b.ID]; f != nil {
			st, err := f.Stat()
			if err != nil {
				return err
			}
			size = st.Size
			body = func(w io.Writer) error {
				_, err := io.Copy(w, io.NewSectionReader(f, 0, st.Size()))
				return err
			}
		} else if version == 5 || b.Foreign { // there is none, or only its maker has all of it
			continue
		}
		if err := file(artifact.BootstrapDir+"/"+b.ID+artifact.MetaSuffix, size(), body); err != nil {
			return err
		}
	}
	return out.Close()
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// memoryPiece is something small to store.
func memoryPiece(data []byte, mediaType types.MediaType) *piece {
	return filePiece(bytes.NewReader(data), store.NewDocument(mediaType, data).Descriptor)
}

// store puts what an image needs to where it belongs. What is there already is not
// sent again.
func (c *conversion) store(ctx context.Context, i *rafsImage) error {
	if c.opts.Bucket != nil {
		if err := c.storeObjects(ctx, i); err != nil {
			return err
		}
		return c.storeRest(ctx, i)
	}
	for _, b := range i.blobs {
		if c.opts.BlobDir != "" {
			if err := c.storeFile(ctx, b); err != nil {
				return err
			}
			continue
		}
		if err := c.push(ctx, b.layer, b.piece); err != nil {
			return err
		}
		if c.opts.Reference && b.layer >= 0 {
			if err := c.copyBlob(ctx, c.source.layers[b.layer].desc); err != nil {
				return fmt.Errorf("%s: %w (%s)", c.opts.Target, err, again)
			}
		}
	}
	return c.storeRest(ctx, i)
}

// storeRest stores bootstrap and configuration.
func (c *conversion) storeRest(ctx context.Context, i *rafsImage) error {
	c.tell(Event{Layer: -1, Digest: c.boot, Stage: StagePush, Total: i.bootstrap.desc.Size})
	for _, p := range []*piece{i.bootstrap, i.config} {
		if _, err := c.dst.Blob(ctx, p.desc, p.open); err != nil {
			return fmt.Errorf("target %s: %w (%s)", c.opts.Target, err, again)
		}
	}
	return nil
}

// storeFile puts a blob into the folder that takes them.
func (c *conversion) storeFile(ctx context.Context, b blobLayer) error {
	name := filepath.Join(c.opts.BlobDir, b.info.ID)
	if _, err := store.BlobFile(ctx, name, b.desc, b.open); err != nil {
		return fmt.Errorf("blob folder: %w", err)
	}
	return nil
}

// describe adds the image to the result.
func (c *conversion) describe(i *rafsImage) {
	r := &c.result
	r.Images++
	r.Inodes += i.plan.Inodes()
	r.BootstrapSize += i.plan.Size()
	r.BootstrapLayerSize += i.bootstrap.desc.Size
	for _, b := range i.blobs {
		r.Blobs = append(r.Blobs, b.info.ID)
	}
	for n, l := range c.layers {
		src := &c.source.layers[n]
		lr := LayerResult{
			Source: src.desc.Digest.String(), SourceSize: src.desc.Size, Resumed: l.resumed,
			Entries: l.entries, Bytes: l.bytes, DroppedXattrs: l.droppedXattrs,
		}
		if l.info != nil {
			lr.Blob, lr.BlobSize, lr.Chunks = l.info.ID, l.info.Object.Size, int(l.info.Table.Len())
		}
		r.Layers = append(r.Layers, lr)
	}
}
