package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// nydusifyCommit takes nydusify's flags. It asks no containerd: what that knows of
// a container, its image and its upper folder, has to be given (--source, --upper).
func (a *app) nydusifyCommit() *cobra.Command {
	cmd := &cobra.Command{Use: "commit", Short: "Create and push a new image from a container's changes", Args: cobra.NoArgs}
	flags := cmd.Flags()
	f := &commitFlags{}
	source := stringFlag(flags, "source", "SOURCE", "", "RAFS image of the container (not a flag of nydusify)")
	flags.StringVar(&f.upper, "upper", "", "upper folder of the container's overlay (not a flag of nydusify)")
	target := stringFlag(flags, "target", "TARGET", "", "target image")
	container := stringFlag(flags, "container", "CONTAINER", "", "not offered: give --source and --upper")
	stringFlag(flags, "containerd-address", "CONTAINERD_ADDR", "", "no effect")
	flags.StringP("namespace", "n", "default", "no effect")
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	flags.IntVar(&f.maxTimes, "maximum-times", 400, "how often an image may be committed to")
	env(flags, "maximum-times", "MAXIMUM_TIMES")
	flags.StringSliceVar(&f.withPath, "with-path", nil, "PATH=FOLDER to add, or !PATH to leave out")
	env(flags, "with-path", "WITH_PATH")
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./tmp", "work folder")
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *container != "" && (f.upper == "" || *source == "") {
			return &usageError{errors.New("--container: containerd is not asked; give --source IMAGE and --upper FOLDER (upperdir= in 'ctr snapshots mounts') instead")}
		}
		if err := required(cmd, "source", "upper", "target"); err != nil {
			return err
		}
		remove, err := workFolder(*workDir)
		if err != nil {
			return err
		}
		defer remove()
		f.sourceInsecure, f.targetInsecure, f.workDir = *sourceInsecure, *targetInsecure, *workDir
		f.pushFlags = pushFlags{chunkSize: "0", retries: 3}
		return a.runCommit(cmd.Context(), f, *source, *target)
	}
	return cmd
}
