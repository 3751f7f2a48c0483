// Package artifact knows how RAFS images are packed as OCI artifacts: the media
// types and annotations by which nydus' tools know them, and how to fetch the
// bootstrap of one from a registry.
//
// It trusts the registry's TLS certificate, where there is one, to say what a tag
// means, and nothing else: everything below the manifest is checked against the
// digests that the manifest names, and bounded in size before it is read. It
// never fetches blobs of data and never goes over to plain http on its own.
package artifact

import (
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The names of nydus-snapshotter (pkg/converter, pkg/label).
const (
	// MediaTypeBlob is the media type of a data blob.
	MediaTypeBlob types.MediaType = "application/vnd.oci.image.layer.nydus.blob.v1"
	// ArtifactType marks a RAFS manifest in an index.
	ArtifactType = "application/vnd.nydus.image.manifest.v1+json"
	// OSFeature marks the platform of a RAFS manifest in an index.
	OSFeature = "nydus.remoteimage.v1"

	// ConfigType is the media type of a RAFS image's configuration in an index that
	// has the OCI image beside it: who does not know it takes the other one.
	ConfigType types.MediaType = "application/vnd.nydus.image.config.v1+json"

	// AnnotationBlob is "true" on a data blob.
	AnnotationBlob = "containerd.io/snapshot/nydus-blob"
	// AnnotationBootstrap is "true" on the bootstrap layer, which is the last one.
	AnnotationBootstrap = "containerd.io/snapshot/nydus-bootstrap"
	// AnnotationFSVersion is "5" or "6", on the bootstrap layer.
	AnnotationFSVersion = "containerd.io/snapshot/nydus-fs-version"
	// AnnotationRef is the digest of the OCI layer that has the data of a blob which
	// is an index of it only (zran).
	AnnotationRef = "containerd.io/snapshot/nydus-ref"
	// AnnotationEncrypted is "true" on a data blob whose chunks are encrypted.
	AnnotationEncrypted = "containerd.io/snapshot/nydus-encrypted-blob"
	// AnnotationCommit lists the blobs that were committed on top of an image, by
	// digest with commas between, on the bootstrap layer.
	AnnotationCommit = "containerd.io/snapshot/nydus-commit-blobs"
	// AnnotationPrefetch names the blob with the files that are wanted first.
	AnnotationPrefetch = "containerd.io/snapshot/nydus-separated-blob-with-prefetch-files"
	// AnnotationSource and AnnotationTarget are the digests of the OCI layer that a
	// blob was made of and of the blob; a cache image has them on its layers.
	AnnotationSource = "containerd.io/snapshot/nydus-source-digest"
	AnnotationTarget = "containerd.io/snapshot/nydus-target-digest"
	// AnnotationCacheVersion is on the manifest of a cache image.
	AnnotationCacheVersion = "containerd.io/snapshot/nydus-cache-version"
	// AnnotationUncompressed is the digest of what a layer unpacks to.
	AnnotationUncompressed = "containerd.io/uncompressed"
)

// The files of a bootstrap layer.
const (
	// BootstrapDir is the only folder of the layer.
	BootstrapDir = "image"
	// BootstrapFile is the bootstrap.
	BootstrapFile = "image/image.boot"
	// MetaSuffix follows a blob's id in the name of its chunk information, which
	// lies beside the bootstrap.
	MetaSuffix = ".blob.meta"
)

// Limits of what a registry may send, in bytes.
const (
	MaxManifest  = 4 << 20
	MaxConfig    = 8 << 20
	MaxBootstrap = 2 << 30
)

// Bootstrap returns the bootstrap layer of a manifest. The second result is
// false for an image that is no RAFS image.
func Bootstrap(m *v1.Manifest) (v1.Descriptor, bool) {
	if len(m.Layers) == 0 {
		return v1.Descriptor{}, false
	}
	last := m.Layers[len(m.Layers)-1]
	return last, last.Annotations[AnnotationBootstrap] == "true"
}

// Marked reports whether an index says that this manifest is a RAFS image.
func Marked(d v1.Descriptor) bool {
	if d.ArtifactType == ArtifactType {
		return true
	}
	if d.Platform == nil {
		return false
	}
	for _, feature := range d.Platform.OSFeatures {
		if feature == OSFeature {
			return true
		}
	}
	return false
}
