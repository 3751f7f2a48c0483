package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert/verify"
)

// verifyFlags are those of verify.
type verifyFlags struct {
	accessFlags
	backend                                      backendOptions
	source, platform, workDir, blobDir, progress string
	multiPlatform, skipData, asJSON              bool
	max                                          int
}

const verifyLong = `Verify a RAFS image: that manifest, configuration and bootstrap layer keep to the rules by which
nydus' tools know such images, that the bootstrap breaks no rule of its format, that every blob
has the bytes that its digest says. With --source every entry is compared with those of the OCI
image that it was made of: kind, mode, owner, size, time, target, device, extended attributes, hard
links and content.

Nothing is mounted or unpacked, and no daemon is needed; blobs lie in the work folder while they
are looked at. What is wrong is listed, all of it, and the exit code is 3.

IMAGE and the source are named as with 'rafsd copy'. An index is searched for the image of
--platform.`

func (a *app) verify() *cobra.Command {
	f := &verifyFlags{}
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify a RAFS image, and compare it with its source",
		Long:  verifyLong,
		Example: `  rafsd verify registry.example.com/debian:12-rafs
  rafsd verify --source debian:12 registry.example.com/debian:12-rafs
  rafsd verify --json --skip-data oci:debian-rafs | jq '.findings[]'`,
		Args: args(cobra.ExactArgs(1), "one IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runVerify(cmd.Context(), f, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.source, "source", "", "OCI image that IMAGE was made of")
	flags.StringVar(&f.platform, "platform", "", "which images of an index to take, as OS/ARCH[/VARIANT] (default that of this machine)")
	flags.BoolVar(&f.multiPlatform, "multi-platform", false, "want an index that has the OCI and the RAFS image")
	flags.BoolVar(&f.skipData, "skip-data", false, "look at no bytes of blobs and files")
	flags.StringVar(&f.blobDir, "blob-dir", "", "folder with the blobs of an image whose manifest does not list them")
	f.backend.register(flags, "", "where they are, if not in a folder", false)
	flags.IntVar(&f.max, "max", 100, "how many findings to list")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for blobs while they are looked at (default $TMPDIR or /tmp)")
	flags.StringVar(&f.progress, "progress", "auto", progressHelp)
	flags.BoolVar(&f.asJSON, "json", false, "print the report as JSON, and no progress unless asked for")
	f.accessFlags.register(flags)
	return cmd
}

// errFindings is what verify ends with when an image is not what it should be.
var errFindings = errors.New("the image is not what it should be")

func (a *app) runVerify(ctx context.Context, f *verifyFlags, name string) error {
	limitHeap(a.getenv)
	o := verify.Options{MultiPlatform: f.multiPlatform, SkipData: f.skipData, WorkDir: f.workDir, Max: f.max}
	if f.platform != "" {
		p, err := v1.ParsePlatform(f.platform)
		if err != nil || p.Architecture == "" {
			return &usageError{fmt.Errorf("--platform: want OS/ARCH[/VARIANT], got %q", f.platform)}
		}
		o.Platform = *p
	}
	var err error
	if o.Backend, err = blobsFrom(f.blobDir, &f.backend); err != nil {
		return err
	}
	if o.Backend != nil {
		defer o.Backend.Close()
	}
	from, to, err := f.accessFlags.options()
	if err != nil {
		return err
	}
	if o.Target, err = store.OpenSource(ctx, name, to, f.workDir); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer o.Target.Close()
	if f.source != "" {
		if o.Source, err = store.OpenSource(ctx, f.source, from, f.workDir); err != nil {
			return fmt.Errorf("source %s: %w", f.source, err)
		}
		defer o.Source.Close()
	}
	show, err := a.newProgress(f.progress, f.asJSON)
	if err != nil {
		return err
	}
	o.Progress = show.look
	report, err := verify.Image(ctx, o)
	show.end(err == nil)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	facts := (*verifyFacts)(report)
	if err := a.show(f.asJSON, report, facts.text); err != nil {
		return err
	}
	if !report.OK() {
		return fmt.Errorf("%s: %w: %d findings", name, errFindings, len(report.Findings)+report.More)
	}
	return nil
}

type verifyFacts verify.Report

func (f *verifyFacts) text(w io.Writer) {
	for _, one := range f.Findings {
		fmt.Fprintf(w, "%s  %s: %s\n", one.Part, plain(one.Where), plain(one.What))
	}
	if f.More > 0 {
		fmt.Fprintf(w, "and %d more\n", f.More)
	}
	fmt.Fprintf(w, "RAFS v%d image %s: read %d blobs of %s", f.Version, f.Target, f.Blobs, bytesText(uint64(f.BlobBytes)))
	if f.Blobs == 0 {
		fmt.Fprint(w, " (its manifest names none; if they lie elsewhere, say where with --backend-type)")
	}
	if f.Source != "" {
		fmt.Fprintf(w, ", compared %d entries, %d files of %s", f.Entries, f.Files, bytesText(uint64(f.Bytes)))
	}
	if len(f.Findings) == 0 {
		fmt.Fprint(w, ", found nothing wrong")
	}
	fmt.Fprint(w, ".\n")
}
