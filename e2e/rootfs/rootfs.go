// Package rootfs makes a real root file system from Debian's or Ubuntu's packages and
// wraps it as an OCI image, as a build service would. The result is kept in the
// cache.
//
// It trusts apt, which checks the packages' signatures, and runs mmdebstrap, which
// needs root rights or user namespaces.
package rootfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/e2e/cache"
)

// Options say what goes into the root file system.
type Options struct {
	Suite    string   // release of the distribution; "" is the host's own
	Packages []string // beside the essential ones
}

// Image returns an OCI image of one gzip layer. What it holds does not change while
// the cache keeps it.
func Image(ctx context.Context, o Options) (v1.Image, error) {
	if o.Suite == "" {
		suite, err := HostSuite()
		if err != nil {
			return nil, err
		}
		o.Suite = suite
	}
	dir, err := cache.Entry(ctx, "rootfs/"+o.key(), o.fill)
	if err != nil {
		return nil, err
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("root file system: %d images in %s, want 1", len(manifest.Manifests), dir)
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// recipe changes when the same options are to give another image.
const recipe = "1"

func (o Options) key() string {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{recipe, o.Suite}, o.Packages...), "\n")))
	return o.Suite + "-" + hex.EncodeToString(sum[:6])
}

// fill makes an OCI layout.
func (o Options) fill(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp("", "rafsd-rootfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tar := filepath.Join(work, "layer.tar")
	args := []string{"--quiet", "--variant=minbase"}
	if len(o.Packages) > 0 {
		args = append(args, "--include="+strings.Join(o.Packages, ","))
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, o.Suite, tar)...)
	// A fixed time makes equal packages give equal bytes.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "LC_ALL=C.UTF-8")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s", o.Suite, err, bytes.TrimSpace(text))
	}
	packed := tar + ".gz"
	if err := compress(packed, tar); err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(packed, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	image, err := wrap(layer)
	if err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(image)
}

// wrap makes an image that starts Python.
func wrap(layer v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config = v1.Config{
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Cmd:        []string{"python3"},
		WorkingDir: "/tmp",
		User:       "nobody",
	}
	return mutate.ConfigFile(image, file)
}

func compress(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	return errors.Join(err, z.Close(), out.Close())
}

// HostSuite returns the release of the distribution that this machine runs.
func HostSuite() (string, error) { return hostSuite("/etc/os-release") }

// hostSuite reads the release's name from os-release.
func hostSuite(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); found {
			return strings.Trim(name, `"'`), nil
		}
	}
	return "", fmt.Errorf("%s names no VERSION_CODENAME: is this Debian or Ubuntu?", path)
}
