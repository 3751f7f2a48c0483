package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build"
	"github.com/rafsd/rafsd/rafs/build/tree"
)

// createFlags are those of image create, as they are given.
type createFlags struct {
	kind, bootstrap, blobDir, blob, externalBlob, blobID, blobDataSize, blobOffset string
	chunkSize, batchSize, compressor, digester, config, fsVersion, features        string
	chunkDict, parent, whiteouts, prefetch, outputJSON, cacheDir, attributes       string
	hostFlags
	inlineMeta, aligned, repeatable, disableCheck, encrypt bool
}

const createLong = `Make an image of a folder or of a tar file: a bootstrap, which describes it, and a blob with its
data. SOURCE and the blob may be fifos, the source also a character device such as /dev/stdin.

Types of sources (--type):
  directory, dir-rafs          a folder
  tar-rafs, targz-rafs         a tar, plain or compressed with gzip or zstd
  estargz-rafs                 the same, less the files that make it an eStargz
  targz-ref, estargz-ref       a gzip of a tar, which stays what it is: only an index is made
  stargz_index, estargztoc-ref the table of contents of an eStargz (stargz.index.json)
  tar-tarfs                    a tar, which stays what it is, for Linux to mount

With --prefetch-policy fs or blob the paths to prefetch are read from stdin, one a line; / is all.`

func (a *app) imageCreate() *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use:   "create [flags] SOURCE",
		Short: "Make an image of a folder or a tar file",
		Long:  createLong,
		Example: `  rafsd image create -B image.boot -D blobs rootfs
  rafsd image create -t tar-rafs -b layer.blob --blob-inline-meta --features blob-toc layer.tar.gz
  rafsd image create -t targz-ref -b layer.meta --blob-inline-meta --features blob-toc layer.tar.gz
  echo /usr/bin | rafsd image create --prefetch-policy fs -B image.boot -D blobs rootfs`,
		Args: args(cobra.ExactArgs(1), "one SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.withLog(func(log *slog.Logger) error { return a.runImageCreate(cmd.Context(), f, args[0], log) })
		},
	}
	f.register(cmd)
	return cmd
}

func (f *createFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	alias(flags, map[string]string{"source-type": "type", "inline-bootstrap": "blob-inline-meta"})
	flags.StringVarP(&f.kind, "type", "t", "dir-rafs", "what SOURCE is: directory, dir-rafs, estargz-rafs, estargz-ref, estargztoc-ref, tar-rafs, tar-tarfs, targz-rafs, targz-ref or stargz_index")
	flags.StringVarP(&f.bootstrap, "bootstrap", "B", "", "write the bootstrap to this file")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", "folder for the blob, and for a bootstrap without a path, each named by its SHA-256; of stargz_index for ID.blob.meta, which nydusd wants in its work folder")
	flags.StringVarP(&f.blob, "blob", "b", "", "write the blob to this file, which may be a fifo")
	flags.StringVar(&f.externalBlob, "external-blob", "", "not supported")
	flags.BoolVar(&f.inlineMeta, "blob-inline-meta", false, "put the bootstrap into the blob")
	flags.StringVar(&f.blobID, "blob-id", "", "name of the blob, in place of its SHA-256; that of the layer for stargz_index")
	flags.StringVar(&f.blobDataSize, "blob-data-size", "", "bytes of the layer for stargz_index, a hexadecimal number")
	flags.StringVar(&f.blobOffset, "blob-offset", "0", "not supported")
	flags.StringVar(&f.chunkSize, "chunk-size", "", "size of chunks: a power of two, 0x1000 to 0x1000000 (default 0x100000)")
	flags.StringVar(&f.batchSize, "batch-size", "0", "compress small files together up to this size: a power of two, 0x1000 to the chunk size; 0 for not")
	flags.StringVar(&f.compressor, "compressor", "zstd", "compress chunks with none, lz4_block or zstd")
	flags.StringVar(&f.digester, "digester", "blake3", "digest chunks with blake3 or sha256")
	flags.StringVarP(&f.config, "config", "C", "", "accepted for nydus-image's callers: the bootstraps that are named lie in files, whose blobs are not needed")
	flags.StringVarP(&f.fsVersion, "fs-version", "v", "6", "version of the format: 5 or 6")
	flags.StringVar(&f.features, "features", "", "blob-toc: give the blob a table of contents and the digests of its chunks")
	flags.StringVar(&f.chunkDict, "chunk-dict", "", "bootstrap whose chunks need not be stored again: [bootstrap=]FILE")
	flags.StringVar(&f.parent, "parent-bootstrap", "", "bootstrap of the image that SOURCE is a layer on")
	flags.BoolVar(&f.aligned, "aligned-chunk", false, "align chunks to 4096 bytes (v5)")
	flags.BoolVar(&f.repeatable, "repeatable", false, "leave owners out: files belong to whoever reads the image")
	flags.BoolVar(&f.disableCheck, "disable-check", false, "do not check the bootstrap that was written")
	flags.StringVar(&f.whiteouts, "whiteout-spec", "oci", "how SOURCE says that a file of a lower layer is gone: oci, overlayfs, or none to keep it as it is")
	flags.StringVar(&f.prefetch, "prefetch-policy", "none", "what the paths on stdin are for: fs (a list in the bootstrap), blob (the start of the blob) or none")
	outputJSONFlag(flags, &f.outputJSON)
	flags.BoolVarP(&f.encrypt, "encrypt", "E", false, "encrypt the blob; the key is in the bootstrap")
	flags.StringVar(&f.cacheDir, "blob-cache-dir", "", "write ID.blob.data and ID.blob.meta here, as a node keeps them, in place of the blob")
	flags.StringVar(&f.attributes, "attributes", "", "not supported")
	f.registerHost(flags)
	for _, name := range []string{"external-blob", "blob-offset", "disable-check", "attributes"} {
		_ = flags.MarkHidden(name)
	}
}

// check refuses what the command line alone shows to be wrong.
func (f *createFlags) check(cmd *cobra.Command) error {
	err := errors.Join(
		oneOf("compressor", f.compressor, "none", "lz4_block", "zstd"),
		oneOf("digester", f.digester, "blake3", "sha256"),
		oneOf("fs-version", f.fsVersion, "5", "6"),
		oneOf("whiteout-spec", f.whiteouts, "oci", "overlayfs", "none"),
		oneOf("prefetch-policy", f.prefetch, "fs", "blob", "none"),
		conflicts(cmd, [][2]string{
			{"bootstrap", "blob-inline-meta"}, {"blob-inline-meta", "blob-id"}, {"blob-cache-dir", "blob-inline-meta"},
			{"blob-cache-dir", "blob"}, {"blob-cache-dir", "blob-dir"}, {"blob-cache-dir", "compressor"},
		}...),
	)
	if _, bad := build.ParseSourceType(f.kind); bad != nil {
		err = errors.Join(err, &usageError{fmt.Errorf("--type %w", bad)})
	}
	if f.features != "" && strings.Trim(f.features, " ,") != "blob-toc" {
		err = errors.Join(err, &usageError{fmt.Errorf("--features %q: want blob-toc", f.features)})
	}
	if f.bootstrap == "" && f.blobDir == "" && !f.inlineMeta {
		err = errors.Join(err, &usageError{errors.New("want --bootstrap, --blob-dir or --blob-inline-meta")})
	}
	if (f.kind == "stargz_index" || f.kind == "estargztoc-ref") && f.blobID == "" {
		err = errors.Join(err, &usageError{fmt.Errorf("--type %s needs --blob-id", f.kind)})
	}
	for _, refused := range []struct{ name, value, why string }{
		{"external-blob", f.externalBlob, "chunks in external blobs have no digests, and nothing here reads what it cannot verify"},
		{"attributes", f.attributes, "chunks in external blobs have no digests, and nothing here reads what it cannot verify"},
		{"blob-offset", strings.Trim(f.blobOffset, "0"), "chunks would be said to lie so many bytes further than in the blob that is written, where no reader finds them"},
	} {
		if refused.value != "" {
			return &usageError{fmt.Errorf("--%s is not supported: %s", refused.name, refused.why)}
		}
	}
	return err
}

// sizeOf reads a size as nydus-image does: decimal, or hexadecimal after 0x.
func sizeOf(flag, s string) (uint32, error) {
	digits, base := s, 10
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X") {
		digits, base = s[2:], 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil {
		return 0, fmt.Errorf("--%s %q: want a number below 1<<32", flag, s)
	}
	return uint32(n), nil
}

// powerOfTwo is sizeOf for the size of a chunk or batch.
func powerOfTwo(flag, s string) (uint32, error) {
	n, err := sizeOf(flag, s)
	if err != nil {
		return 0, err
	}
	if n < blob.MinChunkSize || n > blob.MaxChunkSize || n&(n-1) != 0 {
		return 0, fmt.Errorf("--%s %s: want a power of two, %#x to %#x", flag, s, blob.MinChunkSize, blob.MaxChunkSize)
	}
	return n, nil
}

// dictPath is the path of a chunk dictionary, which may say that it is a bootstrap.
func dictPath(s string) (string, error) {
	kind, path, ok := strings.Cut(s, "=")
	if !ok {
		return s, nil
	}
	if kind != "bootstrap" {
		return "", fmt.Errorf("--chunk-dict %q: want bootstrap=FILE", s)
	}
	return path, nil
}

// options are what the facade is asked for. Its own rules come after those of
// single numbers.
func (f *createFlags) options(source string) (build.Options, error) {
	o := build.Defaults()
	o.Source, o.Bootstrap, o.Blob, o.BlobDir, o.CacheDir = source, f.bootstrap, f.blob, f.blobDir, f.cacheDir
	o.InlineMeta, o.AlignedChunks, o.NoOwner, o.Encrypt = f.inlineMeta, f.aligned, f.repeatable, f.encrypt
	o.TOC, o.BlobID, o.Parent = f.features != "", f.blobID, f.parent
	o.Version = int(f.fsVersion[0] - '0')
	var err error
	if o.Type, err = build.ParseSourceType(f.kind); err != nil {
		return o, err
	}
	if o.Type == build.TOCRef {
		o.ChunkSize = 4 << 20
		size := strings.TrimPrefix(strings.TrimPrefix(f.blobDataSize, "0x"), "0X")
		if o.BlobDataSize, err = strconv.ParseUint(size, 16, 64); err != nil {
			return o, fmt.Errorf("--blob-data-size %q: want a hexadecimal number", f.blobDataSize)
		}
	}
	if f.chunkSize != "" {
		if o.ChunkSize, err = powerOfTwo("chunk-size", f.chunkSize); err != nil {
			return o, err
		}
	}
	if o.BatchSize, err = sizeOf("batch-size", f.batchSize); err != nil {
		return o, err
	}
	if o.BatchSize != 0 {
		if _, err = powerOfTwo("batch-size", f.batchSize); err != nil {
			return o, err
		}
	}
	o.Compressor, _ = blob.ParseCompressor(f.compressor)
	o.Digester, _ = blob.ParseDigester(f.digester)
	o.Prefetch.Policy, _ = build.ParsePrefetchPolicy(f.prefetch)
	o.Whiteouts = map[string]tree.Whiteouts{"oci": tree.WhiteoutOCI, "overlayfs": tree.WhiteoutOverlay, "none": tree.WhiteoutNone}[f.whiteouts]
	o.ChunkDict, err = dictPath(f.chunkDict)
	return o, err
}

func (a *app) runImageCreate(ctx context.Context, f *createFlags, source string, log *slog.Logger) error {
	o, err := f.options(source)
	if err = errors.Join(err, checkConfig(f.config)); err != nil {
		return err
	}
	ensure := mustBeFile
	if o.Type == build.Directory {
		ensure = mustBeFolder
	}
	if err := ensure(source); err != nil {
		return err
	}
	for _, dir := range []string{f.blobDir, f.cacheDir} {
		if dir != "" {
			if err := mustBeFolder(dir); err != nil {
				return err
			}
		}
	}
	if o.Prefetch.Paths, err = a.prefetchPaths(o.Prefetch.Policy, log); err != nil {
		return err
	}
	r, err := a.build(&f.hostFlags, log, source, "reading", func(h build.Host) (*build.Result, error) {
		h.NoCheck = f.disableCheck
		o.Host = h
		return build.Create(ctx, o)
	})
	if err != nil {
		return err
	}
	log.Info("image made", "bootstrap", r.Bootstrap, "blob", r.Blob, "size", r.BlobSize, "inodes", r.Inodes, "blobs", len(r.Blobs))
	return writeOutputJSON(f.outputJSON, resultJSON(r))
}

// maxPatterns bounds what is read from stdin, in bytes.
const maxPatterns = 64 << 20

// prefetchPaths reads the paths on stdin, as nydus-image does: one a line, absolute,
// none that an earlier one covers.
func (a *app) prefetchPaths(policy build.PrefetchPolicy, log *slog.Logger) ([]string, error) {
	if policy == build.PrefetchNone {
		return nil, nil
	}
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(a.stderr, "Paths to prefetch, one a line, / for all; Ctrl-D ends the list:")
	}
	data, err := io.ReadAll(io.LimitReader(a.stdin, maxPatterns+1))
	if err != nil {
		return nil, fmt.Errorf("paths to prefetch on stdin: %w", err)
	}
	if len(data) > maxPatterns {
		return nil, fmt.Errorf("paths to prefetch on stdin: more than %d bytes", maxPatterns)
	}
	var paths []string
	known := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		path := strings.TrimSpace(line)
		switch {
		case path == "":
		case !strings.HasPrefix(path, "/"):
			log.Warn("a path to prefetch is not absolute and is left out", "path", path)
		case covered(known, path):
			log.Warn("a path to prefetch is covered by an earlier one and is left out", "path", path)
		default:
			known[clean(path)] = true
			paths = append(paths, path)
		}
	}
	return paths, nil
}

func clean(path string) string { return "/" + strings.Trim(path, "/") }

// covered tells whether a path or a folder above it is known.
func covered(known map[string]bool, path string) bool {
	for path = clean(path); ; path = clean(path[:strings.LastIndexByte(path, '/')]) {
		if known[path] {
			return true
		}
		if path == "/" {
			return false
		}
	}
}
