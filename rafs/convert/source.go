package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
)

// source is the image to convert. Its manifest and configuration are verified;
// its layers are when they are read.
type source struct {
	config      []byte // as it is stored
	configFile  *v1.ConfigFile
	annotations map[string]string // of the manifest
	layers      []sourceLayer
	close       func() error
}

type sourceLayer struct {
	digest v1.Hash // as it is stored; empty in a docker archive, which does not say
	diffID v1.Hash // uncompressed
	size   int64   // as it is stored
	open   func(ctx context.Context) (verified, error)
}

// verified is a stream that knows what it should be.
type verified interface {
	io.ReadCloser
	// Verify reads what is left and says whether all of it was right.
	Verify() error
}

// name is the digest by which errors and results call the layer.
func (l *sourceLayer) name() string {
	if l.digest.Hex == "" {
		return l.diffID.String()
	}
	return l.digest.String()
}

// maxLayers bounds the layers of an image; Linux and docker stop at 127.
const maxLayers = 1024

// The prefixes of local images.
const (
	prefixOCI           = "oci:"
	prefixOCIArchive    = "oci-archive:"
	prefixDockerArchive = "docker-archive:"
)

func openSource(ctx context.Context, name string, o artifact.Options) (*source, error) {
	if dir, ok := strings.CutPrefix(name, prefixOCI); ok {
		return openLayout(splitTag(dir))(o)
	}
	if file, ok := strings.CutPrefix(name, prefixOCIArchive); ok {
		return openArchive(splitTag(file))(o)
	}
	if file, ok := strings.CutPrefix(name, prefixDockerArchive); ok {
		return openArchive(splitTag(file))(o)
	}
	switch st, err := os.Stat(name); {
	case err == nil && st.IsDir():
		return openLayout(name, "")(o)
	case err == nil:
		return openArchive(name, "")(o)
	case strings.HasPrefix(name, "/") || strings.HasPrefix(name, "."):
		return nil, err
	}
	return openRegistry(ctx, name, o)
}

// splitTag splits PATH[:TAG]. A path that exists is one, colon or not.
func splitTag(s string) (path, tag string) {
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	if i := strings.LastIndexByte(s, ':'); i > 0 && !strings.Contains(s[i:], "/") {
		return s[:i], s[i+1:]
	}
	return s, ""
}

func openRegistry(ctx context.Context, name string, o artifact.Options) (*source, error) {
	ref, err := o.Parse(name)
	if err != nil {
		return nil, err
	}
	m, err := artifact.FetchManifest(ctx, ref, o, func(d v1.Descriptor) bool { return !artifact.Marked(d) })
	if err != nil {
		return nil, err
	}
	config, err := artifact.FetchBlob(ctx, m.Repo, m.Config, artifact.MaxConfig, o)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return newSource(m.Manifest, config, func() error { return nil },
		func(ctx context.Context, d v1.Descriptor) (verified, error) {
			return artifact.OpenBlob(ctx, m.Repo, d, o)
		})
}

// newSource puts a verified manifest and configuration together.
func newSource(m *v1.Manifest, config []byte, closeAll func() error,
	open func(context.Context, v1.Descriptor) (verified, error)) (*source, error) {
	if _, rafs := artifact.Bootstrap(m); rafs {
		return nil, errors.New("is a RAFS image already")
	}
	s := &source{config: config, annotations: m.Annotations, close: closeAll}
	if err := s.parseConfig(len(m.Layers)); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		if d.Size < 0 {
			return nil, fmt.Errorf("layer %d: size %d", i+1, d.Size)
		}
		s.layers = append(s.layers, sourceLayer{
			digest: d.Digest, diffID: s.configFile.RootFS.DiffIDs[i], size: d.Size,
			open: func(ctx context.Context) (verified, error) { return open(ctx, d) },
		})
	}
	return s, nil
}

// parseConfig reads the configuration, which must know this many layers.
func (s *source) parseConfig(layers int) error {
	s.configFile = &v1.ConfigFile{}
	if err := json.NewDecoder(bytes.NewReader(s.config)).Decode(s.configFile); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	ids := s.configFile.RootFS.DiffIDs
	if len(ids) != layers || layers > maxLayers {
		return fmt.Errorf("config: %d layers, the manifest has %d; want as many, and at most %d", len(ids), layers, maxLayers)
	}
	for i, id := range ids {
		if id.Algorithm != "sha256" {
			return fmt.Errorf("config: layer %d has the digest %s, want sha256", i+1, id)
		}
	}
	return nil
}
