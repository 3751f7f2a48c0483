package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// bootstrapName is the metadata's path in the last layer of a RAFS image.
const bootstrapName = "image/image.boot"

// convertTree makes an image of the tree with this project's own program, by way
// of an OCI image of one layer.
func convertTree(ctx context.Context, program, tree, dir string) error {
	source := filepath.Join(dir, "oci")
	if err := packTree(ctx, tree, source); err != nil {
		return fmt.Errorf("pack %s: %w", tree, err)
	}
	if err := command(ctx, program, "convert", "oci:"+source, "oci:"+filepath.Join(dir, "rafs")); err != nil {
		return err
	}
	if err := takeBootstrap(filepath.Join(dir, "rafs"), filepath.Join(dir, "image.boot")); err != nil {
		return err
	}
	return os.RemoveAll(source)
}

// packTree makes an OCI layout in dst of an image whose only layer is the folder.
func packTree(ctx context.Context, tree, dst string) error {
	path, err := layout.Write(dst, empty.Index)
	if err != nil {
		return err
	}
	packed := filepath.Join(dst, "layer.tar.gz")
	if err := writeLayer(ctx, tree, packed); err != nil {
		return err
	}
	defer os.Remove(packed)
	layer, err := tarball.LayerFromFile(packed, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return err
	}
	return path.AppendImage(img)
}

func writeLayer(ctx context.Context, tree, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w := &layerWriter{Writer: tar.NewWriter(z), tree: tree, seen: map[[2]uint64]string{}}
	err = filepath.WalkDir(tree, func(full string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && full != tree {
			err = w.add(full)
		}
		return err
	})
	return errors.Join(err, w.Close(), z.Close(), f.Close())
}

// layerWriter packs a folder with everything that a daemon shows of it.
type layerWriter struct {
	*tar.Writer
	tree string
	seen map[[2]uint64]string // device and inode of files with several links
}

func (w *layerWriter) add(full string) error {
	fi, err := os.Lstat(full)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return err
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(full); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	h.Name = strings.TrimPrefix(full, w.tree+"/")
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	key := [2]uint64{st.Dev, st.Ino}
	if first := w.seen[key]; first != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return w.WriteHeader(h)
	}
	if st.Nlink > 1 && !fi.IsDir() {
		w.seen[key] = h.Name
	}
	if h.PAXRecords, err = xattrRecords(full); err != nil {
		return fmt.Errorf("%s: extended attributes: %w", full, err)
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// xattrRecords returns extended attributes in the form that tar keeps them in.
func xattrRecords(name string) (map[string]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX
	n, err := unix.Llistxattr(name, buf)
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	out := map[string]string{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(name, key, buf)
		if err != nil {
			return nil, err
		}
		out["SCHILY.xattr."+key] = string(buf[:n])
	}
	return out, nil
}

// takeBootstrap writes the metadata of the only image of an OCI layout into a file.
func takeBootstrap(folder, dst string) error {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(list.Manifests) != 1 {
		return fmt.Errorf("%s has %d images: want 1", folder, len(list.Manifests))
	}
	img, err := index.Image(list.Manifests[0].Digest)
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(layers) == 0 {
		return fmt.Errorf("%s: the image has no layers", folder)
	}
	r, err := layers[len(layers)-1].Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	return extract(r, bootstrapName, dst)
}

// extract writes one file of a tar stream into dst.
func extract(r io.Reader, name, dst string) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err != nil {
			return fmt.Errorf("%s in the last layer: %w", name, err)
		}
		if strings.TrimPrefix(h.Name, "./") != name {
			continue
		}
		f, err := os.Create(dst)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		return errors.Join(err, f.Close())
	}
}
