package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/build"
)

type rawJSON = json.RawMessage

func decodeJSON(data []byte, v any) error {
	if len(data) == 0 {
		return errors.New("no configuration")
	}
	return json.Unmarshal(data, v)
}

// compactFlags are those of image compact.
type compactFlags struct {
	blobFlags
	hostFlags
	bootstrap, chunkDict, output, outputJSON   string
	minUsedRatio, blobSize, maxSize, minLayers string
}

func (a *app) imageCompact() *cobra.Command {
	f := &compactFlags{}
	cmd := &cobra.Command{
		Use:   "compact -B BOOTSTRAP -D FOLDER",
		Short: "Store what an image uses of little used and small blobs in new ones",
		Long: `Store the chunks that an image uses of little used and of small blobs in new blobs. Where there is
nothing to gain, nothing is written.`,
		Example: `  rafsd image compact -B image.boot -D blobs --min-used-ratio 50
  rafsd image compact -B image.boot -D blobs --layers-to-compact 32 -O compact.boot`,
		Args: args(cobra.NoArgs, "flags only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "bootstrap", "blob-dir"); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageCompact(cmd.Context(), f, log) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "bootstrap of the image")
	f.register(flags, "folder with blobs, and for new ones")
	flags.StringVar(&f.minUsedRatio, "min-used-ratio", "5", "percent of a blob that must be in use so that it is kept, 0 to 99; 0 keeps all")
	flags.StringVar(&f.blobSize, "compact-blob-size", "10485760", "bytes below which blobs are put together")
	flags.StringVar(&f.maxSize, "max-compact-size", "104857600", "bytes that blobs may have after that")
	flags.StringVar(&f.minLayers, "layers-to-compact", "32", "do nothing for fewer blobs; 0 for always")
	flags.StringVar(&f.chunkDict, "chunk-dict", "", "bootstrap whose blobs stay as they are: [bootstrap=]FILE")
	flags.StringVarP(&f.output, "output-bootstrap", "O", "", "write the bootstrap to this file (default BOOTSTRAP with .bootstrap.compact in place of its extension)")
	outputJSONFlag(flags, &f.outputJSON)
	f.registerHost(flags)
	return cmd
}

func (a *app) runImageCompact(ctx context.Context, f *compactFlags, log *slog.Logger) error {
	var n [4]uint64
	for i, v := range []struct{ flag, value string }{
		{"min-used-ratio", f.minUsedRatio}, {"compact-blob-size", f.blobSize}, {"max-compact-size", f.maxSize}, {"layers-to-compact", f.minLayers},
	} {
		var err error
		if n[i], err = strconv.ParseUint(v.value, 10, 63); err != nil {
			return fmt.Errorf("--%s %q: want a number", v.flag, v.value)
		}
	}
	if n[0] > 99 {
		return fmt.Errorf("--min-used-ratio %d: want 0 to 99", n[0])
	}
	dict, err := dictPath(f.chunkDict)
	if err != nil {
		return err
	}
	b, err := f.open()
	if err != nil {
		return err
	}
	defer b.Close()
	out := f.output
	if out == "" {
		out = strings.TrimSuffix(f.bootstrap, filepath.Ext(f.bootstrap)) + ".bootstrap.compact"
	}
	r, err := a.build(&f.hostFlags, log, f.bootstrap, "compacting", func(h build.Host) (*build.Result, error) {
		return build.Compact(ctx, build.CompactOptions{
			Host: h, Source: f.bootstrap, Blobs: b, MinUsedRatio: int(n[0]), BlobSize: n[1], MaxSize: n[2],
			Layers: int(min(n[3], 1<<31-1)), ChunkDict: dict, Bootstrap: out, BlobDir: f.blobDir,
		})
	})
	if err != nil {
		return err
	}
	if r == nil {
		log.Info("nothing to gain, nothing was written")
		return nil
	}
	log.Info("image made", "bootstrap", r.Bootstrap, "blobs", len(r.Blobs))
	return writeOutputJSON(f.outputJSON, resultJSON(r))
}

// optimizeFlags are those of image optimize.
type optimizeFlags struct {
	blobFlags
	hostFlags
	bootstrap, files, config, output, outputDir, outputJSON string
}

func (a *app) imageOptimize() *cobra.Command {
	f := &optimizeFlags{}
	cmd := &cobra.Command{
		Use:   "optimize -B BOOTSTRAP -p FILE --output-blob-dir FOLDER",
		Short: "Give an image a blob with what is wanted first",
		Long: `Give an image one more blob, with the files that are wanted first and nothing else, so that it can
be fetched in one go. FILE lists them: {"version":"v1","files":[{"path":"/a","ranges":[[0,4096]]}]}.`,
		Example: `  rafsd image optimize -B image.boot -D blobs -p files.json --output-blob-dir blobs -O fast.boot`,
		Args:    args(cobra.NoArgs, "flags only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.daemon = f.config
			if err := errors.Join(needed(cmd, "bootstrap"), conflicts(cmd, [2]string{"blob-dir", "config"})); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageOptimize(cmd.Context(), f, log) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "bootstrap of the image")
	flags.StringVarP(&f.files, "prefetch-files", "p", "", "list of the files that are wanted first")
	configFlag(flags, &f.config)
	f.register(flags, "folder with the image's blobs")
	flags.StringVarP(&f.blob, "blob", "b", "", "the image's blob, if it has one only")
	flags.StringVarP(&f.output, "output-bootstrap", "O", "optimized_bootstrap", "write the bootstrap to this file")
	flags.StringVar(&f.outputDir, "output-blob-dir", "", "folder for the new blob")
	outputJSONFlag(flags, &f.outputJSON)
	f.registerHost(flags)
	return cmd
}

func (a *app) runImageOptimize(ctx context.Context, f *optimizeFlags, log *slog.Logger) error {
	switch {
	case f.outputDir == "":
		return errors.New("want --output-blob-dir, a folder for the new blob")
	case f.files == "":
		return errors.New("want --prefetch-files, the list of the files that are wanted first")
	}
	in, err := os.Open(f.files)
	if err != nil {
		return fmt.Errorf("--prefetch-files: %w", err)
	}
	defer in.Close()
	files, err := build.ParsePrefetchFiles(in)
	if err != nil {
		return fmt.Errorf("--prefetch-files %s: %w", f.files, err)
	}
	b, err := f.open()
	if err != nil {
		return err
	}
	defer b.Close()
	r, err := a.build(&f.hostFlags, log, f.bootstrap, "optimizing", func(h build.Host) (*build.Result, error) {
		return build.Optimize(ctx, build.OptimizeOptions{
			Host: h, Source: f.bootstrap, Blobs: b, Files: files, Bootstrap: f.output, BlobDir: f.outputDir,
		})
	})
	if err != nil {
		return err
	}
	log.Info("image made", "bootstrap", r.Bootstrap, "blob", r.Blob, "size", r.BlobSize)
	return writeOutputJSON(f.outputJSON, resultJSON(r))
}

// dictFlags are those of image chunkdict generate.
type dictFlags struct {
	hostFlags
	bootstrap, blobDir, prefetch, outputJSON, config, database string
	verbose                                                    bool
	minImages                                                  int
}

func (a *app) imageChunkDict() *cobra.Command {
	cmd := &cobra.Command{
		Use: "chunkdict COMMAND", Short: "Make chunk dictionaries",
		Args: args(cobra.NoArgs, "a command"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.Join(cmd.Help(), &usageError{errors.New("a command is missing")})
		},
	}
	f := &dictFlags{}
	generate := &cobra.Command{
		Use:   "generate [flags] SOURCE...",
		Short: "Make a dictionary of the chunks that several images have",
		Long: `Make a chunk dictionary of the bootstraps of images: of the chunks that several of them have, in
blobs that exist. 'image create --chunk-dict' refers to these instead of storing them again.`,
		Example: `  rafsd image chunkdict generate -B dict.boot python:3.11/image.boot python:3.12/image.boot
  rafsd image create --chunk-dict bootstrap=dict.boot -B image.boot -D blobs rootfs`,
		Args: args(cobra.MinimumNArgs(1), "at least one SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("prefetch-policy", f.prefetch, "fs", "blob", "none"); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runChunkDict(cmd.Context(), f, args, log) })
		},
	}
	flags := generate.Flags()
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "write the dictionary to this file")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", "folder for a dictionary without a path, named by its SHA-256")
	flags.StringVar(&f.database, "database", "", "accepted for nydus-image's callers; nothing is kept in a database")
	flags.StringVar(&f.prefetch, "prefetch-policy", "none", "accepted for nydus-image's callers: a dictionary has no files to prefetch")
	outputJSONFlag(flags, &f.outputJSON)
	flags.StringVarP(&f.config, "config", "C", "", "accepted for nydus-image's callers: SOURCEs are files, and no blob is read")
	f.registerHost(flags)
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "accepted for nydus-image's callers; see --log-level")
	flags.IntVar(&f.minImages, "min-images", 0, "how many images must have a chunk (default 2, or 1 for one image)")
	cmd.AddCommand(generate)
	return cmd
}

func (a *app) runChunkDict(ctx context.Context, f *dictFlags, sources []string, log *slog.Logger) error {
	if f.bootstrap == "" && f.blobDir == "" {
		return errors.New("nowhere to put the dictionary: want --bootstrap or --blob-dir")
	}
	if err := checkConfig(f.config); err != nil {
		return err
	}
	label := cmp.Or(f.bootstrap, f.blobDir)
	r, err := a.build(&f.hostFlags, log, label, "reading", func(h build.Host) (*build.Result, error) {
		return build.Dictionary(ctx, build.DictionaryOptions{
			Host: h, Sources: sources, MinImages: f.minImages, Bootstrap: f.bootstrap, BlobDir: f.blobDir,
		})
	})
	if err != nil {
		return err
	}
	log.Info("dictionary made", "bootstrap", r.Bootstrap, "blobs", len(r.Blobs))
	return writeOutputJSON(f.outputJSON, resultJSON(r))
}
