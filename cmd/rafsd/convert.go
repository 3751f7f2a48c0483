package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/convert"
)

// convertFlags are those of convert.
type convertFlags struct {
	platform, chunkSize, compressor, digester, workDir string
	progress                                           string
	workers                                            int
	plainHTTP, asJSON                                  bool
	caFiles, prefetch                                  []string
}

const convertLong = `Convert an OCI image to a RAFS image, which virtual machines can start from without
pulling it, and push that.

SRC is an image in a registry, an OCI layout (a folder), or an archive of docker save or of an
OCI layout; layers may be plain, gzip or zstd. DST is an image in a registry or an OCI
layout. Credentials are docker's (~/.docker/config.json and its helpers).

    HOST/REPOSITORY:TAG     a registry
    oci:FOLDER[:TAG]        an OCI layout
    oci-archive:FILE[:TAG]  a tar of one (SRC only)
    docker-archive:FILE     docker save (SRC only)
    PATH                    a folder or a file that exists (SRC only)

Nothing is unpacked to disk. Layers are verified as they are read; entries that try to leave the
image are refused. The manifest is pushed last, so a conversion that is cut off changes nothing
under DST's name; started again it finds the blobs that are there already.`

func (a *app) convert() *cobra.Command {
	f := &convertFlags{}
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Convert an OCI image to a RAFS image",
		Long:  convertLong,
		Example: `  rafsd convert debian:12 registry.example.com/debian:12-rafs
  rafsd convert --platform linux/arm64 debian:12 localhost:5000/debian:12-rafs
  docker save debian:12 -o debian.tar && rafsd convert debian.tar oci:debian-rafs
  rafsd convert --prefetch /usr/bin/python3 --prefetch /usr/lib/python3 py.tar localhost:5000/py:rafs`,
		Args: args(cobra.ExactArgs(2), "SRC and DST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runConvert(cmd, f, args[0], args[1]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.platform, "platform", "", "which image of an index to take, as OS/ARCH[/VARIANT] (default that of this machine)")
	flags.StringVar(&f.chunkSize, "chunk-size", "1MiB", "size of chunks, a power of two from 4KiB to 16MiB")
	flags.StringVar(&f.compressor, "compressor", "zstd", "zstd, lz4_block or none")
	flags.StringVar(&f.digester, "digester", "blake3", "blake3 or sha256")
	flags.StringArrayVar(&f.prefetch, "prefetch", nil, "path in the image that readers fetch ahead; may be repeated")
	flags.IntVar(&f.workers, "workers", 0, "chunks compressed at the same time (default one a CPU)")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for blobs until they are pushed (default $TMPDIR or /tmp)")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "talk http, not https, to the registries")
	flags.StringArrayVar(&f.caFiles, "ca", nil, "further certificate authorities, a PEM file; may be repeated")
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON, and no progress unless asked for")
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	return cmd
}

func (a *app) runConvert(cmd *cobra.Command, f *convertFlags, src, dst string) error {
	options, err := f.options(src, dst)
	if err != nil {
		return err
	}
	show, err := a.newProgress(f.progress, f.asJSON)
	if err != nil {
		return err
	}
	options.Progress = show.event
	result, err := convert.Convert(cmd.Context(), options)
	show.end(err == nil)
	if err != nil {
		return err
	}
	facts := newConvertFacts(result)
	return a.show(f.asJSON, facts, facts.text)
}

// options translates the flags, whose mistakes are those of usage.
func (f *convertFlags) options(src, dst string) (convert.Options, error) {
	usage := func(flag string, err error) (convert.Options, error) {
		return convert.Options{}, &usageError{fmt.Errorf("--%s: %w", flag, err)}
	}
	roots, err := rootCAs(f.caFiles)
	if err != nil {
		return convert.Options{}, err
	}
	access := artifact.Options{PlainHTTP: f.plainHTTP, RootCAs: roots, UserAgent: "rafsd/" + buildInfo().Version}
	o := convert.Options{
		Source: src, Target: dst, SourceRegistry: access, TargetRegistry: access,
		Workers: f.workers, WorkDir: f.workDir, Prefetch: f.prefetch,
	}
	if f.platform != "" {
		p, err := v1.ParsePlatform(f.platform)
		if err != nil || p.Architecture == "" {
			return usage("platform", fmt.Errorf("want OS/ARCH[/VARIANT], got %q", f.platform))
		}
		o.SourceRegistry.Platform = *p
	}
	if o.Format.ChunkSize, err = parseChunkSize(f.chunkSize); err != nil {
		return usage("chunk-size", err)
	}
	compressor, err := blob.ParseCompressor(f.compressor)
	if err != nil {
		return usage("compressor", err)
	}
	o.Format.Compressor = &compressor
	if o.Format.Digester, err = blob.ParseDigester(f.digester); err != nil {
		return usage("digester", err)
	}
	for _, p := range f.prefetch {
		if !strings.HasPrefix(p, "/") {
			return usage("prefetch", fmt.Errorf("want an absolute path in the image, got %q", p))
		}
	}
	return o, nil
}

// parseChunkSize reads a number of bytes, with or without 0x, K, KiB, M or MiB.
func parseChunkSize(s string) (uint32, error) {
	digits, shift := s, 0
	for suffix, bits := range map[string]int{"KiB": 10, "K": 10, "k": 10, "MiB": 20, "M": 20} {
		if head, ok := strings.CutSuffix(s, suffix); ok {
			digits, shift = head, bits
		}
	}
	n, err := strconv.ParseUint(digits, 0, 32)
	n <<= shift
	if err != nil || n < blob.MinChunkSize || n > blob.MaxChunkSize || n&(n-1) != 0 {
		return 0, fmt.Errorf("want a power of two from 4KiB to 16MiB, got %q", s)
	}
	return uint32(n), nil
}

// convertFacts is what convert tells when it is done.
type convertFacts struct {
	Target             string              `json:"target"`
	Digest             string              `json:"digest"`
	Inodes             int                 `json:"inodes"`
	BootstrapSize      int64               `json:"bootstrap_size"`
	BootstrapLayerSize int64               `json:"bootstrap_layer_size"`
	SourceSize         int64               `json:"source_size"`
	BlobSize           int64               `json:"blob_size"`
	Blobs              []string            `json:"blobs"`
	Layers             []convertLayerFacts `json:"layers"`
}

type convertLayerFacts struct {
	Source        string `json:"source"`
	SourceSize    int64  `json:"source_size"`
	Entries       int    `json:"entries"`
	Bytes         int64  `json:"file_bytes"`
	Blob          string `json:"blob,omitempty"`
	BlobSize      int64  `json:"blob_size"`
	Chunks        int    `json:"chunks"`
	DroppedXattrs int    `json:"dropped_xattrs"`
	Resumed       bool   `json:"resumed"`
}

func newConvertFacts(r *convert.Result) *convertFacts {
	f := &convertFacts{
		Target: r.Target, Digest: r.Digest.String(), Inodes: r.Inodes,
		BootstrapSize: r.BootstrapSize, BootstrapLayerSize: r.BootstrapLayerSize,
		Blobs: append([]string{}, r.Blobs...), Layers: []convertLayerFacts{},
	}
	for _, l := range r.Layers {
		f.SourceSize, f.BlobSize = f.SourceSize+l.SourceSize, f.BlobSize+l.BlobSize
		f.Layers = append(f.Layers, convertLayerFacts(l))
	}
	return f
}

func (f *convertFacts) text(w io.Writer) {
	fmt.Fprintf(w, "LAYER\tSIZE\tENTRIES\tFILES\tCHUNKS\tBLOB\tBLOB SIZE\n")
	dropped := 0
	for _, l := range f.Layers {
		id := l.Blob
		if id == "" {
			id = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%.12s\t%s\n", short(l.Source), bytesText(uint64(l.SourceSize)),
			l.Entries, bytesText(uint64(l.Bytes)), l.Chunks, id, bytesText(uint64(l.BlobSize)))
		dropped += l.DroppedXattrs
	}
	fmt.Fprintf(w, "\n%s of layers became %s of blobs and %s of metadata for %d inodes.\n", bytesText(uint64(f.SourceSize)),
		bytesText(uint64(f.BlobSize)), bytesText(uint64(f.BootstrapSize)), f.Inodes)
	if dropped > 0 {
		fmt.Fprintf(w, "%d extended attributes were left out: Linux has no such namespace.\n", dropped)
	}
	fmt.Fprintf(w, "%s\n", f.Target)
}

// short is the beginning of a digest, enough for people.
func short(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return fmt.Sprintf("%.12s", hex)
}
