package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
)

// parent is a RAFS image of which another one is made.
type parent struct {
	source   store.Source
	manifest *v1.Manifest
	config   []byte
	boot     v1.Descriptor
	file     *os.File            // of the bootstrap
	metas    map[string]*os.File // chunk information of blobs
}

// findParent finds the RAFS image for a platform, by default this machine's.
func findParent(ctx context.Context, source store.Source, platform v1.Platform) (*parent, error) {
	if platform.Architecture == "" {
		platform = artifact.Options{}.WantPlatform()
	}
	_, m, err := store.Image(ctx, source, platform, artifact.Marked)
	if err != nil {
		return nil, err
	}
	boot, ok := artifact.Bootstrap(m)
	if !ok {
		return nil, artifact.ErrNotRAFS
	}
	return &parent{source: source, manifest: m, boot: boot, metas: map[string]*os.File{}}, nil
}

func (p *parent) close() {
	for _, f := range p.metas {
		_ = f.Close()
	}
	if p.file != nil {
		_ = p.file.Close()
	}
}

// fetch reads what is not a blob.
func (p *parent) fetch(ctx context.Context, o *Options) (err error) {
	if p.config, err = store.Bytes(ctx, p.source, p.manifest.Config, artifact.MaxConfig); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := p.fetchBootstrap(ctx, o); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// fetchBootstrap reads the bootstrap layer: the bootstrap, and the chunk information
// of the blobs, which the new one needs, too.
func (p *parent) fetchBootstrap(ctx context.Context, o *Options) error {
	if p.boot.Size > artifact.MaxBootstrap {
		return fmt.Errorf("layer of %d bytes, limit %d", p.boot.Size, artifact.MaxBootstrap)
	}
	r, err := store.Verified(ctx, p.source, p.boot)
	if err != nil {
		return err
	}
	defer r.Close()
	_, readErr := artifact.ReadLayer(r, func(name string, _ int64, r io.Reader) error {
		id, meta := strings.CutSuffix(strings.TrimPrefix(name, artifact.BootstrapDir+"/"), artifact.MetaSuffix)
		if name != artifact.BootstrapFile && !meta || name == artifact.BootstrapFile && p.file != nil || p.metas[id] != nil {
			return nil
		}
		f, err := o.tempFile()
		if err != nil {
			return err
		}
		if meta {
			p.metas[id] = f
		} else {
			p.file = f
		}
		_, err = io.Copy(f, r)
		return err
	})
	// A layer that is not what the manifest says is that, whatever came out of it.
	if err := errors.Join(r.Verify(), readErr); err != nil {
		return err
	}
	if p.file == nil {
		return fmt.Errorf("no %s in the layer", artifact.BootstrapFile)
	}
	return nil
}

// path opens the bootstrap anew, as often as one likes, as long as p is not closed.
func (p *parent) path() string { return fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()) }

// blob is one of the image's.
func (p *parent) blob(id string) (*piece, error) {
	for _, d := range p.manifest.Layers {
		if d.Digest.Hex == id {
			return &piece{v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, func(ctx context.Context, from int64) (io.ReadCloser, error) {
				return p.source.Blob(ctx, d, from)
			}}, nil
		}
	}
	return nil, fmt.Errorf("blob %s: the manifest does not list it", id)
}

// derive makes configuration and manifest of an image with other layers, of which
// the last one, with its annotations, is the bootstrap. By tells who made it.
func (p *parent) derive(i *rafsImage, boot map[string]string, by v1.History) error {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(p.config, &config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	m := *p.manifest
	m.Layers, m.Subject = nil, nil
	rootFS := v1.RootFS{Type: "layers"}
	for _, b := range i.blobs {
		d := b.desc
		d.Annotations = map[string]string{artifact.AnnotationBlob: "true"}
		m.Layers, rootFS.DiffIDs = append(m.Layers, d), append(rootFS.DiffIDs, d.Digest)
	}
	bootstrap := i.bootstrap.desc
	bootstrap.Annotations = boot
	m.Layers, rootFS.DiffIDs = append(m.Layers, bootstrap), append(rootFS.DiffIDs, i.diffID)
	var err error
	if config["rootfs"], err = json.Marshal(rootFS); err != nil {
		return err
	}
	if err := fitHistory(config, len(m.Layers), by); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	i.config = memoryPiece(raw, m.Config.MediaType)
	m.Config = i.config.desc
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	i.doc = store.NewDocument(m.MediaType, raw)
	return nil
}

// fitHistory gives a history that there is an item for each layer.
func fitHistory(config map[string]json.RawMessage, layers int, by v1.History) error {
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
		history = append(history, by)
	}
	var err error
	config["history"], err = json.Marshal(history)
	return err
}

// push stores an image, its name last.
func (i *rafsImage) push(ctx context.Context, target store.Target) error {
	var pieces []*piece
	for _, b := range i.blobs {
		pieces = append(pieces, b.piece)
	}
	for _, p := range append(pieces, i.bootstrap, i.config) {
		if _, err := target.Blob(ctx, p.desc, p.open); err != nil {
			return err
		}
	}
	return target.Tag(ctx, i.doc)
}
