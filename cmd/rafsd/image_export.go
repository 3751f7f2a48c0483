package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
)

// unpackFlags are those of image unpack.
type unpackFlags struct {
	blobFlags
	bootstrap, config, output, progress string
}

func (a *app) imageUnpack() *cobra.Command {
	f := &unpackFlags{}
	cmd := &cobra.Command{
		Use:   "unpack [BOOTSTRAP] --output TAR",
		Short: "Turn an image into a tar file",
		Long: `Turn an image into a tar file (pax) that is the same image again. All data is verified. TAR may be
a fifo, or - for stdout.`,
		Example: `  rafsd image unpack -D blobs --output rootfs.tar image.boot
  rafsd image unpack -b layer.blob --output - layer.blob | tar -tv`,
		Args: args(cobra.MaximumNArgs(1), "one BOOTSTRAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b := bootstrapFlags{flag: f.bootstrap}
			path, err := b.path(args)
			if err := errors.Join(err, needed(cmd, "output")); err != nil {
				return err
			}
			f.daemon = f.config
			return a.withLog(func(log *slog.Logger) error { return a.runImageUnpack(cmd.Context(), f, path, log) })
		},
	}
	flags := cmd.Flags()
	f.register(flags, "folder with the image's blobs")
	flags.StringVarP(&f.blob, "blob", "b", "", "the image's blob, if it has one only")
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "bootstrap of the image, in place of the argument")
	configFlag(flags, &f.config)
	flags.StringVar(&f.output, "output", "", "write the tar to this file")
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	return cmd
}

// openData is export.NewData or another one like it.
type openData func(*image.Image, backend.Backend, *slog.Logger) (*export.Data, error)

// withData opens an image and its blobs.
func withData(path string, f *blobFlags, log *slog.Logger, newData openData, use func(*image.Image, *export.Data) error) error {
	im, err := image.Open(path, image.Options{InlineBlobID: idOf(path, f), InFile: true})
	if err != nil {
		return err
	}
	defer im.Close()
	b, err := f.open()
	if err != nil {
		return err
	}
	defer b.Close()
	data, err := newData(im, b, log)
	if err != nil {
		return err
	}
	defer data.Close()
	return use(im, data)
}

// idOf is the id of the blob that the bootstrap of a layer was written into: that
// of the one blob that is given, or of the file that the bootstrap lies in.
func idOf(path string, f *blobFlags) string {
	if f.blob != "" {
		return inlineID(f.blob)
	}
	return ""
}

func (a *app) runImageUnpack(ctx context.Context, f *unpackFlags, path string, log *slog.Logger) (err error) {
	if f.output == "" {
		return &usageError{errors.New("--output is empty, want a path")}
	}
	limitHeap(a.getenv)
	return withData(path, &f.blobFlags, log, export.NewData, func(im *image.Image, data *export.Data) error {
		return a.withProgress(f.progress, f.output == "-" || a.quiet(), path, "unpacking", func(tell func(done, total int64)) (int64, error) {
			o := export.UnpackOptions{Log: log, Progress: tell}
			stats, err := a.writeTo(f.output, func(w io.Writer) (export.Stats, error) { return export.Unpack(ctx, im, data, w, o) })
			return stats.Bytes, err
		})
	})
}

// writeTo writes a file that has its name only when it is whole, a fifo or device
// that is there, or stdout.
func (a *app) writeTo(path string, write func(io.Writer) (export.Stats, error)) (stats export.Stats, err error) {
	if path == "-" {
		return write(a.stdout)
	}
	st, statErr := os.Stat(path)
	direct := statErr == nil && !st.Mode().IsRegular()
	var file *os.File
	if direct {
		file, err = os.OpenFile(path, os.O_WRONLY, 0)
	} else {
		file, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	}
	if err != nil {
		return stats, err
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if !direct && err == nil {
			err = os.Rename(file.Name(), path)
		}
		if !direct && err != nil {
			os.Remove(file.Name())
		}
	}()
	out := bufio.NewWriterSize(file, 1<<20)
	if stats, err = write(out); err != nil {
		return stats, err
	}
	if err := out.Flush(); err != nil || direct {
		return stats, err
	}
	return stats, errors.Join(file.Chmod(0o644), file.Sync())
}

// exportFlags are those of image export.
type exportFlags struct {
	block, verity, deviceTable bool
	hostFlags
	bootstrap, config, localfsDir, threads, out string
}

func (a *app) imageExport() *cobra.Command {
	f := &exportFlags{}
	cmd := &cobra.Command{
		Use:   "export --block [flags]",
		Short: "Turn an image into one flat disk that Linux mounts",
		Long: `Turn an image into one flat EROFS disk that 'mount -t erofs' mounts with no daemon at all, with
--verity followed by a hash tree for dm-verity, whose options are printed.

Data is verified. A tar file of tarfs has no digest but its name; one that has another name, as those
of nydus-snapshotter, is taken as it is, with a warning.`,
		Example: `  rafsd image export --block -D blobs -B image.boot -O image.erofs
  mount -t erofs -o loop image.erofs /mnt`,
		Args: args(cobra.NoArgs, "flags only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageExport(cmd.Context(), f, log) })
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.block, "block", false, "export a disk")
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "bootstrap of the image")
	configFlag(flags, &f.config)
	flags.StringVarP(&f.localfsDir, "localfs-dir", "D", "", "folder with the image's blobs")
	alias(flags, map[string]string{"blob-dir": "localfs-dir"})
	flags.StringVar(&f.threads, "threads", "4", "accepted, 1 to 32; the work goes on as many as it needs")
	flags.StringVarP(&f.out, "output", "O", "", "write the disk to this file (default ID.disk beside the blobs)")
	flags.BoolVar(&f.verity, "verity", false, "append a hash tree for dm-verity")
	flags.BoolVar(&f.deviceTable, "device-table", false, "lay the disk out as nydus-image does, which Linux mounts since 6.4 only")
	f.registerHost(flags)
	return cmd
}

func (f *exportFlags) check(cmd *cobra.Command) error {
	n := 0
	_, err := fmt.Sscanf(f.threads, "%d", &n)
	switch {
	case !f.block:
		return &usageError{errors.New("want --block")}
	case err != nil || n < 1 || n > 32:
		return &usageError{fmt.Errorf("--threads %s: want 1 to 32", f.threads)}
	case f.localfsDir != "" && f.bootstrap == "":
		return &usageError{errors.New("--localfs-dir needs --bootstrap")}
	case f.bootstrap != "" && f.localfsDir == "":
		return &usageError{errors.New("--bootstrap needs --localfs-dir")}
	case f.localfsDir == "" && f.out == "":
		return &usageError{errors.New("want --output, or --localfs-dir")}
	case f.localfsDir == "" && f.config == "":
		return errors.New("where is the image? want --bootstrap and --localfs-dir, or --config")
	}
	return conflicts(cmd, [2]string{"localfs-dir", "config"})
}

func (a *app) runImageExport(ctx context.Context, f *exportFlags, log *slog.Logger) error {
	blobs := blobFlags{blobDir: f.localfsDir}
	boot := f.bootstrap
	if f.config != "" {
		entry, err := blobEntry(f.config)
		if err != nil {
			return err
		}
		boot, blobs.blobDir = entry.bootstrap, entry.dir
	}
	out := f.out
	if out == "" {
		out = filepath.Join(blobs.blobDir, strings.TrimSuffix(filepath.Base(boot), filepath.Ext(boot))+".disk")
	}
	limitHeap(a.getenv)
	local := func(im *image.Image, b backend.Backend, log *slog.Logger) (*export.Data, error) {
		return export.NewLocalData(ctx, im, b, log)
	}
	return withData(boot, &blobs, log, local, func(im *image.Image, data *export.Data) error {
		var disk *export.Disk
		err := a.withProgress(f.progress, a.quiet(), out, "exporting", func(tell func(done, total int64)) (_ int64, err error) {
			disk, err = export.Block(ctx, im, data, out, export.BlockOptions{
				Verity: f.verity, DeviceTable: f.deviceTable, TempDir: f.workDir, Progress: tell,
			})
			if err != nil {
				return -1, err
			}
			return disk.Size, nil
		})
		if err != nil {
			return err
		}
		if disk.Verity != nil {
			fmt.Fprintln(a.stdout, disk.Verity)
		}
		return nil
	})
}

// diskEntry is what a BlobCacheEntry of nydus says of an image in a folder.
type diskEntry struct{ bootstrap, dir string }

// blobEntry reads the configuration of export, a BlobCacheEntry: its config_v2 is
// one of nydusd with the path of a bootstrap (nydus api/src/config.rs).
func blobEntry(path string) (diskEntry, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return diskEntry{}, fmt.Errorf("--config: %w", err)
	}
	var entry struct {
		Config rawJSON `json:"config_v2"`
	}
	var meta struct {
		Path string `json:"metadata_path"`
	}
	if err := errors.Join(decodeJSON(raw, &entry), decodeJSON(entry.Config, &meta)); err != nil {
		return diskEntry{}, &usageError{fmt.Errorf("--config %s: %w", path, err)}
	}
	c, _, err := config.Parse(entry.Config)
	if err != nil {
		return diskEntry{}, &usageError{fmt.Errorf("--config %s: %w", path, err)}
	}
	if meta.Path == "" || c.Backend.LocalFS.Dir == "" {
		return diskEntry{}, &usageError{fmt.Errorf("--config %s: want config_v2 with metadata_path and a localfs backend with dir", path)}
	}
	return diskEntry{meta.Path, c.Backend.LocalFS.Dir}, nil
}
