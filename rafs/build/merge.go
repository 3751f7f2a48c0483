package build

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// MergeOptions say what Merge makes one image of.
type MergeOptions struct {
	Host

	// Sources are the paths of layer bootstraps, or of blobs with one inside, the
	// lowest first.
	Sources []string
	// BlobIDs are the ids of the layers' blobs. By default a blob is named after
	// the file of its bootstrap, up to the first dot, unless that is no digest and
	// the bootstrap knows better.
	BlobIDs []string
	// BlobDigests and BlobSizes are the SHA-256 and the bytes of the layers' blobs
	// as a registry has them; where data and metadata are two objects, of those
	// with the metadata. The digests, in hex, become ids.
	BlobDigests []string
	BlobSizes   []uint64
	// Blobs, if not nil, has the layers' blobs. Of a blob whose bootstrap was taken out
	// of it, the file of that being named after it, it is asked for the size and the
	// table of contents; the lists go before.
	Blobs backend.Backend
	// TOCDigests and TOCSizes describe the tables of contents of these blobs.
	TOCDigests []string
	TOCSizes   []uint64

	// Parent is the path of a bootstrap below the sources.
	Parent string
	// ChunkDict is the path of the bootstrap that the layers were built with as
	// their chunk dictionary: its blobs are known by their ids already.
	ChunkDict string
	Whiteouts tree.Whiteouts
	Prefetch  Prefetch

	// Bootstrap is the path of the image; in BlobDir under its SHA-256 by default.
	Bootstrap, BlobDir string
}

func (o *MergeOptions) check() error {
	if len(o.Sources) == 0 {
		return errors.New("no source bootstrap: want at least one")
	}
	if o.Bootstrap == "" && o.BlobDir == "" {
		return errors.New("nowhere to put the bootstrap: want its path (--bootstrap) or a folder (--blob-dir)")
	}
	for _, l := range []struct {
		what string
		n    int
	}{
		{"blob ids", len(o.BlobIDs)}, {"blob digests", len(o.BlobDigests)}, {"blob sizes", len(o.BlobSizes)},
		{"digests of tables of contents", len(o.TOCDigests)}, {"sizes of tables of contents", len(o.TOCSizes)},
	} {
		if l.n != 0 && l.n != len(o.Sources) {
			return fmt.Errorf("%d %s for %d sources: want one each", l.n, l.what, len(o.Sources))
		}
	}
	return nil
}

// Merge makes an image of the bootstraps of its layers. It reads no blob. What a
// layer's bootstrap removes with whiteouts is gone, and so are blobs that nothing
// refers to any more.
//
// Blobs are numbered in the order of the layers that they come with, as by
// nydus-image 2.2. Later ones number them by their first use in the merged tree,
// each folder before those in it (nydus builder/src/merge.rs), which no reader
// can tell apart.
//
// The error wraps ErrInconsistent if the layers cannot be one image.
func Merge(ctx context.Context, o MergeOptions) (*Result, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := checkTarget(o.Bootstrap); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	m := &merging{ctx: ctx, opts: &o, started: time.Now(), read: o.gaugeFiles(append(o.Sources[:len(o.Sources):len(o.Sources)], o.Parent)...)}
	defer m.close()
	if err := m.open(); err != nil {
		return nil, err
	}
	t, err := tree.Merge(ctx, o.TempDir, m.take()...)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	last := m.images[len(m.images)-1].Super()
	if m.want.version == 5 && m.want.compressor != nil {
		last.Compressor = *m.want.compressor // the last layer may have no data
	}
	err = m.boot.emit(ctx, &o.Host, bootstrapDir(o.Bootstrap, o.BlobDir), t, foreignInfos(&m.known), write.Options{
		Format:  write.Format{ChunkSize: last.ChunkSize, Compressor: last.Compressor, Digester: last.Digester},
		Version: last.Version, Prefetch: o.Prefetch.table(),
		ImplicitOwners: last.Flags&layout.FlagExplicitUIDGID == 0, Tarfs: last.Flags&layout.FlagTarfs != 0,
	})
	if err != nil {
		return nil, err
	}
	r := &Result{Blobs: m.boot.blobs, Inodes: m.boot.inodes, Names: t.Len(), Version: last.Version, Compressor: last.Compressor}
	if n := len(r.Blobs); n > 0 {
		r.BlobSize = m.size(r.Blobs[n-1])
	}
	if r.Bootstrap, err = m.boot.publish(o.Bootstrap, o.BlobDir); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	r.Trace = map[string]float64{"total_build_time": time.Since(m.started).Seconds()}
	return r, nil
}

// merging is one run of Merge.
type merging struct {
	ctx     context.Context
	opts    *MergeOptions
	started time.Time

	images []*image.Image // dictionary, parent, layers; the last is the highest
	want   *traits        // of the first
	dict   map[string]bool
	known  rafs.Blobs
	layers []*tree.Layer
	boot   bootstrapFile
	read   gauge // of parent and layers
}

func (m *merging) close() {
	m.boot.discard()
	closeAll(m.layers...)
	for _, im := range m.images {
		im.Close()
	}
}

// take hands the layers over.
func (m *merging) take() []*tree.Layer {
	layers := m.layers
	m.layers = nil
	return layers
}

func (m *merging) open() error {
	o := m.opts
	if o.ChunkDict != "" {
		im, err := m.image("chunk dictionary", o.ChunkDict, stem(o.ChunkDict))
		if err != nil {
			return err
		}
		m.dict = map[string]bool{}
		for _, b := range im.Blobs() {
			m.dict[b.ID] = true
		}
	}
	if o.Parent != "" {
		im, err := m.image("parent", o.Parent, stem(o.Parent))
		if err != nil {
			return err
		}
		if err := m.add(im, tree.WhiteoutNone, nil); err != nil {
			return fmt.Errorf("parent %s: %w", o.Parent, err)
		}
		m.read.add(fileSize(o.Parent))
	}
	for i, path := range o.Sources {
		id := stem(path)
		if len(o.BlobIDs) > 0 {
			id = o.BlobIDs[i]
		}
		im, err := m.image("bootstrap", path, id)
		if err != nil {
			return err
		}
		own := ownBlob{merging: m, layer: i, id: id, path: path, im: im}
		if err := m.add(im, o.Whiteouts, own.fix); err != nil {
			return fmt.Errorf("bootstrap %s: %w", path, err)
		}
		m.read.add(fileSize(path))
	}
	return nil
}

// image opens a bootstrap and compares it with the first one.
func (m *merging) image(what, path, id string) (*image.Image, error) {
	im, err := image.Open(path, image.Options{InlineBlobID: id, InFile: true, TempDir: m.opts.TempDir})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	m.images = append(m.images, im)
	got := imageTraits(im)
	if m.want == nil {
		m.want = &got
	}
	if m.want.compressor == nil {
		m.want.compressor = got.compressor
	}
	if err := m.want.compare(got); err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	if got.tarfs && (m.opts.Parent != "" || m.opts.ChunkDict != "") {
		return nil, fmt.Errorf("%s %s: tarfs: neither a parent nor a chunk dictionary can be", what, path)
	}
	return im, nil
}

// add reads an image as the next layer.
func (m *merging) add(im *image.Image, w tree.Whiteouts, fix func(*rafs.Info) error) error {
	known, err := m.known.Add(im, fix)
	if err != nil {
		return err
	}
	l, err := rafs.Read(m.ctx, im, rafs.Options{
		TempDir: m.opts.TempDir, Limits: m.opts.Limits, Whiteouts: w, Ref: known.Ref,
	})
	if err != nil {
		return err
	}
	m.layers = append(m.layers, l)
	return nil
}

// ownBlob tells of the blob that a layer brings along, as opposed to those of
// the dictionary that it was built with.
type ownBlob struct {
	*merging
	layer int
	id    string
	path  string
	im    *image.Image
	seen  bool
}

// fix makes of what a layer's bootstrap says of its blob what an image says: the
// bootstrap was written when the blob was not yet finished (nydus
// builder/src/merge.rs).
func (o *ownBlob) fix(info *rafs.Info) error {
	e, opts, i := &info.Entry, o.opts, o.layer
	features := layout.Features(e.Features)
	e.Features = uint32(features &^ layout.FeatureInlinedFSMeta)
	if o.dict[info.ID] {
		return nil
	}
	if o.seen {
		return fmt.Errorf("%w: a layer with two blobs of its own, one of them %s: is a chunk dictionary missing?", ErrInconsistent, info.ID)
	}
	o.seen = true
	separate := features&layout.FeatureSeparate != 0
	tarfs := features&layout.FeatureTarfs != 0
	err := measure(o.path, o.im, info)
	if err == nil && opts.Blobs != nil {
		err = measureIn(o.ctx, opts.Blobs, stem(o.path), features, info)
	}
	if err != nil {
		return err
	}
	if !tarfs && (len(opts.BlobIDs) > 0 || !separate && !o.named(features)) {
		info.ID = o.id
	}
	if sum, err := parseDigest(stem(o.path)); err == nil && separate && features&layout.FeatureInlinedFSMeta != 0 {
		e.MetaDigest = sum // the bootstrap came out of this object
	}
	if len(opts.BlobDigests) > 0 {
		sum, err := parseDigest(opts.BlobDigests[i])
		if err != nil {
			return err
		}
		if separate {
			e.MetaDigest = sum
		} else {
			info.ID = opts.BlobDigests[i]
		}
	}
	if len(opts.BlobSizes) > 0 {
		if separate {
			e.MetaSize = opts.BlobSizes[i]
		} else {
			e.CompressedSize = opts.BlobSizes[i]
		}
	}
	if len(opts.TOCDigests) > 0 {
		sum, err := parseDigest(opts.TOCDigests[i])
		if err != nil {
			return err
		}
		e.TOCDigest = sum
	}
	if len(opts.TOCSizes) > 0 {
		e.TOCSize = uint32(opts.TOCSizes[i])
	}
	return blob.CheckID(info.ID)
}

// named tells whether the bootstrap itself has the id of the blob: it lies beside
// that, and the name of its file is none. nydus-image takes the name of the file
// even then.
func (o *ownBlob) named(f layout.Features) bool {
	_, err := parseDigest(o.id)
	return err != nil && f&layout.FeatureInlinedFSMeta == 0 && f&layout.FeatureCapTarTOC != 0
}

func parseDigest(s string) ([32]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 32 {
		return [32]byte{}, fmt.Errorf("digest %q: want 64 hex digits", s)
	}
	return [32]byte(b), nil
}

func (m *merging) size(id string) int64 {
	n, ok := m.known.Find(id)
	if !ok {
		return 0
	}
	info, _ := m.known.Info(n)
	return int64(info.Entry.CompressedSize)
}
