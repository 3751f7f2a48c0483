package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
)

// Bucket is an object store that takes blobs.
type Bucket struct {
	*object.Bucket
	// Force sends blobs that are there, too.
	Force bool
}

// elsewhere tells whether blobs go to another place than manifest and bootstrap.
func (o *Options) elsewhere() bool { return o.BlobDir != "" || o.Bucket != nil }

// storeObjects puts the blobs of an image into the bucket, several at a time. Only
// now is it known which ones the image needs: nobody removes the others from a bucket.
func (c *conversion) storeObjects(ctx context.Context, i *rafsImage) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.opts.Layers)
	for _, b := range i.blobs {
		group.Go(func() error {
			if err := c.storeObject(ctx, b); err != nil {
				return fmt.Errorf("%w (%s)", err, again)
			}
			c.tell(Event{Layer: b.layer, Digest: c.digest(b.layer), Stage: StageDone, Done: b.desc.Size, Total: b.desc.Size})
			return nil
		})
	}
	return group.Wait()
}

func (c *conversion) storeObject(ctx context.Context, b blobLayer) error {
	o, passed, done := object.PutOptions{Force: c.opts.Bucket.Force}, c.progress(b.layer, StagePush, b.desc.Size), int64(0)
	o.Retries, o.RetryDelay = c.opts.Push.Retries, c.opts.Push.RetryDelay
	o.Progress = func(n int64) {
		passed(int(n - done))
		done = n
	}
	var file *os.File
	if b.layer >= 0 {
		file = c.layers[b.layer].file
	}
	if file == nil { // of a dictionary
		if ok, err := c.hasObject(ctx, b); ok || err != nil {
			return err
		}
		f, err := c.fetchPiece(ctx, b)
		if err != nil {
			return err
		}
		defer f.Close()
		file = f
	}
	_, err := c.opts.Bucket.Put(ctx, b.info.ID, file, b.desc.Size, o)
	return err
}

// hasObject tells whether the bucket has a blob that was made before, whose size may
// not be known but for that of its data.
func (c *conversion) hasObject(ctx context.Context, b blobLayer) (bool, error) {
	r, err := backend.Retry(c.opts.Bucket, backend.RetryPolicy{}).Open(b.info.ID)
	if err != nil {
		return false, err
	}
	size, err := r.Size(ctx)
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", c.opts.Bucket, err)
	}
	return size >= b.desc.Size, nil
}

// fetchPiece copies a blob from where it is into an unnamed file, verified.
func (c *conversion) fetchPiece(ctx context.Context, b blobLayer) (f *os.File, err error) {
	r, err := b.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if f, err = c.opts.tempFile(); err != nil {
		return nil, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, b.desc.Size+1))
	if err == nil && (n != b.desc.Size || hashOf(sum) != b.desc.Digest) {
		err = fmt.Errorf("blob %s: %w: %d bytes of %s, want %d", b.desc.Digest, blob.ErrDigest, n, hashOf(sum), b.desc.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
