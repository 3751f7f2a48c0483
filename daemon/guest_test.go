package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/rafstest"
	"github.com/rafsd/rafsd/vhostuser/vhostusertest"
)

// start runs the daemon until the test ends and returns its socket.
func start(t testing.TB, o Options) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	o.Socket = filepath.Join(t.TempDir(), "s")
	o.CacheDir = o.Config.Cache.WorkDir
	o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if o.Queues == 0 {
		o.Queues = 2
	}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("run: %v", err)
	}
	return o.Socket
}

// localConfig is what --localfs-dir with another cache folder means.
func localConfig(t testing.TB, blobs, cache string) *config.Config {
	t.Helper()
	c, err := config.New(config.WithLocalFS(blobs), config.WithCacheDir(cache))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// guestTree yields what a guest sees below the root.
func guestTree(ctx context.Context, c *vhostusertest.Client) iter.Seq2[rafstest.Entry, error] {
	return func(yield func(rafstest.Entry, error) bool) {
		stopped := errors.New("stopped")
		err := c.Walk(ctx, vhostusertest.RootNode, func(path string, e vhostusertest.Entry) error {
			entry, err := guestEntry(ctx, c, "/"+path, e)
			if !yield(entry, err) {
				return stopped
			}
			return nil
		})
		if err != nil && err != stopped {
			yield(rafstest.Entry{}, err)
		}
	}
}

func guestEntry(ctx context.Context, c *vhostusertest.Client, path string, n vhostusertest.Entry) (e rafstest.Entry, err error) {
	a := &n.Attr
	e = rafstest.Entry{
		Path: path, Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: a.Nlink, Size: a.Size,
		Mtime: int64(a.Mtime), MtimeNsec: a.MtimeNsec, Rdev: a.Rdev,
	}
	if a.IsSymlink() {
		if e.Link, err = c.Readlink(ctx, n.Node); err != nil {
			return e, err
		}
	}
	if a.IsRegular() {
		sum := sha256.New()
		if err := c.ReadFile(ctx, sum, n.Node, a.Size); err != nil {
			return e, err
		}
		e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	names, err := c.Listxattr(ctx, n.Node)
	if errors.Is(err, syscall.ENOSYS) {
		return e, nil
	}
	for _, name := range names {
		value, err := c.Getxattr(ctx, n.Node, name)
		if err != nil {
			return e, fmt.Errorf("getxattr %q: %w", name, err)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[name] = string(value)
	}
	return e, err
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
