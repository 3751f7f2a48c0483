package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// target takes a finished image. What it has already is not sent again.
type target interface {
	// blob stores a blob that the image may refer to. It is called by several
	// goroutines.
	blob(ctx context.Context, c *content) error
	// image stores what is left and then, last, what makes the image exist.
	image(ctx context.Context, i *rafsImage) error
	// reference is how to call the image by its digest.
	reference(digest v1.Hash) string
}

func openTarget(name string, o artifact.Options) (target, error) {
	dir, local := strings.CutPrefix(name, prefixOCI)
	if !local && (strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".")) {
		dir, local = name, true
	}
	if local {
		dir, tag := splitTag(dir)
		return &layoutTarget{dir: dir, tag: tag}, nil
	}
	ref, err := o.Parse(name)
	if err != nil {
		return nil, err
	}
	if _, digest := ref.Identifier(), strings.HasPrefix(ref.Identifier(), "sha256:"); digest {
		return nil, fmt.Errorf("reference %q: want a tag, the digest is not known yet", name)
	}
	pusher, err := remote.NewPusher(o.Remote()...)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", name, err)
	}
	return &registryTarget{ref: ref, pusher: pusher}, nil
}

type registryTarget struct {
	ref    name.Reference
	pusher *remote.Pusher
}

func (t *registryTarget) blob(ctx context.Context, c *content) error {
	return t.pusher.Upload(ctx, t.ref.Context(), c)
}

func (t *registryTarget) image(ctx context.Context, i *rafsImage) error {
	for _, c := range append(slices.Clone(i.blobs), i.bootstrap, i.config) {
		if err := t.pusher.Upload(ctx, t.ref.Context(), c); err != nil {
			return fmt.Errorf("push %s: %w", c.digest, err)
		}
	}
	if err := t.pusher.Put(ctx, t.ref, i); err != nil {
		return fmt.Errorf("push manifest %s: %w", i.digest, err)
	}
	return nil
}

func (t *registryTarget) reference(digest v1.Hash) string {
	return t.ref.Context().Digest(digest.String()).String()
}

// layoutTarget is an OCI layout in a folder. Files get their names when they are
// complete, so a name is never half a file.
type layoutTarget struct{ dir, tag string }

func (t *layoutTarget) reference(digest v1.Hash) string {
	return prefixOCI + t.dir + "@" + digest.String()
}

// blob leaves the blob where it is: it is written once the image is known to be
// good, since nobody would remove it otherwise.
func (t *layoutTarget) blob(context.Context, *content) error { return nil }

func (t *layoutTarget) image(ctx context.Context, i *rafsImage) error {
	manifest := inMemory(i.manifest, types.OCIManifestSchema1)
	for _, c := range append(slices.Clone(i.blobs), i.bootstrap, i.config, manifest) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.store(c); err != nil {
			return fmt.Errorf("store %s: %w", c.digest, err)
		}
	}
	if err := t.write("oci-layout", strings.NewReader(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return t.addToIndex(manifest.descriptor())
}

func (t *layoutTarget) store(c *content) error {
	file := filepath.Join("blobs", c.digest.Algorithm, c.digest.Hex)
	if st, err := os.Stat(filepath.Join(t.dir, file)); err == nil && st.Size() == c.size {
		return nil
	}
	r, err := c.Compressed()
	if err != nil {
		return err
	}
	return t.write(file, r)
}

// addToIndex puts the image into index.json, in place of another of its tag.
func (t *layoutTarget) addToIndex(d v1.Descriptor) error {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	raw, err := os.ReadFile(filepath.Join(t.dir, "index.json"))
	if err == nil {
		index, err = v1.ParseIndexManifest(bytes.NewReader(raw))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("index.json: %w", err)
	}
	if t.tag != "" {
		d.Annotations = map[string]string{annotationRefName: t.tag}
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(old v1.Descriptor) bool {
		return old.Annotations[annotationRefName] == t.tag
	})
	index.Manifests = append(index.Manifests, d)
	if raw, err = json.Marshal(index); err != nil {
		return err
	}
	return t.write("index.json", bytes.NewReader(raw))
}

// write makes a file whole or not at all.
func (t *layoutTarget) write(name string, r io.Reader) error {
	name = filepath.Join(t.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = io.Copy(tmp, r)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
