package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build"
)

// DictionaryOptions say of what Dictionary makes a dictionary.
type DictionaryOptions struct {
	// Sources are RAFS images.
	Sources []store.Source
	// Target takes the dictionary, an image of its own that has the blobs which it
	// refers to. Nil for the bootstrap only.
	Target store.Target
	// Platform picks the images out of indexes.
	Platform v1.Platform
	// Bootstrap is the path of the dictionary's bootstrap, which remains.
	Bootstrap string
	Host      build.Host
}

// Dictionary makes a chunk dictionary of images and stores it as an image, for
// Options.Dict. Of the blobs, those that it refers to are copied.
func Dictionary(ctx context.Context, o DictionaryOptions) (*Derived, error) {
	opts := Options{WorkDir: o.Host.TempDir}
	var parents []*parent
	defer func() {
		for _, p := range parents {
			p.close()
		}
	}()
	var paths []string
	for _, source := range o.Sources {
		p, err := findParent(ctx, source, o.Platform)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", store.NameOf(source), err)
		}
		parents = append(parents, p)
		if err := p.fetch(ctx, &opts); err != nil {
			return nil, fmt.Errorf("source %s: %w", store.NameOf(source), err)
		}
		paths = append(paths, p.path())
	}
	made, err := build.Dictionary(ctx, build.DictionaryOptions{Host: o.Host, Sources: paths, Bootstrap: o.Bootstrap})
	if err != nil {
		return nil, err
	}
	if o.Target == nil {
		return &Derived{Blobs: made.Blobs}, nil
	}
	i := &rafsImage{}
	defer i.close()
	if err := i.gather(&opts, parents, made); err != nil {
		return nil, err
	}
	marks := map[string]string{artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: strconv.Itoa(made.Version)}
	if err := parents[0].derive(i, marks, v1.History{CreatedBy: "rafsd", Comment: "chunk dictionary"}); err != nil {
		return nil, err
	}
	if err := i.push(ctx, o.Target); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, again)
	}
	return &Derived{Root: i.doc, Blobs: made.Blobs}, nil
}

// gather makes the bootstrap layer of a dictionary, and finds its blobs in the images
// that it was made of.
func (i *rafsImage) gather(o *Options, parents []*parent, made *build.Result) error {
	metas := map[string]*os.File{}
	for _, p := range parents {
		maps.Copy(metas, p.metas)
	}
	docker := parents[0].manifest.MediaType == types.DockerManifestSchema2
	if err := i.pack(o, docker, metas, made, nil); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	for _, id := range made.Blobs {
		var b *piece
		err := errors.New("no image")
		for n := 0; err != nil && n < len(parents); n++ {
			b, err = parents[n].blob(id)
		}
		if err != nil {
			return err
		}
		i.blobs = append(i.blobs, blobLayer{b, nil, -1})
	}
	return nil
}
