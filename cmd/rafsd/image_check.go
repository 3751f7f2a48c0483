package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// checkFlags are those of image check.
type checkFlags struct {
	bootstrapFlags
	verbose, data, asJSON bool
	outputJSON            string
	max                   int
}

const checkLong = `Check an image: every rule of its format, all that breaks one, each with its offset in the
bootstrap. Oddities of other builders that every reader lives with are notes.

With --blob-dir the blobs are held against the bootstrap as well: sizes, tables of contents, chunk
information, digests; with --data all data is decoded and its digests are compared.`

func (a *app) imageCheck() *cobra.Command {
	f := &checkFlags{}
	cmd := &cobra.Command{
		Use:   "check [BOOTSTRAP]",
		Short: "Check an image: every rule of its format",
		Long:  checkLong,
		Example: `  rafsd image check image.boot
  rafsd image check -D blobs --data image.boot
  rafsd image check --json image.boot | jq '.violations[]'`,
		Args: args(cobra.MaximumNArgs(1), "one BOOTSTRAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := f.path(args)
			if err != nil {
				return err
			}
			return a.runImageCheck(cmd.Context(), f, path)
		},
	}
	flags := cmd.Flags()
	f.register(flags, "folder with the image's blobs, which are then checked too")
	outputJSONFlag(flags, &f.outputJSON)
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "list every inode and chunk")
	flags.BoolVar(&f.data, "data", false, "decode all data and compare its digests; needs --blob-dir")
	flags.BoolVar(&f.asJSON, "json", false, "print the report as JSON")
	flags.IntVar(&f.max, "max", check.DefaultMax, "how many violations to list")
	return cmd
}

// checkReport is a check.Report as JSON.
type checkReport struct {
	Bootstrap  string       `json:"bootstrap"`
	Version    int          `json:"version"`
	Inodes     uint64       `json:"inodes"`
	Names      uint64       `json:"names"`
	Violations []checkEntry `json:"violations"`
	More       int          `json:"more_violations"`
	Notes      []checkEntry `json:"notes"`
	MoreNotes  int          `json:"more_notes"`
}

type checkEntry struct {
	Offset uint64 `json:"offset"`
	Where  string `json:"where"`
	What   string `json:"what"`
}

func checkEntries(list []check.Violation) []checkEntry {
	out := make([]checkEntry, 0, len(list))
	for _, v := range list {
		out = append(out, checkEntry{v.Offset, v.Where, v.What})
	}
	return out
}

func (a *app) runImageCheck(ctx context.Context, f *checkFlags, path string) error {
	opts := check.Options{Max: f.max, Data: f.data, InlineBlobID: inlineID(path)}
	blobDir := f.blobDir
	if blobDir == "" && f.config != "" {
		var err error
		if blobDir, err = localfsDir(f.config); err != nil {
			return err
		}
	}
	if blobDir != "" {
		if err := mustBeFolder(blobDir); err != nil {
			return err
		}
		opts.Blobs = check.Folder(blobDir)
	} else if f.data {
		return &usageError{fmt.Errorf("--data needs --blob-dir")}
	}
	r, err := check.File(ctx, path, opts)
	if err != nil {
		return err
	}
	if f.asJSON {
		err := a.show(true, checkReport{
			Bootstrap: path, Version: r.Version, Inodes: r.Inodes, Names: r.Names,
			Violations: checkEntries(r.Violations), More: r.More, Notes: checkEntries(r.Notes), MoreNotes: r.MoreNotes,
		}, nil)
		if err != nil {
			return err
		}
		return wrong(path, r)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.stderr, "note: %s\n", n)
	}
	for _, v := range r.Violations {
		fmt.Fprintf(a.stderr, "%s\n", v)
	}
	if r.More > 0 {
		fmt.Fprintf(a.stderr, "and %d more; --max N lists N\n", r.More)
	}
	if err := wrong(path, r); err != nil {
		return err
	}
	return a.describeChecked(ctx, f, path, r)
}

// wrong is the error of an image that breaks rules, which have been listed.
func wrong(path string, r *check.Report) error {
	n := len(r.Violations) + r.More
	switch n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s: %w: 1 violation", path, image.ErrCorrupt)
	}
	return fmt.Errorf("%s: %w: %d violations", path, image.ErrCorrupt, n)
}

// describeChecked prints what nydus-image prints of a valid image.
func (a *app) describeChecked(ctx context.Context, f *checkFlags, path string, r *check.Report) error {
	if f.verbose {
		im, err := image.Open(path, image.Options{InlineBlobID: inlineID(path), InFile: true})
		if err != nil {
			return err
		}
		defer im.Close()
		if err := listInodes(ctx, a.stdout, im); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.stdout, "RAFS filesystem metadata is valid, referenced data blobs: ")
	var ids []string
	for i, b := range r.Blobs {
		if b.Features&layout.FeatureInlinedFSMeta != 0 && b.Features&layout.FeatureSeparate == 0 {
			b.ID = inlineID(path)
		}
		fmt.Fprintf(a.stdout, "\t %d: %s, compressed size %d, uncompressed size %d, chunk size: %d, chunk count: %d, features: %s\n",
			i, b.ID, b.CompressedSize, b.UncompressedSize, b.ChunkSize, b.ChunkCount, nydusFeatures(b.Features))
		ids = append(ids, b.ID)
	}
	return writeOutputJSON(f.outputJSON, outputJSON{
		Bootstrap: path, Blobs: ids, FSVersion: strconv.Itoa(r.Version), Compressor: r.Compressor.String(),
	})
}

// inlineID lets bootstraps of layers be opened that name no blob, since they were
// written into it: the file's name is the best there is.
func inlineID(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	if blob.CheckID(name) != nil {
		return strings.Repeat("x", blob.MaxIDLen)
	}
	return name
}

// nydusFeatureNames are the names that nydus-image check prints.
var nydusFeatureNames = []struct {
	bit  layout.Features
	name string
}{
	{layout.FeatureAligned, "aligned"}, {layout.FeatureBatch, "batch"}, {layout.FeatureCapTarTOC, "cap_toc"},
	{layout.FeatureInlinedChunkDigest, "chunk-digest"}, {layout.FeatureChunkInfoV2, "chunk-v2"}, {layout.FeatureInlinedFSMeta, "fs-meta"},
	{layout.FeatureSeparate, "separate"}, {layout.FeatureHasTarHeader, "tar-header"}, {layout.FeatureHasTOC, "toc"},
	{layout.FeatureZran, "zran"}, {layout.FeatureEncrypted, "encrypted"}, {layout.FeatureChunkDictGenerated, "is-chunkdict-generated"},
	// nydus-image has no names for these.
	{layout.FeatureTarfs, "tarfs"}, {layout.FeatureSeparatePrefetch, "separate-prefetch"}, {layout.FeatureExternal, "external"},
}

func nydusFeatures(f layout.Features) string {
	var names []string
	for _, n := range nydusFeatureNames {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, " ")
}

// listInodes prints a line for each name and one for each chunk of a file.
func listInodes(ctx context.Context, w io.Writer, im *image.Image) error {
	return walkImage(ctx, im, func(path string, node uint64) error {
		attr, err := im.Attr(node)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "inode: %s (node %d): mode %06o, uid %d, gid %d, links %d, size %d, mtime %d.%09d\n",
			path, node, attr.Mode, attr.UID, attr.GID, attr.Nlink, attr.Size, attr.Mtime, attr.MtimeNsec)
		if typeName(attr.Mode) != "file" {
			return nil
		}
		return eachSegment(im, node, attr.Size, func(off uint64, s *blob.Segment) error {
			c := &s.Chunk
			if c.Blob == nil {
				fmt.Fprintf(w, "\t hole: %d bytes at %d\n", s.Length, off)
				return nil
			}
			fmt.Fprintf(w, "\t chunk: %s, blob %d, chunk %d, file offset %d, compressed %d/%d, uncompressed %d/%d\n", c.Digest,
				c.Blob.Index, c.Index, off, c.CompressedOffset, c.CompressedSize, c.UncompressedOffset, c.UncompressedSize)
			return nil
		})
	})
}
