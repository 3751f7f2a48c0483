package registry

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// bootstrapAnnotation marks the layer with the metadata of a RAFS image; nydus' own
// tools know it by the same.
const bootstrapAnnotation = "containerd.io/snapshot/nydus-bootstrap"

// Image is what a RAFS image in a registry consists of.
type Image struct {
	Chunks        []string // digests of the blobs that hold file data
	ChunkBytes    int64    // of those blobs
	Metadata      string   // digest of the layer that holds the metadata
	MetadataBytes int64    // of that layer
}

// Stat looks at the manifest of a RAFS image.
func Stat(ctx context.Context, reference string) (Image, error) {
	var out Image
	ref, err := name.ParseReference(reference)
	if err != nil {
		return out, err
	}
	image, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return out, err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return out, err
	}
	for _, l := range manifest.Layers {
		if l.Annotations[bootstrapAnnotation] != "" {
			out.Metadata, out.MetadataBytes = l.Digest.String(), l.Size
			continue
		}
		out.Chunks = append(out.Chunks, l.Digest.String())
		out.ChunkBytes += l.Size
	}
	if out.Metadata == "" || len(out.Chunks) == 0 {
		return out, fmt.Errorf("%s: no RAFS image: %d layers, metadata %q", reference, len(manifest.Layers), out.Metadata)
	}
	return out, nil
}
