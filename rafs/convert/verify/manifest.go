package verify

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/image"
)

func parseConfig(raw []byte) (*v1.ConfigFile, error) {
	return v1.ParseConfigFile(bytes.NewReader(raw))
}

// bootstrapTypes are the media types that the bootstrap layer may have, which
// containerd unpacks.
var bootstrapTypes = []types.MediaType{types.OCILayer, types.DockerLayer, types.OCIUncompressedLayer, types.DockerUncompressedLayer}

// rules looks at what needs no blob: manifest, configuration, index.
func (v *verification) rules() error {
	m := v.target.manifest
	n := len(m.Layers) - 1
	for i, d := range m.Layers[:n] {
		where := fmt.Sprintf("layer %d (%s)", i+1, d.Digest)
		if d.MediaType != artifact.MediaTypeBlob {
			v.find(Manifest, where, "media type %q, want %q", d.MediaType, artifact.MediaTypeBlob)
		}
		if d.Annotations[artifact.AnnotationBlob] != "true" {
			v.find(Manifest, where, "annotation %s is %q, want \"true\"", artifact.AnnotationBlob, d.Annotations[artifact.AnnotationBlob])
		}
		if ref := d.Annotations[artifact.AnnotationRef]; ref != "" {
			if _, err := v1.NewHash(ref); err != nil {
				v.find(Manifest, where, "annotation %s: %v", artifact.AnnotationRef, err)
			}
		}
	}
	last := m.Layers[n]
	if !slices.Contains(bootstrapTypes, last.MediaType) {
		v.find(Manifest, "bootstrap layer", "media type %q, want one of %q", last.MediaType, bootstrapTypes)
	}
	if version := last.Annotations[artifact.AnnotationFSVersion]; version != "5" && version != "6" {
		v.find(Manifest, "bootstrap layer", "annotation %s is %q, want 5 or 6", artifact.AnnotationFSVersion, version)
	}
	v.configRules(m)
	if v.source != nil {
		if err := v.sameConfig(); err != nil {
			return err
		}
	}
	return v.indexRules()
}

// configRules looks at the list of layers of the configuration.
func (v *verification) configRules(m *v1.Manifest) {
	ids := v.target.file.RootFS.DiffIDs
	if len(ids) != len(m.Layers) {
		v.find(Config, "rootfs.diff_ids", "%d, the manifest has %d layers", len(ids), len(m.Layers))
		return
	}
	for i, d := range m.Layers[:len(m.Layers)-1] {
		if ids[i] != d.Digest {
			v.find(Config, fmt.Sprintf("rootfs.diff_ids[%d]", i), "%s, want the digest of the blob, %s", ids[i], d.Digest)
		}
	}
}

// sameConfig compares what a container is told by both images.
func (v *verification) sameConfig() error {
	a, b := v.source.file, v.target.file
	for _, field := range []struct{ name, want, got string }{
		{"architecture", a.Architecture, b.Architecture}, {"os", a.OS, b.OS}, {"variant", a.Variant, b.Variant},
	} {
		if field.want != field.got {
			v.find(Config, field.name, "%q, the source has %q", field.got, field.want)
		}
	}
	// Old builders of images set it, those that go by the OCI's rules drop it.
	a.Config.ArgsEscaped = b.Config.ArgsEscaped //nolint:staticcheck // compared away
	want, err := json.Marshal(a.Config)
	if err != nil {
		return err
	}
	got, err := json.Marshal(b.Config)
	if err != nil {
		return err
	}
	if !bytes.Equal(want, got) {
		v.find(Config, "config", "%.200s, the source has %.200s", got, want)
	}
	return nil
}

// indexRules looks for the OCI image beside the RAFS image.
func (v *verification) indexRules() error {
	root := v.o.Target.Root()
	if !root.MediaType.IsIndex() {
		if v.o.MultiPlatform {
			v.find(Manifest, root.Digest.String(), "media type %q, want an index with the OCI and the RAFS image", root.MediaType)
		}
		return nil
	}
	index, err := root.Index()
	if err != nil {
		return err
	}
	oci, rafs := 0, 0
	for _, d := range index.Manifests {
		if !(store.Platforms{v.o.Platform}).Has(d) {
			continue
		}
		if artifact.Marked(d) {
			rafs++
		} else {
			oci++
		}
	}
	if v.o.MultiPlatform && (oci == 0 || rafs == 0) {
		v.find(Manifest, root.Digest.String(), "has %d OCI and %d RAFS images of %s, want both", oci, rafs, v.o.Platform.String())
	}
	return nil
}

// bootstrap reads the bootstrap layer and opens what is in it.
func (v *verification) bootstrap(ctx context.Context) error {
	layer, _ := artifact.Bootstrap(v.target.manifest)
	path := filepath.Join(v.dir, "image.boot")
	metas, err := v.unpackBootstrap(ctx, layer, path)
	if err != nil {
		return fmt.Errorf("bootstrap layer %s: %w", layer.Digest, err)
	}
	if err := v.violations(ctx, path); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	v.im, err = image.Open(path, image.Options{InFile: true, TempDir: v.dir})
	if errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrUnsupported) {
		if v.report.OK() { // else rafs/check has said so
			v.find(Bootstrap, "image.boot", "%v", err)
		}
		v.im = nil
		return nil
	}
	if err != nil {
		return err
	}
	v.report.Version = v.im.Super().Version
	if said := layer.Annotations[artifact.AnnotationFSVersion]; said != strconv.Itoa(v.report.Version) {
		v.find(Manifest, "bootstrap layer", "annotation %s is %q, the bootstrap is of version %d", artifact.AnnotationFSVersion, said, v.report.Version)
	}
	v.blobTable(metas)
	return nil
}

// unpackBootstrap verifies the bootstrap layer and writes the bootstrap to a file.
// The result are the ids of the blobs whose chunk information lies beside it.
func (v *verification) unpackBootstrap(ctx context.Context, layer v1.Descriptor, path string) (metas []string, err error) {
	if layer.Size > artifact.MaxBootstrap {
		return nil, fmt.Errorf("%d bytes, limit %d", layer.Size, artifact.MaxBootstrap)
	}
	r, err := store.Verified(ctx, v.o.Target, layer)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	found := 0
	diffID, layerErr := artifact.ReadLayer(r, func(name string, size int64, r io.Reader) error {
		id, meta := strings.CutSuffix(strings.TrimPrefix(name, artifact.BootstrapDir+"/"), artifact.MetaSuffix)
		switch {
		case name == artifact.BootstrapFile && size > artifact.MaxBootstrap:
			return fmt.Errorf("%d bytes, limit %d", size, artifact.MaxBootstrap)
		case name == artifact.BootstrapFile:
			found++
			return writeFile(path, r)
		case meta:
			metas = append(metas, id)
		}
		return nil
	})
	// A layer that is not what the manifest says is that, whatever came out of it.
	if err := r.Verify(); err != nil {
		return nil, err
	}
	if layerErr != nil {
		return nil, layerErr
	}
	if found != 1 {
		return nil, fmt.Errorf("%d files %s in it, want one", found, artifact.BootstrapFile)
	}
	ids := v.target.file.RootFS.DiffIDs
	if len(ids) > 0 && ids[len(ids)-1] != diffID {
		v.find(Config, "rootfs.diff_ids", "the last is %s, the bootstrap layer unpacks to %s", ids[len(ids)-1], diffID)
	}
	return metas, nil
}

func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// blobTable compares the blobs of the bootstrap with those of the manifest.
func (v *verification) blobTable(metas []string) {
	listed := map[string]bool{}
	layers := v.target.manifest.Layers
	for _, d := range layers[:len(layers)-1] {
		listed[d.Digest.Hex] = true
		if h, err := v1.NewHash(d.Annotations[artifact.AnnotationRef]); err == nil {
			listed[h.Hex] = true
		}
	}
	v.ids = map[string]bool{}
	for _, b := range v.im.Blobs() {
		v.ids[b.ID] = true
		if len(layers) > 1 && !listed[b.ID] {
			v.find(Manifest, "blob "+b.ID, "the bootstrap needs it, the manifest does not list it")
		}
	}
	for _, id := range metas {
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 32 {
			v.find(Bootstrap, id+artifact.MetaSuffix, "want a name of 64 hex digits")
		} else if !v.ids[id] && !listed[id] {
			v.find(Bootstrap, id+artifact.MetaSuffix, "belongs to no blob of the image")
		}
	}
}
