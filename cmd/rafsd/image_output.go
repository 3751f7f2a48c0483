package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/rafsd/rafsd/rafs/build"
)

// outputJSON is what nydus-image writes for --output-json (OutputSerializer, nydus
// src/bin/nydus-image/main.rs). Converters read blobs.
type outputJSON struct {
	Version           string         `json:"version"`
	Bootstrap         string         `json:"bootstrap"`
	Blobs             []string       `json:"blobs"`
	ExternalBootstrap string         `json:"external_bootstrap"`
	ExternalBlobs     []string       `json:"external_blobs"`
	Trace             map[string]any `json:"trace"`
	FSVersion         string         `json:"fs_version"`
	Compressor        string         `json:"compressor"`
}

func outputJSONFlag(flags *pflag.FlagSet, p *string) {
	flags.StringVarP(p, "output-json", "J", "", "write the result as JSON to this file")
}

// writeOutputJSON writes the result of a verb; no path is no wish for it.
func writeOutputJSON(path string, o outputJSON) error {
	if path == "" {
		return nil
	}
	b := buildInfo()
	o.Version = fmt.Sprintf("%s-%s", b.Version, b.Commit)
	if o.Blobs == nil {
		o.Blobs = []string{}
	}
	if o.ExternalBlobs == nil {
		o.ExternalBlobs = []string{}
	}
	if o.Trace == nil {
		o.Trace = map[string]any{}
	}
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return writeJSONFile(path, data)
}

// writeJSONFile puts data into the file that --output-json names: all of it or, if
// that fails, nothing. A pipe or a device is written to as it is.
func writeJSONFile(path string, data []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		if err := os.WriteFile(path, data, 0); err != nil {
			return fmt.Errorf("--output-json: %w", err)
		}
		return nil
	}
	temp := filepath.Join(filepath.Dir(path), ".rafsd-"+rand.Text()+".tmp")
	err := os.WriteFile(temp, data, 0o644)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // if it was made at all
		if at := new(*fs.PathError); errors.As(err, at) {
			err = (*at).Err
		}
		return fmt.Errorf("--output-json %s: %w", path, err)
	}
	return nil
}

// resultJSON is the output of a build.
func resultJSON(r *build.Result) outputJSON {
	trace := map[string]any{}
	if len(r.Trace) > 0 {
		times := map[string]any{}
		for name, v := range r.Trace {
			times[name] = v
		}
		trace["consumed_time"] = times
	}
	return outputJSON{
		Bootstrap: r.Bootstrap, Blobs: r.Blobs, Trace: trace,
		FSVersion: strconv.Itoa(r.Version), Compressor: r.Compressor.String(),
	}
}
