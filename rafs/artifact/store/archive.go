package store

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// archiveTarget writes an OCI layout as a tar. The file gets its name when it is
// complete.
type archiveTarget struct {
	path, tag, name string

	mu      sync.Mutex
	file    *os.File
	out     *tar.Writer
	has     map[v1.Hash]bool
	others  []v1.Descriptor // referrers, for index.json
	failed  error           // what broke the stream; nothing can follow
	renamed bool
}

func createArchive(file, tag, name string) (Target, error) {
	f, err := createTemp(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	t := &archiveTarget{path: file, tag: tag, name: name, file: f, out: tar.NewWriter(f), has: map[v1.Hash]bool{}}
	if err := t.entry("oci-layout", int64(len(layoutVersion)), bytesTo([]byte(layoutVersion))); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// entry appends a file. Its time is 0, so the same image is the same archive.
func (t *archiveTarget) entry(name string, size int64, fill func(io.Writer) error) error {
	if t.failed != nil {
		return t.failed
	}
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatPAX}
	t.failed = t.out.WriteHeader(hdr)
	if t.failed == nil {
		t.failed = fill(t.out)
	}
	return t.failed
}

func (t *archiveTarget) Blob(ctx context.Context, d v1.Descriptor, open Opener) (bool, error) {
	data, err := newTape(ctx, d, open)
	if err != nil {
		return false, err
	}
	defer data.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.has[d.Digest] {
		return false, nil
	}
	if err := t.entry(blobPath(d.Digest), d.Size, data.copyTo); err != nil {
		return true, fmt.Errorf("store %s: %w", d.Digest, err)
	}
	t.has[d.Digest] = true
	return true, nil
}

func (t *archiveTarget) Document(_ context.Context, doc *Document) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.document(doc)
}

func (t *archiveTarget) document(doc *Document) error {
	if t.has[doc.Digest] {
		return nil
	}
	if err := t.entry(blobPath(doc.Digest), doc.Size, bytesTo(doc.Raw)); err != nil {
		return fmt.Errorf("store %s: %w", doc.Digest, err)
	}
	t.has[doc.Digest] = true
	if m, err := doc.Manifest(); err == nil && m.Subject != nil {
		d := doc.Descriptor
		d.Annotations = map[string]string{annotationSubject: m.Subject.Digest.String()}
		t.others = append(t.others, d)
	}
	return nil
}

// Tag writes index.json and ends the archive.
func (t *archiveTarget) Tag(_ context.Context, doc *Document) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.document(doc); err != nil {
		return err
	}
	others := slices.DeleteFunc(t.others, func(d v1.Descriptor) bool { return d.Digest == doc.Digest })
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	index.Manifests = append([]v1.Descriptor{named(doc, t.tag, t.name)}, others...)
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := t.entry("index.json", int64(len(raw)), bytesTo(raw)); err != nil {
		return err
	}
	if err := errors.Join(t.out.Close(), t.file.Sync()); err != nil {
		return err
	}
	if err := os.Rename(t.file.Name(), t.path); err != nil {
		return err
	}
	t.renamed = true
	return nil
}

func (t *archiveTarget) Reference(digest v1.Hash) string {
	return prefixOCIArchive + t.path + "@" + digest.String()
}

func (t *archiveTarget) Close() error {
	err := t.file.Close()
	if !t.renamed {
		err = errors.Join(err, os.Remove(t.file.Name()))
		t.renamed = true
	}
	return err
}

// dockerImage is an element of the manifest.json of a docker archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerSource is an archive of docker save. It names no digests of what it
// stores; the manifest is made up from what is there, which is hashed once.
type dockerSource struct {
	files
	root  *Document
	names map[v1.Hash]string
}

func newDockerSource(f files, tag string) (Source, error) {
	raw, err := readAll(f, "manifest.json", artifact.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("neither an OCI nor a docker archive: %w", err)
	}
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	at := slices.IndexFunc(images, func(m dockerImage) bool {
		return slices.ContainsFunc(m.RepoTags, func(t string) bool { return t == tag || strings.HasSuffix(t, ":"+tag) })
	})
	if tag == "" && len(images) == 1 {
		at = 0
	}
	if at < 0 {
		return nil, fmt.Errorf("manifest.json has %d images: want one, or the tag of one", len(images))
	}
	s := &dockerSource{files: f, names: map[v1.Hash]string{}}
	if err := s.makeManifest(&images[at]); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *dockerSource) makeManifest(i *dockerImage) error {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2}
	var err error
	if m.Config, err = s.describe(i.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	m.Config.MediaType = types.DockerConfigJSON
	for n, name := range i.Layers {
		d, err := s.describe(name)
		if err != nil {
			return fmt.Errorf("layer %d: %w", n+1, err)
		}
		m.Layers = append(m.Layers, d)
	}
	raw, err := json.Marshal(m)
	s.root = NewDocument(types.DockerManifestSchema2, raw)
	return err
}

// describe hashes a file of the archive.
func (s *dockerSource) describe(name string) (v1.Descriptor, error) {
	r, size, err := s.open(name, 0)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer r.Close()
	h, magic := sha256.New(), &head{}
	if _, err := io.Copy(io.MultiWriter(h, magic), r); err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: types.DockerUncompressedLayer, Size: size, Digest: sum(h)}
	switch {
	case bytes.HasPrefix(magic.data, []byte{0x1f, 0x8b}):
		d.MediaType = types.DockerLayer
	case bytes.HasPrefix(magic.data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d.MediaType = types.OCILayerZStd
	}
	s.names[d.Digest] = path.Clean(name)
	return d, nil
}

// head keeps the first bytes that are written.
type head struct{ data []byte }

func (h *head) Write(p []byte) (int, error) {
	h.data = append(h.data, p[:min(len(p), 4-len(h.data))]...)
	return len(p), nil
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}

func (s *dockerSource) Root() *Document { return s.root }

func (s *dockerSource) Document(_ context.Context, d v1.Descriptor) (*Document, error) {
	if d.Digest != s.root.Digest {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, ErrNotFound)
	}
	return s.root, nil
}

func (s *dockerSource) Blob(_ context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error) {
	name, ok := s.names[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, ErrNotFound)
	}
	r, _, err := s.open(name, from)
	return r, err
}

func (s *dockerSource) Range(_ context.Context, digest v1.Hash, p []byte, off int64) error {
	name, ok := s.names[digest]
	if !ok {
		return fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	return readRange(s.files, name, p, off)
}

func (s *dockerSource) Stat(_ context.Context, digest v1.Hash) (int64, error) {
	name, ok := s.names[digest]
	if !ok {
		return 0, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	r, size, err := s.open(name, 0)
	if err != nil {
		return 0, err
	}
	return size, r.Close()
}

// Referrers has none: docker archives know no subjects.
func (s *dockerSource) Referrers(context.Context, v1.Hash) ([]v1.Descriptor, error) {
	return nil, nil
}
