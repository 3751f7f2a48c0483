package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// accessFlags say how to reach registries.
type accessFlags struct {
	plainHTTP, sourceInsecure, targetInsecure bool
	caFiles                                   []string
}

func (f *accessFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "talk http, not https, to the registries")
	flags.StringArrayVar(&f.caFiles, "ca", nil, "further certificate authorities, a PEM file; may be repeated")
	flags.BoolVar(&f.sourceInsecure, "source-insecure", false, "take any certificate of the registry of SRC, or none (plain http)")
	flags.BoolVar(&f.targetInsecure, "target-insecure", false, "take any certificate of the registry of DST, or none (plain http)")
}

// options are those of the source's registry and of the target's.
func (f *accessFlags) options() (source, target artifact.Options, err error) {
	roots, err := rootCAs(f.caFiles)
	if err != nil {
		return source, target, err
	}
	source = artifact.Options{PlainHTTP: f.plainHTTP, RootCAs: roots, UserAgent: "rafsd/" + buildInfo().Version}
	target = source
	source.Insecure, target.Insecure = f.sourceInsecure, f.targetInsecure
	source.PlainHTTP = source.PlainHTTP || f.sourceInsecure
	target.PlainHTTP = target.PlainHTTP || f.targetInsecure
	return source, target, nil
}

// pushFlags say how to send blobs.
type pushFlags struct {
	chunkSize  string
	retries    int
	retryDelay time.Duration
}

func (f *pushFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.chunkSize, "push-chunk-size", "0", "send blobs in requests of at most so many bytes, such as 16MiB; 0 for one request a blob")
	flags.IntVar(&f.retries, "push-retry-count", 3, "further tries of a request that failed on its way")
	flags.DurationVar(&f.retryDelay, "push-retry-delay", time.Second, "time between tries")
}

func (f *pushFlags) push() (store.Push, error) {
	size, err := parseBytes(f.chunkSize)
	if err != nil {
		return store.Push{}, &usageError{fmt.Errorf("--push-chunk-size: %w", err)}
	}
	p := store.Push{ChunkSize: size, Retries: f.retries, RetryDelay: f.retryDelay}
	if p.Retries <= 0 {
		p.Retries = -1
	}
	return p, nil
}

// parseBytes reads a number of bytes with a unit of 1000 (kB, MB, GB) or 1024
// (KiB, K, MiB, M, GiB, G), or none.
func parseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		factor int64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9},
		{"K", 1 << 10}, {"k", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"B", 1}, {"", 1},
	}
	for _, u := range units {
		digits, ok := strings.CutSuffix(strings.TrimSpace(s), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 0, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.factor {
			break
		}
		return n * u.factor, nil
	}
	return 0, fmt.Errorf("want a number of bytes such as 4096, 16MiB or 20MB, got %q", s)
}

// copyFlags are those of copy.
type copyFlags struct {
	accessFlags
	pushFlags
	backend                         backendOptions
	platform, workDir, progress     string
	allPlatforms, referrers, asJSON bool
	parallel                        int
}

const copyLong = `Copy an image as it is, OCI or RAFS, from one place to another.

    HOST/REPOSITORY:TAG     a registry
    oci:FOLDER[:TAG]        an OCI layout
    oci-archive:FILE[:TAG]  a tar of one; also file://FILE
    docker-archive:FILE     docker save (SRC only)
    PATH                    a folder or a file that exists (SRC only)

All platforms are copied, and digests stay what they are, unless --platform picks some. Blobs that
DST has are not sent again, and a registry takes them from another of its repositories. What is
read is verified; the name comes last, so a copy that is cut off leaves nothing under it and sends
only the rest when it is started again. For an image that refers to OCI layers by their digests
(zran), these come along; with --backend-type, so do blobs that lie in a bucket or a folder.`

func (a *app) copy() *cobra.Command {
	f := &copyFlags{}
	cmd := &cobra.Command{
		Use:   "copy SRC DST",
		Short: "Copy an image between registries, layouts and archives",
		Long:  copyLong,
		Example: `  rafsd copy registry.example.com/debian:12-rafs localhost:5000/debian:12-rafs
  rafsd copy --referrers debian:12 oci:debian:12
  rafsd copy --platform linux/amd64,linux/arm64 debian:12 file://debian.tar`,
		Args: args(cobra.ExactArgs(2), "SRC and DST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runCopy(cmd, f, args[0], args[1]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.platform, "platform", "", "which images of an index to take, as OS/ARCH[/VARIANT], with commas between (default all)")
	flags.BoolVar(&f.allPlatforms, "all-platforms", false, "take all images of an index, which is the default")
	flags.BoolVar(&f.referrers, "referrers", false, "copy what refers to the image, too, such as signatures")
	f.backend.register(flags, "", "where blobs are that SRC does not list; DST lists them", false)
	flags.IntVar(&f.parallel, "parallel", 3, "blobs on their way at the same time")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for an archive that has to be unpacked (default $TMPDIR or /tmp)")
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON, and no progress unless asked for")
	f.accessFlags.register(flags)
	f.pushFlags.register(flags)
	return cmd
}

func (a *app) runCopy(cmd *cobra.Command, f *copyFlags, src, dst string) error {
	o := store.CopyOptions{Referrers: f.referrers, Parallel: f.parallel}
	var err error
	switch {
	case f.allPlatforms && f.platform != "":
		return &usageError{fmt.Errorf("want --platform or --all-platforms, not both")}
	case f.platform != "":
		if o.Platforms, err = store.ParsePlatforms(f.platform); err != nil {
			return &usageError{fmt.Errorf("--platform: %w", err)}
		}
	}
	push, err := f.push()
	if err != nil {
		return err
	}
	from, to, err := f.accessFlags.options()
	if err != nil {
		return err
	}
	show, err := a.newProgress(f.progress, f.asJSON)
	if err != nil {
		return err
	}
	o.Progress = show.blob
	result, reference, err := copyImage(cmd, src, from, dst, to, push, o, f)
	show.end(err == nil)
	if err != nil {
		return err
	}
	facts := &copyFacts{
		Target: reference, Digest: result.Root.Digest.String(), Images: result.Images, Referrers: result.Referrers,
		Blobs: result.Blobs, Bytes: result.Bytes, Present: result.Present, PresentBytes: result.PresentBytes,
	}
	return a.show(f.asJSON, facts, facts.text)
}

func copyImage(cmd *cobra.Command, src string, from artifact.Options, dst string, to artifact.Options,
	push store.Push, o store.CopyOptions, f *copyFlags) (*store.Copied, string, error) {
	blobs, err := blobsFrom("", &f.backend)
	if err != nil {
		return nil, "", err
	}
	source, err := store.OpenSource(cmd.Context(), src, from, f.workDir)
	if err != nil {
		return nil, "", fmt.Errorf("source %s: %w", src, err)
	}
	defer source.Close()
	push.From = source
	push.Name = store.NameOf(source)
	if blobs != nil {
		defer blobs.Close()
		if source, err = store.Rejoin(cmd.Context(), source, blobs, f.workDir); err != nil {
			return nil, "", fmt.Errorf("source %s: %w", src, err)
		}
	}
	target, err := store.OpenTarget(cmd.Context(), dst, to, push)
	if err != nil {
		return nil, "", fmt.Errorf("target %s: %w", dst, err)
	}
	defer target.Close()
	result, err := store.Copy(cmd.Context(), target, source, o)
	if err != nil {
		return nil, "", fmt.Errorf("%s to %s: %w (run it again: blobs that have arrived are not sent twice)", src, dst, err)
	}
	return result, target.Reference(result.Root.Digest), nil
}

// copyFacts is what copy tells when it is done.
type copyFacts struct {
	Target       string `json:"target"`
	Digest       string `json:"digest"`
	Images       int    `json:"images"`
	Referrers    int    `json:"referrers"`
	Blobs        int    `json:"blobs_sent"`
	Bytes        int64  `json:"bytes_sent"`
	Present      int    `json:"blobs_present"`
	PresentBytes int64  `json:"bytes_present"`
}

func (f *copyFacts) text(w io.Writer) {
	fmt.Fprintf(w, "%d images, %d referrers: sent %d blobs of %s; %d of %s were there.\n",
		f.Images, f.Referrers, f.Blobs, bytesText(uint64(f.Bytes)), f.Present, bytesText(uint64(f.PresentBytes)))
	fmt.Fprintf(w, "%s\n", f.Target)
}
