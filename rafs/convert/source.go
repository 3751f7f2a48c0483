package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// source is one image to convert. Its manifest and configuration are verified;
// its layers are when they are read.
type source struct {
	store.Source
	doc        *store.Document
	manifest   *v1.Manifest
	config     []byte // as it is stored
	configFile *v1.ConfigFile
	layers     []sourceLayer
}

type sourceLayer struct {
	desc   v1.Descriptor // as it is stored
	diffID v1.Hash       // uncompressed
}

// maxLayers bounds the layers of an image; Linux and docker stop at 127.
const maxLayers = 1024

// errIsRAFS refuses what needs no conversion.
var errIsRAFS = errors.New("is a RAFS image already")

// readSource reads the manifest and the configuration of an image.
func readSource(ctx context.Context, src store.Source, doc *store.Document) (*source, error) {
	m, err := doc.Manifest()
	if err != nil {
		return nil, err
	}
	if _, rafs := artifact.Bootstrap(m); rafs {
		return nil, errIsRAFS
	}
	s := &source{Source: src, doc: doc, manifest: m}
	if s.config, err = store.Bytes(ctx, src, m.Config, artifact.MaxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := s.parseConfig(len(m.Layers)); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		if d.Size < 0 {
			return nil, fmt.Errorf("layer %d: size %d", i+1, d.Size)
		}
		s.layers = append(s.layers, sourceLayer{d, s.configFile.RootFS.DiffIDs[i]})
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
