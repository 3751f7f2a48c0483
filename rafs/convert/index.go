package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// root converts what the source's name means and returns what the target's shall
// mean. All that this refers to is stored.
func (r *run) root(ctx context.Context) (*store.Document, error) {
	chosen, err := r.chosen(ctx)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", r.opts.Source, err)
	}
	var oci, rafs []v1.Descriptor
	var last *store.Document
	for _, d := range chosen {
		doc, err := r.src.Document(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", r.opts.Source, err)
		}
		src, err := readSource(ctx, r.src, doc)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", r.opts.Source, err)
		}
		if last, err = r.image(ctx, src); err != nil {
			return nil, err
		}
		if len(chosen) == 1 && !r.opts.MergePlatform {
			return last, nil
		}
		if err := r.dst.Document(ctx, last); err != nil {
			return nil, fmt.Errorf("target %s: %w (%s)", r.opts.Target, err, again)
		}
		platform := d.Platform
		if platform == nil {
			platform = src.configFile.Platform()
		}
		oci = append(oci, v1.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: doc.Size, Platform: platform, Annotations: d.Annotations})
		rafs = append(rafs, r.rafsDescriptor(last, platform))
	}
	if r.opts.MergePlatform {
		if err := r.copyImages(ctx, oci); err != nil {
			return nil, err
		}
		rafs = append(oci, rafs...)
	}
	return newIndex(r.src.Root(), rafs)
}

// rafsDescriptor is how an index lists an image. Beside OCI images it is marked in
// both ways that nydus-snapshotter knows.
func (r *run) rafsDescriptor(doc *store.Document, platform *v1.Platform) v1.Descriptor {
	d := v1.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: doc.Size, Platform: platform.DeepCopy()}
	if r.opts.MergePlatform {
		d.ArtifactType = artifact.ArtifactType
		d.Platform.OSFeatures = append(slices.Clone(d.Platform.OSFeatures), artifact.OSFeature)
	}
	return d
}

// newIndex makes an index of manifests. It keeps what the source's index says.
func newIndex(root *store.Document, manifests []v1.Descriptor) (*store.Document, error) {
	if root.MediaType.IsIndex() {
		return store.Reindex(root, manifests)
	}
	raw, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: manifests})
	if err != nil {
		return nil, err
	}
	return store.NewDocument(types.OCIImageIndex, raw), nil
}

// chosen are the images to convert.
func (r *run) chosen(ctx context.Context) ([]v1.Descriptor, error) {
	root := r.src.Root()
	if !root.MediaType.IsIndex() {
		return []v1.Descriptor{root.Descriptor}, nil
	}
	index, err := root.Index()
	if err != nil {
		return nil, err
	}
	if len(r.opts.Platforms) == 0 && !r.opts.AllPlatforms {
		doc, _, err := store.Image(ctx, r.src, r.opts.SourceRegistry.WantPlatform(), func(d v1.Descriptor) bool { return !artifact.Marked(d) })
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == doc.Digest })
		if at < 0 { // below an index in the index
			return []v1.Descriptor{doc.Descriptor}, nil
		}
		return index.Manifests[at : at+1], nil
	}
	var chosen []v1.Descriptor
	var offered []string
	for _, d := range index.Manifests {
		// What builders say about images has a platform that no machine is.
		if !d.MediaType.IsImage() || artifact.Marked(d) || d.Platform == nil || d.Platform.OS == "unknown" {
			continue
		}
		offered = append(offered, d.Platform.String())
		if r.opts.AllPlatforms || r.opts.Platforms.Has(d) {
			chosen = append(chosen, d)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("index %s: no image for %s; there is %q", root.Digest, r.opts.Platforms, offered)
	}
	return chosen, nil
}

// copyImages copies the OCI images that an index is to have, without a name.
func (r *run) copyImages(ctx context.Context, images []v1.Descriptor) error {
	for _, d := range images {
		doc, err := r.src.Document(ctx, d)
		if err != nil {
			return err
		}
		m, err := doc.Manifest()
		if err != nil {
			return err
		}
		for _, b := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if err := r.copyBlob(ctx, b); err != nil {
				return fmt.Errorf("copy %s: %w (%s)", d.Digest, err, again)
			}
		}
		if err := r.dst.Document(ctx, doc); err != nil {
			return err
		}
	}
	return nil
}

// copyBlob takes a blob of the source over as it is.
func (r *run) copyBlob(ctx context.Context, d v1.Descriptor) error {
	if !d.MediaType.IsDistributable() && len(d.URLs) > 0 {
		return errors.New("blob " + d.Digest.String() + " lies outside of the registry")
	}
	_, err := r.dst.Blob(ctx, d, func(ctx context.Context, from int64) (io.ReadCloser, error) {
		return r.src.Blob(ctx, d, from)
	})
	return err
}
