package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/image"
)

// rejoined is a source whose RAFS images list the blobs that lie elsewhere.
type rejoined struct {
	Source
	blobs backend.Backend
	root  *Document
	docs  map[v1.Hash]*Document // those that were made anew
	small map[v1.Hash][]byte    // configurations likewise
	sizes map[v1.Hash]int64     // of the blobs that lie elsewhere
}

// Rejoin gives RAFS images whose manifests have the bootstrap alone a manifest and a
// configuration that list their blobs, too, as if they had never been put elsewhere
// (nydus contrib/nydusify/pkg/copier/copier.go). Blobs are read from a backend. Other
// images, and what refers to an image by its digest, stay what they are. Closing it
// closes src and not blobs. Bootstraps lie in tempDir while they are looked at.
func Rejoin(ctx context.Context, src Source, blobs backend.Backend, tempDir string) (Source, error) {
	r := &rejoined{
		Source: src, blobs: blobs, docs: map[v1.Hash]*Document{}, small: map[v1.Hash][]byte{}, sizes: map[v1.Hash]int64{},
	}
	var err error
	r.root, err = r.document(ctx, src.Root(), tempDir, 0)
	return r, err
}

func (r *rejoined) document(ctx context.Context, doc *Document, tempDir string, depth int) (*Document, error) {
	if !doc.MediaType.IsIndex() {
		return r.image(ctx, doc, tempDir)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: more than %d documents deep", doc.Digest, maxDepth)
	}
	index, err := doc.Index()
	if err != nil {
		return nil, err
	}
	changed := false
	for i, d := range index.Manifests {
		child, err := r.Source.Document(ctx, d)
		if err != nil {
			return nil, err
		}
		made, err := r.document(ctx, child, tempDir, depth+1)
		if err != nil {
			return nil, err
		}
		if made.Digest != d.Digest {
			index.Manifests[i].Digest, index.Manifests[i].Size, changed = made.Digest, made.Size, true
		}
	}
	if !changed {
		return doc, nil
	}
	made, err := Reindex(doc, index.Manifests)
	if err != nil {
		return nil, err
	}
	r.docs[made.Digest] = made
	return made, nil
}

// image makes the manifest and the configuration of an image that lists its blobs.
func (r *rejoined) image(ctx context.Context, doc *Document, tempDir string) (*Document, error) {
	m, err := doc.Manifest()
	if err != nil {
		return nil, err
	}
	boot, rafs := artifact.Bootstrap(m)
	if !rafs || len(m.Layers) != 1 {
		return doc, nil
	}
	layers, err := r.layers(ctx, boot, tempDir)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", doc.Digest, err)
	}
	if err := r.config(ctx, m, layers); err != nil {
		return nil, fmt.Errorf("image %s: configuration: %w", doc.Digest, err)
	}
	m.Layers = append(layers, m.Layers...)
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	made := NewDocument(doc.MediaType, raw)
	r.docs[made.Digest] = made
	return made, nil
}

// layers are the blobs that a bootstrap needs, as a manifest has them.
func (r *rejoined) layers(ctx context.Context, boot v1.Descriptor, tempDir string) ([]v1.Descriptor, error) {
	ids, err := r.blobIDs(ctx, boot, tempDir)
	if err != nil {
		return nil, err
	}
	var layers []v1.Descriptor
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id] {
			continue
		}
		seen[id] = true
		d := v1.Descriptor{
			MediaType: artifact.MediaTypeBlob, Digest: v1.Hash{Algorithm: "sha256", Hex: id},
			Annotations: map[string]string{artifact.AnnotationBlob: "true"},
		}
		if err := checkDescriptor(d); err != nil {
			return nil, fmt.Errorf("blob %s of the bootstrap: %w", id, err)
		}
		reader, err := r.blobs.Open(id)
		if err != nil {
			return nil, err
		}
		if d.Size, err = reader.Size(ctx); err != nil {
			return nil, err
		}
		r.sizes[d.Digest] = d.Size
		layers = append(layers, d)
	}
	return layers, nil
}

func (r *rejoined) blobIDs(ctx context.Context, boot v1.Descriptor, tempDir string) (ids []string, err error) {
	if boot.Size > artifact.MaxBootstrap {
		return nil, fmt.Errorf("bootstrap layer %s of %d bytes, limit %d", boot.Digest, boot.Size, artifact.MaxBootstrap)
	}
	layer, err := Verified(ctx, r.Source, boot)
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	f, err := unnamed(tempDir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	extractErr := artifact.ExtractBootstrap(f, layer)
	if err := layer.Verify(); err != nil { // which is the reason of whatever else is wrong
		extractErr = err
	}
	if extractErr != nil {
		return nil, fmt.Errorf("bootstrap layer %s: %w", boot.Digest, extractErr)
	}
	im, err := openImage(f, tempDir)
	if err != nil {
		return nil, fmt.Errorf("bootstrap layer %s: %w", boot.Digest, err)
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	for _, b := range im.Blobs() {
		ids = append(ids, b.ID)
	}
	return ids, nil
}

func openImage(f *os.File, tempDir string) (*image.Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return image.OpenAt(f, st.Size(), image.Options{InFile: true, TempDir: tempDir})
}

// maxConfig bounds a configuration, in bytes.
const maxConfig = 8 << 20

// config adds the blobs to the layers of a configuration, and changes nothing else.
func (r *rejoined) config(ctx context.Context, m *v1.Manifest, layers []v1.Descriptor) error {
	raw, err := Bytes(ctx, r.Source, m.Config, maxConfig)
	if err != nil {
		return err
	}
	var fields, rootfs map[string]json.RawMessage
	var ids []string
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	if err := json.Unmarshal(fields["rootfs"], &rootfs); err != nil {
		return err
	}
	if err := json.Unmarshal(rootfs["diff_ids"], &ids); err != nil {
		return err
	}
	for i := len(layers) - 1; i >= 0; i-- {
		ids = append([]string{layers[i].Digest.String()}, ids...)
	}
	if rootfs["diff_ids"], err = json.Marshal(ids); err != nil {
		return err
	}
	if fields["rootfs"], err = json.Marshal(rootfs); err != nil {
		return err
	}
	if err := addHistory(fields, len(layers)); err != nil {
		return err
	}
	if raw, err = json.Marshal(fields); err != nil { // sorts the keys
		return err
	}
	m.Config.Digest, m.Config.Size = hashOf(raw), int64(len(raw))
	r.small[m.Config.Digest] = raw
	return nil
}

// addHistory adds an item for each blob, where there is a history: its items that
// are not empty must be as many as the layers.
func addHistory(fields map[string]json.RawMessage, blobs int) error {
	var history []json.RawMessage
	if fields["history"] == nil {
		return nil
	}
	if err := json.Unmarshal(fields["history"], &history); err != nil || len(history) == 0 {
		return err
	}
	for range blobs {
		history = append([]json.RawMessage{json.RawMessage(`{"comment":"RAFS blob"}`)}, history...)
	}
	raw, err := json.Marshal(history)
	fields["history"] = raw
	return err
}

func (r *rejoined) Root() *Document { return r.root }

func (r *rejoined) Document(ctx context.Context, d v1.Descriptor) (*Document, error) {
	if doc := r.docs[d.Digest]; doc != nil {
		return doc, nil
	}
	return r.Source.Document(ctx, d)
}

func (r *rejoined) Stat(ctx context.Context, digest v1.Hash) (int64, error) {
	if size, ok := r.sizes[digest]; ok {
		return size, nil
	}
	if raw, ok := r.small[digest]; ok {
		return int64(len(raw)), nil
	}
	return r.Source.Stat(ctx, digest)
}

func (r *rejoined) Blob(ctx context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error) {
	if raw, ok := r.small[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(raw[min(from, int64(len(raw))):])), nil
	}
	size, ok := r.sizes[d.Digest]
	if !ok {
		return r.Source.Blob(ctx, d, from)
	}
	reader, err := r.blobs.Open(d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(backend.Stream(ctx, reader, from, size)), nil
}

func (r *rejoined) Range(ctx context.Context, digest v1.Hash, p []byte, off int64) error {
	if _, ok := r.sizes[digest]; !ok {
		return r.Source.Range(ctx, digest, p, off)
	}
	reader, err := r.blobs.Open(digest.Hex)
	if err != nil {
		return err
	}
	return reader.ReadRange(ctx, p, off)
}
