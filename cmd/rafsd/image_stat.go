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
	"github.com/rafsd/rafsd/rafs/build/spill"
	"github.com/rafsd/rafsd/rafs/image"
)

// statFlags are those of image stat.
type statFlags struct {
	bootstrap, blobDir, target, config, digester, outputJSON, workDir string
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
	workDirFlag(flags, &f.workDir)
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

	tempDir  string
	chunks   *chunkTally
	byImages [21]chunkSum // chunks of the base by how many images have them, the last for that many and more
}

// chunkSum adds chunks up. Sizes are in bytes.
type chunkSum struct{ chunks, compressed, size uint64 }

func newImageStat(tempDir string) *imageStat {
	s := &imageStat{tempDir: tempDir, chunks: newChunkTally(tempDir)}
	s.Base.FileSizes, s.Target.FileSizes = make([]uint64, 45), make([]uint64, 45)
	return s
}

func (a *app) runImageStat(ctx context.Context, f *statFlags, log *slog.Logger) error {
	if f.workDir != "" {
		if err := mustBeFolder(f.workDir); err != nil {
			return fmt.Errorf("--work-dir: %w", err)
		}
	}
	limitHeap(a.getenv)
	s := newImageStat(f.workDir)
	defer s.chunks.close()
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
	if err := s.finish(); err != nil {
		return err
	}
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
		if full := (*spill.Error)(nil); errors.As(err, &full) {
			return err // says nothing of the image
		}
		if err != nil {
			log.Debug("passed over", "file", path, "err", err)
		}
	}
	return nil
}

// add counts an image: one of the base, or the target.
func (s *imageStat) add(ctx context.Context, path string, base bool) error {
	im, err := image.Open(path, image.Options{InlineBlobID: inlineID(path), InFile: true, TempDir: s.tempDir})
	if err != nil {
		return err
	}
	defer im.Close()
	info := &s.Target
	if base {
		info = &s.Base
	}
	s.chunks.begin(base)
	if err := s.count(ctx, im, info); err != nil {
		s.chunks.drop()
		return err
	}
	return nil
}

// count counts an image: its names, and what they have for data once each.
func (s *imageStat) count(ctx context.Context, im *image.Image, info *imageInfo) error {
	linked := newNodeSet(s.tempDir)
	err := walkImage(ctx, im, func(_ string, node uint64) error { return info.count(im, node, linked, s.chunks) })
	if err != nil {
		return errors.Join(err, linked.close())
	}
	return linked.each(func(node uint64) error {
		attr, err := im.Attr(node)
		if err != nil {
			return err
		}
		return info.countData(im, node, attr.Size, s.chunks)
	})
}

// count counts one name.
func (i *imageInfo) count(im *image.Image, node uint64, linked nodeSet, chunks *chunkTally) error {
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
			return linked.add(node)
		}
		return i.countData(im, node, attr.Size, chunks)
	}
	return nil
}

// countData counts the data of a regular file.
func (i *imageInfo) countData(im *image.Image, node, size uint64, chunks *chunkTally) error {
	i.FileSizes[min(bits.Len64(size), len(i.FileSizes)-1)]++
	i.FileSize += size
	i.PaddingSize += (size+0xfff)&^0xfff - size
	for b := range i.ChunkSizes {
		unit := uint64(1) << (12 + b)
		i.ChunkSizes[b] += uint32((size + unit - 1) / unit)
	}
	return eachSegment(im, node, size, func(_ uint64, s *blob.Segment) error {
		c := &s.Chunk
		if c.Blob == nil || s.Offset != 0 {
			return nil
		}
		i.Chunks++
		i.CompSize += uint64(c.CompressedSize)
		i.UncompSize += uint64(c.UncompressedSize)
		return chunks.add(c)
	})
}

// finish adds up the chunks of all images.
func (s *imageStat) finish() error {
	s.Base.UncompSize += s.Base.PaddingSize
	if s.TargetEnabled {
		s.Target.UncompSize += s.Target.PaddingSize
	}
	return s.chunks.each(func(c *chunkUse) {
		inBase := 0
		for _, u := range c.images {
			switch {
			case s.chunks.images[u.image].base:
				inBase++
				s.Base.own(c, u)
			case inBase > 0:
				s.Target.RefChunks++
				s.Target.RefCompSize += uint64(u.compressed)
				s.Target.RefUncompSize += uint64(c.size)
			default:
				s.Target.own(c, u)
			}
		}
		if !s.DedupEnabled || inBase == 0 {
			return
		}
		compressed := uint64(c.images[0].compressed) // the target comes last
		s.Base.DedupChunks++
		s.Base.DedupCompSize += compressed
		s.Base.DedupUncompSize += uint64(c.size)
		n := &s.byImages[min(inBase, len(s.byImages)-1)]
		n.chunks, n.compressed, n.size = n.chunks+1, n.compressed+compressed, n.size+uint64(c.size)
	})
}

func (i *imageInfo) own(c *chunkUse, u imageUse) {
	i.OwnChunks++
	i.OwnCompSize += uint64(u.compressed)
	i.OwnUncompSize += uint64(c.size)
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
		fmt.Fprintf(w, "%-8s%-12s%-20s%s\n", "Images", "Chunks", "Compressed", "Uncompressed")
		for i, n := range s.byImages {
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
