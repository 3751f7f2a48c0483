package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert"
)

// commitFlags are those of commit.
type commitFlags struct {
	accessFlags
	pushFlags
	upper, platform, workDir string
	withPath                 []string
	maxTimes                 int
	asJSON                   bool
}

const commitLong = `Make an image of a RAFS image and of what a container has changed on it.

--upper is the upper folder of the container's overlay: what is new or changed in it becomes a
layer, what it marks as deleted is deleted. --with-path PATH=FOLDER adds what the container has at
PATH in another mount, such as a volume; --with-path '!PATH' leaves something of the upper folder
out. The blobs of SRC are not read; a registry takes them from SRC's repository. Pause the
container: a file that changes while it is read is an error.

SRC and DST are named as with 'rafsd copy'. Root is needed to read what overlayfs notes.`

func (a *app) commit() *cobra.Command {
	f := &commitFlags{}
	cmd := &cobra.Command{
		Use:   "commit --upper FOLDER SRC DST",
		Short: "Put the changes of a container on top of a RAFS image",
		Long:  commitLong,
		Example: `  rafsd commit --upper /var/lib/.../snapshots/7/fs localhost:5000/app:rafs localhost:5000/app:changed
  rafsd commit --upper up --with-path /data=/srv/data --with-path '!/tmp' oci:in oci:out`,
		Args: args(cobra.ExactArgs(2), "SRC and DST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runCommit(cmd.Context(), f, args[0], args[1]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.upper, "upper", "", "upper folder of the container's overlay")
	flags.StringArrayVar(&f.withPath, "with-path", nil, "PATH=FOLDER to add, or !PATH to leave out; may be repeated")
	flags.IntVar(&f.maxTimes, "maximum-times", 400, "how often an image may be committed to")
	flags.StringVar(&f.platform, "platform", "", "which image of an index to take, as OS/ARCH[/VARIANT] (default that of this machine)")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for blobs until they are pushed (default $TMPDIR or /tmp)")
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	f.accessFlags.register(flags)
	f.pushFlags.register(flags)
	return cmd
}

// options translates the flags.
func (f *commitFlags) options() (o convert.CommitOptions, err error) {
	o = convert.CommitOptions{Upper: f.upper, MaxTimes: f.maxTimes, WorkDir: f.workDir}
	if f.upper == "" {
		return o, &usageError{errors.New("want --upper FOLDER, the upper folder of the container's overlay")}
	}
	if f.maxTimes < 1 {
		return o, &usageError{fmt.Errorf("--maximum-times %d: want 1 or more", f.maxTimes)}
	}
	for _, p := range f.withPath {
		if without, ok := strings.CutPrefix(p, "!"); ok {
			o.Without = append(o.Without, without)
			continue
		}
		path, dir, ok := strings.Cut(p, "=")
		if !ok || dir == "" || !strings.HasPrefix(path, "/") {
			return o, &usageError{fmt.Errorf("--with-path %s: want PATH=FOLDER with an absolute PATH, or !PATH", p)}
		}
		o.Mounts = append(o.Mounts, convert.Mount{Path: path, Dir: dir})
	}
	if f.platform != "" {
		p, err := v1.ParsePlatform(f.platform)
		if err != nil || p.Architecture == "" {
			return o, &usageError{fmt.Errorf("--platform: want OS/ARCH[/VARIANT], got %q", f.platform)}
		}
		o.Platform = *p
	}
	return o, nil
}

func (a *app) runCommit(ctx context.Context, f *commitFlags, src, dst string) error {
	limitHeap(a.getenv)
	o, err := f.options()
	if err != nil {
		return err
	}
	push, err := f.push()
	if err != nil {
		return err
	}
	from, to, err := f.accessFlags.options()
	if err != nil {
		return err
	}
	if o.Source, err = store.OpenSource(ctx, src, from, f.workDir); err != nil {
		return fmt.Errorf("source %s: %w", src, err)
	}
	defer o.Source.Close()
	push.From, push.Name = o.Source, store.NameOf(o.Source)
	if o.Target, err = store.OpenTarget(ctx, dst, to, push); err != nil {
		return fmt.Errorf("target %s: %w", dst, err)
	}
	defer o.Target.Close()
	result, err := convert.Commit(ctx, o)
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	facts := &commitFacts{
		Target: o.Target.Reference(result.Root.Digest), Digest: result.Root.Digest.String(), Blobs: append([]string{}, result.Blobs...),
		Size: result.Size, Entries: result.Entries, Inodes: result.Inodes, Times: result.Times,
	}
	return a.show(f.asJSON, facts, facts.text)
}

// commitFacts is what commit tells when it is done.
type commitFacts struct {
	Target  string   `json:"target"`
	Digest  string   `json:"digest"`
	Blobs   []string `json:"blobs"`
	Size    int64    `json:"blob_size"`
	Entries int      `json:"entries"`
	Inodes  int      `json:"inodes"`
	Times   int      `json:"times"`
}

func (f *commitFacts) text(w io.Writer) {
	fmt.Fprintf(w, "%d entries became %d blobs of %s; the image has %d inodes.\n%s\n",
		f.Entries, len(f.Blobs), bytesText(uint64(f.Size)), f.Inodes, f.Target)
}
