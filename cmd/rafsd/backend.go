package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/daemon"
	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
	"github.com/rafsd/rafsd/rafs/blob/backend/object"
	"github.com/rafsd/rafsd/rafs/convert"
)

// backendOptions are nydusify's flags for blobs that lie outside of registries.
type backendOptions struct {
	prefix                   string
	kind, config, configFile string
}

// register defines the flags; usage says what the blobs are. The environment may set
// them where they are nydusify's.
func (b *backendOptions) register(flags *pflag.FlagSet, prefix, usage string, environment bool) {
	b.prefix = prefix
	for name, flag := range map[string]struct {
		to              *string
		usage, variable string
	}{
		"backend-type":        {&b.kind, usage + ": s3, oss or localfs", "BACKEND_TYPE"},
		"backend-config":      {&b.config, "configuration of that, JSON with the keys of nydusd", "BACKEND_CONFIG"},
		"backend-config-file": {&b.configFile, "file with that configuration", "BACKEND_CONFIG_FILE"},
	} {
		flags.StringVar(flag.to, prefix+name, "", flag.usage)
		if environment {
			env(flags, prefix+name, flag.variable)
		}
	}
}

// blobPlace is where the blobs of an image are that does not list them: a folder or a
// bucket. Both are empty where the image has them.
type blobPlace struct {
	dir    string
	bucket *object.Bucket
}

func (p *blobPlace) close() {
	if p.bucket != nil {
		_ = p.bucket.Close()
	}
}

// open opens what the flags name. Nothing goes over the network yet.
func (b *backendOptions) open() (p blobPlace, err error) {
	usage := func(flag string, err error) (blobPlace, error) {
		return blobPlace{}, &usageError{fmt.Errorf("--%s%s: %w", b.prefix, flag, err)}
	}
	flag, raw := "backend-config", []byte(b.config)
	switch b.kind {
	case "":
		if b.config != "" || b.configFile != "" {
			return usage("backend-type", errors.New("missing, want s3, oss or localfs"))
		}
		return p, nil
	case config.BackendLocalFS, config.BackendS3, config.BackendOSS:
	default:
		return usage("backend-type", fmt.Errorf("want s3, oss or localfs, got %q", b.kind))
	}
	if b.configFile != "" {
		if b.config != "" {
			return usage("backend-config", fmt.Errorf("conflicts with --%sbackend-config-file", b.prefix))
		}
		flag = "backend-config-file"
		if raw, err = os.ReadFile(b.configFile); err != nil {
			return usage(flag, err)
		}
	}
	if len(raw) == 0 {
		return usage("backend-type", fmt.Errorf("needs --%sbackend-config or --%sbackend-config-file", b.prefix, b.prefix))
	}
	c, err := parseBackend(b.kind, raw)
	if err != nil {
		return usage(flag, err)
	}
	if b.kind == config.BackendLocalFS {
		if p.dir = c.Backend.LocalFS.Dir; p.dir == "" {
			return usage(flag, errors.New("dir: missing, want the folder of the blobs"))
		}
		return p, nil
	}
	if p.bucket, err = daemon.OpenBucket(c); err != nil {
		return usage(flag, err)
	}
	return p, nil
}

// parseBackend reads the configuration of a backend, which is what the key of its
// type has in a configuration of version 2.
func parseBackend(kind string, raw []byte) (*config.Config, error) {
	c, _, err := config.Parse(fmt.Appendf(nil, `{"version":2,"backend":{"type":%q,%q:%s}}`, kind, kind, raw))
	return c, err
}

// reader opens the place to read blobs; nil if there is none. It takes the place over.
func (p *blobPlace) reader() (backend.Backend, error) {
	switch {
	case p.bucket != nil:
		return backend.Retry(p.bucket, backend.RetryPolicy{}), nil
	case p.dir != "":
		b, err := localfs.New(p.dir)
		if err != nil {
			return nil, fmt.Errorf("blobs: %w", err)
		}
		return b, nil
	}
	return nil, nil
}

// blobsFrom opens the place of blobs that --blob-dir or the flags of a backend name;
// nil if none do.
func blobsFrom(dir string, b *backendOptions) (backend.Backend, error) {
	p, err := b.open()
	if err != nil {
		return nil, err
	}
	if dir != "" {
		if b.kind != "" {
			p.close()
			return nil, &usageError{fmt.Errorf("--blob-dir conflicts with --%sbackend-type", b.prefix)}
		}
		p.dir = dir
	}
	return p.reader()
}

// blobs sets the place of the blobs of a conversion.
func (f *convertFlags) blobs(o *convert.Options) error {
	if f.blobDir != "" && f.backend.kind != "" {
		return &usageError{errors.New("--blob-dir conflicts with --backend-type")}
	}
	p, err := f.backend.open()
	if err != nil {
		return err
	}
	if f.forcePush && p.bucket == nil && f.backend.kind != "" {
		return &usageError{errors.New("--backend-force-push: want it with s3 or oss")}
	}
	o.BlobDir = f.blobDir
	if p.dir != "" {
		o.BlobDir = p.dir
	}
	if p.bucket != nil {
		o.Bucket = &convert.Bucket{Bucket: p.bucket, Force: f.forcePush}
	}
	return nil
}
