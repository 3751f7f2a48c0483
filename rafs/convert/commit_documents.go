package convert

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// documents makes configuration and manifest: those of the image, with the layers
// that there are now.
func (c *commit) documents(i *rafsImage) error {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(c.config, &config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	m := *c.manifest
	m.Layers, m.Subject = nil, nil
	rootFS := v1.RootFS{Type: "layers"}
	commits := c.committed()
	for _, b := range i.blobs {
		d := b.desc
		d.Annotations = map[string]string{artifact.AnnotationBlob: "true"}
		m.Layers, rootFS.DiffIDs = append(m.Layers, d), append(rootFS.DiffIDs, d.Digest)
		if b.layer >= 0 {
			commits = append(commits, d.Digest.String())
		}
	}
	boot := i.bootstrap.desc
	boot.Annotations = map[string]string{
		artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: strconv.Itoa(c.opts.Format.Version),
	}
	if len(commits) > 0 {
		boot.Annotations[artifact.AnnotationCommit] = strings.Join(commits, ",")
	}
	m.Layers, rootFS.DiffIDs = append(m.Layers, boot), append(rootFS.DiffIDs, i.diffID)
	var err error
	if config["rootfs"], err = json.Marshal(rootFS); err != nil {
		return err
	}
	if err := fitHistory(config, len(m.Layers)); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	i.config = memoryPiece(raw, c.manifest.Config.MediaType)
	m.Config = i.config.desc
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	i.doc = store.NewDocument(m.MediaType, raw)
	return nil
}

// fitHistory gives a history that there is an item for each layer.
func fitHistory(config map[string]json.RawMessage, layers int) error {
	if config["history"] == nil {
		return nil
	}
	var history []v1.History
	if err := json.Unmarshal(config["history"], &history); err != nil {
		return err
	}
	full := 0
	for i := range history {
		switch {
		case history[i].EmptyLayer:
		case full == layers:
			history[i].EmptyLayer = true
		default:
			full++
		}
	}
	for ; full < layers; full++ {
		history = append(history, v1.History{CreatedBy: "rafsd commit", Comment: "changes of a container"})
	}
	var err error
	config["history"], err = json.Marshal(history)
	return err
}
