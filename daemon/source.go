package daemon

import (
	"fmt"
	"time"

	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/blob/backend/oss"
	"github.com/rafsd/rafsd/rafs/blob/backend/registry"
	"github.com/rafsd/rafsd/rafs/blob/backend/s3"
)

// source is where blobs come from, with its meter.
type source struct {
	backend.Backend
	kind  string
	meter *backend.Meter
}

// openSource makes the backend that the configuration names. Nothing goes over
// the network yet. Each try is metered; what tries add up to is retried above.
func openSource(c *config.Config) (*source, error) {
	b, err := rawBackend(c)
	if err != nil {
		return nil, err
	}
	s := &source{kind: c.Backend.Type, meter: new(backend.Meter)}
	s.Backend = backend.Retry(backend.Observe(b, s.meter.Add), backend.RetryPolicy{
		Attempts: attempts(c),
	})
	return s, nil
}

func rawBackend(c *config.Config) (backend.Backend, error) {
	switch b := c.Backend; b.Type {
	case config.BackendLocalFS:
		if b.LocalFS.BlobFile != "" {
			return localfs.NewFile(b.LocalFS.BlobFile), nil
		}
		return localfs.New(b.LocalFS.Dir, b.LocalFS.AltDirs...)
	case config.BackendRegistry:
		return registry.New(registryOptions(&b.Registry, c.Rafsd.Connections))
	case config.BackendOSS, config.BackendS3:
		return OpenBucket(c)
	default:
		return nil, fmt.Errorf("backend %q is not served", b.Type)
	}
}

// OpenBucket makes the bucket that a configuration of type oss or s3 names.
func OpenBucket(c *config.Config) (*object.Bucket, error) {
	o := &c.Backend.Object
	out := object.Config{
		Scheme: o.Scheme, Endpoint: o.Endpoint, Region: o.Region, Bucket: o.Bucket, Prefix: o.Prefix,
		AccessKeyID: o.AccessKeyID, AccessKeySecret: o.AccessKeySecret.Reveal(),
		CAFiles: o.HTTP.CACertFiles, SkipVerify: o.HTTP.SkipVerify, Connections: c.Rafsd.Connections,
		ConnectTimeout: bound(o.HTTP.ConnectTimeout), FirstByteTimeout: bound(o.HTTP.Timeout),
	}
	if c.Backend.Type == config.BackendOSS {
		return oss.New(out)
	}
	return s3.New(out)
}

func registryOptions(r *config.Registry, connections int) registry.Options {
	return registry.Options{
		Host:             r.Host,
		Repo:             r.Repo,
		Scheme:           r.Scheme,
		Auth:             r.Auth.Reveal(),
		RegistryToken:    r.Token.Reveal(),
		RedirectScheme:   r.BlobURLScheme,
		RedirectHost:     r.BlobRedirectedHost,
		CAFiles:          r.HTTP.CACertFiles,
		SkipVerify:       r.HTTP.SkipVerify,
		ConnectTimeout:   bound(r.HTTP.ConnectTimeout),
		FirstByteTimeout: bound(r.HTTP.Timeout),
		Connections:      connections,
	}
}

// bound maps nydusd's 0, which means no bound, to one that no sane source reaches:
// here 0 means the default.
func bound(d time.Duration) time.Duration {
	if d == 0 {
		return 10 * time.Minute
	}
	return d
}

// attempts is how often a read is tried: over a network until the deadline of the
// read, whatever nydusd's retry_limit says, which it never used itself
// (storage/src/backend/mod.rs, retry_op); a local file once more.
func attempts(c *config.Config) int {
	if c.Backend.Type == config.BackendLocalFS {
		return 2
	}
	return 0
}

// OpenBackend makes the backend that a configuration names, for tools that read
// blobs without serving them. What fails for a moment is tried again.
func OpenBackend(c *config.Config) (backend.Backend, error) {
	b, err := rawBackend(c)
	if err != nil {
		return nil, err
	}
	return backend.Retry(b, backend.RetryPolicy{Attempts: attempts(c)}), nil
}
