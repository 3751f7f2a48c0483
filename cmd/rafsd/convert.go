package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/convert"
)

// convertFlags are those of convert.
type convertFlags struct {
	accessFlags
	pushFlags
	backend                                              backendOptions
	forcePush                                            bool
	platform, chunkSize, batchSize, compressor, digester string
	workDir, progress, outputJSON, dict, blobDir         string
	fsVersion, workers                                   int
	allPlatforms, mergePlatform, referrer, ociRef        bool
	aligned, docker, reverse, noState, asJSON            bool
	dictInsecure, cacheInsecure                          bool
	cache, cacheVersion                                  string
	cacheRecords                                         uint
	prefetch                                             []string
}

const convertLong = `Convert an OCI image to a RAFS image, which virtual machines can start from without
pulling it, and push that.

SRC is an image in a registry, an OCI layout (a folder), or an archive of docker save or of an
OCI layout; layers may be plain, gzip or zstd. DST is an image in a registry or an OCI
layout. Credentials are docker's (~/.docker/config.json and its helpers).

    HOST/REPOSITORY:TAG     a registry
    oci:FOLDER[:TAG]        an OCI layout
    oci-archive:FILE[:TAG]  a tar of one; also file://FILE
    docker-archive:FILE     docker save (SRC only)
    PATH                    a folder or a file that exists (SRC only)

Nothing is unpacked to disk. Layers are verified as they are read; entries that try to leave the
image are refused. The manifest is pushed last, so a conversion that is cut off changes nothing
under DST's name; started again it goes on from the layers that were done, which lie in the work
folder until one succeeds, and does not send blobs that have arrived.

--oci-ref leaves the data where it is: the image indexes the gzip layers of SRC, which are copied,
and readers inflate them from the middle. --chunk-dict names an image, or a bootstrap in a file,
whose chunks are not stored again. --build-cache names an image that lists layers with what became
of them: layers in it are not converted again. Who can write to it decides what is in the images
that are made with it. --reverse makes an OCI image of a RAFS image.

--backend-type s3 or oss puts the blobs into a bucket, where nydusd finds them, too: objects are
named by the prefix of the configuration and the id of the blob, and only manifest and bootstrap
go to DST. Blobs that the bucket has are not sent again.`

func (a *app) convert() *cobra.Command {
	f := &convertFlags{}
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Convert an OCI image to a RAFS image",
		Long:  convertLong,
		Example: `  rafsd convert debian:12 registry.example.com/debian:12-rafs
  rafsd convert --platform linux/arm64 debian:12 localhost:5000/debian:12-rafs
  docker save debian:12 -o debian.tar && rafsd convert debian.tar oci:debian-rafs
  rafsd convert --backend-type s3 --backend-config-file bucket.json debian:12 localhost:5000/debian:12-rafs
  rafsd convert --prefetch /usr/bin/python3 --prefetch /usr/lib/python3 py.tar localhost:5000/py:rafs`,
		Args: args(cobra.ExactArgs(2), "SRC and DST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runConvert(cmd, f, args[0], args[1]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.platform, "platform", "", "which images of an index to take, as OS/ARCH[/VARIANT], with commas between (default that of this machine)")
	flags.BoolVar(&f.allPlatforms, "all-platforms", false, "take all images of an index")
	flags.BoolVar(&f.mergePlatform, "merge-platform", false, "make an index that has each RAFS image beside its OCI image")
	flags.BoolVar(&f.referrer, "with-referrer", false, "say in the manifest that the image is about SRC")
	flags.BoolVar(&f.reverse, "reverse", false, "make an OCI image of a RAFS image")
	flags.BoolVar(&f.ociRef, "oci-ref", false, "leave the data in the gzip layers of SRC and index these (zran)")
	flags.IntVar(&f.fsVersion, "fs-version", 6, "version of the format, 5 or 6")
	flags.StringVar(&f.chunkSize, "chunk-size", "1MiB", "size of chunks, a power of two from 4KiB to 16MiB")
	flags.StringVar(&f.batchSize, "batch-size", "0", "compress small files together, up to so many bytes; 0 for never")
	flags.BoolVar(&f.aligned, "fs-align-chunk", false, "v5: chunks at multiples of 4KiB, as v6 always has them")
	flags.StringVar(&f.compressor, "compressor", "zstd", "zstd, lz4_block or none")
	flags.StringVar(&f.digester, "digester", "blake3", "blake3 or sha256")
	flags.StringVar(&f.dict, "chunk-dict", "", "RAFS image, or bootstrap, whose chunks are not stored again")
	flags.StringVar(&f.cache, "build-cache", "", "image that lists layers converted before; it gets those of this run")
	flags.StringVar(&f.cacheVersion, "build-cache-version", "v1", "version of the cache; another one is replaced")
	flags.UintVar(&f.cacheRecords, "build-cache-max-records", 200, "how many layers the cache lists")
	flags.StringVar(&f.blobDir, "blob-dir", "", "folder that takes the blobs, in place of DST")
	f.backend.register(flags, "", "where the blobs go, in place of DST", false)
	flags.BoolVar(&f.forcePush, "backend-force-push", false, "send blobs that the bucket has, too")
	flags.StringArrayVar(&f.prefetch, "prefetch", nil, "path in the image that readers fetch ahead; may be repeated")
	flags.IntVar(&f.workers, "workers", 0, "chunks compressed at the same time (default one a CPU)")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for blobs until they are pushed, and for layers to go on from (default $TMPDIR or /tmp, and $XDG_CACHE_HOME/rafsd)")
	flags.BoolVar(&f.noState, "no-resume", false, "keep no layers to go on from, and use none")
	flags.StringVar(&f.outputJSON, "output-json", "", "file that gets nydusify's metrics of the conversion")
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON, and no progress unless asked for")
	f.accessFlags.register(flags)
	f.pushFlags.register(flags)
	return cmd
}

func (a *app) runConvert(cmd *cobra.Command, f *convertFlags, src, dst string) error {
	limitHeap(a.getenv)
	if f.reverse {
		return a.runReverse(cmd, f, src, dst)
	}
	options, err := f.options(src, dst, a.getenv)
	if err != nil {
		return err
	}
	if options.Bucket != nil {
		defer options.Bucket.Close()
	}
	show, err := a.newProgress(f.progress, f.asJSON)
	if err != nil {
		return err
	}
	watch := newStopwatch()
	options.Progress = func(e convert.Event) {
		watch.event(e)
		show.event(e)
	}
	result, err := convert.Convert(cmd.Context(), options)
	show.end(err == nil)
	if err != nil {
		return err
	}
	if err := f.writeMetrics(watch.metrics(result)); err != nil {
		return err
	}
	facts := newConvertFacts(result)
	return a.show(f.asJSON, facts, facts.text)
}

// options translates the flags, whose mistakes are those of usage.
func (f *convertFlags) options(src, dst string, getenv func(string) string) (o convert.Options, err error) {
	usage := func(flag string, err error) (convert.Options, error) {
		return convert.Options{}, &usageError{fmt.Errorf("--%s: %w", flag, err)}
	}
	from, to, err := f.accessFlags.options()
	if err != nil {
		return o, err
	}
	o = convert.Options{
		Source: src, Target: dst, SourceRegistry: from, TargetRegistry: to, DictRegistry: from,
		AllPlatforms: f.allPlatforms, MergePlatform: f.mergePlatform, Referrer: f.referrer, DockerFormat: f.docker,
		Reference: f.ociRef, Dict: f.dict,
		Workers: f.workers, WorkDir: f.workDir, Prefetch: f.prefetch,
	}
	if err := f.cacheOptions(&o); err != nil {
		return o, err
	}
	o.DictRegistry.Insecure = f.dictInsecure
	o.DictRegistry.PlainHTTP = o.DictRegistry.PlainHTTP || f.dictInsecure
	if o.Push, err = f.push(); err != nil {
		return o, err
	}
	switch {
	case f.platform != "" && f.allPlatforms:
		return usage("platform", errors.New("conflicts with --all-platforms"))
	case f.platform != "":
		if o.Platforms, err = store.ParsePlatforms(f.platform); err != nil {
			return usage("platform", err)
		}
		if o.SourceRegistry.Platform = o.Platforms[0]; len(o.Platforms) == 1 {
			o.Platforms = nil // of an index below an index, too
		}
	}
	if o.Format, err = f.format(); err != nil {
		return o, err
	}
	for _, p := range f.prefetch {
		if !strings.HasPrefix(p, "/") {
			return usage("prefetch", fmt.Errorf("want an absolute path in the image, got %q", p))
		}
	}
	if err := f.prepare(&o, getenv); err != nil {
		return o, err
	}
	return o, f.blobs(&o)
}

// format translates the flags that say what blobs and bootstrap are like.
func (f *convertFlags) format() (out convert.Format, err error) {
	usage := func(flag string, err error) (convert.Format, error) {
		return out, &usageError{fmt.Errorf("--%s: %w", flag, err)}
	}
	if f.fsVersion != 5 && f.fsVersion != 6 {
		return usage("fs-version", fmt.Errorf("want 5 or 6, got %d", f.fsVersion))
	}
	out = convert.Format{Version: f.fsVersion, Aligned: f.aligned}
	if out.ChunkSize, err = parseChunkSize(f.chunkSize); err != nil {
		return usage("chunk-size", err)
	}
	batch, err := parseBytes(f.batchSize)
	if err != nil || batch > blob.MaxChunkSize {
		return usage("batch-size", fmt.Errorf("want 0 or a power of two up to the chunk size, got %q", f.batchSize))
	}
	out.BatchSize = uint32(batch)
	compressor, err := blob.ParseCompressor(f.compressor)
	if err == nil && compressor == blob.CompressorGzip {
		err = errors.New("want zstd, lz4_block or none, got gzip, which only layers are that stay what they are (--oci-ref)")
	}
	if err != nil {
		return usage("compressor", err)
	}
	out.Compressor = &compressor
	if out.Digester, err = blob.ParseDigester(f.digester); err != nil {
		return usage("digester", err)
	}
	return out, nil
}

// cacheOptions sets the build cache.
func (f *convertFlags) cacheOptions(o *convert.Options) error {
	if f.cache == "" {
		return nil
	}
	if f.cacheRecords < 1 || f.cacheRecords > 200 {
		return &usageError{fmt.Errorf("--build-cache-max-records: want 1 to 200, got %d", f.cacheRecords)}
	}
	o.Cache = convert.Cache{Name: f.cache, Registry: o.TargetRegistry, Version: f.cacheVersion, MaxRecords: int(f.cacheRecords)}
	o.Cache.Registry.Insecure = o.Cache.Registry.Insecure || f.cacheInsecure
	o.Cache.Registry.PlainHTTP = o.Cache.Registry.PlainHTTP || f.cacheInsecure
	return nil
}

// prepare makes the work folder, and finds one for the layers to go on from.
func (f *convertFlags) prepare(o *convert.Options, getenv func(string) string) error {
	if f.workDir != "" {
		if err := os.MkdirAll(f.workDir, 0o700); err != nil {
			return fmt.Errorf("--work-dir: %w", err)
		}
	}
	switch {
	case f.noState:
	case f.workDir != "":
		o.StateDir = f.workDir
	default:
		o.StateDir = cacheFolder(getenv)
	}
	return nil
}

// cacheFolder is the user's for what may be lost; empty if there is none.
func cacheFolder(getenv func(string) string) string {
	base := getenv("XDG_CACHE_HOME")
	if base == "" && getenv("HOME") != "" {
		base = filepath.Join(getenv("HOME"), ".cache")
	}
	dir := filepath.Join(base, "rafsd")
	if !filepath.IsAbs(base) || os.MkdirAll(dir, 0o700) != nil {
		return ""
	}
	return dir
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
	Images             int                 `json:"images"`
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
		Target: r.Target, Digest: r.Digest.String(), Images: r.Images, Inodes: r.Inodes,
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
