package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/rafsd/rafsd/daemon/config"
)

// app is one invocation of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// stderrTTY tells whether stderr can show progress bars, and screen is what draws
	// them, if anything does.
	stderrTTY bool
	screen    atomic.Pointer[bars]
	getenv    func(string) string

	log    logFlags
	serve  serveFlags
	active string // name of the verb that runs; empty while arguments are parsed
}

func newApp() *app {
	return &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv,
		stderrTTY: drawable(int(os.Stderr.Fd()), os.Getenv("TERM")),
	}
}

// drawable reports whether a descriptor is a terminal on which lines can be drawn over
// others: it is of a kind that has cursors, and has a size, as some that are called
// terminals have not.
func drawable(fd int, kind string) bool {
	width, height, err := term.GetSize(fd)
	return err == nil && width > 0 && height > 0 && kind != "" && kind != "dumb"
}

// besideBars is stderr for those who write while bars may be drawn on it.
type besideBars struct{ *app }

func (w besideBars) Write(p []byte) (int, error) {
	if b := w.screen.Load(); b != nil {
		return b.Write(p)
	}
	return w.stderr.Write(p)
}

const rootLong = `rafsd boots virtual machines from container images that are not there yet.

It serves RAFS images, which are Nydus' format, over vhost-user-fs: the guest mounts a virtio-fs
tag, and every chunk that it reads is fetched from a registry or a folder on first use,
verified, cached and served.`

const rootExample = `  # an OCI image becomes a RAFS image in the same registry
  rafsd convert registry.example.com/debian:12 registry.example.com/debian:12-rafs

  # serve it; QEMU or Cloud Hypervisor connects to the socket
  rafsd virtiofs --sock /run/vm.sock --cache-dir /var/cache/rafsd registry.example.com/debian:12-rafs

  # images in files: what nydus-image does
  rafsd image create -B image.boot -D blobs rootfs

  # look inside
  rafsd inspect registry.example.com/debian:12-rafs`

// run executes the command line and returns the exit code.
func (a *app) run(argv []string) int {
	root := a.entry(argv[0])
	root.SetArgs(argv[1:])
	if root.Name() == "nydusify" {
		root.SetArgs(doubleDashes(root, argv[1:]))
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	ctx, stop := signalContext()
	defer stop()
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if a.active == "" && !errors.As(err, new(*usageError)) {
		err = &usageError{err}
	}
	code := a.report(cmd, err)
	if root.Name() == "nydusify" && code != exitInterrupted {
		return exitError // the only one that it has
	}
	if isImageVerb(cmd) {
		return imageExit(code, err)
	}
	return code
}

// signalContext ends at the first SIGINT or SIGTERM. From then on the signals do
// what they do by default, so a second one kills.
func signalContext() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "rafsd COMMAND",
		Short:             "Serve, make and examine RAFS images",
		Long:              rootLong + "\n\n" + exitCodesHelp,
		Example:           rootExample,
		Version:           versionText(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.begin(cmd) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Help(); err != nil {
				return err
			}
			return &usageError{errors.New("a command is missing")}
		},
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = false
	a.log.register(root.PersistentFlags())
	a.serve.registerGlobal(root.PersistentFlags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return flagError(cmd, err) })
	cobra.AddTemplateFunc("globalUsages", globalUsages)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(),
		".InheritedFlags.FlagUsages", "globalUsages ."))
	root.AddCommand(a.virtiofs(), a.convert(), a.copy(), a.verify(), a.commit(), a.guard(), a.inspect(), a.image(), a.version())
	return root
}

// begin runs after the arguments have been parsed and before the verb.
func (a *app) begin(cmd *cobra.Command) error {
	a.active = cmd.CommandPath()
	if _, err := parseLevel(a.log.level); err != nil {
		return err
	}
	if serves(cmd) {
		return nil
	}
	var wrong []string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if _, ok := f.Annotations[serveOnly]; ok {
			wrong = append(wrong, "--"+f.Name)
		}
	})
	if len(wrong) > 0 && cmd.HasParent() {
		return &usageError{fmt.Errorf("%s belongs to rafsd virtiofs", strings.Join(wrong, ", "))}
	}
	return nil
}

// serveOnly marks the flags that may stand before the verb, as nydusd allows, but
// mean something to the verbs that serve only.
const serveOnly = "rafsd_serve_only"

func serves(cmd *cobra.Command) bool { return cmd.Name() == "virtiofs" }

// globalUsages is the help text of the inherited flags that matter to a verb.
func globalUsages(cmd *cobra.Command) string {
	if serves(cmd) {
		return cmd.InheritedFlags().FlagUsages()
	}
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
		if _, ok := f.Annotations[serveOnly]; !ok {
			shown.AddFlag(f)
		}
	})
	return shown.FlagUsages()
}

// flagError names the flag that was meant where a flag is unknown.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if s := config.Nearest(unknown.GetSpecifiedName(), names); s != "" {
			err = fmt.Errorf("%w; did you mean --%s?", err, s)
		}
	}
	return &usageError{err}
}

// args wraps a check of positional arguments with a sentence that says what they are.
func args(check cobra.PositionalArgs, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return &usageError{fmt.Errorf("want %s, got %d arguments", want, len(given))}
		}
		return nil
	}
}
