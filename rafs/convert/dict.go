package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
)

// dictionary is an image whose chunks need not be stored again. That a chunk of
// its has a digest is its maker's word; whoever reads the chunk verifies it.
type dictionary struct {
	im     *image.Image
	blobs  rafs.Blobs
	index  *chunk.Index
	src    store.Source              // nil if only the bootstrap is known
	layers map[v1.Hash]v1.Descriptor // of its manifest
}

func openDictionary(ctx context.Context, o *Options) (*dictionary, error) {
	d := &dictionary{index: chunk.NewIndex(o.WorkDir), layers: map[v1.Hash]v1.Descriptor{}}
	if err := d.open(ctx, o); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *dictionary) open(ctx context.Context, o *Options) (err error) {
	// What is no bootstrap may be an archive of an image.
	if st, statErr := os.Stat(o.Dict); statErr == nil && st.Mode().IsRegular() {
		d.im, err = image.Open(o.Dict, image.Options{InFile: true, TempDir: o.WorkDir})
	}
	if d.im == nil {
		err = d.pull(ctx, o)
	}
	if err != nil {
		return err
	}
	if super := d.im.Super(); super.ChunkSize != o.Format.ChunkSize || super.Version != o.Format.Version {
		return fmt.Errorf("RAFS v%d, chunks of %d bytes: want v%d, %d", super.Version, super.ChunkSize, o.Format.Version, o.Format.ChunkSize)
	}
	known, err := d.blobs.Add(d.im, nil)
	if err != nil {
		return err
	}
	return known.Learn(d.index, o.Format.Digester)
}

// pull reads the bootstrap of an image.
func (d *dictionary) pull(ctx context.Context, o *Options) error {
	var err error
	if d.src, err = store.OpenSource(ctx, o.Dict, o.DictRegistry, o.WorkDir); err != nil {
		return err
	}
	_, m, err := store.Image(ctx, d.src, o.SourceRegistry.WantPlatform(), artifact.Marked)
	if err != nil {
		return err
	}
	boot, ok := artifact.Bootstrap(m)
	if !ok {
		return artifact.ErrNotRAFS
	}
	for _, l := range m.Layers[:len(m.Layers)-1] {
		d.layers[l.Digest] = l
	}
	r, err := store.Verified(ctx, d.src, boot)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := o.tempFile()
	if err != nil {
		return err
	}
	defer f.Close()
	extractErr := artifact.ExtractBootstrap(f, r)
	if err := errors.Join(r.Verify(), extractErr); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	d.im, err = image.OpenAt(f, size, image.Options{InFile: true, TempDir: o.WorkDir})
	return err
}

func (d *dictionary) close() error {
	errs := []error{d.index.Close()}
	if d.im != nil {
		errs = append(errs, d.im.Close())
	}
	if d.src != nil {
		errs = append(errs, d.src.Close())
	}
	return errors.Join(errs...)
}

// infos are its blobs, which have the first numbers of a build.
func (d *dictionary) infos() []*write.BlobInfo {
	if d == nil {
		return nil
	}
	return foreignInfos(&d.blobs)
}

// first is the number of the blob of the first layer.
func (d *dictionary) first() uint32 {
	if d == nil {
		return 0
	}
	return d.blobs.Len()
}

// lookup is what a cutter asks; nil if there is no dictionary.
func (d *dictionary) lookup() chunk.Dict {
	if d == nil {
		return nil
	}
	return d.index
}

// piece is a blob of the dictionary for the manifest of an image that refers to it.
func (d *dictionary) piece(info *write.BlobInfo) (*piece, error) {
	digest := v1.Hash{Algorithm: "sha256", Hex: info.ID}
	p := &piece{desc: v1.Descriptor{MediaType: artifact.MediaTypeBlob, Digest: digest, Size: int64(info.Entry.CompressedSize)}}
	if l, ok := d.layers[digest]; ok {
		p.desc.Size = l.Size
	}
	p.open = func(ctx context.Context, from int64) (io.ReadCloser, error) {
		if d.src == nil {
			return nil, fmt.Errorf("blob %s of the chunk dictionary is not in the target: copy the dictionary's image there, or name it instead of its bootstrap", digest)
		}
		return d.src.Blob(ctx, p.desc, from)
	}
	if p.desc.Size <= 0 {
		return nil, fmt.Errorf("blob %s of the chunk dictionary: its size is not known", digest)
	}
	return p, nil
}
