// Package reverse turns a RAFS image back into an OCI image that every runtime
// runs.
//
// Where the blobs of an image have the bootstraps of their layers inside, each
// becomes the layer again that it was made of, whiteouts and all; blobs that only
// index OCI layers (zran) give way to these layers themselves. Any other image
// becomes one layer. Data is verified chunk by chunk as it is read; layers lie in
// unnamed files of the work folder until they are stored, and the name comes last.
//
// The same image gives the same bytes.
package reverse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
)

// Options say what to make of which image.
type Options struct {
	Source store.Source // a RAFS image, or an index of such
	Target store.Target
	// Platforms to take from an index; all by default.
	Platforms store.Platforms
	// Compression of the layers.
	Compression export.Compression
	// Backend has the blobs of an image whose manifest does not list them; nil if
	// they are where the manifest is.
	Backend backend.Backend
	// WorkDir takes layers until they are stored; os.TempDir by default. It needs
	// room for one layer at a time.
	WorkDir string
	// Progress is told how it goes, if not nil.
	Progress func(Event)
}

// Event is news of a layer.
type Event struct {
	Layer, Layers int // counts from 0
	Digest        string
	// Done and Total are bytes of files.
	Done, Total int64
	Over        bool
}

// Result describes what was made.
type Result struct {
	Root *store.Document
	// Images is how many manifests, Layers how many layers were made.
	Images, Layers int
	// Whole counts the images of which only one layer could be made.
	Whole int
	// Size is that of all layers as they are stored.
	Size int64
}

// Image makes an OCI image. When it returns an error, the name of the target
// means what it meant before.
func Image(ctx context.Context, o Options) (*Result, error) {
	r := &reversal{o: o}
	root := o.Source.Root()
	var err error
	if root.MediaType.IsIndex() {
		r.result.Root, err = r.index(ctx, root)
	} else {
		r.result.Root, err = r.image(ctx, root)
	}
	if err != nil {
		return nil, err
	}
	if err := o.Target.Tag(ctx, r.result.Root); err != nil {
		return nil, err
	}
	return &r.result, nil
}

type reversal struct {
	o      Options
	result Result
}

// index makes an index of what the RAFS images of an index become. What is no RAFS
// image is left out: it is the OCI image that the other was made of.
func (r *reversal) index(ctx context.Context, root *store.Document) (*store.Document, error) {
	index, err := root.Index()
	if err != nil {
		return nil, err
	}
	var made []v1.Descriptor
	var last *store.Document
	for _, d := range index.Manifests {
		if !d.MediaType.IsImage() || !r.o.Platforms.Has(d) {
			continue
		}
		doc, err := r.o.Source.Document(ctx, d)
		if err != nil {
			return nil, err
		}
		m, err := doc.Manifest()
		if err != nil {
			return nil, err
		}
		if _, rafs := artifact.Bootstrap(m); !rafs {
			continue
		}
		if last, err = r.image(ctx, doc); err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		if err := r.o.Target.Document(ctx, last); err != nil {
			return nil, err
		}
		platform := d.Platform.DeepCopy()
		if platform != nil {
			platform.OSFeatures = slices.DeleteFunc(platform.OSFeatures, func(f string) bool { return f == artifact.OSFeature })
		}
		made = append(made, v1.Descriptor{MediaType: last.MediaType, Digest: last.Digest, Size: last.Size, Platform: platform})
	}
	switch len(made) {
	case 0:
		return nil, fmt.Errorf("index %s: %w: it has no such image of the platforms", root.Digest, artifact.ErrNotRAFS)
	case 1:
		return last, nil
	}
	return store.Reindex(root, made)
}

// layer is a layer of the OCI image.
type layer struct {
	desc   v1.Descriptor
	diffID v1.Hash
}

// image makes one image and stores its blobs.
func (r *reversal) image(ctx context.Context, doc *store.Document) (*store.Document, error) {
	m, err := doc.Manifest()
	if err != nil {
		return nil, err
	}
	boot, ok := artifact.Bootstrap(m)
	if !ok {
		return nil, fmt.Errorf("%s: %w: its last layer has no annotation %s", doc.Digest, artifact.ErrNotRAFS, artifact.AnnotationBootstrap)
	}
	raw, err := store.Bytes(ctx, r.o.Source, m.Config, artifact.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	layers, whole, err := r.layers(ctx, m, boot)
	if err != nil {
		return nil, err
	}
	r.result.Images++
	r.result.Layers += len(layers)
	if whole {
		r.result.Whole++
	}
	config, err := makeConfig(raw, layers, whole)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	configType := m.Config.MediaType
	if configType == artifact.ConfigType {
		configType = types.OCIConfigJSON
	}
	return r.finish(ctx, m, configType, config, layers)
}

// layers makes the layers, one after the other.
func (r *reversal) layers(ctx context.Context, m *v1.Manifest, boot v1.Descriptor) (layers []layer, whole bool, err error) {
	blobs := m.Layers[:len(m.Layers)-1]
	refs := 0
	for _, d := range blobs {
		if d.Annotations[artifact.AnnotationRef] != "" {
			refs++
		}
	}
	if refs > 0 && refs == len(blobs) {
		layers, err = r.referenced(ctx, blobs)
		return layers, false, err
	}
	b := r.backend()
	images, err := openLayers(ctx, b, blobs, r.o.WorkDir)
	if err != nil {
		return nil, false, err
	}
	defer closeAll(images)
	if images == nil {
		im, err := r.merged(ctx, boot)
		if err != nil {
			return nil, false, err
		}
		images, whole = []*image.Image{im}, true
		defer im.Close()
	}
	for i, im := range images {
		l, err := r.export(ctx, im, b, i, len(images))
		if err != nil {
			return nil, false, fmt.Errorf("layer %d of %d: %w", i+1, len(images), err)
		}
		layers = append(layers, l)
	}
	return layers, whole, nil
}

func (r *reversal) backend() backend.Backend {
	if r.o.Backend != nil {
		return r.o.Backend
	}
	return backend.Retry(store.Backend(r.o.Source), backend.RetryPolicy{})
}

// openLayers opens the bootstraps inside of blobs; none if one has none.
func openLayers(ctx context.Context, b backend.Backend, blobs []v1.Descriptor, tempDir string) (images []*image.Image, err error) {
	defer func() {
		if err != nil {
			closeAll(images)
			images = nil
		}
	}()
	for _, d := range blobs {
		im, err := export.OpenLayer(ctx, b, d.Digest.Hex, tempDir)
		if errors.Is(err, image.ErrNoBootstrap) {
			closeAll(images)
			return nil, nil
		}
		if err != nil {
			return images, fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		images = append(images, im)
	}
	return images, nil
}

func closeAll(images []*image.Image) {
	for _, im := range images {
		_ = im.Close() // memory only
	}
}

// merged opens the bootstrap of the whole image.
func (r *reversal) merged(ctx context.Context, boot v1.Descriptor) (*image.Image, error) {
	if boot.Size > artifact.MaxBootstrap {
		return nil, fmt.Errorf("bootstrap layer %s of %d bytes, limit %d", boot.Digest, boot.Size, artifact.MaxBootstrap)
	}
	layer, err := store.Verified(ctx, r.o.Source, boot)
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	file, err := os.CreateTemp(r.o.WorkDir, "rafsd-reverse-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	extractErr := artifact.ExtractBootstrap(file, layer)
	if err := layer.Verify(); err != nil {
		return nil, err
	}
	if extractErr != nil {
		return nil, fmt.Errorf("bootstrap layer %s: %w", boot.Digest, extractErr)
	}
	return image.Open(file.Name(), image.Options{InFile: true, TempDir: r.o.WorkDir})
}

// export writes an image as a layer and stores it.
func (r *reversal) export(ctx context.Context, im *image.Image, b backend.Backend, n, of int) (layer, error) {
	data, err := export.NewData(im, b, nil)
	if err != nil {
		return layer{}, err
	}
	defer data.Close()
	file, err := os.CreateTemp(r.o.WorkDir, "rafsd-reverse-*")
	if err != nil {
		return layer{}, fmt.Errorf("work folder: %w", err)
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return layer{}, err
	}
	o := export.LayerOptions{Compression: r.o.Compression}
	event := Event{Layer: n, Layers: of}
	if r.o.Progress != nil {
		o.Progress = func(done, total int64) {
			event.Done, event.Total = done, total
			r.o.Progress(event)
		}
	}
	info, err := export.Layer(ctx, im, data, file, o)
	if err != nil {
		return layer{}, err
	}
	desc := v1.Descriptor{MediaType: info.MediaType, Digest: info.Digest, Size: info.Size}
	if err := r.store(ctx, desc, file); err != nil {
		return layer{}, err
	}
	event.Digest, event.Total, event.Over = info.Digest.String(), event.Done, true
	if r.o.Progress != nil {
		r.o.Progress(event)
	}
	return layer{desc, info.DiffID}, nil
}

func (r *reversal) store(ctx context.Context, d v1.Descriptor, content io.ReaderAt) error {
	_, err := r.o.Target.Blob(ctx, d, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(content, from, d.Size-from)), nil
	})
	r.result.Size += d.Size
	return err
}

// referenced takes the OCI layers that blobs refer to, as they are.
func (r *reversal) referenced(ctx context.Context, blobs []v1.Descriptor) ([]layer, error) {
	var layers []layer
	for _, d := range blobs {
		digest, err := v1.NewHash(d.Annotations[artifact.AnnotationRef])
		if err != nil {
			return nil, fmt.Errorf("blob %s: annotation %s: %w", d.Digest, artifact.AnnotationRef, err)
		}
		size, err := r.o.Source.Stat(ctx, digest)
		if err != nil {
			return nil, err
		}
		l := layer{desc: v1.Descriptor{MediaType: types.OCILayer, Digest: digest, Size: size}}
		if l.diffID, err = r.diffID(ctx, l.desc); err != nil {
			return nil, fmt.Errorf("layer %s: %w", digest, err)
		}
		_, err = r.o.Target.Blob(ctx, l.desc, func(ctx context.Context, from int64) (io.ReadCloser, error) {
			return r.o.Source.Blob(ctx, l.desc, from)
		})
		if err != nil {
			return nil, err
		}
		r.result.Size += size
		layers = append(layers, l)
	}
	return layers, nil
}

// diffID is the digest of what a layer unpacks to.
func (r *reversal) diffID(ctx context.Context, d v1.Descriptor) (v1.Hash, error) {
	raw, err := store.Verified(ctx, r.o.Source, d)
	if err != nil {
		return v1.Hash{}, err
	}
	defer raw.Close()
	plain, err := tree.Decompress(raw)
	if err != nil {
		return v1.Hash{}, err
	}
	defer plain.Close()
	h := sha256.New()
	if _, err := io.Copy(h, plain); err != nil {
		return v1.Hash{}, err
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}, raw.Verify()
}

// bytesBlob stores a blob that is in memory.
func (r *reversal) bytesBlob(ctx context.Context, mediaType types.MediaType, data []byte) (v1.Descriptor, error) {
	d := store.NewDocument(mediaType, data).Descriptor
	_, err := r.o.Target.Blob(ctx, d, func(_ context.Context, from int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[from:])), nil
	})
	return d, err
}
