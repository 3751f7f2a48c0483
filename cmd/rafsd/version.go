package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3". Without it the
// version is that of the module or of the commit.
var version string

// buildFacts are what is known of the binary.
type buildFacts struct {
	Version string `json:"version"`
	Commit  string `json:"git_commit"`
	Time    string `json:"build_time"`
	Go      string `json:"go"`
	Target  string `json:"platform"`
}

func buildInfo() buildFacts {
	b := buildFacts{Version: version, Go: runtime.Version(), Target: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	dirty := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if b.Commit != "" {
		b.Commit += dirty
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	return b
}

// versionText has the lines of nydusd --version, which callers parse.
func versionText() string {
	b := buildInfo()
	return fmt.Sprintf("Version: \t%s\nGit Commit: \t%s\nBuild Time: \t%s\nGo: \t\t%s\nPlatform: \t%s",
		b.Version, b.Commit, b.Time, b.Go, b.Target)
}

func (a *app) version() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  rafsd version --json",
		Args:    args(cobra.NoArgs, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if !asJSON {
				_, err := fmt.Fprintln(a.stdout, versionText())
				return err
			}
			enc := json.NewEncoder(a.stdout)
			enc.SetIndent("", "  ")
			return enc.Encode(buildInfo())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
