package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// layoutPrefix says that an image is an OCI layout, as convert spells it:
// oci:FOLDER, oci:FOLDER:TAG or oci:FOLDER@DIGEST.
const layoutPrefix = "oci:"

// refName is the annotation by which an index of an OCI layout names an image
// (OCI image-spec 1.1, annotations).
const refName = "org.opencontainers.image.ref.name"

// unpackLayout takes the bootstrap out of an OCI layout, verified, and writes it
// into a file of dir.
func unpackLayout(name, dir string) (string, error) {
	folder, tag := splitLayout(strings.TrimPrefix(name, layoutPrefix))
	root, err := os.OpenRoot(folder)
	if err != nil {
		return "", err
	}
	defer root.Close()
	l := ociLayout{root}
	m, err := l.manifest(tag)
	if err != nil {
		return "", err
	}
	layer, ok := artifact.Bootstrap(m)
	if !ok {
		return "", fmt.Errorf("%w: its last layer has no annotation %s", artifact.ErrNotRAFS, artifact.AnnotationBootstrap)
	}
	out, err := os.Create(filepath.Join(dir, "image.boot"))
	if err != nil {
		return "", err
	}
	defer out.Close()
	b, err := l.open(layer)
	if err != nil {
		return "", err
	}
	defer b.Close()
	extractErr := artifact.ExtractBootstrap(out, b)
	if err := b.Verify(); err != nil {
		return "", err
	}
	return out.Name(), extractErr
}

// splitLayout splits FOLDER, FOLDER:TAG and FOLDER@DIGEST. A folder that exists
// is one, whatever is in its name.
func splitLayout(s string) (folder, tag string) {
	if st, err := os.Stat(s); err == nil && st.IsDir() {
		return s, ""
	}
	if i := strings.LastIndex(s, "@"); i > 0 {
		return s[:i], s[i+1:]
	}
	if i := strings.LastIndex(s, ":"); i > 0 && !strings.Contains(s[i:], "/") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

type ociLayout struct{ root *os.Root }

// manifest finds the manifest with a tag or a digest; without either there must be
// one only. From an index inside it takes that of a RAFS image.
func (l ociLayout) manifest(tag string) (*v1.Manifest, error) {
	f, err := l.root.Open("index.json")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, artifact.MaxManifest))
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var found []v1.Descriptor
	for _, d := range index.Manifests {
		if tag == "" || d.Annotations[refName] == tag || d.Digest.String() == tag {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("index.json has %d images, %d that fit %q: want oci:FOLDER:TAG or oci:FOLDER@DIGEST of one",
			len(index.Manifests), len(found), tag)
	}
	d := found[0]
	if d.MediaType.IsIndex() {
		raw, err := l.read(d)
		if err != nil {
			return nil, err
		}
		if index, err = v1.ParseIndexManifest(bytes.NewReader(raw)); err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		if d, err = artifact.Choose(index, artifact.Options{}.WantPlatform(), artifact.Marked); err != nil {
			return nil, err
		}
	}
	raw, err := l.read(d)
	if err != nil {
		return nil, err
	}
	return v1.ParseManifest(bytes.NewReader(raw))
}

func (l ociLayout) read(d v1.Descriptor) ([]byte, error) {
	if d.Size > artifact.MaxManifest {
		return nil, fmt.Errorf("manifest %s of %d bytes, limit %d", d.Digest, d.Size, artifact.MaxManifest)
	}
	b, err := l.open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	raw, readErr := io.ReadAll(b)
	return raw, errors.Join(readErr, b.Verify())
}

// open opens a blob, whose digest is checked to be one before it becomes a path.
func (l ociLayout) open(d v1.Descriptor) (*artifact.Blob, error) {
	if _, err := v1.NewHash(d.Digest.String()); err != nil {
		return nil, err
	}
	f, err := l.root.Open(path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex))
	if err != nil {
		return nil, err
	}
	return artifact.NewBlob(f, d)
}
