package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build"
	"github.com/rafsd/rafsd/rafs/convert"
)

// optimizePolicy is the only one that there is.
const optimizePolicy = "separated-blob-with-prefetch-files"

// nydusifyOptimize makes an image of one of a registry, as 'rafsd image optimize'
// does of files.
func (a *app) nydusifyOptimize() *cobra.Command {
	cmd := &cobra.Command{Use: "optimize", Short: "Give an image a blob with the files that are wanted first", Args: cobra.NoArgs}
	flags := cmd.Flags()
	source := stringFlag(flags, "source", "SOURCE", "", "source (RAFS) image")
	target := stringFlag(flags, "target", "TARGET", "", "target image")
	access := accessFlags{}
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	policy := stringFlag(flags, "policy", "OPTIMIZE_POLICY", optimizePolicy, "how to optimize; there is one way")
	list := stringFlag(flags, "prefetch-files", "PREFETCH_FILES", "", "file with the list of the files that are wanted first")
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./tmp", "work folder")
	chunk := stringFlag(flags, "push-chunk-size", "", "0MB", "send blobs in requests of this size")
	var place backendOptions
	place.register(flags, "source-", "where to read the blobs, unless from the source", true)
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "source", "target", "prefetch-files"); err != nil {
			return err
		}
		if *policy != optimizePolicy {
			return &usageError{fmt.Errorf("--policy %s: want %s", *policy, optimizePolicy)}
		}
		remove, err := workFolder(*workDir)
		if err != nil {
			return err
		}
		defer remove()
		access.sourceInsecure, access.targetInsecure = *sourceInsecure, *targetInsecure
		text, err := os.ReadFile(*list)
		if err != nil {
			return fmt.Errorf("--prefetch-files: %w", err)
		}
		limitHeap(a.getenv)
		o := convert.OptimizeOptions{List: string(text), Host: build.Host{TempDir: *workDir}}
		if o.Blobs, err = blobsFrom("", &place); err != nil {
			return err
		}
		if o.Blobs != nil {
			defer o.Blobs.Close()
		}
		return a.between(cmd.Context(), access, *chunk, []string{*source}, *target, *workDir, func(ctx context.Context, from []store.Source, to store.Target) (*convert.Derived, error) {
			o.Source, o.Target = from[0], to
			return convert.Optimize(ctx, o)
		})
	}
	return cmd
}

// nydusifyChunkDict makes a dictionary of images of registries, as 'rafsd image
// chunkdict' does of files.
func (a *app) nydusifyChunkDict() *cobra.Command {
	parent := &cobra.Command{
		Use: "chunkdict COMMAND", Short: "Make chunk dictionaries", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.Join(cmd.Help(), &usageError{errors.New("a command is missing")})
		},
	}
	cmd := &cobra.Command{Use: "generate", Short: "Make a dictionary of the chunks that several images have", Args: cobra.NoArgs}
	parent.AddCommand(cmd)
	flags := cmd.Flags()
	sources := flags.StringSlice("sources", nil, "RAFS images, with commas between")
	env(flags, "sources", "SOURCES")
	target := stringFlag(flags, "target", "TARGET", "", "image to make; without it, the bootstrap in the work folder is all")
	access := accessFlags{}
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the sources' registries")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./output", "work folder, where chunkdict_bootstrap remains")
	all := boolFlag(flags, "all-platforms", "", "not offered: one dictionary is for one platform")
	platform := stringFlag(flags, "platform", "", hostPlatform(), "which image of an index to take")
	var place backendOptions
	place.register(flags, "", "not offered: the blobs have to be in the sources' registries", true)
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case len(*sources) == 0:
			return &usageError{errors.New("--sources is required")}
		case *all:
			return &usageError{errors.New("--all-platforms: want one --platform a dictionary")}
		case place.kind != "":
			return &usageError{fmt.Errorf("--backend-type %s: a dictionary is made of blobs that are in registries", place.kind)}
		}
		p, err := v1.ParsePlatform(*platform)
		if err != nil || p.Architecture == "" {
			return &usageError{fmt.Errorf("--platform: want OS/ARCH[/VARIANT], got %q", *platform)}
		}
		if err := os.MkdirAll(*workDir, 0o755); err != nil {
			return fmt.Errorf("--work-dir: %w", err)
		}
		access.sourceInsecure, access.targetInsecure = *sourceInsecure, *targetInsecure
		limitHeap(a.getenv)
		o := convert.DictionaryOptions{
			Platform: *p, Bootstrap: filepath.Join(*workDir, "chunkdict_bootstrap"), Host: build.Host{TempDir: *workDir},
		}
		return a.between(cmd.Context(), access, "0", *sources, *target, *workDir, func(ctx context.Context, from []store.Source, to store.Target) (*convert.Derived, error) {
			o.Sources, o.Target = from, to
			return convert.Dictionary(ctx, o)
		})
	}
	return parent
}

// between makes an image of others and says what it is. Target may be empty: then
// there is no image.
func (a *app) between(ctx context.Context, access accessFlags, chunkSize string, sources []string, target, workDir string,
	run func(context.Context, []store.Source, store.Target) (*convert.Derived, error)) error {
	from, to, err := access.options()
	if err != nil {
		return err
	}
	push, err := (&pushFlags{chunkSize: chunkSize, retries: 3}).push()
	if err != nil {
		return err
	}
	var opened []store.Source
	for _, name := range sources {
		s, err := store.OpenSource(ctx, strings.TrimSpace(name), from, workDir)
		if err != nil {
			return fmt.Errorf("source %s: %w", name, err)
		}
		defer s.Close()
		opened = append(opened, s)
	}
	push.From, push.Name = opened[0], store.NameOf(opened[0])
	var dst store.Target
	if target != "" {
		if dst, err = store.OpenTarget(ctx, target, to, push); err != nil {
			return fmt.Errorf("target %s: %w", target, err)
		}
		defer dst.Close()
	}
	made, err := run(ctx, opened, dst)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(sources, ", "), err)
	}
	return a.show(false, nil, func(w io.Writer) {
		where := "no image, the bootstrap only"
		if dst != nil {
			where = dst.Reference(made.Root.Digest)
		}
		fmt.Fprintf(w, "%d blobs, new is %s of %s\n%s\n", len(made.Blobs), cmp.Or(made.Blob, "none"), bytesText(uint64(made.Size)), where)
	})
}
