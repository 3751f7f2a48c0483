package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/convert"
	"github.com/rafsd/rafsd/rafs/convert/containerd"
)

// commitFlags are those of commit.
type commitFlags struct {
	accessFlags
	pushFlags
	upper, platform, workDir      string
	container, address, namespace string
	pause                         bool
	withPath                      []string
	// literal is set where a path of withPath may have a "=".
	literal  bool
	maxTimes int
	asJSON   bool
}

const commitLong = `Make an image of a RAFS image and of what a container has changed on it.

--container names a container of containerd, by its ID or the beginning of it. Its snapshotter
says where its changes are: it has to make an overlay, as nydus and overlayfs do. If it runs, it is
paused while they are read and resumed before anything is sent, also when the commit fails or is
interrupted. SRC is the image that it was made of, unless it is given; it has to be the RAFS form of
what the container runs. Without containerd, --upper names the upper folder of the overlay.

What is new or changed in the upper folder becomes a layer, what it marks as deleted is deleted.
--with-path PATH adds what the container sees at PATH, such as a volume that is mounted there;
--with-path PATH=FOLDER adds a folder of this machine as PATH; --with-path '!PATH' leaves
something out.

The blobs of SRC are not read; a registry takes them from SRC's repository. A file that changes
while it is read is an error. SRC and DST are named as with 'rafsd copy'. Root is needed to read
what overlayfs notes.`

func (a *app) commit() *cobra.Command {
	f := &commitFlags{}
	cmd := &cobra.Command{
		Use:   "commit {--container ID [SRC] | --upper FOLDER SRC} DST",
		Short: "Put the changes of a container on top of a RAFS image",
		Long:  commitLong,
		Example: `  rafsd commit --container 3f2a localhost:5000/app:changed
  rafsd commit -n k8s.io --container 3f2a --with-path /data localhost:5000/app:rafs localhost:5000/app:changed
  rafsd commit --upper /var/lib/.../snapshots/7/fs --with-path '!/tmp' oci:in oci:out`,
		Args: args(cobra.RangeArgs(1, 2), "SRC and DST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, dst := "", args[len(args)-1]
			if len(args) == 2 {
				src = args[0]
			}
			return a.runCommit(cmd.Context(), f, src, dst)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.container, "container", "", "container whose changes to take, an ID or the beginning of one")
	flags.StringVar(&f.address, "containerd-address", cmp.Or(a.getenv("CONTAINERD_ADDRESS"), containerd.DefaultAddress), "socket of containerd")
	flags.StringVarP(&f.namespace, "namespace", "n", cmp.Or(a.getenv("CONTAINERD_NAMESPACE"), "default"), "namespace of containerd that has the container")
	flags.BoolVar(&f.pause, "pause", true, "pause the container while its changes are read")
	flags.StringVar(&f.upper, "upper", "", "upper folder of the container's overlay")
	flags.StringArrayVar(&f.withPath, "with-path", nil, "PATH or PATH=FOLDER to add, or !PATH to leave out; may be repeated")
	flags.IntVar(&f.maxTimes, "maximum-times", 400, "how often an image may be committed to")
	flags.StringVar(&f.platform, "platform", "", "which image of an index to take, as OS/ARCH[/VARIANT] (default that of this machine)")
	flags.StringVar(&f.workDir, "work-dir", "", "folder for blobs until they are pushed (default $TMPDIR or /tmp)")
	flags.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	f.accessFlags.register(flags)
	f.pushFlags.register(flags)
	return cmd
}

// options translates the flags.
func (f *commitFlags) options(src string) (o convert.CommitOptions, err error) {
	o = convert.CommitOptions{Upper: f.upper, MaxTimes: f.maxTimes, WorkDir: f.workDir}
	switch {
	case f.upper == "" && f.container == "":
		return o, &usageError{errors.New("want --container ID, or --upper FOLDER, the upper folder of the container's overlay")}
	case f.upper != "" && f.container != "":
		return o, &usageError{errors.New("want --container or --upper, not both")}
	case f.upper != "" && src == "":
		return o, &usageError{errors.New("want SRC and DST: --upper does not tell of which image the container was made")}
	case f.maxTimes < 1:
		return o, &usageError{fmt.Errorf("--maximum-times %d: want 1 or more", f.maxTimes)}
	}
	for _, p := range f.withPath {
		if err := f.addPath(&o, strings.TrimSpace(p)); err != nil {
			return o, err
		}
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

// addPath reads one --with-path.
func (f *commitFlags) addPath(o *convert.CommitOptions, p string) error {
	path, without := strings.CutPrefix(p, "!")
	path, dir, mount := path, "", false
	if !without && !f.literal {
		path, dir, mount = strings.Cut(p, "=")
	}
	switch {
	case !strings.HasPrefix(path, "/"), mount && dir == "", !mount && !without && f.container == "":
		want := "PATH=FOLDER"
		if f.container != "" {
			want = "PATH or " + want
		}
		return &usageError{fmt.Errorf("--with-path %s: want %s with an absolute PATH, or !PATH", p, want)}
	case without:
		o.Without = append(o.Without, path)
	case mount:
		o.Mounts = append(o.Mounts, convert.Mount{Path: path, Dir: dir})
	default:
		o.Paths = append(o.Paths, path)
	}
	return nil
}

func (a *app) runCommit(ctx context.Context, f *commitFlags, src, dst string) error {
	limitHeap(a.getenv)
	o, err := f.options(src)
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
	if f.container != "" {
		client := containerd.New(f.address, f.namespace)
		defer client.Close()
		var held *heldContainer
		ctx, held = hold(ctx)
		defer held.stop()
		if src, err = f.ask(ctx, client, &o, held, src); err != nil {
			return err
		}
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
		Source: src, Target: o.Target.Reference(result.Root.Digest), Digest: result.Root.Digest.String(), Blobs: append([]string{}, result.Blobs...),
		Size: result.Size, Entries: result.Entries, Inodes: result.Inodes, Times: result.Times,
	}
	return a.show(f.asJSON, facts, facts.text)
}

// commitFacts is what commit tells when it is done.
type commitFacts struct {
	Source  string   `json:"source"`
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
