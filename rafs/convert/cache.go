package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// Cache is an image that lists layers which were converted before, as nydusify has
// it: each is a blob with the bootstrap of its layer inside, annotated with the
// digest of the source layer. Whoever can write to it decides what the files of an
// image are, so it has to be one's own.
type Cache struct {
	// Name is a reference of a registry, or of a layout. No cache if empty.
	Name     string
	Registry artifact.Options
	// Version is compared with that of the cache: another one is not used, and
	// replaced.
	Version string
	// MaxRecords bounds the layers that are listed; 200 by default.
	MaxRecords int
}

// cache is what is known of a cache image.
type cache struct {
	o       Cache
	src     store.Source // nil: there is none yet
	index   []v1.Descriptor
	records []v1.Descriptor // layers of the manifest of the platform
}

const maxRecords = 200

// openCache reads the cache of a platform. That there is none is no error.
func openCache(ctx context.Context, o Cache, platform v1.Platform, workDir string) (*cache, error) {
	if o.MaxRecords <= 0 {
		o.MaxRecords = maxRecords
	}
	c := &cache{o: o}
	src, err := store.OpenSource(ctx, o.Name, o.Registry, workDir)
	if err != nil {
		if ctx.Err() != nil || !store.Absent(err) {
			return nil, fmt.Errorf("build cache %s: %w", o.Name, err)
		}
		return c, nil
	}
	c.src = src
	if err := c.read(ctx, platform); err != nil {
		return nil, errors.Join(fmt.Errorf("build cache %s: %w", o.Name, err), src.Close())
	}
	return c, nil
}

func (c *cache) read(ctx context.Context, platform v1.Platform) error {
	root := c.src.Root()
	if !root.MediaType.IsIndex() {
		return fmt.Errorf("media type %q, want an index", root.MediaType)
	}
	index, err := root.Index()
	if err != nil {
		return err
	}
	for _, d := range index.Manifests {
		if !(store.Platforms{platform}).Has(d) {
			c.index = append(c.index, d)
			continue
		}
		doc, err := c.src.Document(ctx, d)
		if err != nil {
			return err
		}
		m, err := doc.Manifest()
		if err != nil {
			return err
		}
		// nydusify leaves the version empty, whatever it is asked for.
		if v := m.Annotations[artifact.AnnotationCacheVersion]; v == c.o.Version || v == "" {
			c.records = append(c.records, m.Layers...)
		}
	}
	return nil
}

func (c *cache) close() error {
	if c == nil || c.src == nil {
		return nil
	}
	return c.src.Close()
}

// find returns the blob of a source layer.
func (c *cache) find(source v1.Hash) (v1.Descriptor, bool) {
	for _, d := range c.records {
		if d.Annotations[artifact.AnnotationSource] == source.String() && d.MediaType == artifact.MediaTypeBlob {
			return d, true
		}
	}
	return v1.Descriptor{}, false
}

// remoteBlob reads a blob in places.
type remoteBlob struct {
	ctx context.Context
	src store.Source
	d   v1.Descriptor
}

func (b remoteBlob) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), b.d.Size-off))
	if n <= 0 {
		return 0, io.EOF
	}
	if err := b.src.Range(b.ctx, b.d.Digest, p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// cached takes a layer from the cache; nil if it is not there, or of another kind.
func (c *conversion) cached(ctx context.Context, i int) (*layer, error) {
	if c.cache == nil || c.cache.src == nil {
		return nil, nil
	}
	d, ok := c.cache.find(c.source.layers[i].desc.Digest)
	if !ok {
		return nil, nil
	}
	l := &layer{cached: &piece{v1.Descriptor{MediaType: artifact.MediaTypeBlob, Digest: d.Digest, Size: d.Size},
		func(ctx context.Context, from int64) (io.ReadCloser, error) { return c.cache.src.Blob(ctx, d, from) }}}
	ok, err := c.openInline(ctx, i, l, remoteBlob{ctx, c.cache.src, d}, d.Digest.Hex, d.Size)
	if err != nil || !ok {
		l.close()
		return nil, err
	}
	l.resumed = true
	size := c.source.layers[i].desc.Size
	c.tell(Event{Layer: i, Digest: c.digest(i), Stage: StageFound, Done: size, Total: size})
	return l, nil
}

// openInline makes a layer of a blob that has its bootstrap inside; false if that
// is none that the image can have.
func (c *conversion) openInline(ctx context.Context, i int, l *layer, r io.ReaderAt, id string, size int64) (bool, error) {
	im, err := image.OpenAt(r, size, image.Options{InlineBlobID: id, InFile: true, TempDir: c.opts.WorkDir})
	if errors.Is(err, image.ErrNoBootstrap) || errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrUnsupported) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cached blob %s: %w", id, err)
	}
	l.inline = im // the records are read from it
	s, f := im.Super(), &c.opts.Format
	if s.Version != f.Version || s.ChunkSize != f.ChunkSize || s.Compressor != *f.Compressor || s.Digester != f.Digester || len(im.Blobs()) > 1 {
		return false, nil
	}
	var blobs rafs.Blobs
	known, err := blobs.Add(im, func(info *rafs.Info) error { return describeInline(info, r, id, size) })
	if err != nil {
		return false, fmt.Errorf("cached blob %s: %w", id, err)
	}
	l.tree, err = rafs.Read(ctx, im, rafs.Options{
		TempDir: c.opts.WorkDir, Limits: c.opts.Limits, Whiteouts: tree.WhiteoutOCI, Below: i > 0, Ref: shifted(known.Ref, c.number(i)),
	})
	if err != nil {
		return false, fmt.Errorf("cached blob %s: %w", id, err)
	}
	l.entries, l.bytes, l.droppedXattrs = l.tree.Entries, l.tree.Bytes, l.tree.DroppedXattrs
	if infos := foreignInfos(&blobs); len(infos) == 1 {
		l.info = infos[0]
		l.info.Object = write.Object{ID: id, Size: size}
	}
	return true, nil
}

// describeInline corrects what a bootstrap could not know of the blob that it is in
// (nydus builder/src/merge.rs).
func describeInline(info *rafs.Info, r io.ReaderAt, id string, size int64) error {
	if info.ID != id {
		return fmt.Errorf("refers to blob %s", info.ID)
	}
	e := &info.Entry
	e.Features = uint32(layout.Features(e.Features) &^ layout.FeatureInlinedFSMeta)
	e.CompressedSize = uint64(size)
	if layout.Features(e.Features)&layout.FeatureHasTOC == 0 {
		return nil
	}
	head := make([]byte, 512)
	if _, err := r.ReadAt(head, size-512); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	hdr, err := tar.NewReader(bytes.NewReader(head)).Next()
	if err != nil || hdr.Size < 0 || hdr.Size > 64<<10 || hdr.Size+512 > size {
		return fmt.Errorf("no table of contents at its end: %w", errors.Join(err, blob.ErrCorrupt))
	}
	toc := make([]byte, hdr.Size+512)
	if _, err := r.ReadAt(toc, size-int64(len(toc))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	e.TOCSize, e.TOCDigest = uint32(len(toc)), sha256.Sum256(toc)
	return nil
}

// errLeans means that a layer is nothing without the ones below it: it has hard
// links into them, or files in folders that it does not describe. No bootstrap can
// say so, and the cache does not get the layer.
var errLeans = errors.New("the layer needs lower ones")

// inlineLayer writes the bootstrap of a layer into its blob, and makes the layer of
// that, as another conversion will find it in the cache.
func (c *conversion) inlineLayer(ctx context.Context, i int, l *layer) func(w io.Writer, info *write.BlobInfo) error {
	return func(w io.Writer, info *write.BlobInfo) error {
		if l.tree.Implied > 0 {
			return errLeans
		}
		one, err := tree.Merge(ctx, c.opts.WorkDir, l.tree)
		l.tree = nil // Merge has taken it over
		if errors.Is(err, tree.ErrRefused) {
			return errors.Join(errLeans, err)
		}
		if err != nil {
			return err
		}
		defer one.Close()
		infos := make([]*write.BlobInfo, c.number(i)+1)
		infos[c.number(i)] = info
		plan, err := write.New(one, infos, write.Options{Format: c.opts.format(), Version: c.opts.Format.Version, TempDir: c.opts.WorkDir})
		if err != nil {
			return err
		}
		defer plan.Close()
		return plan.Write(w)
	}
}

// whiteouts is how layers are read: in a cache they keep their whiteouts as files.
func whiteouts(inline bool) tree.Whiteouts {
	if inline {
		return tree.WhiteoutNone
	}
	return tree.WhiteoutOCI
}

// finishInline ends a blob that has the bootstrap of its layer inside.
func (c *conversion) finishInline(ctx context.Context, i int, l *layer, b *write.Blob, contents write.Contents, out *bufio.Writer) error {
	dropped := l.tree.DroppedXattrs
	contents.Bootstrap = c.inlineLayer(ctx, i, l)
	info, err := b.Finish(contents)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return err
	}
	id := strings.Repeat("0", blob.MaxIDLen)
	if info != nil {
		id = info.Object.ID
	}
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	ok, err := c.openInline(ctx, i, l, l.file, id, st.Size())
	if err == nil && !ok {
		err = errors.New("the bootstrap inside the blob cannot be read, please report this")
	}
	l.droppedXattrs = dropped
	return err
}

// shifted gives the only blob of a layer its number in the image.
func shifted(ref func(blobIndex, chunkIndex uint32) (chunk.Ref, error), number uint32) func(uint32, uint32) (chunk.Ref, error) {
	return func(blobIndex, chunkIndex uint32) (r chunk.Ref, err error) {
		if r, err = ref(blobIndex, chunkIndex); err == nil {
			r.Blob += number
		}
		return r, err
	}
}

// storeCache adds the layers of a conversion to the cache image.
func (c *conversion) storeCache(ctx context.Context) error {
	k := c.cache
	dst, err := store.OpenTarget(ctx, k.o.Name, k.o.Registry, c.opts.Push)
	if err != nil {
		return err
	}
	defer dst.Close()
	var records []v1.Descriptor
	seen := map[string]bool{}
	for i, l := range c.layers {
		source := c.source.layers[i].desc.Digest.String()
		if l.info == nil || l.inline == nil || seen[source] {
			continue
		}
		seen[source] = true
		p := l.blob()
		if _, err := dst.Blob(ctx, p.desc, p.open); err != nil {
			return err
		}
		d := p.desc
		d.Annotations = map[string]string{
			artifact.AnnotationBlob: "true", artifact.AnnotationSource: source, artifact.AnnotationUncompressed: d.Digest.String(),
		}
		records = append(records, d)
	}
	for _, d := range k.records {
		if !seen[d.Annotations[artifact.AnnotationSource]] {
			records = append(records, d)
		}
	}
	records = records[:min(len(records), k.o.MaxRecords)]
	return c.tagCache(ctx, dst, records)
}

// tagCache stores the manifest and the index of a cache image.
func (c *conversion) tagCache(ctx context.Context, dst store.Target, records []v1.Descriptor) error {
	config := memoryPiece([]byte("{}"), types.OCIConfigJSON)
	if _, err := dst.Blob(ctx, config.desc, config.open); err != nil {
		return err
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config.desc, Layers: records,
		Annotations: map[string]string{artifact.AnnotationCacheVersion: c.cache.o.Version},
	})
	if err != nil {
		return err
	}
	doc := store.NewDocument(types.OCIManifestSchema1, raw)
	if err := dst.Document(ctx, doc); err != nil {
		return err
	}
	d := v1.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: doc.Size, Platform: c.source.configFile.Platform()}
	raw, err = json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: append(c.cache.index, d)})
	if err != nil {
		return err
	}
	return dst.Tag(ctx, store.NewDocument(types.OCIImageIndex, raw))
}
