package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
)

// backendOptions are nydusify's flags for blobs that lie outside of registries.
type backendOptions struct {
	prefix                   string
	kind, config, configFile *string
}

func backendFlags(flags *pflag.FlagSet, prefix string) *backendOptions {
	return &backendOptions{
		prefix:     prefix,
		kind:       stringFlag(flags, prefix+"backend-type", "BACKEND_TYPE", "", "where blobs lie: localfs"),
		config:     stringFlag(flags, prefix+"backend-config", "BACKEND_CONFIG", "", "its configuration, JSON"),
		configFile: stringFlag(flags, prefix+"backend-config-file", "BACKEND_CONFIG_FILE", "", "file with its configuration"),
	}
}

// refuse says what is not offered rather than leave it out silently.
func (b *backendOptions) refuse(verb string) error {
	if *b.kind == "" {
		return nil
	}
	return &usageError{fmt.Errorf("--%sbackend-type %s: %s reads and writes blobs in registries, layouts and archives only", b.prefix, *b.kind, verb)}
}

// folder is the folder with blobs that the flags name: nydus' backend localfs,
// {"dir": "..."}. It is empty if they name nothing.
func (b *backendOptions) folder() (string, error) {
	usage := func(err error) (string, error) {
		return "", &usageError{fmt.Errorf("--%sbackend-config: %w", b.prefix, err)}
	}
	switch *b.kind {
	case "":
		return "", nil
	case "localfs":
	default:
		return "", &usageError{fmt.Errorf("--%sbackend-type %s: only localfs is offered; mount the bucket, or copy it into a folder", b.prefix, *b.kind)}
	}
	raw := []byte(*b.config)
	if *b.configFile != "" {
		if len(raw) > 0 {
			return usage(errors.New("conflicts with --" + b.prefix + "backend-config-file"))
		}
		var err error
		if raw, err = os.ReadFile(*b.configFile); err != nil {
			return usage(err)
		}
	}
	var config struct {
		Dir string `json:"dir"`
	}
	if err := json.Unmarshal(raw, &config); err != nil || config.Dir == "" {
		return usage(fmt.Errorf("want {\"dir\": \"FOLDER\"}, got %.100q", raw))
	}
	return config.Dir, nil
}
