package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/daemon"
	"github.com/rafsd/rafsd/daemon/config"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/backend/localfs"
)

// blobFlags are how nydus-image is told where the blobs of an image are: in a
// folder, in one file, or in a backend by its type and configuration.
type blobFlags struct {
	kind, config, configFile string
	blobDir, blob, daemon    string
}

func (f *blobFlags) register(flags *pflag.FlagSet, blobDir string) {
	flags.StringVar(&f.kind, "backend-type", "", "where blobs are: registry, s3, oss or localfs")
	flags.StringVar(&f.config, "backend-config", "", "configuration of the backend, JSON")
	flags.StringVar(&f.configFile, "backend-config-file", "", "file with the configuration of the backend")
	flags.StringVarP(&f.blobDir, "blob-dir", "D", "", blobDir)
}

// open opens the backend.
func (f *blobFlags) open() (backend.Backend, error) {
	switch {
	case f.config != "" && f.configFile != "":
		return nil, &usageError{errors.New("--backend-config conflicts with --backend-config-file")}
	case f.blob != "":
		return localfs.NewFile(f.blob), nil
	case f.kind != "":
		return f.configured()
	case f.blobDir != "":
		return localfs.New(f.blobDir)
	case f.daemon != "":
		c, _, err := config.Load(f.daemon)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--config: %w", err)}
		}
		return daemon.OpenBackend(c)
	}
	return nil, errors.New("where are the blobs? want --blob-dir or --backend-type")
}

// configured opens the backend that a type and a configuration name: those of the
// keys of the same name in a configuration of version 2.
func (f *blobFlags) configured() (backend.Backend, error) {
	raw := []byte(f.config)
	if f.configFile != "" {
		var err error
		if raw, err = os.ReadFile(f.configFile); err != nil {
			return nil, fmt.Errorf("--backend-config-file: %w", err)
		}
	}
	if len(raw) == 0 {
		return nil, errors.New("--backend-type needs --backend-config or --backend-config-file")
	}
	c, err := parseBackend(f.kind, raw)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--backend-config: %w", err)}
	}
	return daemon.OpenBackend(c)
}

// localfsDir is the folder of blobs that a configuration names.
func localfsDir(path string) (string, error) {
	c, _, err := config.Load(path)
	if err != nil {
		return "", &usageError{fmt.Errorf("--config: %w", err)}
	}
	if c.Backend.Type != config.BackendLocalFS || c.Backend.LocalFS.Dir == "" {
		return "", nil
	}
	return c.Backend.LocalFS.Dir, nil
}
