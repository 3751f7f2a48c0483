package main

import (
	"github.com/spf13/cobra"

	"github.com/rafsd/rafsd/rafs/convert/containerd"
)

// nydusifyCommit takes nydusify's flags. --source and --upper are ours, for those who
// know better than containerd, or have none.
func (a *app) nydusifyCommit() *cobra.Command {
	cmd := &cobra.Command{Use: "commit", Short: "Create and push a new image from a container's changes", Args: cobra.NoArgs}
	flags := cmd.Flags()
	f := &commitFlags{pause: true}
	source := stringFlag(flags, "source", "SOURCE", "", "RAFS image of the container, unless that is the one it was made of (not a flag of nydusify)")
	flags.StringVar(&f.upper, "upper", "", "upper folder of an overlay, without --container (not a flag of nydusify)")
	target := stringFlag(flags, "target", "TARGET", "", "target image")
	container := stringFlag(flags, "container", "CONTAINER", "", "container, its ID or the beginning of it")
	address := stringFlag(flags, "containerd-address", "CONTAINERD_ADDR", containerd.DefaultAddress, "socket of containerd")
	flags.StringVarP(&f.namespace, "namespace", "n", "default", "namespace of the container")
	env(flags, "namespace", "NAMESPACE")
	sourceInsecure := boolFlag(flags, "source-insecure", "SOURCE_INSECURE", "take any certificate of the source's registry")
	targetInsecure := boolFlag(flags, "target-insecure", "TARGET_INSECURE", "take any certificate of the target's registry")
	flags.IntVar(&f.maxTimes, "maximum-times", 400, "how often an image may be committed to")
	env(flags, "maximum-times", "MAXIMUM_TIMES")
	flags.StringSliceVar(&f.withPath, "with-path", nil, "path in the container to add, such as a mount, or !PATH to leave out")
	env(flags, "with-path", "WITH_PATH")
	flags.SetNormalizeFunc(otherNames(map[string]string{"with-mount-path": "with-path"}))
	workDir := stringFlag(flags, "work-dir", "WORK_DIR", "./tmp", "work folder")
	ignored(flags, "nydus-image")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		wanted := []string{"container", "target"}
		if f.upper != "" {
			wanted = []string{"source", "target"}
		}
		if err := required(cmd, wanted...); err != nil {
			return err
		}
		remove, err := workFolder(*workDir)
		if err != nil {
			return err
		}
		defer remove()
		f.container, f.address = *container, *address
		f.literal = f.upper == "" // nydusify has no PATH=FOLDER
		f.sourceInsecure, f.targetInsecure, f.workDir = *sourceInsecure, *targetInsecure, *workDir
		f.pushFlags = pushFlags{chunkSize: "0", retries: 3}
		return a.runCommit(cmd.Context(), f, *source, *target)
	}
	return cmd
}
