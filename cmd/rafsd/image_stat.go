package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/image"
)

// statFlags are those of image stat.
type statFlags struct {
	bootstrap, blobDir, target, config, digester, outputJSON string
}

func (a *app) imageStat() *cobra.Command {
	f := &statFlags{}
	cmd := &cobra.Command{
		Use:   "stat (-B BOOTSTRAP | -D FOLDER) [-T TARGET]",
		Short: "Count files, chunks and what deduplication would save",
		Long: `Count what is in an image, or in all images whose bootstraps lie in a folder: files, chunks by size,
and what is saved where each chunk is stored once. With --target, how much of a further image the
others have already.`,
		Example: `  rafsd image stat -B image.boot
  rafsd image stat -D bootstraps -T new.boot -J stat.json`,
		Args: args(cobra.NoArgs, "flags only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("digester", f.digester, "blake3", "sha256"); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageStat(cmd.Context(), f, log) })
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "bootstrap of an image")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", "folder with bootstraps: files without an extension")
	flags.StringVarP(&f.target, "target", "T", "", "bootstrap of an image to compare with these")
	configFlag(flags, &f.config)
	flags.StringVar(&f.digester, "digester", "blake3", "accepted for nydus-image's callers: images say what they have")
	outputJSONFlag(flags, &f.outputJSON)
	return cmd
}

// imageInfo is what nydus-image counts of an image (ImageInfo, nydus
// src/bin/nydus-image/stat.rs). Sizes are in bytes.
type imageInfo struct {
	Dirs        uint32    `json:"dirs"`
	Files       uint32    `json:"files"`
	Symlinks    uint32    `json:"symlinks"`
	Chunks      uint32    `json:"chunks"`
	FileSize    uint64    `json:"file_size"`
	CompSize    uint64    `json:"comp_size"`
	UncompSize  uint64    `json:"uncomp_size"`
	PaddingSize uint64    `json:"padding_size"`
	ChunkSizes  [9]uint32 `json:"chunk_sizes"` // how many chunks there would be of 1<<12 to 1<<20 bytes
	FileSizes   []uint64  `json:"file_sizes"`  // files by the bits of their size

	DedupChunks     uint64 `json:"dedup_chunks"`
	DedupCompSize   uint64 `json:"dedup_comp_size"`
	DedupUncompSize uint64 `json:"dedup_uncomp_size"`
	OwnChunks       uint64 `json:"own_chunks"`
	OwnCompSize     uint64 `json:"own_comp_size"`
	OwnUncompSize   uint64 `json:"own_uncomp_size"`
	RefChunks       uint64 `json:"ref_chunks"`
	RefCompSize     uint64 `json:"ref_comp_size"`
	RefUncompSize   uint64 `json:"ref_uncomp_size"`
}

// imageStat is what stat writes as JSON.
type imageStat struct {
	DedupEnabled  bool      `json:"dedup_enabled"`
	TargetEnabled bool      `json:"target_enabled"`
	Base          imageInfo `json:"base_image"`
	Target        imageInfo `json:"target_image"`

	chunks map[chunkKey]*chunkCount
}

// chunkKey is what makes chunks of several images one.
type chunkKey struct {
	digester blob.Digester
	digest   blob.Digest
	size     uint32
}

type chunkCount struct {
	images     uint64
	compressed uint32
}

func newImageStat() *imageStat {
	s := &imageStat{chunks: map[chunkKey]*chunkCount{}}
	s.Base.FileSizes, s.Target.FileSizes = make([]uint64, 45), make([]uint64, 45)
	return s
}

func (a *app) runImageStat(ctx context.Context, f *statFlags, log *slog.Logger) error {
	s := newImageStat()
	switch {
	case f.bootstrap != "":
		if err := s.add(ctx, f.bootstrap, true); err != nil {
			return err
		}
	case f.blobDir != "":
		s.DedupEnabled = true
		if err := s.addFolder(ctx, f.blobDir, f.target, log); err != nil {
			return err
		}
	default:
		return errors.New("want --bootstrap or --blob-dir")
	}
	if f.target != "" {
		s.TargetEnabled = true
		if err := s.add(ctx, f.target, false); err != nil {
			return err
		}
	}
	s.finish()
	if f.outputJSON == "" {
		s.text(a.stdout)
		return nil
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeJSONFile(f.outputJSON, append(data, '\n'))
}

// addFolder takes the files without an extension that are images.
func (s *imageStat) addFolder(ctx context.Context, dir, target string, log *slog.Logger) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || path == filepath.Clean(target) || filepath.Ext(path) != "" {
			continue
		}
		err := s.add(ctx, path, true)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			log.Debug("passed over", "file", path, "err", err)
		}
	}
	return nil
}

// add counts an image: one of the base, or the target.
func (s *imageStat) add(ctx context.Context, path string, base bool) error {
	im, err := image.Open(path, image.Options{InlineBlobID: inlineID(path), InFile: true})
	if err != nil {
		return err
	}
	defer im.Close()
	info := &s.Target
	if base {
		info = &s.Base
	}
	own := map[chunkKey]chunkCount{}
	linked := map[uint64]bool{}
	err = walkImage(ctx, im, func(_ string, node uint64) error { return info.count(im, node, linked, own) })
	if err != nil {
		return err
	}
	for key, c := range own {
		known := s.chunks[key]
		switch {
		case base && known != nil:
			known.images++
		case base:
			s.chunks[key] = &chunkCount{images: 1, compressed: c.compressed}
		case known != nil:
			info.RefChunks++
			info.RefCompSize += uint64(c.compressed)
			info.RefUncompSize += uint64(key.size)
			continue
		}
		info.OwnChunks++
		info.OwnCompSize += uint64(c.compressed)
		info.OwnUncompSize += uint64(key.size)
	}
	return nil
}

// count counts one name.
func (i *imageInfo) count(im *image.Image, node uint64, linked map[uint64]bool, own map[chunkKey]chunkCount) error {
	attr, err := im.Attr(node)
	if err != nil {
		return err
	}
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		i.Dirs++
	case unix.S_IFLNK:
		i.Symlinks++
	case unix.S_IFREG:
		i.Files++
		if attr.Nlink > 1 {
			if linked[node] {
				return nil
			}
			linked[node] = true
		}
		i.FileSizes[min(bits.Len64(attr.Size), len(i.FileSizes)-1)]++
		i.FileSize += attr.Size
		i.PaddingSize += (attr.Size+0xfff)&^0xfff - attr.Size
		for b := range i.ChunkSizes {
			unit := uint64(1) << (12 + b)
			i.ChunkSizes[b] += uint32((attr.Size + unit - 1) / unit)
		}
		return eachSegment(im, node, attr.Size, func(_ uint64, s *blob.Segment) error {
			c := &s.Chunk
			if c.Blob == nil || s.Offset != 0 {
				return nil
			}
			i.Chunks++
			i.CompSize += uint64(c.CompressedSize)
			i.UncompSize += uint64(c.UncompressedSize)
			own[chunkKey{c.Blob.Digester, c.Digest, c.UncompressedSize}] = chunkCount{compressed: c.CompressedSize}
			return nil
		})
	}
	return nil
}

func (s *imageStat) finish() {
	s.Base.UncompSize += s.Base.PaddingSize
	if s.TargetEnabled {
		s.Target.UncompSize += s.Target.PaddingSize
	}
	if !s.DedupEnabled {
		return
	}
	for key, c := range s.chunks {
		s.Base.DedupChunks++
		s.Base.DedupCompSize += uint64(c.compressed)
		s.Base.DedupUncompSize += uint64(key.size)
	}
}

func (s *imageStat) text(w io.Writer) {
	if s.TargetEnabled {
		fmt.Fprintln(w, "Target Image Statistics:")
		s.Target.text(w)
	}
	fmt.Fprintln(w, "\n\nBase Image Statistics:")
	s.Base.text(w)
	if s.DedupEnabled {
		fmt.Fprintf(w, "\n\nChunks by how many images have them:\n")
		var by [21]struct{ chunks, compressed, size uint64 }
		for key, c := range s.chunks {
			n := &by[min(c.images, uint64(len(by)-1))]
			n.chunks, n.compressed, n.size = n.chunks+1, n.compressed+uint64(c.compressed), n.size+uint64(key.size)
		}
		fmt.Fprintf(w, "%-8s%-12s%-20s%s\n", "Images", "Chunks", "Compressed", "Uncompressed")
		for i, n := range by {
			if n.chunks > 0 {
				fmt.Fprintf(w, "%-8d%-12d%-20d%d\n", i, n.chunks, n.compressed, n.size)
			}
		}
	}
}

func (i *imageInfo) text(w io.Writer) {
	row := func(name string, v any) { fmt.Fprintf(w, "%-24s%v\n", name, v) }
	fmt.Fprintln(w)
	row("Directories:", i.Dirs)
	row("Files:", i.Files)
	row("Symlinks:", i.Symlinks)
	row("Chunks:", i.Chunks)
	row("File Size:", i.FileSize)
	row("Padding Size:", i.PaddingSize)
	row("Uncompressed Size:", i.UncompSize)
	row("Compressed Size:", i.CompSize)
	fmt.Fprint(w, "\nFile Size Bits:\t\tFile Count:\n")
	for b, n := range i.FileSizes {
		fmt.Fprintf(w, "%d:\t\t\t%d\n", b, n)
	}
	fmt.Fprint(w, "\nChunk Size Bits:\tChunk Count:\n")
	for b, n := range i.ChunkSizes {
		fmt.Fprintf(w, "%d:\t\t\t%d\n", b+12, n)
	}
	fmt.Fprintln(w)
	for _, r := range []struct {
		name string
		n    uint64
	}{
		{"Raw Content Size:", i.FileSize}, {"Comp Content Size:", i.CompSize}, {"Raw Chunk Count:", uint64(i.Chunks)},
		{"Dedup Comp Size:", i.DedupCompSize}, {"Dedup Uncomp Size:", i.DedupUncompSize}, {"Dedup Chunk Count:", i.DedupChunks},
		{"Owned Comp Size:", i.OwnCompSize}, {"Owned Uncomp Size:", i.OwnUncompSize}, {"Owned Chunk Count:", i.OwnChunks},
		{"Referenced Comp Size:", i.RefCompSize}, {"Referenced Uncomp Size:", i.RefUncompSize}, {"Referenced Chunk Count:", i.RefChunks},
	} {
		fmt.Fprintf(w, "%s\t%d\n", r.name, r.n)
	}
}
