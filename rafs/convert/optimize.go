package convert

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build"
)

// Derived describes an image that was made of the chunks of others.
type Derived struct {
	Root *store.Document
	// Blobs are all of the image's.
	Blobs []string
	// Blob is the one that is new, if there is one, of Size bytes.
	Blob string
	Size int64
}

// OptimizeOptions say what Optimize makes of an image.
type OptimizeOptions struct {
	Source store.Source // a RAFS image
	Target store.Target
	// Platform picks the image out of an index.
	Platform v1.Platform
	// Blobs has the image's blobs; Source does by default.
	Blobs backend.Backend
	// List is what build.ParsePrefetchFiles reads: the files that are wanted first. It
	// becomes a part of the image.
	List string
	// Host is for those who build. Its TempDir takes the new blob until it is stored.
	Host build.Host
}

// prefetchList is List's name in the bootstrap layer (nydus
// contrib/nydusify/pkg/optimizer).
const prefetchList = artifact.BootstrapDir + "/prefetch.files"

// ErrNothingWanted means that no file of a list has data in the image.
var ErrNothingWanted = errors.New("no file of the list has data in the image")

// Optimize stores an image with one more blob, of the files that are wanted first.
// The other blobs stay what they are.
func Optimize(ctx context.Context, o OptimizeOptions) (*Derived, error) {
	files, err := build.ParsePrefetchFiles(strings.NewReader(o.List))
	if err != nil {
		return nil, fmt.Errorf("list of files: %w", err)
	}
	opts := Options{WorkDir: o.Host.TempDir}
	p, err := findParent(ctx, o.Source, o.Platform)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.fetch(ctx, &opts); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Host.TempDir, "rafsd-optimize-*")
	if err != nil {
		return nil, fmt.Errorf("work folder: %w", err)
	}
	defer os.RemoveAll(dir)
	if o.Blobs == nil {
		o.Blobs = store.Backend(o.Source)
	}
	made, err := build.Optimize(ctx, build.OptimizeOptions{
		Host: o.Host, Source: p.path(), Blobs: o.Blobs, Files: files, Bootstrap: filepath.Join(dir, "bootstrap"), BlobDir: dir,
	})
	if err != nil {
		return nil, err
	}
	if made.Blob == "" {
		return nil, ErrNothingWanted
	}
	i := &rafsImage{}
	defer i.close()
	docker := p.manifest.MediaType == types.DockerManifestSchema2
	if err := i.pack(&opts, docker, p.metas, made, map[string]string{prefetchList: o.List}); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	blob, err := os.Open(filepath.Join(dir, made.Blob))
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if err := i.find(made, p, blob); err != nil {
		return nil, err
	}
	marks := maps.Clone(p.boot.Annotations)
	marks[artifact.AnnotationPrefetch] = made.Blob
	if err := p.derive(i, marks, v1.History{CreatedBy: "rafsd", Comment: "files that are wanted first"}); err != nil {
		return nil, err
	}
	if err := i.push(ctx, o.Target); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, again)
	}
	return &Derived{i.doc, made.Blobs, made.Blob, made.BlobSize}, nil
}

// find finds the blobs of what was built: the one that is new in a file, the others in
// the images.
func (i *rafsImage) find(made *build.Result, p *parent, file *os.File) error {
	for _, id := range made.Blobs {
		b, err := p.blob(id)
		if id == made.Blob {
			d := v1.Descriptor{MediaType: artifact.MediaTypeBlob, Digest: v1.Hash{Algorithm: "sha256", Hex: id}, Size: made.BlobSize}
			b, err = filePiece(file, d), nil
		}
		if err != nil {
			return err
		}
		i.blobs = append(i.blobs, blobLayer{b, nil, -1})
	}
	return nil
}

// pack makes a bootstrap layer of what was built, of the chunk information of its
// blobs, and of texts.
func (i *rafsImage) pack(o *Options, docker bool, metas map[string]*os.File, made *build.Result, texts map[string]string) error {
	boot, err := os.Open(made.Bootstrap)
	if err != nil {
		return err
	}
	defer boot.Close()
	return i.packLayer(o, docker, func(w io.Writer) error {
		out := tar.NewWriter(w)
		dir := &tar.Header{Typeflag: tar.TypeDir, Name: artifact.BootstrapDir + "/", Mode: 0o755, Format: tar.FormatGNU}
		if err := out.WriteHeader(dir); err != nil {
			return err
		}
		if err := addFile(out, artifact.BootstrapFile, boot); err != nil {
			return err
		}
		for _, id := range made.Blobs {
			if f := metas[id]; f != nil {
				if err := addFile(out, artifact.BootstrapDir+"/"+id+artifact.MetaSuffix, f); err != nil {
					return err
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(texts)) {
			if err := addBytes(out, name, int64(len(texts[name])), strings.NewReader(texts[name])); err != nil {
				return err
			}
		}
		return out.Close()
	})
}

// addFile adds all of a file to a tar.
func addFile(out *tar.Writer, name string, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return addBytes(out, name, st.Size(), io.NewSectionReader(f, 0, st.Size()))
}

func addBytes(out *tar.Writer, name string, size int64, r io.Reader) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444, Format: tar.FormatGNU}
	if err := out.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := io.Copy(out, r)
	return err
}
