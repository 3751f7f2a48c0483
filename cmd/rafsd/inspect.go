package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/image"
)

// inspectFlags are those of inspect and its sub-commands.
type inspectFlags struct {
	asJSON, plainHTTP bool
	caFiles           []string
	top, chunks       int
}

const inspectLong = `Show what an image consists of: format, blobs, sizes, what deduplication and compression
save, the largest folders, the prefetch list.

The image is a bootstrap file, an OCI layout (oci:FOLDER[:TAG]), or a reference to an image in a
registry, of which manifest and bootstrap are fetched and verified. An image that breaks a rule
of its format is refused, with the offset and the reason; blobs are not read.`

func (a *app) inspect() *cobra.Command {
	f := &inspectFlags{}
	cmd := &cobra.Command{
		Use:   "inspect (FILE | oci:FOLDER | REFERENCE)",
		Short: "Show what an image consists of",
		Long:  inspectLong,
		Example: `  rafsd inspect image.boot
  rafsd inspect registry.example.com/debian:12-rafs
  rafsd inspect --json image.boot | jq '.blobs[].id'
  rafsd inspect inode image.boot /usr/bin/python3`,
		Args: args(cobra.ExactArgs(1), "one bootstrap FILE, oci:FOLDER or REFERENCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImage(cmd.Context(), args[0], f, func(im *image.Image) error {
				s, err := newSurvey(cmd.Context(), args[0], im, f.top)
				if err != nil {
					return err
				}
				return a.show(f.asJSON, s, s.text)
			})
		},
	}
	flags := cmd.PersistentFlags()
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "talk http, not https, to the registry")
	flags.StringArrayVar(&f.caFiles, "ca", nil, "further certificate authorities, a PEM file; may be repeated")
	cmd.Flags().IntVar(&f.top, "top", 10, "how many of the largest folders to name")
	cmd.AddCommand(a.inspectInode(f))
	return cmd
}

func (a *app) inspectInode(f *inspectFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inode (FILE | oci:FOLDER | REFERENCE) PATH",
		Short:   "Show one inode of an image: attributes, extended attributes, chunks",
		Example: "  rafsd inspect inode image.boot /etc/os-release",
		Args:    args(cobra.ExactArgs(2), "a bootstrap FILE, oci:FOLDER or REFERENCE, and a PATH in the image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImage(cmd.Context(), args[0], f, func(im *image.Image) error {
				i, err := newInodeFacts(cmd.Context(), im, args[1], f.chunks)
				if err != nil {
					return err
				}
				return a.show(f.asJSON, i, i.text)
			})
		},
	}
	cmd.Flags().IntVar(&f.chunks, "chunks", 1000, "how many chunks to list")
	return cmd
}

// withImage opens what source names: a bootstrap file, an OCI layout, or an image
// in a registry.
func (a *app) withImage(ctx context.Context, source string, f *inspectFlags, use func(*image.Image) error) error {
	dir, err := os.MkdirTemp("", "rafsd-inspect-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := a.find(ctx, source, f, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	im, err := image.Open(path, image.Options{InFile: true})
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	defer im.Close()
	return use(im)
}

// find returns the path of the source's bootstrap, which it may put into dir.
func (a *app) find(ctx context.Context, source string, f *inspectFlags, dir string) (string, error) {
	if strings.HasPrefix(source, layoutPrefix) {
		return unpackLayout(source, dir)
	}
	st, err := os.Stat(source)
	switch {
	case err == nil && st.IsDir():
		return unpackLayout(source, dir)
	case err == nil:
		return source, nil
	case looksLikePath(source):
		return "", errors.Unwrap(err)
	}
	return a.pull(ctx, source, f, dir)
}

// looksLikePath tells a misspelt file from a reference, which never begins so.
func looksLikePath(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")
}

// show prints v as JSON or through text.
func (a *app) show(asJSON bool, v any, text func(io.Writer)) error {
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// maxShownPrefetch is how much of a prefetch list fits beside the rest.
const maxShownPrefetch = 20

func (s *survey) text(w io.Writer) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("Image", "%s", plain(s.Source))
	row("Format", "RAFS v%d, chunks of %s, %s, %s", s.Version, bytesText(uint64(s.ChunkSize)), s.Compressor, s.Digester)
	row("Bootstrap", "%s, sha256:%s", bytesText(uint64(s.Size)), s.SHA256)
	if len(s.Flags) > 0 {
		row("Flags", "%s", strings.Join(s.Flags, ", "))
	}
	features, alike := s.features()
	if alike && features != "" {
		row("Blobs", "%s", features)
	}
	row("Inodes", "%s", s.Kinds.text())
	s.sizes(w)
	s.layers(w, !alike)
	s.folders(w)
	if len(s.Prefetch) > 0 {
		fmt.Fprintf(w, "\nPREFETCH\n")
		for i, p := range s.Prefetch {
			if i == maxShownPrefetch {
				fmt.Fprintf(w, "(and %d more; --json lists all)\n", len(s.Prefetch)-i)
				break
			}
			fmt.Fprintf(w, "%s\n", p)
		}
	}
}

// features are those of the first blob, and whether all have the same.
func (s *survey) features() (features string, alike bool) {
	for i, b := range s.Blobs {
		if i > 0 && b.Features != s.Blobs[0].Features {
			return "", false
		}
		features = strings.ReplaceAll(b.Features, ",", ", ")
	}
	return features, true
}

// sizes compares the files with what is stored of them, step by step.
func (s *survey) sizes(w io.Writer) {
	d := s.Data
	about := ""
	if d.Estimated {
		about = ", about"
	}
	rows := [][]string{
		{"SIZES", "BYTES", "OF FILES", ""},
		{"files", bytesText(d.Files), percent(d.Files, d.Files), ""},
		{"each chunk once", bytesText(d.Stored), percent(d.Stored, d.Files), saved("dedup", d.Files, d.Stored)},
		{"compressed" + about, bytesText(d.Compressed), percent(d.Compressed, d.Files), saved("compression", d.Stored, d.Compressed)},
	}
	if all := sum(d.Objects, uint64(s.Size)); d.Objects > 0 {
		rows = append(rows, []string{"whole image", bytesText(all), percent(all, d.Files), "blobs and bootstrap"})
	}
	table(w, "lrrl", rows)
}

// layers shows the blobs, of which a conversion makes one a layer. BEFORE is what the
// chunks of a blob are when they are decompressed.
func (s *survey) layers(w io.Writer, features bool) {
	if len(s.Blobs) == 0 {
		return
	}
	rows := [][]string{{"LAYER", "BEFORE", "AFTER", "RATIO", "CHUNKS", "USED", "BLOB", ""}}
	for _, b := range s.Blobs {
		before := b.UncompressedSize // with gaps
		if b.UsedChunks == uint64(b.Chunks) {
			before = b.UsedUncompressed
		}
		id := plain(b.ID)
		if b.Compressor != s.Compressor {
			id += " (" + b.Compressor + ")"
		}
		more := ""
		if features {
			more = strings.ReplaceAll(b.Features, ",", ", ")
		}
		rows = append(rows, []string{
			fmt.Sprint(b.Index + 1), bytesText(before), bytesText(b.CompressedSize), percent(b.CompressedSize, before),
			fmt.Sprint(b.Chunks), percent(b.UsedChunks, uint64(b.Chunks)), id, more,
		})
	}
	table(w, "rrrrrrll", rows)
}

func (s *survey) folders(w io.Writer) {
	if len(s.Largest) == 0 {
		return
	}
	rows := [][]string{{"LARGEST FOLDERS", "OF ALL", "FILES", "PATH"}}
	for _, f := range s.Largest {
		rows = append(rows, []string{bytesText(f.Bytes), percent(f.Bytes, s.Data.Files), fmt.Sprint(f.Files), f.Path})
	}
	table(w, "rrrl", rows)
}

// table prints rows below an empty line, in columns that are aligned to the left or to
// the right, l or r.
func table(w io.Writer, align string, rows [][]string) {
	widths := make([]int, len(align))
	for _, r := range rows {
		for i, c := range r {
			widths[i] = max(widths[i], cells(c))
		}
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			space := strings.Repeat(" ", widths[i]-cells(c))
			if align[i] == 'r' {
				c = space + c
			} else {
				c += space
			}
			line.WriteString(c + "  ")
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

func (k *kinds) text() string {
	var parts []string
	for _, p := range []struct {
		n         uint64
		one, many string
	}{
		{k.Files, "file", "files"}, {k.Folders, "folder", "folders"}, {k.Symlinks, "symlink", "symlinks"},
		{k.Devices, "device", "devices"}, {k.Fifos, "fifo", "fifos"}, {k.Sockets, "socket", "sockets"},
		{k.Links, "further hard link", "further hard links"},
	} {
		switch p.n {
		case 0:
		case 1:
			parts = append(parts, "1 "+p.one)
		default:
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.many))
		}
	}
	return strings.Join(parts, ", ")
}

// bytesText is a size with three figures or so, in powers of 1000; sizes that are
// powers of two come out in those.
func bytesText(n uint64) string {
	if n >= 1024 && n&(n-1) == 0 {
		units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
		i := -1
		for ; n >= 1024 && i+1 < len(units); i++ {
			n /= 1024
		}
		return fmt.Sprintf("%d %s", n, units[i])
	}
	return decimalText(n)
}

// decimalText is a size in powers of 1000, whatever it is.
func decimalText(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1000, 0
	for ; f >= 999.95 && unit < 5; unit++ {
		f /= 1000
	}
	return fmt.Sprintf("%.1f %cB", f, "kMGTPE"[unit])
}

func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	switch p := 100 * float64(part) / float64(whole); {
	case p > 999:
		return ">999%"
	case p < 0.5 && part > 0:
		return "<1%"
	default:
		return fmt.Sprintf("%.0f%%", p)
	}
}

func saved(what string, before, after uint64) string {
	if after >= before {
		return ""
	}
	return fmt.Sprintf("%s saves %s, %s", what, decimalText(before-after), percent(before-after, before))
}
