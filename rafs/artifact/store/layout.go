package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// layoutSource is an image in an OCI layout, in a folder or in an archive.
type layoutSource struct {
	files
	index *v1.IndexManifest
	root  *Document
}

func openLayout(dir, tag string) (Source, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s, err := newLayoutSource(rootFiles{root}, tag)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

func openArchive(file, tag, tempDir string) (Source, error) {
	f, err := newTarFiles(context.Background(), file, tempDir)
	if err != nil {
		return nil, err
	}
	open := newDockerSource
	// docker save writes both; what OCI says is verifiable throughout.
	if r, _, err := f.open("index.json", 0); err == nil {
		r.Close()
		open = newLayoutSource
	}
	s, err := open(f, tag)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func newLayoutSource(f files, tag string) (Source, error) {
	raw, err := readAll(f, "index.json", artifact.MaxManifest)
	if err != nil {
		return nil, err
	}
	s := &layoutSource{files: f}
	if s.index, err = v1.ParseIndexManifest(bytes.NewReader(raw)); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	d, err := byTag(s.index, tag)
	if err != nil {
		return nil, err
	}
	s.root, err = s.Document(context.Background(), d)
	return s, err
}

// byTag finds an image in the index of a layout. Without a tag there must be
// one image only.
func byTag(index *v1.IndexManifest, tag string) (v1.Descriptor, error) {
	var names []string
	for _, d := range index.Manifests {
		name := d.Annotations[AnnotationRefName]
		if tag != "" && name == tag {
			return d, nil
		}
		if name != "" || !isReferrer(d) {
			names = append(names, name)
		}
	}
	if tag == "" && len(names) == 1 {
		for _, d := range index.Manifests {
			if d.Annotations[AnnotationRefName] != "" || !isReferrer(d) {
				return d, nil
			}
		}
	}
	return v1.Descriptor{}, fmt.Errorf("index.json has %d images %q: want one, or the tag of one", len(names), names)
}

// annotationSubject marks a manifest of our layouts that is there for the sake of
// another one.
const annotationSubject = "io.rafsd.subject"

func isReferrer(d v1.Descriptor) bool { return d.Annotations[annotationSubject] != "" }

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

func (s *layoutSource) Root() *Document { return s.root }

func (s *layoutSource) Document(_ context.Context, d v1.Descriptor) (*Document, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	raw, err := readAll(s.files, blobPath(d.Digest), artifact.MaxManifest)
	if err != nil {
		return nil, err
	}
	return newDocument(d, raw)
}

func (s *layoutSource) Blob(_ context.Context, d v1.Descriptor, from int64) (io.ReadCloser, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	r, size, err := s.open(blobPath(d.Digest), from)
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		r.Close()
		return nil, &wrongBlob{fmt.Errorf("%s: %d bytes, its descriptor says %d", d.Digest, size, d.Size)}
	}
	return r, nil
}

func (s *layoutSource) Range(_ context.Context, digest v1.Hash, p []byte, off int64) error {
	if err := checkDescriptor(v1.Descriptor{Digest: digest}); err != nil {
		return err
	}
	return readRange(s.files, blobPath(digest), p, off)
}

func readRange(f files, name string, p []byte, off int64) error {
	r, _, err := f.open(name, off)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadFull(r, p)
	return err
}

func (s *layoutSource) Stat(_ context.Context, digest v1.Hash) (int64, error) {
	if err := checkDescriptor(v1.Descriptor{Digest: digest}); err != nil {
		return 0, err
	}
	r, size, err := s.open(blobPath(digest), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("blob %s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	return size, r.Close()
}

// Referrers looks through the manifests of index.json. Those of other indexes are
// no referrers that a layout lists.
func (s *layoutSource) Referrers(ctx context.Context, digest v1.Hash) ([]v1.Descriptor, error) {
	var found []v1.Descriptor
	for _, d := range s.index.Manifests {
		if !d.MediaType.IsImage() || d.Digest == digest {
			continue
		}
		doc, err := s.Document(ctx, d)
		if err != nil {
			return nil, err
		}
		m, err := doc.Manifest()
		if err != nil {
			return nil, err
		}
		if m.Subject != nil && m.Subject.Digest == digest {
			found = append(found, d)
		}
	}
	return found, nil
}

// layoutTarget is an OCI layout in a folder. Files get their names when they are
// complete, so a name is never half a file.
type layoutTarget struct {
	dir, tag, name string
	mu             sync.Mutex // held while index.json changes
}

func (t *layoutTarget) Reference(digest v1.Hash) string {
	return prefixOCI + t.dir + "@" + digest.String()
}

func (t *layoutTarget) Close() error { return nil }

func (t *layoutTarget) Blob(ctx context.Context, d v1.Descriptor, open Opener) (bool, error) {
	return BlobFile(ctx, filepath.Join(t.dir, blobPath(d.Digest)), d, open)
}

// BlobFile makes a file of a blob, verified, unless it is there and whole. The
// result tells whether it was made.
func BlobFile(ctx context.Context, path string, d v1.Descriptor, open Opener) (bool, error) {
	if err := checkDescriptor(d); err != nil {
		return false, err
	}
	if whole(path, d) {
		return false, nil
	}
	data, err := newTape(ctx, d, open)
	if err != nil {
		return false, err
	}
	defer data.Close()
	if err := WriteFile(path, data.copyTo); err != nil {
		return true, fmt.Errorf("store %s: %w", d.Digest, err)
	}
	return true, nil
}

// whole tells whether a file is the blob that its name says. A disk may have lost
// some of it, and who finds it there does not store it again.
func whole(path string, d v1.Descriptor) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	r, err := artifact.NewBlob(f, d)
	if err != nil {
		return false
	}
	defer r.Close()
	return r.Verify() == nil
}

func (t *layoutTarget) Document(_ context.Context, doc *Document) error {
	err := t.write(blobPath(doc.Digest), bytesTo(doc.Raw))
	if err != nil {
		return fmt.Errorf("store %s: %w", doc.Digest, err)
	}
	m, err := doc.Manifest()
	if err != nil || m.Subject == nil {
		return nil // an index, or an image of its own
	}
	d := doc.Descriptor
	d.Annotations = map[string]string{annotationSubject: m.Subject.Digest.String()}
	return t.addToIndex(d, func(old v1.Descriptor) bool { return old.Digest == d.Digest })
}

func bytesTo(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// Tag puts the image into index.json, in place of another of its tag.
func (t *layoutTarget) Tag(ctx context.Context, doc *Document) error {
	if err := t.Document(ctx, doc); err != nil {
		return err
	}
	if err := t.write("oci-layout", bytesTo([]byte(layoutVersion))); err != nil {
		return err
	}
	d := named(doc, t.tag, t.name)
	return t.addToIndex(d, func(old v1.Descriptor) bool {
		return !isReferrer(old) && old.Annotations[AnnotationRefName] == t.tag || old.Digest == d.Digest && isReferrer(old)
	})
}

const layoutVersion = `{"imageLayoutVersion":"1.0.0"}`

// annotationImageName is containerd's: the whole name of an image in an archive.
const annotationImageName = "io.containerd.image.name"

func named(doc *Document, tag, name string) v1.Descriptor {
	d := v1.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: doc.Size, ArtifactType: doc.ArtifactType}
	d.Annotations = map[string]string{}
	if tag != "" {
		d.Annotations[AnnotationRefName] = tag
	}
	if name != "" {
		d.Annotations[annotationImageName] = name
	}
	if len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return d
}

// addToIndex puts a descriptor in place of those that it replaces.
func (t *layoutTarget) addToIndex(d v1.Descriptor, replaces func(v1.Descriptor) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	unlock, err := lockFolder(t.dir)
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	defer unlock()
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	raw, err := os.ReadFile(filepath.Join(t.dir, "index.json"))
	if err == nil {
		index, err = v1.ParseIndexManifest(bytes.NewReader(raw))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("index.json: %w", err)
	}
	index.Manifests = append(slices.DeleteFunc(index.Manifests, replaces), d)
	if raw, err = json.Marshal(index); err != nil {
		return err
	}
	return t.write("index.json", bytesTo(raw))
}

// lockFolder waits until no other process holds the folder, where its file system
// knows locks: each adds an image to what the others have added.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == unix.EINTR {
			continue
		}
		if err != nil && err != unix.ENOLCK && err != unix.EOPNOTSUPP && err != unix.ENOSYS {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		return func() { f.Close() }, nil
	}
}

// write makes a file whole or not at all.
func (t *layoutTarget) write(name string, fill func(io.Writer) error) error {
	return WriteFile(filepath.Join(t.dir, name), fill)
}

// WriteFile makes a file whole or not at all: it gets its name, in place of what has
// it, when it is complete and on the disk.
func WriteFile(name string, fill func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp, err := createTemp(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	if err := errors.Join(fill(tmp), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// createTemp makes a file that is to get another name. Who may read it is what the
// umask says, as of other files.
func createTemp(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, ".tmp-"+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
}
