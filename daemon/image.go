package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/httprange"
	"github.com/rafsd/rafsd/rafs/image"
)

// openImage opens the bootstrap that the options name, be it a file of its own,
// inside a blob that is a file, or inside a blob of the source; or it fetches the
// one that the reference means. metaDir is where chunk information of its blobs
// may lie.
func openImage(ctx context.Context, o *Options, from backend.Backend) (im *image.Image, metaDir string, err error) {
	if id, ok := blobName(o.Bootstrap); ok {
		im, err = openBlob(ctx, from, id)
		return im, "", err
	}
	if o.Reference == "" {
		im, err = image.Open(o.Bootstrap, image.Options{})
		return im, filepath.Dir(o.Bootstrap), err
	}
	dir, done, err := bootstrapDir(o)
	if err != nil {
		return nil, "", err
	}
	defer done()
	opts, err := pullOptions(&o.Config.Backend.Registry)
	if err != nil {
		return nil, "", err
	}
	a, err := artifact.Pull(ctx, o.Reference, opts, dir)
	if err != nil {
		return nil, "", fmt.Errorf("image %s: %w", o.Reference, err)
	}
	o.Log.Info("image found", "image", o.Reference, "digest", a.Digest.String(), "blobs", len(a.BlobIDs))
	im, err = image.Open(a.BootstrapPath, image.Options{SHA256: &a.BootstrapSHA256})
	return im, dir, err
}

// blobName tells a blob of the source, sha256:ID, from the path of a file.
func blobName(bootstrap string) (id string, ok bool) {
	id, ok = strings.CutPrefix(bootstrap, "sha256:")
	return id, ok && len(id) == 64 && blob.CheckID(id) == nil
}

// openBlob opens the image whose bootstrap lies inside a blob of the source. Of
// the blob only that is read.
func openBlob(ctx context.Context, from backend.Backend, id string) (*image.Image, error) {
	r, err := from.Open(id)
	if err != nil {
		return nil, err
	}
	size, err := r.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", id, err)
	}
	im, err := image.OpenAt(readerAt{ctx, r}, size, image.Options{InlineBlobID: id})
	if err != nil {
		return nil, fmt.Errorf("bootstrap in blob %s: %w", id, err)
	}
	return im, nil
}

// readerAt reads a blob in places as image.OpenAt does: within its size.
type readerAt struct {
	ctx context.Context
	r   backend.Reader
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.r.ReadRange(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bootstrapDir is where fetched bootstraps are kept: in the cache folder, or for as
// long as it takes to open one.
func bootstrapDir(o *Options) (dir string, done func(), err error) {
	if o.CacheDir != "" {
		dir = filepath.Join(o.CacheDir, "bootstraps")
		if err := os.MkdirAll(dir, 0o700); err == nil {
			return dir, func() {}, nil
		}
	}
	dir, err = os.MkdirTemp("", "rafsd-bootstrap-")
	if err != nil {
		return "", nil, fmt.Errorf("a folder for the bootstrap: %w", err)
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

func pullOptions(r *config.Registry) (artifact.Options, error) {
	opts := artifact.Options{PlainHTTP: r.Scheme == "http", UserAgent: "rafsd"}
	if r.Auth.IsSet() {
		user, password, err := r.BasicAuth()
		if err != nil {
			return opts, fmt.Errorf("registry auth for %s: %w", r.Host, err)
		}
		opts.Keychain = oneHost{r.Host, &authn.Basic{Username: user, Password: password}}
	} else if token := r.Token.Reveal(); token != "" {
		opts.Keychain = oneHost{r.Host, authn.FromConfig(authn.AuthConfig{RegistryToken: token})}
	}
	var err error
	opts.RootCAs, err = httprange.RootCAs(r.HTTP.CACertFiles)
	return opts, err
}

// oneHost gives credentials to one registry and to nobody else.
type oneHost struct {
	host string
	auth authn.Authenticator
}

func (k oneHost) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() == k.host {
		return k.auth, nil
	}
	return authn.Anonymous, nil
}

// configSpace is struct virtio_fs_config (VIRTIO 1.2 §5.11.4), for front-ends that
// ask the back-end for it; empty if no tag was given.
func configSpace(o *Options) []byte {
	if o.Tag == "" {
		return nil
	}
	space := make([]byte, 40)
	copy(space[:36], o.Tag)
	binary.LittleEndian.PutUint32(space[36:], uint32(o.Queues))
	return space
}
