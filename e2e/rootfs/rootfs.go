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
	"slices"
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
	// Layers are further packages, each group a layer of its own upon those before.
	Layers [][]string
}

// Image returns an OCI image of gzip layers. What it holds does not change while the
// cache keeps it.
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
	parts := append([]string{recipe, o.Suite}, o.Packages...)
	for _, group := range o.Layers {
		parts = append(append(parts, ""), group...)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return o.Suite + "-" + hex.EncodeToString(sum[:6])
}

// fill makes an OCI layout.
func (o Options) fill(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp("", "rafsd-rootfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	layers, err := o.layers(ctx, work)
	if err != nil {
		return err
	}
	image, err := wrap(layers)
	if err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(image)
}

// layers makes the layers of the image in a folder.
func (o Options) layers(ctx context.Context, work string) ([]v1.Layer, error) {
	var layers []v1.Layer
	packages, below := o.Packages, ""
	for i := range len(o.Layers) + 1 {
		if i > 0 {
			packages = slices.Concat(packages, o.Layers[i-1])
		}
		whole := filepath.Join(work, fmt.Sprintf("%d.tar", i))
		if err := debootstrap(ctx, o.Suite, packages, whole); err != nil {
			return nil, err
		}
		packed := whole + ".gz"
		if err := pack(packed, below, whole); err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromFile(packed, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		layers, below = append(layers, layer), whole
	}
	return layers, nil
}

// debootstrap makes a tar of a whole root file system.
func debootstrap(ctx context.Context, suite string, packages []string, tar string) error {
	args := []string{"--quiet", "--variant=minbase"}
	if len(packages) > 0 {
		args = append(args, "--include="+strings.Join(packages, ","))
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, suite, tar)...)
	// A fixed time makes equal packages give equal bytes.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "LC_ALL=C.UTF-8")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s", suite, err, bytes.TrimSpace(text))
	}
	return nil
}

// wrap makes an image that starts Python.
func wrap(layers []v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layers...)
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

// pack compresses the tar whole, or what it has beyond the tar below if there is one.
func pack(to, below, whole string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	if below == "" {
		err = copyFile(z, whole)
	} else {
		err = difference(z, below, whole)
	}
	return errors.Join(err, z.Close(), out.Close())
}

func copyFile(w io.Writer, name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
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
