package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert"
	"github.com/rafsd/rafsd/rafs/convert/reverse"
	"github.com/rafsd/rafsd/rafs/export"
)

// runReverse makes an OCI image of a RAFS image.
func (a *app) runReverse(cmd *cobra.Command, f *convertFlags, src, dst string) error {
	o, err := f.reverseOptions(cmd)
	if err != nil {
		return err
	}
	if o.Backend != nil {
		defer o.Backend.Close()
	}
	push, err := f.push()
	if err != nil {
		return err
	}
	from, to, err := f.accessFlags.options()
	if err != nil {
		return err
	}
	if o.Source, err = store.OpenSource(cmd.Context(), src, from, f.workDir); err != nil {
		return fmt.Errorf("source %s: %w", src, err)
	}
	defer o.Source.Close()
	push.From, push.Name = o.Source, store.NameOf(o.Source)
	if o.Target, err = store.OpenTarget(cmd.Context(), dst, to, push); err != nil {
		return fmt.Errorf("target %s: %w", dst, err)
	}
	defer o.Target.Close()
	show, err := a.newProgress(f.progress, f.asJSON)
	if err != nil {
		return err
	}
	o.Progress = func(e reverse.Event) {
		news := convert.Event{Layer: e.Layer, Layers: e.Layers, Digest: e.Digest, Done: e.Done, Total: e.Total}
		if e.Over {
			news.Stage = convert.StageDone
		}
		show.event(news)
	}
	result, err := reverse.Image(cmd.Context(), o)
	show.end(err == nil)
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	facts := &reverseFacts{
		Target: o.Target.Reference(result.Root.Digest), Digest: result.Root.Digest.String(),
		Images: result.Images, Layers: result.Layers, Size: result.Size,
	}
	return a.show(f.asJSON, facts, facts.text)
}

func (f *convertFlags) reverseOptions(cmd *cobra.Command) (o reverse.Options, err error) {
	for _, name := range []string{"merge-platform", "with-referrer", "oci-ref", "chunk-dict", "batch-size", "prefetch", "compressor", "digester"} {
		if flag := cmd.Flags().Lookup(name); flag != nil && flag.Changed {
			return o, &usageError{fmt.Errorf("--%s has no meaning with --reverse", name)}
		}
	}
	o.WorkDir, o.Compression = f.workDir, export.Gzip
	if f.platform != "" && !f.allPlatforms {
		if o.Platforms, err = store.ParsePlatforms(f.platform); err != nil {
			return o, &usageError{fmt.Errorf("--platform: %w", err)}
		}
	}
	o.Backend, err = blobsFrom(f.blobDir, &f.backend)
	return o, err
}

// reverseFacts is what convert --reverse tells when it is done.
type reverseFacts struct {
	Target string `json:"target"`
	Digest string `json:"digest"`
	Images int    `json:"images"`
	Layers int    `json:"layers"`
	Size   int64  `json:"size"`
}

func (f *reverseFacts) text(w io.Writer) {
	fmt.Fprintf(w, "%d images of %d layers, %s.\n%s\n", f.Images, f.Layers, bytesText(uint64(f.Size)), f.Target)
}
