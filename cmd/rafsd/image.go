package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/build"
)

const imageLong = `Make, check and take apart RAFS images in files: bootstraps and blobs.

The command line is that of nydus-image, whose name this program may be called by. Exit codes are
its as well: 0 done, 1 failed or the image is wrong, 2 the command line is wrong, or the images to
merge do not fit together.`

const imageExample = `  # a folder becomes an image
  rafsd image create -B image.boot -D blobs rootfs

  # layers become one
  rafsd image create -t tar-rafs --whiteout-spec none -B layer1.boot -D blobs layer1.tar
  rafsd image merge -B image.boot layer1.boot layer2.boot

  # what is wrong with it, what is in it
  rafsd image check -D blobs --data image.boot
  rafsd image inspect -R blobs image.boot`

// image is what nydus-image does, as a verb.
func (a *app) image() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image COMMAND",
		Short: "Make, check and take apart images in files, as nydus-image does",
		Long:  imageLong, Example: imageExample,
		Args: args(cobra.NoArgs, "a command"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.Join(cmd.Help(), &usageError{errors.New("a command is missing")})
		},
	}
	a.addImageVerbs(cmd)
	return cmd
}

// nydusImage is the command line of a binary that is called nydus-image.
func (a *app) nydusImage() *cobra.Command {
	root := &cobra.Command{
		Use:   "nydus-image COMMAND",
		Short: "Make, check and take apart RAFS images",
		Long:  imageLong, Example: strings.ReplaceAll(imageExample, "rafsd image", "nydus-image"),
		SilenceErrors: true, SilenceUsage: true,
		Args:              args(cobra.NoArgs, "a command"),
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.begin(cmd) },
	}
	version := root.Flags().BoolP("version", "V", false, "print the version")
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if *version {
			_, err := fmt.Fprintln(a.stdout, nydusImageVersion())
			return err
		}
		return cmd.Help() // which is what nydus-image does
	}
	flags := root.PersistentFlags()
	a.log.register(flags)
	_ = flags.MarkHidden("log-rotation-size")
	_ = flags.MarkHidden("log-format")
	root.SetFlagErrorFunc(flagError)
	a.addImageVerbs(root)
	return root
}

func (a *app) addImageVerbs(cmd *cobra.Command) {
	verbs := []*cobra.Command{
		a.imageCreate(), a.imageMerge(), a.imageCheck(), a.imageInspect(), a.imageStat(),
		a.imageUnpack(), a.imageExport(), a.imageCompact(), a.imageOptimize(), a.imageChunkDict(),
	}
	for _, v := range verbs {
		v.Annotations = map[string]string{imageVerb: ""}
		for _, c := range append(v.Commands(), v) {
			if cmd.Name() == "nydus-image" {
				c.Example = strings.ReplaceAll(c.Example, "rafsd image", "nydus-image")
			}
		}
	}
	cmd.AddCommand(verbs...)
}

// imageVerb marks the commands that end with the exit codes of nydus-image.
const imageVerb = "rafsd_image_verb"

// imageExit is the exit code of nydus-image for ours.
func imageExit(code int, err error) int {
	switch {
	case code == exitInterrupted || code == exitUsage:
		return code
	case errors.Is(err, build.ErrInconsistent):
		return 2
	}
	return exitError
}

// isImageVerb tells whether the exit codes of a command are those of nydus-image.
func isImageVerb(cmd *cobra.Command) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if _, ok := cmd.Annotations[imageVerb]; ok || cmd.Name() == "nydus-image" {
			return true
		}
	}
	return false
}

// nydusImageVersion is what nydus-image --version prints, which has no name before
// the version; of its last lines we have our own.
func nydusImageVersion() string { return " " + versionText() }

// bootstrapFlags are how nydus-image is told of a bootstrap: as an argument, or as
// it once was, by a flag.
type bootstrapFlags struct {
	flag, blobDir, config string
}

func (f *bootstrapFlags) register(flags *pflag.FlagSet, blobDir string) {
	flags.StringVarP(&f.flag, "bootstrap", "B", "", "bootstrap of the image, or a blob that has it inside, in place of the argument")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", blobDir)
	configFlag(flags, &f.config)
}

func configFlag(flags *pflag.FlagSet, p *string) {
	flags.StringVarP(p, "config", "C", "", "configuration of a storage backend, as for nydusd: JSON or TOML")
}

// path is the bootstrap's.
func (f *bootstrapFlags) path(args []string) (string, error) {
	switch {
	case f.flag != "" && len(args) > 0:
		return "", &usageError{errors.New("a bootstrap as an argument conflicts with --bootstrap")}
	case f.flag == "" && len(args) == 0:
		return "", &usageError{errors.New("want the path of a BOOTSTRAP")}
	case f.blobDir != "" && f.config != "":
		return "", &usageError{errors.New("--blob-dir conflicts with --config")}
	case f.flag != "":
		return f.flag, nil
	}
	return args[0], nil
}

// hostFlags are what commands that build need of the machine.
type hostFlags struct{ progress, workDir string }

func (f *hostFlags) registerHost(flags *pflag.FlagSet) {
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	workDirFlag(flags, &f.workDir)
}

func workDirFlag(flags *pflag.FlagSet, p *string) {
	flags.StringVar(p, "work-dir", "", "folder for what does not fit into memory, in files without names (default $TMPDIR or /tmp)")
}

// build runs a build under a label, with the machine that the flags tell of.
func (a *app) build(f *hostFlags, log *slog.Logger, label, stage string, run func(build.Host) (*build.Result, error)) (r *build.Result, err error) {
	if f.workDir != "" {
		if err := mustBeFolder(f.workDir); err != nil {
			return nil, fmt.Errorf("--work-dir: %w", err)
		}
	}
	limitHeap(a.getenv)
	err = a.withProgress(f.progress, a.quiet(), label, stage, func(tell func(done, total int64)) (int64, error) {
		r, err = run(build.Host{Log: log, TempDir: f.workDir, Progress: tell})
		if err != nil || r == nil {
			return -1, err
		}
		return resultSize(r), nil
	})
	return r, err
}

// resultSize is how many bytes a build has made: its blob, and its bootstrap where that
// is a file of its own.
func resultSize(r *build.Result) int64 {
	size := int64(0)
	if r.Blob != "" { // else it is that of a blob that was there
		size = r.BlobSize
	}
	if st, err := os.Stat(r.Bootstrap); err == nil && r.Bootstrap != "" {
		size += st.Size()
	}
	return size
}

// checkConfig refuses a configuration that cannot be read, as nydus-image does even
// where it has no use for it.
func checkConfig(path string) error {
	if path == "" {
		return nil
	}
	if _, _, err := config.Load(path); err != nil {
		return &usageError{fmt.Errorf("--config: %w", err)}
	}
	return nil
}

// oneOf refuses a value that is none of a list.
func oneOf(flag, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return &usageError{fmt.Errorf("--%s %q: want one of %s", flag, value, strings.Join(values, ", "))}
}

// alias gives flags further names.
func alias(flags *pflag.FlagSet, names map[string]string) {
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if to, ok := names[name]; ok {
			name = to
		}
		return pflag.NormalizedName(name)
	})
}

// conflicts refuses pairs of flags of which both were given.
func conflicts(cmd *cobra.Command, pairs ...[2]string) error {
	for _, p := range pairs {
		if cmd.Flags().Changed(p[0]) && cmd.Flags().Changed(p[1]) {
			return &usageError{fmt.Errorf("--%s conflicts with --%s", p[0], p[1])}
		}
	}
	return nil
}

// needed refuses a command line without some flags.
func needed(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			return &usageError{fmt.Errorf("--%s is missing", name)}
		}
	}
	return nil
}

// quiet tells whether whoever asked for no news of little weight wants no progress
// either: converters read what is on stderr.
func (a *app) quiet() bool { return (a.log.level == "warn" || a.log.level == "error") && !a.stderrTTY }

// withLog runs f with the log that the flags ask for.
func (a *app) withLog(f func(log *slog.Logger) error) error {
	log, end, err := a.log.open(besideBars{a})
	if err != nil {
		return err
	}
	defer end()
	return f(log)
}

// mustBe refuses what is not of a kind, before anything is opened.
func mustBeFolder(path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: want a folder", path)
	}
	return err
}

func mustBeFile(path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() && st.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) == 0 {
		err = fmt.Errorf("%s: want a file, a fifo or a character device", path)
	}
	return err
}
