package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
)

// entry is the command that the binary is when it is called by this name.
func (a *app) entry(argv0 string) *cobra.Command {
	switch filepath.Base(argv0) {
	case "nydus-image":
		return a.nydusImage()
	case "nydusify":
		return a.nydusify()
	}
	return a.root()
}
