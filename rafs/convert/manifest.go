package convert

import (
	"encoding/json"
	"fmt"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// docker tells whether the image has docker's media types.
func (c *conversion) docker() bool {
	return c.opts.DockerFormat && c.source.doc.MediaType == types.DockerManifestSchema2
}

// documents makes configuration and manifest.
func (c *conversion) documents(i *rafsImage) error {
	config, err := c.makeConfig(i)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	mediaType := types.OCIConfigJSON
	if c.docker() {
		mediaType = types.DockerConfigJSON
	}
	i.config = memoryPiece(config, mediaType)
	if c.opts.MergePlatform {
		i.config.desc.MediaType = artifact.ConfigType
	}
	return c.makeManifest(i)
}

// listed are the blobs that the manifest lists.
func (c *conversion) listed(i *rafsImage) []blobLayer {
	if c.opts.elsewhere() {
		return nil
	}
	return i.blobs
}

// makeConfig changes the layers and the history of the source's configuration
// and nothing else, not even what it does not know.
func (c *conversion) makeConfig(i *rafsImage) ([]byte, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(c.source.config, &config); err != nil {
		return nil, err
	}
	rootFS := v1.RootFS{Type: "layers"}
	for _, b := range c.listed(i) {
		rootFS.DiffIDs = append(rootFS.DiffIDs, b.desc.Digest)
	}
	rootFS.DiffIDs = append(rootFS.DiffIDs, i.diffID)
	var err error
	if config["rootfs"], err = json.Marshal(rootFS); err != nil {
		return nil, err
	}
	if history := c.history(i); len(history) > 0 {
		if config["history"], err = json.Marshal(history); err != nil {
			return nil, err
		}
	}
	return json.Marshal(config) // sorts the keys
}

// history is the source's history and one item for the bootstrap. Where a layer
// has no blob in the image its item says so, as the items must match the layers;
// blobs of a dictionary get items of their own.
func (c *conversion) history(i *rafsImage) []v1.History {
	used, foreign := map[int]bool{}, 0
	for _, b := range c.listed(i) {
		used[b.layer] = true
		if b.layer < 0 {
			foreign++
		}
	}
	history := append([]v1.History(nil), c.source.configFile.History...)
	if len(history) == 0 {
		return nil
	}
	n := 0
	for at := range history {
		if history[at].EmptyLayer {
			continue
		}
		if n < len(c.layers) && !used[n] {
			history[at].EmptyLayer = true
		}
		n++
	}
	for range foreign {
		history = append([]v1.History{{CreatedBy: "rafsd convert", Comment: "RAFS chunk dictionary"}}, history...)
	}
	return append(history, v1.History{CreatedBy: "rafsd convert", Comment: "RAFS bootstrap"})
}

func (c *conversion) makeManifest(i *rafsImage) error {
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: i.config.desc, Annotations: c.source.manifest.Annotations,
	}
	if c.docker() {
		m.MediaType = types.DockerManifestSchema2
	}
	for _, b := range c.listed(i) {
		d := b.desc
		d.Annotations = map[string]string{artifact.AnnotationBlob: "true"}
		if c.opts.Reference && b.layer >= 0 {
			d.Annotations[artifact.AnnotationRef] = c.source.layers[b.layer].desc.Digest.String()
		}
		m.Layers = append(m.Layers, d)
	}
	last := i.bootstrap.desc
	last.Annotations = map[string]string{
		artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: strconv.Itoa(c.opts.Format.Version),
	}
	m.Layers = append(m.Layers, last)
	if c.opts.Referrer {
		// Without a platform, which some registries refuse here.
		m.Subject = &v1.Descriptor{MediaType: c.source.doc.MediaType, Digest: c.source.doc.Digest, Size: c.source.doc.Size}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	i.doc = store.NewDocument(m.MediaType, raw)
	return nil
}
