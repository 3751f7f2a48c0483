package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/export"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// rework gives an image that exists new blobs for some of its chunks. These are
// read, verified, and digested and stored again; all others stay where they are.
type rework struct {
	ctx  context.Context
	host *Host
	im   *image.Image
	data *export.Data
	dir  string // of new blobs
	key  *write.Cipher

	known *rafs.Image
	blobs rafs.Blobs
	dict  *chunk.Index // or nil

	moved movedChunks
	made  []*madeBlob
	boot  bootstrapFile
	read  gauge // of chunks, uncompressed
}

// madeBlob is a new blob.
type madeBlob struct {
	out   *output
	table *chunk.Table
	info  *write.BlobInfo
}

func newRework(ctx context.Context, h *Host, path string, b backend.Backend) (*rework, error) {
	im, err := image.Open(path, image.Options{InlineBlobID: stem(path), InFile: true, TempDir: h.TempDir})
	if err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	w := &rework{ctx: ctx, host: h, im: im, moved: newMovedChunks(im, h.TempDir), read: gauge{tell: h.Progress}}
	for _, b := range im.Blobs() {
		if f := layout.Features(b.Features) & (layout.FeatureTarfs | layout.FeatureExternal); f != 0 {
			w.close()
			return nil, fmt.Errorf("bootstrap %s: blob %s has features %v, whose chunks cannot be stored anew: %w", path, b.ID, f, errors.ErrUnsupported)
		}
	}
	if w.known, err = w.blobs.Add(im, nil); err == nil {
		w.data, err = export.NewData(im, b, h.Log)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("bootstrap %s: %w", path, err)
	}
	return w, nil
}

func (w *rework) close() {
	w.boot.discard()
	w.moved.array.Close()
	for _, m := range w.made {
		m.out.discard()
		if m.table != nil {
			m.table.Close()
		}
	}
	if w.dict != nil {
		w.dict.Close()
	}
	w.closeData()
	w.im.Close()
}

// closeData gives the memory for data back.
func (w *rework) closeData() {
	if w.data != nil {
		w.data.Close()
		w.data = nil
	}
}

// move stores chunks in a new blob. A chunk that comes again, or was moved
// before, stays where it was put first.
func (w *rework) move(chunks iter.Seq[blob.Chunk]) error {
	var list refList
	queued := make([]uint64, w.moved.len()/64+1)
	size := int64(0)
	for c := range chunks {
		ref := chunk.Ref{Blob: c.Blob.Index, Index: c.Index}
		at := w.moved.position(ref)
		if queued[at/64]>>(at%64)&1 != 0 {
			continue
		}
		queued[at/64] |= 1 << (at % 64)
		_, moved, err := w.moved.at(ref)
		if err != nil {
			return err
		}
		if !moved {
			list.add(ref)
			size += int64(c.UncompressedSize)
		}
	}
	if len(list) == 0 {
		return nil
	}
	w.read.total = max(w.read.total, w.read.done+size)
	return w.cut(w.listed(list))
}

// listed looks the chunks of a list up.
func (w *rework) listed(list refList) iter.Seq[blob.Chunk] {
	return func(yield func(blob.Chunk) bool) {
		for ref := range list.all {
			if c, _ := w.im.Chunk(ref.Blob, ref.Index); !yield(c) {
				return
			}
		}
	}
}

// cut makes a blob of chunks, each of which comes once. They are listed twice, side
// by side.
func (w *rework) cut(chunks iter.Seq[blob.Chunk]) error {
	m := &madeBlob{}
	w.made = append(w.made, m)
	var err error
	if m.out, err = newOutputIn(w.dir); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	bo, co, err := w.options()
	if err != nil {
		return err
	}
	out := newBuffered(m.out)
	b, err := write.NewBlob(out, bo)
	if err != nil {
		return err
	}
	// As much work is in reading the chunks, which goes on beside this.
	pool := chunk.NewPool(max(w.host.Workers/2, 1), 1, int(co.ChunkSize))
	cutter, err := chunk.NewCutter(w.ctx, pool, b, co)
	if err != nil {
		return err
	}
	err = w.copy(cutter, chunks)
	var closeErr error
	if m.table, _, closeErr = cutter.Close(); !errors.Is(err, closeErr) {
		err = errors.Join(err, closeErr)
	}
	if err != nil {
		return err
	}
	if m.table.Len() == 0 { // a dictionary had all of it
		m.out.discard()
		m.out = nil
		return nil
	}
	if m.info, err = b.Finish(write.Contents{Table: m.table}); err != nil {
		return err
	}
	return out.Flush()
}

// copy passes the bytes of whole chunks to a cutter.
func (w *rework) copy(cutter *chunk.Cutter, chunks iter.Seq[blob.Chunk]) error {
	stream := w.data.Stream(w.ctx, func(yield func(blob.Segment, error) bool) {
		for c := range chunks {
			if !yield(blob.Segment{Chunk: c, Length: c.UncompressedSize}, nil) {
				return
			}
		}
	})
	defer stream.Close()
	for c := range chunks {
		old := chunk.Ref{Blob: c.Blob.Index, Index: c.Index}
		err := cutter.File(stream, int64(c.UncompressedSize), func(ref chunk.Ref) error {
			return w.moved.note(old, ref)
		})
		if err != nil {
			return fmt.Errorf("chunk %d of blob %s: %w", old.Index, c.Blob.ID, err)
		}
		w.read.add(int64(c.UncompressedSize))
	}
	return nil
}

// options are those of a new blob: as the image is, as far as a blob of its own
// data can be.
func (w *rework) options() (write.BlobOptions, chunk.Options, error) {
	s := w.im.Super()
	format := w.format()
	if format.Compressor == blob.CompressorGzip {
		format.Compressor = blob.CompressorZstd
	}
	bo := write.BlobOptions{
		Format: format, Version: s.Version, Packed: s.Version == 5, TOC: s.Version == 6 && s.Flags&layout.FlagInlinedChunkDigest != 0,
	}
	co := chunk.Options{
		Blob: w.blobs.Len() + uint32(len(w.made)) - 1, Compressor: format.Compressor, Digester: format.Digester, ChunkSize: format.ChunkSize,
		Packed: s.Version == 5, TempDir: w.host.TempDir,
	}
	if w.dict != nil {
		co.Dict = w.dict
	}
	for _, b := range w.im.Blobs() {
		if layout.Features(b.Features)&layout.FeatureAligned != 0 {
			bo.Packed, co.Packed = false, false
		}
		if b.Cipher != blob.CipherNone {
			bo.Cipher = &write.Cipher{}
		}
	}
	if bo.Cipher == nil {
		return bo, co, nil
	}
	if w.key != nil {
		*bo.Cipher = *w.key
	} else {
		rand.Read(bo.Cipher.Key[:]) // never fails
		rand.Read(bo.Cipher.IV[:])
	}
	var err error
	co.Cipher, err = xts.NewKey(bo.Cipher.Key, bo.Cipher.IV)
	co.CRC = true
	return bo, co, err
}

func (w *rework) format() write.Format {
	s := w.im.Super()
	return write.Format{ChunkSize: s.ChunkSize, Compressor: s.Compressor, Digester: s.Digester}
}

// ref finds the chunk of the new image that a chunk of the old one is.
func (w *rework) ref(blobIndex, chunkIndex uint32) (chunk.Ref, error) {
	if ref, moved, err := w.moved.at(chunk.Ref{Blob: blobIndex, Index: chunkIndex}); moved || err != nil {
		return ref, err
	}
	return w.known.Ref(blobIndex, chunkIndex)
}

// finish writes the bootstrap to path, with the tree and the prefetch list of the
// old one, and gives the new blobs their names.
func (w *rework) finish(path string, limits tree.Limits) (*Result, error) {
	w.closeData()
	l, err := rafs.Read(w.ctx, w.im, rafs.Options{TempDir: w.host.TempDir, Limits: limits, Whiteouts: tree.WhiteoutNone, Ref: w.ref})
	if err != nil {
		return nil, err
	}
	t, err := tree.Merge(w.ctx, w.host.TempDir, l)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	s := w.im.Super()
	infos := foreignInfos(&w.blobs)
	for _, m := range w.made {
		infos = append(infos, m.info)
	}
	prefetch, err := prefetchPaths(w.im)
	if err != nil {
		return nil, err
	}
	err = w.boot.emit(w.ctx, w.host, bootstrapDir(path, ""), t, infos, write.Options{
		Format: w.format(), Version: s.Version, Prefetch: prefetch, ImplicitOwners: s.Flags&layout.FlagExplicitUIDGID == 0,
	})
	if err != nil {
		return nil, err
	}
	r := &Result{Blobs: w.boot.blobs, Inodes: w.boot.inodes, Names: t.Len(), Version: s.Version, Compressor: s.Compressor}
	for _, m := range w.made {
		if m.out == nil {
			continue
		}
		r.Blob, r.BlobSize = m.info.ID, m.info.Object.Size
		if err := m.out.publishAs(m.info.ID); err != nil {
			return nil, fmt.Errorf("blob: %w", err)
		}
	}
	if r.Bootstrap, err = w.boot.publish(path, ""); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return r, nil
}

// foreignInfos is what bootstraps say of blobs that exist.
func foreignInfos(blobs *rafs.Blobs) []*write.BlobInfo {
	var infos []*write.BlobInfo
	for n := range blobs.Len() {
		info, records := blobs.Info(n)
		infos = append(infos, &write.BlobInfo{
			ID: info.ID, Table: records, Entry: info.Entry, PrefetchSize: info.PrefetchSize, Foreign: true,
		})
	}
	return infos
}

// prefetchPaths are the paths that an image lists to be read ahead.
func prefetchPaths(im *image.Image) ([]string, error) {
	if len(im.Prefetch()) == 0 {
		return nil, nil
	}
	at := map[uint64]int{}
	for i, node := range im.Prefetch() {
		at[node] = i
	}
	paths := make([]string, len(at))
	var walk func(dir string, node uint64) error
	walk = func(dir string, node uint64) error {
		var inner error
		err := im.ReadDir(node, 0, func(d image.Dirent) bool {
			name := string(d.Name)
			if name == "." || name == ".." {
				return true
			}
			if i, ok := at[d.Node]; ok && paths[i] == "" {
				paths[i] = dir + "/" + name
			}
			if d.Type == tree.TypeDir {
				inner = walk(dir+"/"+name, d.Node)
			}
			return inner == nil
		})
		return errors.Join(err, inner)
	}
	if i, ok := at[image.Root]; ok {
		paths[i] = "/"
	}
	err := walk("", image.Root)
	return slices.DeleteFunc(paths, func(p string) bool { return p == "" }), err
}
