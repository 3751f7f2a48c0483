package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/build"
)

// mergeFlags are those of image merge.
type mergeFlags struct {
	hostFlags
	parent, bootstrap, blobDir, chunkDict, prefetch, outputJSON, config  string
	blobDigests, originalBlobIDs, blobSizes, blobTOCDigests, blobTOCSize string
}

const mergeLong = `Make one image of the bootstraps of layers, the lowest first; blobs, or bootstraps inside of blobs,
are taken as well. No data is read or written.

Blobs are named by the files of the bootstraps, up to the first dot, unless the lists say otherwise;
each list has an entry for each SOURCE.`

func (a *app) imageMerge() *cobra.Command {
	f := &mergeFlags{}
	cmd := &cobra.Command{
		Use:   "merge [flags] SOURCE...",
		Short: "Make one image of the bootstraps of layers",
		Long:  mergeLong,
		Example: `  rafsd image merge -B image.boot layer1.boot layer2.boot
  echo / | rafsd image merge --prefetch-policy fs -J result.json -B image.boot layer1.boot layer2.boot`,
		Args: args(cobra.MinimumNArgs(1), "at least one SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("prefetch-policy", f.prefetch, "fs", "blob", "none"); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageMerge(cmd.Context(), f, args, log) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.parent, "parent-bootstrap", "", "bootstrap of the image below the layers")
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "write the bootstrap to this file")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", "folder for a bootstrap without a path, named by its SHA-256")
	flags.StringVar(&f.chunkDict, "chunk-dict", "", "bootstrap that the layers were made with as their dictionary: [bootstrap=]FILE")
	flags.StringVar(&f.prefetch, "prefetch-policy", "none", "fs: list the paths on stdin in the bootstrap; blob or none: not")
	outputJSONFlag(flags, &f.outputJSON)
	flags.StringVar(&f.blobDigests, "blob-digests", "", "SHA-256 of the layers' blobs, separated by commas")
	flags.StringVar(&f.originalBlobIDs, "original-blob-ids", "", "ids of the layers' blobs, separated by commas")
	flags.StringVar(&f.blobSizes, "blob-sizes", "", "bytes of the layers' blobs, separated by commas")
	flags.StringVar(&f.blobTOCDigests, "blob-toc-digests", "", "SHA-256 of their tables of contents, separated by commas")
	flags.StringVar(&f.blobTOCSize, "blob-toc-sizes", "", "bytes of their tables of contents, separated by commas")
	flags.StringVarP(&f.config, "config", "C", "", "configuration of the storage backend that has the layers' blobs: it is asked for their sizes and tables of contents")
	f.registerHost(flags)
	return cmd
}

// list splits a list at its commas.
func list(s string) []string {
	if s == "" {
		return nil
	}
	items := strings.Split(s, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

func numbers(flag, s string) ([]uint64, error) {
	var out []uint64
	for _, item := range list(s) {
		n, err := strconv.ParseUint(item, 10, 64)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--%s: %q is no number", flag, item)}
		}
		out = append(out, n)
	}
	return out, nil
}

func (a *app) runImageMerge(ctx context.Context, f *mergeFlags, sources []string, log *slog.Logger) error {
	sizes, err := numbers("blob-sizes", f.blobSizes)
	if err != nil {
		return err
	}
	tocSizes, err := numbers("blob-toc-sizes", f.blobTOCSize)
	if err != nil {
		return err
	}
	dict, err := dictPath(f.chunkDict)
	if err != nil {
		return err
	}
	if f.bootstrap == "" && f.blobDir == "" {
		return errors.New("nowhere to put the bootstrap: want --bootstrap or --blob-dir")
	}
	policy, _ := build.ParsePrefetchPolicy(f.prefetch)
	paths, err := a.prefetchPaths(policy, log)
	if err != nil {
		return err
	}
	o := build.MergeOptions{
		Sources: sources, Parent: f.parent, ChunkDict: dict, Bootstrap: f.bootstrap, BlobDir: f.blobDir,
		BlobIDs: list(f.originalBlobIDs), BlobDigests: list(f.blobDigests), BlobSizes: sizes,
		TOCDigests: list(f.blobTOCDigests), TOCSizes: tocSizes,
		Prefetch: build.Prefetch{Policy: policy, Paths: paths},
	}
	if f.config != "" {
		b, err := (&blobFlags{daemon: f.config}).open()
		if err != nil {
			return err
		}
		defer b.Close()
		o.Blobs = b
	}
	label := cmp.Or(f.bootstrap, f.blobDir)
	r, err := a.build(&f.hostFlags, log, label, "reading", func(h build.Host) (*build.Result, error) {
		o.Host = h
		return build.Merge(ctx, o)
	})
	if err != nil {
		return err
	}
	log.Info("image made", "bootstrap", r.Bootstrap, "inodes", r.Inodes, "blobs", len(r.Blobs))
	return writeOutputJSON(f.outputJSON, resultJSON(r))
}
