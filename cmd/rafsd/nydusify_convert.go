package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// nydusifyConverting are the flags of nydusify convert that take some translation.
type nydusifyConverting struct {
	source, sourceArchive, target, targetArchive, targetSuffix *string
	chunkDict, prefetchDir, fsVersion, chunkSize, retryDelay   *string
	cache, cacheTag, cacheVersion                              *string
	prefetchPatterns, align, alignOld, oci, cacheInsecure      *bool
	cacheRecords                                               *uint
	sourceBackend                                              backendOptions
}

func (a *app) nydusifyConvert() *cobra.Command {
	cmd := &cobra.Command{Use: "convert", Short: "Generate a Nydus image from an OCI image", Args: cobra.NoArgs}
	f := &convertFlags{progress: "auto", digester: "blake3"}
	n := &nydusifyConverting{}
	n.register(cmd.Flags())
	f.registerNydusify(cmd.Flags())
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, flag string) pflag.NormalizedName {
		switch flag {
		case "chunk-size":
			flag = "fs-chunk-size"
		case "multi-platform":
			flag = "merge-platform"
		}
		return pflag.NormalizedName(flag)
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		source, target, err := n.translate(cmd, f)
		if err != nil {
			return err
		}
		remove, err := workFolder(f.workDir)
		if err != nil {
			return err
		}
		defer remove()
		return a.runConvert(cmd, f, source, target)
	}
	return cmd
}

func (n *nydusifyConverting) register(flags *pflag.FlagSet) {
	n.source = stringFlag(flags, "source", "SOURCE", "", "source image")
	n.sourceArchive = stringFlag(flags, "source-archive", "SOURCE_ARCHIVE", "", "tar of an OCI layout to read in place of --source")
	n.target = stringFlag(flags, "target", "TARGET", "", "target image")
	n.targetArchive = stringFlag(flags, "target-archive", "TARGET_ARCHIVE", "", "tar of an OCI layout to write in place of --target")
	n.targetSuffix = stringFlag(flags, "target-suffix", "TARGET_SUFFIX", "", "target is the source with this behind its tag")
	n.chunkDict = stringFlag(flags, "chunk-dict", "CHUNK_DICT", "", "bootstrap:registry:REFERENCE or bootstrap:local:PATH")
	n.prefetchDir = stringFlag(flags, "prefetch-dir", "PREFETCH_DIR", "", "absolute path in the image that readers fetch ahead")
	n.prefetchPatterns = boolFlag(flags, "prefetch-patterns", "PREFETCH_PATTERNS", "read such paths from stdin, one a line")
	n.fsVersion = stringFlag(flags, "fs-version", "FS_VERSION", "6", "version of the format: 5 or 6")
	n.chunkSize = stringFlag(flags, "fs-chunk-size", "FS_CHUNK_SIZE", "0x100000", "size of chunks")
	n.align = boolFlag(flags, "fs-align-chunk", "FS_ALIGN_CHUNK", "align chunks to 4K")
	n.alignOld = boolFlag(flags, "backend-aligned-chunk", "BACKEND_ALIGNED_CHUNK", "the same, by its old name")
	n.oci = boolFlag(flags, "oci", "OCI", "turn docker's media types into the OCI's")
	n.retryDelay = stringFlag(flags, "push-retry-delay", "PUSH_RETRY_DELAY", "5s", "time between tries")
	n.cache = stringFlag(flags, "build-cache", "BUILD_CACHE", "", "cache image")
	n.cacheTag = stringFlag(flags, "build-cache-tag", "BUILD_CACHE_TAG", "", "tag of a cache image in the target's repository")
	n.cacheVersion = stringFlag(flags, "build-cache-version", "BUILD_CACHE_VERSION", "v1", "version of the cache image")
	n.cacheInsecure = boolFlag(flags, "build-cache-insecure", "BUILD_CACHE_INSECURE", "take any certificate of the cache's registry")
	n.cacheRecords = flags.Uint("build-cache-max-records", 200, "layers in the cache image")
	env(flags, "build-cache-max-records", "BUILD_CACHE_MAX_RECORDS")
	boolFlag(flags, "docker-v2-format", "", "no effect, as --oci decides")
	n.sourceBackend.register(flags, "source-", "where blobs of the source of --reverse are", true)
	_ = flags.MarkHidden("docker-v2-format")
	ignored(flags, "nydus-image")
}

// registerNydusify defines the flags that are ours by another name, if at all.
func (f *convertFlags) registerNydusify(flags *pflag.FlagSet) {
	boolVar := func(p *bool, name, variable, usage string) {
		flags.BoolVar(p, name, false, usage)
		if variable != "" {
			env(flags, name, variable)
		}
	}
	stringVar := func(p *string, name, variable, value, usage string) {
		flags.StringVar(p, name, value, usage)
		if variable != "" {
			env(flags, name, variable)
		}
	}
	boolVar(&f.sourceInsecure, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	boolVar(&f.targetInsecure, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	boolVar(&f.dictInsecure, "chunk-dict-insecure", "CHUNK_DICT_INSECURE", "take any certificate of the dictionary's registry")
	boolVar(&f.mergePlatform, "merge-platform", "MERGE_PLATFORM", "make an index with both OCI and RAFS manifests")
	boolVar(&f.allPlatforms, "all-platforms", "", "convert the images of all platforms")
	boolVar(&f.ociRef, "oci-ref", "OCI_REF", "leave the data in the OCI layers (zran)")
	boolVar(&f.referrer, "with-referrer", "WITH_REFERRER", "say in the manifest which image it is about")
	boolVar(&f.reverse, "reverse", "REVERSE", "make an OCI image of a RAFS image")
	boolVar(&f.plainHTTP, "plain-http", "PLAIN_HTTP", "talk http")
	stringVar(&f.platform, "platform", "", hostPlatform(), "platforms to convert, with commas between")
	stringVar(&f.compressor, "compressor", "COMPRESSOR", "zstd", "none, lz4_block or zstd")
	stringVar(&f.batchSize, "batch-size", "BATCH_SIZE", "0", "size of batches of small files")
	stringVar(&f.workDir, "work-dir", "WORK_DIR", "./tmp", "work folder")
	stringVar(&f.outputJSON, "output-json", "OUTPUT_JSON", "", "file for metrics")
	f.backend.register(flags, "", "where the blobs go, in place of the target", true)
	boolVar(&f.forcePush, "backend-force-push", "BACKEND_FORCE_PUSH", "send blobs that the bucket has, too")
	flags.IntVar(&f.retries, "push-retry-count", 3, "further tries of a request that failed")
	env(flags, "push-retry-count", "PUSH_RETRY_COUNT")
}

// translate sets what the flags mean, and returns source and target.
func (n *nydusifyConverting) translate(cmd *cobra.Command, f *convertFlags) (source, target string, err error) {
	usage := func(format string, args ...any) (string, string, error) {
		return "", "", &usageError{fmt.Errorf(format, args...)}
	}
	if source, target, err = n.images(); err != nil {
		return "", "", &usageError{err}
	}
	if f.fsVersion, err = strconv.Atoi(*n.fsVersion); err != nil {
		return usage("--fs-version should be 5 or 6, got %q", *n.fsVersion)
	}
	if f.retryDelay, err = time.ParseDuration(*n.retryDelay); err != nil {
		return usage("--push-retry-delay: %w", err)
	}
	if f.cache, err = n.cacheName(target); err != nil {
		return "", "", &usageError{err}
	}
	f.cacheVersion, f.cacheRecords, f.cacheInsecure = *n.cacheVersion, *n.cacheRecords, *n.cacheInsecure
	if f.reverse {
		f.backend = n.sourceBackend
	}
	if f.dict, err = parseChunkDict(*n.chunkDict); err != nil {
		return usage("--chunk-dict: %w", err)
	}
	if f.prefetch, err = n.prefetch(); err != nil {
		return "", "", err
	}
	f.chunkSize, f.pushFlags.chunkSize = *n.chunkSize, "0"
	f.aligned, f.docker = *n.align || *n.alignOld, !*n.oci && !f.ociRef
	if f.allPlatforms && !cmd.Flags().Changed("platform") {
		f.platform = ""
	}
	return source, target, nil
}

// images are the names of source and target.
func (n *nydusifyConverting) images() (source, target string, err error) {
	source, target = *n.source, *n.target
	switch {
	case source == "" && *n.sourceArchive == "":
		return "", "", errors.New("--source is required")
	case target != "" && *n.targetSuffix != "":
		return "", "", errors.New("--target conflicts with --target-suffix")
	case target == "" && *n.targetSuffix == "" && *n.targetArchive == "":
		return "", "", errors.New("--target or --target-suffix is required")
	case *n.targetSuffix != "":
		if target, err = addSuffix(source, *n.targetSuffix); err != nil {
			return "", "", err
		}
	}
	if *n.sourceArchive != "" {
		if _, err := os.Stat(*n.sourceArchive); err != nil {
			return "", "", fmt.Errorf("source archive not accessible: %w", err)
		}
		source = "oci-archive:" + *n.sourceArchive
	}
	if *n.targetArchive != "" {
		if _, err := os.Stat(filepath.Dir(*n.targetArchive)); err != nil {
			return "", "", fmt.Errorf("target archive directory not accessible: %w", err)
		}
		target = "oci-archive:" + *n.targetArchive
	}
	return source, target, nil
}

// cacheName is the image that --build-cache or --build-cache-tag means.
func (n *nydusifyConverting) cacheName(target string) (string, error) {
	if *n.cacheTag == "" {
		return *n.cache, nil
	}
	if *n.cache != "" {
		return "", errors.New("--build-cache conflicts with --build-cache-tag")
	}
	ref, err := name.ParseReference(target)
	if err != nil {
		return "", fmt.Errorf("invalid target image reference: %w", err)
	}
	return ref.Context().Tag(*n.cacheTag).Name(), nil
}

// addSuffix puts a suffix behind the tag of a reference.
func addSuffix(source, suffix string) (string, error) {
	ref, err := name.ParseReference(source)
	if err != nil {
		return "", fmt.Errorf("invalid source image reference: %w", err)
	}
	if _, digest := ref.(name.Digest); digest {
		return "", fmt.Errorf("unsupported digested image reference: %s", source)
	}
	return ref.Name() + suffix, nil
}

// parseChunkDict reads FORMAT:SOURCE:REFERENCE.
func parseChunkDict(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	parts := strings.SplitN(s, ":", 3)
	if len(parts) < 3 || parts[0] != "bootstrap" || parts[1] != "registry" && parts[1] != "local" {
		return "", fmt.Errorf("want bootstrap:registry:REFERENCE or bootstrap:local:PATH, got %q", s)
	}
	return parts[2], nil
}

// prefetch are the paths to fetch ahead: all, unless told otherwise.
func (n *nydusifyConverting) prefetch() ([]string, error) {
	switch {
	case *n.prefetchDir != "" && *n.prefetchPatterns:
		return nil, &usageError{errors.New("--prefetch-dir conflicts with --prefetch-patterns")}
	case *n.prefetchDir != "":
		return []string{*n.prefetchDir}, nil
	case *n.prefetchPatterns:
		list, err := readPrefetchFiles("-")
		if err != nil || len(list) > 0 {
			return list, err
		}
	}
	return []string{"/"}, nil
}
