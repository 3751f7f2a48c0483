// Package store reads images from where they lie and writes them where they
// should: registries, OCI image layouts in a folder, and archives of these or of
// docker save. It knows manifests, indexes and blobs; what is inside of a blob is
// none of its business.
//
// It trusts a place to say what a name means, and nothing else: documents are
// checked against the digest that names them and bounded in size, and whoever
// copies a blob hashes it on the way. A name is given last, so it never means half
// an image.
package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// ErrNotFound means that a place does not have what was asked for.
var ErrNotFound = errors.New("not there")

// Document is a manifest or an index.
type Document struct {
	v1.Descriptor
	// Raw are the bytes that the digest is of.
	Raw []byte
}

// Source is a place with an image to read.
type Source interface {
	// Root is what the name means: a manifest or an index.
	Root() *Document
	// Document reads a manifest or an index, verified.
	Document(ctx context.Context, d v1.Descriptor) (*Document, error)
	// Blob starts to read a blob at an offset. The bytes are not verified:
	// [Verified] does that.
	Blob(ctx context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error)
	// Range fills p with a blob's bytes from off, all of which it must have.
	Range(ctx context.Context, digest v1.Hash, p []byte, off int64) error
	// Stat returns the size of a blob of which only the digest is known. The error
	// wraps ErrNotFound if there is no such blob.
	Stat(ctx context.Context, digest v1.Hash) (int64, error)
	// Referrers lists the manifests whose subject is digest. A place that cannot
	// tell has none.
	Referrers(ctx context.Context, digest v1.Hash) ([]v1.Descriptor, error)
	Close() error
}

// Opener starts to read a blob at an offset.
type Opener func(ctx context.Context, from int64) (io.ReadCloser, error)

// Target is a place that takes an image. Its methods may be called by several
// goroutines.
type Target interface {
	// Blob stores a blob unless it is there. What open gives is hashed, and is kept
	// only if it is what d says. The result tells whether bytes were sent.
	Blob(ctx context.Context, d v1.Descriptor, open Opener) (sent bool, err error)
	// Document stores a manifest or an index under its digest.
	Document(ctx context.Context, doc *Document) error
	// Tag gives the name of the target to a document. It comes last.
	Tag(ctx context.Context, doc *Document) error
	// Reference is how to call a document by its digest.
	Reference(digest v1.Hash) string
	// Close ends the work; without Tag before it, nothing has a name.
	Close() error
}

// The prefixes of local images. A path that exists needs none.
const (
	prefixOCI           = "oci:"
	prefixOCIArchive    = "oci-archive:"
	prefixDockerArchive = "docker-archive:"
	prefixFile          = "file://" // nydusify's: an archive
)

// AnnotationRefName names an image in the index of an OCI layout.
const AnnotationRefName = "org.opencontainers.image.ref.name"

// checkLocal refuses the name of a local image that says not where.
func checkLocal(name string) error {
	for _, prefix := range []string{prefixOCI, prefixOCIArchive, prefixDockerArchive, prefixFile} {
		if path, ok := strings.CutPrefix(name, prefix); ok && (path == "" || path[0] == ':') {
			return fmt.Errorf("%q: want a path behind it", name)
		}
	}
	return nil
}

// OpenSource opens an image by its name: a reference of a registry,
// "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]", "docker-archive:FILE[:TAG]",
// "file://FILE", or the path of a folder or of a file. Archives may be compressed
// by gzip or zstd; tempDir (os.TempDir if empty) has to take such a one unpacked.
func OpenSource(ctx context.Context, name string, o artifact.Options, tempDir string) (Source, error) {
	if err := checkLocal(name); err != nil {
		return nil, err
	}
	if dir, ok := strings.CutPrefix(name, prefixOCI); ok {
		path, tag := splitTag(dir)
		return openLayout(path, tag)
	}
	for _, prefix := range []string{prefixOCIArchive, prefixDockerArchive, prefixFile} {
		if file, ok := strings.CutPrefix(name, prefix); ok {
			path, tag := splitTag(file)
			return openArchive(path, tag, tempDir)
		}
	}
	switch st, err := os.Stat(name); {
	case err == nil && st.IsDir():
		return openLayout(name, "")
	case err == nil:
		return openArchive(name, "", tempDir)
	case strings.HasPrefix(name, "/") || strings.HasPrefix(name, "."):
		return nil, err
	}
	return openRegistry(ctx, name, o)
}

// OpenTarget opens a place to write an image to: a reference of a registry, by
// tag, "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]" or "file://FILE"; a path is a
// folder.
func OpenTarget(ctx context.Context, name string, o artifact.Options, p Push) (Target, error) {
	if err := checkLocal(name); err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, prefixDockerArchive) {
		return nil, fmt.Errorf("%q: archives of docker save can be read only: want oci-archive:FILE", name)
	}
	for _, prefix := range []string{prefixOCIArchive, prefixFile} {
		if file, ok := strings.CutPrefix(name, prefix); ok {
			path, tag := splitTag(file)
			return createArchive(path, tag, p.Name)
		}
	}
	dir, local := strings.CutPrefix(name, prefixOCI)
	if !local && (strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".")) {
		dir, local = name, true
	}
	if local {
		path, tag := splitTag(dir)
		return &layoutTarget{dir: path, tag: tag, name: p.Name}, nil
	}
	return newRegistryTarget(ctx, name, o, p)
}

// splitTag splits PATH[:TAG]. A path that exists is one, colon or not.
func splitTag(s string) (path, tag string) {
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && !strings.Contains(s[i:], "/") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// newDocument checks the bytes of a document against its descriptor, of which the
// media type may be empty.
func newDocument(d v1.Descriptor, raw []byte) (*Document, error) {
	if int64(len(raw)) > artifact.MaxManifest {
		return nil, fmt.Errorf("manifest %s: %w: %d bytes, limit %d", d.Digest, artifact.ErrTooLarge, len(raw), artifact.MaxManifest)
	}
	h := hashOf(raw)
	if h != d.Digest {
		return nil, fmt.Errorf("manifest %s: %w, got %s", d.Digest, errDigest, h)
	}
	mediaType, err := mediaTypeOf(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if d.MediaType == "" {
		d.MediaType = mediaType
	}
	if mediaType != "" && mediaType != d.MediaType {
		return nil, fmt.Errorf("manifest %s: media type %q, its descriptor says %q", d.Digest, mediaType, d.MediaType)
	}
	if !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
		return nil, fmt.Errorf("manifest %s: media type %q, want an image manifest or an index", d.Digest, d.MediaType)
	}
	d.Size = int64(len(raw))
	return &Document{Descriptor: d, Raw: raw}, nil
}

// mediaTypeOf is what a document says of itself. Documents that could be taken for
// an index by one reader and for an image by another are refused (CVE-2021-41190).
func mediaTypeOf(raw []byte) (types.MediaType, error) {
	var d struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return "", err
	}
	index, image := d.Manifests != nil, d.Config != nil || d.Layers != nil
	switch {
	case index && image:
		return "", errors.New("has layers and manifests: want an image or an index")
	case index && d.MediaType == "":
		return types.OCIImageIndex, nil
	case image && d.MediaType == "":
		return types.OCIManifestSchema1, nil
	case index && d.MediaType.IsImage() || image && d.MediaType.IsIndex():
		return "", fmt.Errorf("media type %q does not fit its fields", d.MediaType)
	}
	return d.MediaType, nil
}

// Manifest decodes the document as an image.
func (d *Document) Manifest() (*v1.Manifest, error) {
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("%s: media type %q, want an image manifest", d.Digest, d.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(d.Raw))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return m, nil
}

// Index decodes the document as an index.
func (d *Document) Index() (*v1.IndexManifest, error) {
	if !d.MediaType.IsIndex() {
		return nil, fmt.Errorf("%s: media type %q, want an index", d.Digest, d.MediaType)
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(d.Raw))
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	return m, nil
}

// NewDocument makes a document of bytes that are our own.
func NewDocument(mediaType types.MediaType, raw []byte) *Document {
	return &Document{v1.Descriptor{MediaType: mediaType, Digest: hashOf(raw), Size: int64(len(raw))}, raw}
}

// Bytes reads a blob of at most limit bytes, verified.
func Bytes(ctx context.Context, s Source, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", d.Digest, d.Size, limit)
	}
	r, err := Verified(ctx, s, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return data, r.Verify()
}

// Verified reads a blob and hashes it.
func Verified(ctx context.Context, s Source, d v1.Descriptor) (*artifact.Blob, error) {
	r, err := s.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	return artifact.NewBlob(r, d)
}
