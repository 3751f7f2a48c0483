package convert

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
)

// rafsImage is a finished image, not pushed yet but for its blobs.
type rafsImage struct {
	tree              *tree.Tree
	plan              write.Plan
	blobs             []*content
	bootstrap, config *content
	file              *os.File // of the bootstrap layer
	diffID            v1.Hash  // of the bootstrap layer
	manifest          []byte
	digest            v1.Hash
}

// MediaType and RawManifest make the image what go-containerregistry can tag.
func (i *rafsImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (i *rafsImage) RawManifest() ([]byte, error) { return i.manifest, nil }

func (i *rafsImage) close() {
	if i.plan != nil {
		i.plan.Close()
	}
	if i.tree != nil {
		i.tree.Close()
	}
	if i.file != nil {
		i.file.Close()
	}
}

// assemble merges the layers and makes bootstrap, configuration and manifest.
func (c *conversion) assemble(ctx context.Context) (i *rafsImage, err error) {
	trees, infos := make([]*tree.Layer, len(c.layers)), make([]*write.BlobInfo, len(c.layers))
	for n, l := range c.layers {
		trees[n], infos[n] = l.tree, l.info
		l.tree = nil // Merge takes it over
	}
	i = &rafsImage{}
	defer func() {
		if err != nil {
			i.close()
			i = nil
		}
	}()
	if i.tree, err = tree.Merge(ctx, c.opts.WorkDir, trees...); err != nil {
		return i, err
	}
	plan, err := write.New(i.tree, infos, write.Options{
		Format: c.opts.format(), Prefetch: c.opts.Prefetch, TempDir: c.opts.WorkDir,
	})
	if err != nil {
		return i, err
	}
	i.plan = plan
	for _, info := range i.plan.Blobs() {
		for _, l := range c.layers {
			if l.info == info {
				i.blobs = append(i.blobs, l.content())
			}
		}
	}
	if err := c.bootstrapLayer(ctx, i); err != nil {
		return i, fmt.Errorf("bootstrap: %w", err)
	}
	if err := c.makeConfig(i); err != nil {
		return i, fmt.Errorf("config: %w", err)
	}
	return i, c.makeManifest(i)
}

func (l *layer) content() *content {
	return &content{
		data: l.file, size: l.info.Object.Size, mediaType: artifact.MediaTypeBlob,
		digest: v1.Hash{Algorithm: "sha256", Hex: l.info.ID},
	}
}

// bootstrapLayer writes the bootstrap, checks it, and packs it.
func (c *conversion) bootstrapLayer(ctx context.Context, i *rafsImage) error {
	plain, err := c.opts.tempFile()
	if err != nil {
		return err
	}
	defer plain.Close()
	if err := write.Bootstrap(plain, i.plan); err != nil {
		return err
	}
	if err := check.Image(ctx, fmt.Sprintf("/proc/self/fd/%d", plain.Fd())); err != nil {
		return fmt.Errorf("what was written is wrong, please report this: %w", err)
	}
	if i.file, err = c.opts.tempFile(); err != nil {
		return err
	}
	stored, diff := sha256.New(), sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(i.file, stored), 128<<10)
	packer := gzip.NewWriter(out)
	if err := packBootstrap(io.MultiWriter(packer, diff), io.NewSectionReader(plain, 0, i.plan.Size()), i.plan); err != nil {
		return err
	}
	if err := packer.Close(); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	size, err := i.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	i.diffID = hashOf(diff)
	i.bootstrap = &content{
		data: i.file, size: size, digest: hashOf(stored), mediaType: types.OCILayer,
	}
	i.bootstrap.progress = c.bootstrapProgress(i.bootstrap)
	return nil
}

func (c *conversion) bootstrapProgress(b *content) func(int) {
	done := int64(0)
	return func(n int) {
		done += int64(n)
		c.report(Event{Layer: -1, Digest: b.digest.String(), Stage: StagePush, Done: done, Total: b.size})
	}
}

// packBootstrap writes the tar of a bootstrap layer: the bootstrap, and beside
// it the chunk information of each blob, which spares nodes a request a blob.
func packBootstrap(w io.Writer, bootstrap io.Reader, plan write.Plan) error {
	out := tar.NewWriter(w)
	file := func(name string, size int64, body func(io.Writer) error) error {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444, Format: tar.FormatGNU}
		if err := out.WriteHeader(hdr); err != nil {
			return err
		}
		return body(out)
	}
	dir := &tar.Header{Typeflag: tar.TypeDir, Name: artifact.BootstrapDir + "/", Mode: 0o755, Format: tar.FormatGNU}
	if err := out.WriteHeader(dir); err != nil {
		return err
	}
	err := file(artifact.BootstrapFile, plan.Size(), func(w io.Writer) error {
		_, err := io.Copy(w, bootstrap)
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range plan.Blobs() {
		name := artifact.BootstrapDir + "/" + b.ID + artifact.MetaSuffix
		if err := file(name, b.MetaSize(), b.WriteMeta); err != nil {
			return err
		}
	}
	return out.Close()
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// makeConfig changes the layers and the history of the source's configuration
// and nothing else, not even what it does not know.
func (c *conversion) makeConfig(i *rafsImage) error {
	var config map[string]json.RawMessage
	if err := json.Unmarshal(c.source.config, &config); err != nil {
		return err
	}
	rootFS := v1.RootFS{Type: "layers"}
	for _, b := range i.blobs {
		rootFS.DiffIDs = append(rootFS.DiffIDs, b.digest)
	}
	rootFS.DiffIDs = append(rootFS.DiffIDs, i.diffID)
	var err error
	if config["rootfs"], err = json.Marshal(rootFS); err != nil {
		return err
	}
	if history := c.history(i); len(history) > 0 {
		if config["history"], err = json.Marshal(history); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(config) // sorts the keys
	i.config = inMemory(raw, types.OCIConfigJSON)
	return err
}

// history is the source's history and one item for the bootstrap. Where a layer
// has no blob in the image its item says so, as the items must match the layers.
func (c *conversion) history(i *rafsImage) []v1.History {
	used := map[*write.BlobInfo]bool{}
	for _, b := range i.plan.Blobs() {
		used[b] = true
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
		if n < len(c.layers) && !used[c.layers[n].info] {
			history[at].EmptyLayer = true
		}
		n++
	}
	return append(history, v1.History{CreatedBy: "rafsd convert", Comment: "RAFS bootstrap"})
}

func (c *conversion) makeManifest(i *rafsImage) error {
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: i.config.descriptor(), Annotations: c.source.annotations,
	}
	for _, b := range i.blobs {
		d := b.descriptor()
		d.Annotations = map[string]string{artifact.AnnotationBlob: "true"}
		m.Layers = append(m.Layers, d)
	}
	last := i.bootstrap.descriptor()
	last.Annotations = map[string]string{artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: "6"}
	m.Layers = append(m.Layers, last)
	var err error
	if i.manifest, err = json.Marshal(m); err != nil {
		return err
	}
	i.digest = inMemory(i.manifest, types.OCIManifestSchema1).digest
	return nil
}
