package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/rafs/convert"
)

// nydusify is the command line of nydusify (nydus contrib/nydusify/cmd). What it
// has beyond ours is the way it names things; each verb translates that.
func (a *app) nydusify() *cobra.Command {
	root := &cobra.Command{
		Use:           "nydusify COMMAND",
		Short:         "Make, check, copy and commit RAFS images",
		Long:          "rafsd under the name of nydusify, with its command line. Flags may be set by environment\nvariables of the names that nydusify gives them.",
		Version:       versionText(),
		SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.active = cmd.CommandPath()
			return fromEnvironment(cmd, a.getenv)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return errors.Join(cmd.Help(), &usageError{errors.New("a command is missing")})
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	flags := root.PersistentFlags()
	flags.BoolP("debug", "D", false, "log more, overrides --log-level")
	flags.StringP("log-level", "l", "info", "least level that is logged")
	flags.String("log-file", "", "write the log to a file")
	env(flags, "debug", "DEBUG_LOG_LEVEL")
	env(flags, "log-level", "LOG_LEVEL")
	env(flags, "log-file", "LOG_FILE")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(a.nydusifyConvert(), a.nydusifyCopy(), a.nydusifyCheck(), a.nydusifyCommit(),
		a.nydusifyBuild(), a.nydusifyOptimize(), a.nydusifyChunkDict())
	for _, verb := range []string{"mount", "view"} {
		root.AddCommand(notHere(verb, "virtiofs"))
	}
	return root
}

// notHere says which command of ours does what a verb of nydusify does.
func notHere(verb, instead string) *cobra.Command {
	return &cobra.Command{
		Use: verb, Hidden: true, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return &usageError{fmt.Errorf("nydusify %s is not offered under this name; see 'rafsd %s --help'", verb, instead)}
		},
	}
}

// envVariable is the annotation of a flag that an environment variable may set.
const envVariable = "rafsd_environment"

func env(flags *pflag.FlagSet, name string, variables ...string) {
	flag := flags.Lookup(name)
	flag.Usage += " [$" + strings.Join(variables, ", $") + "]"
	flag.Annotations = map[string][]string{envVariable: variables}
}

// fromEnvironment sets the flags that were not given.
func fromEnvironment(cmd *cobra.Command, getenv func(string) string) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		variables := f.Annotations[envVariable]
		if f.Changed || len(variables) == 0 || err != nil {
			return
		}
		for _, variable := range variables {
			value := getenv(variable)
			if value == "" {
				continue
			}
			if setErr := cmd.Flags().Set(f.Name, value); setErr != nil {
				err = &usageError{fmt.Errorf("$%s: %w", variable, setErr)}
			}
			return
		}
	})
	return err
}

// doubleDashes turns "-source", which nydusify takes too, into "--source". Values
// may begin with a dash, so only the names of flags count.
func doubleDashes(root *cobra.Command, args []string) []string {
	known := map[string]bool{"chunk-size": true, "multi-platform": true, "target-dir": true, "meta": true, "bootstrap": true, "with-mount-path": true}
	cmds := append(root.Commands(), root)
	for _, cmd := range root.Commands() {
		cmds = append(cmds, cmd.Commands()...)
	}
	for _, cmd := range cmds {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
		cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	}
	out := make([]string, len(args))
	for i, arg := range args {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		if len(arg) > 2 && arg[0] == '-' && arg[1] != '-' && known[name] {
			arg = "-" + arg
		}
		out[i] = arg
	}
	return out
}

// stringFlag defines a flag that the environment may set.
func stringFlag(flags *pflag.FlagSet, name, variable, value, usage string) *string {
	p := flags.String(name, value, usage)
	if variable != "" {
		env(flags, name, variable)
	}
	return p
}

func boolFlag(flags *pflag.FlagSet, name, variable, usage string) *bool {
	p := flags.Bool(name, false, usage)
	if variable != "" {
		env(flags, name, variable)
	}
	return p
}

// ignored are flags that name programs of nydus, which nobody needs here.
func ignored(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		flags.String(name, "", "not needed, ignored")
		_ = flags.MarkHidden(name)
	}
}

// hostPlatform is nydusify's default for --platform.
func hostPlatform() string { return "linux/" + runtime.GOARCH }

// required fails where a flag has neither been given nor set by the environment.
func required(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if cmd.Flags().Lookup(name).Value.String() == "" {
			return &usageError{fmt.Errorf("--%s is required", name)}
		}
	}
	return nil
}

// workFolder makes the folder that --work-dir names. What it is used for goes away
// at the end; the folder does if it was not there and is empty then.
func workFolder(dir string) (remove func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	if _, err := os.Stat(dir); err == nil {
		return func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("--work-dir: %w", err)
	}
	return func() {
		_ = os.Remove(filepath.Join(dir, convert.StateLayers)) // both fail while something is there
		_ = os.Remove(dir)
	}, nil
}

func (a *app) nydusifyCopy() *cobra.Command {
	cmd := &cobra.Command{Use: "copy", Short: "Copy an image from source to target", Args: cobra.NoArgs}
	flags := cmd.Flags()
	source := stringFlag(flags, "source", "SOURCE", "", "source image, or file://PATH")
	target := stringFlag(flags, "target", "TARGET", "", "target image, or file://PATH")
	f := &copyFlags{}
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	all := boolFlag(flags, "all-platforms", "", "copy the images of all platforms")
	platform := stringFlag(flags, "platform", "", hostPlatform(), "platforms to copy, with commas between")
	chunk := stringFlag(flags, "push-chunk-size", "", "0MB", "send blobs in requests of this size")
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./tmp", "work folder")
	f.backend.register(flags, "source-", "where blobs are that the source does not list", true)
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "source", "target"); err != nil {
			return err
		}
		remove, err := workFolder(*workDir)
		if err != nil {
			return err
		}
		defer remove()
		f.sourceInsecure, f.targetInsecure = *sourceInsecure, *targetInsecure
		f.chunkSize, f.retries, f.workDir, f.progress = *chunk, 3, *workDir, "auto"
		if !*all {
			f.platform = *platform
		}
		return a.runCopy(cmd, f, *source, *target)
	}
	return cmd
}

func (a *app) nydusifyCheck() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Verify nydus image format and content", Args: cobra.NoArgs}
	flags := cmd.Flags()
	source := stringFlag(flags, "source", "SOURCE", "", "source OCI image")
	target := stringFlag(flags, "target", "TARGET", "", "target (RAFS) image")
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	multi := boolFlag(flags, "multi-platform", "MULTI_PLATFORM", "want an index with both OCI and RAFS manifests")
	platform := stringFlag(flags, "platform", "", hostPlatform(), "which images of an index to take")
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./output", "work folder")
	f := &verifyFlags{progress: "auto", max: 100}
	var sourceBackend backendOptions
	sourceBackend.register(flags, "source-", "where blobs of the source are, which may not be a RAFS image", true)
	f.backend.register(flags, "target-", "where blobs of the target are", true)
	ignored(flags, "nydus-image", "nydusd")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "target"); err != nil {
			return err
		}
		f.source, f.platform, f.multiPlatform, f.workDir = *source, *platform, *multi, *workDir
		remove, err := workFolder(*workDir)
		if err != nil {
			return err
		}
		defer remove()
		f.sourceInsecure, f.targetInsecure = *sourceInsecure, *targetInsecure
		return a.runVerify(cmd.Context(), f, *target)
	}
	return cmd
}
