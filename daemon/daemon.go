// Package daemon puts the parts of rafsd together and owns their lifetimes: the
// image, the source of its blobs, the cache, the engine between them, the file
// system, the device, the vhost-user server and the metrics.
//
// It decides nothing that a guest could reach; it fails before it listens, or
// serves until its context ends.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rafsd/rafsd/daemon/device"
	"github.com/rafsd/rafsd/daemon/metrics"
	"github.com/rafsd/rafsd/rafs/blob/cache"
	"github.com/rafsd/rafsd/rafs/blob/fetch"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/rafsfs"
	"github.com/rafsd/rafsd/vhostuser"
)

// Run serves an image until ctx ends, and returns nil then. Errors of an image
// that is refused wrap image.ErrCorrupt, image.ErrUnsupported or image.ErrDigest.
func Run(ctx context.Context, o Options) error {
	started := time.Now()
	d, err := open(ctx, &o)
	if err != nil {
		return err
	}
	defer d.close()
	l, err := listen(&o)
	if err != nil {
		return err
	}
	m, err := d.metricsServer(&o)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.server.Serve(ctx, l) })
	if m != nil {
		group.Go(func() error { return m.Run(ctx) })
	}
	group.Go(func() error { d.prefetch(ctx, &o); return nil })
	s := d.image.Super()
	o.Log.Info("serving", "socket", l.Addr().String(), "version", s.Version, "inodes", s.Inodes,
		"blobs", len(d.image.Blobs()), "bootstrap", fmt.Sprintf("sha256:%x", s.SHA256), "took", time.Since(started))
	if o.Ready != nil {
		o.Ready()
	}
	return group.Wait()
}

// parts is everything between the image and the server, in the order in which it
// was opened.
type parts struct {
	source *source
	image  *image.Image
	cache  *cache.Cache
	engine *fetch.Engine
	fs     *rafsfs.FS
	device *device.Device
	server *vhostuser.Server
}

func open(ctx context.Context, o *Options) (_ *parts, err error) {
	d := new(parts)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.source, err = openSource(o.Config); err != nil {
		return nil, err
	}
	var metaDir string
	if d.image, metaDir, err = openImage(ctx, o, d.source); err != nil {
		return nil, err
	}
	d.cache = openCache(o)
	d.engine, err = fetch.New(fetch.Options{
		Blobs:       d.image.Blobs(),
		Catalog:     d.image,
		Backend:     d.source,
		Cache:       d.cache,
		MetaDir:     metaDir,
		MemoryLimit: o.Config.Rafsd.MemoryLimit,
		Connections: o.Config.Rafsd.Connections,
		Amplify:     amplify(o.Config.RAFS.BatchSize),
		Log:         o.Log,
	})
	if err != nil {
		return nil, err
	}
	d.fs = rafsfs.New(d.image, d.engine, rafsfs.Options{Log: o.Log})
	d.device = device.New(d.fs, device.Options{NoXattrs: !d.fs.HasXattrs(), Log: o.Log})
	d.server, err = vhostuser.NewServer(vhostuser.Config{
		Device:      d.device,
		Rings:       1 + o.Queues,
		ConfigSpace: configSpace(o),
		Log:         o.Log,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// close closes what is open, last first. The server has ended by then, so that
// nothing reads the image any more.
func (d *parts) close() {
	if d.engine != nil {
		_ = d.engine.Close()
	}
	if d.cache != nil {
		_ = d.cache.Close()
	}
	if d.image != nil {
		_ = d.image.Close()
	}
	if d.source != nil {
		_ = d.source.Close()
	}
}

// openCache opens the cache folder. One that cannot be used costs the caching, not
// the start: chunks are then fetched and verified for whoever reads them.
func openCache(o *Options) *cache.Cache {
	if o.CacheDir == "" {
		o.Log.Warn("no cache folder: chunks are kept in memory for a moment only; want --cache-dir or cache.work_dir")
		return nil
	}
	c, err := cache.Open(o.CacheDir)
	if err != nil {
		o.Log.Warn("going on without a cache", "folder", o.CacheDir, "err", err)
		return nil
	}
	return c
}

// amplify maps nydusd's amplify_io, which counts uncompressed bytes and is at most
// worth this much here, to the engine's option.
func amplify(batch int64) int {
	const most = 1 << 20
	if batch <= 0 {
		return -1
	}
	return int(min(batch, most))
}

// metricsServer listens for Prometheus, or returns nil if it is to stay away.
func (d *parts) metricsServer(o *Options) (*metrics.Server, error) {
	if o.Metrics == "" {
		return nil, nil
	}
	r, err := metrics.New(o.Version, d.samples)
	if err != nil {
		return nil, err
	}
	return metrics.NewServer(o.Metrics, r, nil, o.Log)
}
