package reverse

import (
	"context"
	"encoding/json"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// makeConfig changes the layers and the history of a configuration and nothing
// else, not even what it does not know.
func makeConfig(raw []byte, layers []layer, whole bool) ([]byte, error) {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	rootFS := v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}
	for _, l := range layers {
		rootFS.DiffIDs = append(rootFS.DiffIDs, l.diffID)
	}
	var history []v1.History
	if config["history"] != nil {
		if err := json.Unmarshal(config["history"], &history); err != nil {
			return nil, err
		}
	}
	var err error
	if config["rootfs"], err = json.Marshal(rootFS); err != nil {
		return nil, err
	}
	delete(config, "history")
	if history = fit(history, len(layers), whole); len(history) > 0 {
		if config["history"], err = json.Marshal(history); err != nil {
			return nil, err
		}
	}
	return json.Marshal(config) // sorts the keys
}

// fit makes a history that has an item for each layer, which is a rule of the
// image specification. The item of the bootstrap goes away.
func fit(history []v1.History, layers int, whole bool) []v1.History {
	if n := len(history); n > 0 && (strings.Contains(history[n-1].Comment, "Bootstrap") || strings.Contains(history[n-1].Comment, "bootstrap")) {
		history = history[:n-1]
	}
	if len(history) == 0 {
		return nil
	}
	full := 0
	for _, h := range history {
		if !h.EmptyLayer {
			full++
		}
	}
	if !whole && full == layers {
		return history
	}
	for i := range history {
		history[i].EmptyLayer = true
	}
	for range layers {
		history = append(history, v1.History{CreatedBy: "rafsd convert --reverse"})
	}
	return history
}

// finish stores the configuration and makes the manifest.
func (r *reversal) finish(ctx context.Context, old *v1.Manifest, configType types.MediaType, config []byte, layers []layer) (*store.Document, error) {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Annotations: old.Annotations, Layers: []v1.Descriptor{}}
	if configType == types.DockerConfigJSON {
		configType = types.OCIConfigJSON // the layers have the OCI's media types
	}
	var err error
	if m.Config, err = r.bytesBlob(ctx, configType, config); err != nil {
		return nil, err
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.desc)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return store.NewDocument(types.OCIManifestSchema1, raw), nil
}
