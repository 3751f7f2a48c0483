package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/e2e/registry"
	"github.com/rafsd/rafsd/guest/probe"
)

// startRegistry starts an empty registry. It keeps its content in files: the driver that
// keeps it in memory copies a blob for each part of it that arrives.
func startRegistry(t *testing.T) *registry.Registry {
	t.Helper()
	r, err := registry.Start(t.TempDir())
	must(t, err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// smallImage makes an image of two layers with about 6 MB that do not compress: the
// second replaces a file, removes one, and links to one of the first.
func smallImage(t *testing.T) v1.Image {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{1})
	data := func(n int) []byte {
		b := make([]byte, n)
		_, err := noise.Read(b)
		must(t, err)
		return b
	}
	lower := layer(t, []file{
		{"data/", 0o755, nil, ""}, {"etc/", 0o755, nil, ""},
		{"data/a", 0o644, data(3 << 20), ""}, {"data/b", 0o600, data(1<<20 + 1), ""}, {"data/c", 0o644, data(2 << 20), ""},
		{"data/gone", 0o644, data(5000), ""}, {"data/empty", 0o644, nil, ""},
		{"etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"), ""},
	})
	upper := layer(t, []file{
		{"data/", 0o711, nil, ""}, {"data/b", 0o640, data(70_000), ""}, {"data/.wh.gone", 0o600, nil, ""},
		{"data/link", 0o777, nil, "../etc/hosts"},
	})
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, lower, upper)
	must(t, err)
	return image
}

type file struct {
	name string
	mode int64
	text []byte
	link string
}

func layer(t *testing.T, files []file) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.text)), Uid: i, Gid: 100_000 + i, Typeflag: tar.TypeReg}
		h.ModTime = h.ModTime.AddDate(2020, i, 0)
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		must(t, w.WriteHeader(h))
		_, err := w.Write(f.text)
		must(t, err)
	}
	must(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	must(t, err)
	return l
}

// published is an image in a registry in its RAFS form.
type published struct {
	registry.Image
	reference string
	byDigest  string
}

// publish pushes an image and lets rafsd convert it.
func publish(ctx context.Context, t *testing.T, r *registry.Registry, image v1.Image) published {
	t.Helper()
	source, target := r.Host+"/library/root:oci", r.Host+"/library/root:rafs"
	ref, err := name.ParseReference(source)
	must(t, err)
	must(t, remote.Write(ref, image, remote.WithContext(ctx)))
	bin, err := binary()
	must(t, err)
	if text, err := exec.CommandContext(ctx, bin, "convert", source, target).CombinedOutput(); err != nil {
		t.Fatalf("rafsd convert %s %s: %v\n%s", source, target, err, text)
	}
	converted, err := registry.Stat(ctx, target)
	must(t, err)
	tagged, err := name.ParseReference(target)
	must(t, err)
	head, err := remote.Head(tagged, remote.WithContext(ctx))
	must(t, err)
	return published{converted, target, tagged.Context().Digest(head.Digest.String()).String()}
}

// unpack applies the layers of an image to a folder with GNU tar, as a second opinion
// on what they mean, and returns what lies there. Whiteouts are applied here, for the
// few that the images of these tests have.
func unpack(t *testing.T, image v1.Image) []probe.Entry {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	layers, err := image.Layers()
	must(t, err)
	for i, l := range layers {
		r, err := l.Uncompressed()
		must(t, err)
		cmd := exec.Command("tar", "--extract", "--same-permissions", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*")
		cmd.Dir, cmd.Stdin = dir, r
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: layer %d: %v\n%s", i, err, text)
		}
		must(t, r.Close())
		must(t, removeWhiteouts(dir))
	}
	// Removing a whiteout has touched its folder; the archive says what time it has.
	restoreTimes(t, dir, layers)
	list, err := probe.Tree(dir)
	must(t, err)
	return list
}

func removeWhiteouts(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden, is := strings.CutPrefix(d.Name(), ".wh.")
		if !is {
			return nil
		}
		if strings.HasPrefix(hidden, ".wh.") {
			return fmt.Errorf("%s: opaque folders are not known here", path)
		}
		if err := os.RemoveAll(filepath.Join(filepath.Dir(path), hidden)); err != nil {
			return err
		}
		return os.Remove(path)
	})
}

func restoreTimes(t *testing.T, dir string, layers []v1.Layer) {
	t.Helper()
	for _, l := range layers {
		r, err := l.Uncompressed()
		must(t, err)
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			if h.Typeflag == tar.TypeDir {
				must(t, os.Chtimes(filepath.Join(dir, h.Name), h.ModTime, h.ModTime))
			}
		}
		must(t, r.Close())
	}
}
