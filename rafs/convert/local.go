package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// annotationRefName names an image in the index of an OCI layout.
const annotationRefName = "org.opencontainers.image.ref.name"

// files is a folder or an archive that holds an image.
type files interface {
	// open returns a file by its slash-separated path, and its size.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

type opener func(artifact.Options) (*source, error)

func openLayout(dir, tag string) opener {
	return func(o artifact.Options) (*source, error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		return withFiles(rootFiles{root}, func(f files) (*source, error) { return ociSource(f, tag, o) })
	}
}

func openArchive(file, tag string) opener {
	return func(o artifact.Options) (*source, error) {
		f, err := newTarFiles(file)
		if err != nil {
			return nil, err
		}
		return withFiles(f, func(f files) (*source, error) {
			// docker save writes both; what OCI says is verifiable throughout.
			if r, _, err := f.open("index.json"); err == nil {
				r.Close()
				return ociSource(f, tag, o)
			}
			return dockerSource(f, tag)
		})
	}
}

func withFiles(f files, read func(files) (*source, error)) (*source, error) {
	s, err := read(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// rootFiles is a folder that nothing in it leads out of.
type rootFiles struct{ *os.Root }

func (r rootFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := r.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: no regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// maxArchiveEntries bounds the entries of an archive that holds an image.
const maxArchiveEntries = 1 << 16

// tarFiles is a tar whose files are read where they lie.
type tarFiles struct {
	*os.File
	at    map[string]extent
	links map[string]string // symlinks, which old docker archives have
}

type extent struct{ off, size int64 }

func newTarFiles(file string) (*tarFiles, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	t := &tarFiles{File: f, at: map[string]extent{}, links: map[string]string{}}
	if err := t.index(); err != nil {
		f.Close()
		return nil, fmt.Errorf("no tar of an image (is it compressed? then unpack it first): %w", err)
	}
	return t, nil
}

func (t *tarFiles) index() error {
	entries := tar.NewReader(t.File)
	for range maxArchiveEntries {
		hdr, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			off, err := t.Seek(0, io.SeekCurrent) // the reader has taken the headers only
			if err != nil {
				return err
			}
			t.at[name] = extent{off, hdr.Size}
		case tar.TypeSymlink:
			t.links[name] = path.Join(path.Dir(name), hdr.Linkname)
		}
	}
	return fmt.Errorf("more than %d entries", maxArchiveEntries)
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	if target, ok := t.links[name]; ok {
		name = target
	}
	e, ok := t.at[name]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w in the archive", name, os.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(t.File, e.off, e.size)), e.size, nil
}

// readAll reads a file of at most limit bytes.
func readAll(f files, name string, limit int64) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", name, size, limit)
	}
	return io.ReadAll(io.LimitReader(r, limit))
}

// openVerified opens a blob of an OCI layout.
func openVerified(f files, d v1.Descriptor) (*artifact.Blob, error) {
	// The digest becomes a path: only hex digits may.
	if _, err := v1.NewHash(d.Digest.String()); err != nil {
		return nil, err
	}
	r, size, err := f.open(path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex))
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		r.Close()
		return nil, fmt.Errorf("%s: %d bytes, its descriptor says %d", d.Digest, size, d.Size)
	}
	return artifact.NewBlob(r, d)
}

func readVerified(f files, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", d.Digest, d.Size, limit)
	}
	b, err := openVerified(f, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	data, err := io.ReadAll(b)
	if err != nil {
		return nil, err
	}
	return data, b.Verify()
}

// ociSource reads an OCI image layout.
func ociSource(f files, tag string, o artifact.Options) (*source, error) {
	raw, err := readAll(f, "index.json", artifact.MaxManifest)
	if err != nil {
		return nil, err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	d, err := byTag(index, tag)
	if err != nil {
		return nil, err
	}
	for depth := 0; d.MediaType.IsIndex(); depth++ {
		if depth == 4 {
			return nil, errors.New("index in an index in an index")
		}
		if raw, err = readVerified(f, d, artifact.MaxManifest); err != nil {
			return nil, err
		}
		if index, err = v1.ParseIndexManifest(bytes.NewReader(raw)); err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		if d, err = artifact.Choose(index, o.WantPlatform(), func(d v1.Descriptor) bool { return !artifact.Marked(d) }); err != nil {
			return nil, err
		}
	}
	if raw, err = readVerified(f, d, artifact.MaxManifest); err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	config, err := readVerified(f, m.Config, artifact.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return newSource(m, config, f.Close, func(_ context.Context, d v1.Descriptor) (verified, error) {
		return openVerified(f, d)
	})
}

// byTag finds an image in the index of a layout. Without a tag there must be
// one image only.
func byTag(index *v1.IndexManifest, tag string) (v1.Descriptor, error) {
	var names []string
	for _, d := range index.Manifests {
		name := d.Annotations[annotationRefName]
		if tag != "" && name == tag {
			return d, nil
		}
		names = append(names, name)
	}
	if tag == "" && len(index.Manifests) == 1 {
		return index.Manifests[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("index.json has %d images %q: want one, or the tag of one", len(names), names)
}

// dockerImage is an element of the manifest.json of a docker archive.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerSource reads an archive of docker save. It names no digests of what it
// stores, but the configuration has those of the unpacked layers.
func dockerSource(f files, tag string) (*source, error) {
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
	config, err := readAll(f, images[at].Config, artifact.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	s := &source{config: config, close: f.Close}
	if err := s.parseConfig(len(images[at].Layers)); err != nil {
		return nil, err
	}
	for i, name := range images[at].Layers {
		r, size, err := f.open(name)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		r.Close()
		s.layers = append(s.layers, sourceLayer{
			diffID: s.configFile.RootFS.DiffIDs[i], size: size,
			open: func(context.Context) (verified, error) {
				r, _, err := f.open(name)
				return unpackedOnly{r}, err
			},
		})
	}
	return s, nil
}

// unpackedOnly is a stream of which only the digest of what it unpacks to is
// known, which convert compares in any case.
type unpackedOnly struct{ io.ReadCloser }

func (unpackedOnly) Verify() error { return nil }
