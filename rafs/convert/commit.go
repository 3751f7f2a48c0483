package convert

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rafsd/rafsd/rafs/artifact"
	"github.com/rafsd/rafsd/rafs/artifact/store"
	"github.com/rafsd/rafsd/rafs/build/chunk"
	"github.com/rafsd/rafsd/rafs/build/source/folder"
	"github.com/rafsd/rafsd/rafs/build/source/rafs"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// CommitOptions say what to put on top of which image.
type CommitOptions struct {
	Source store.Source // a RAFS image
	Target store.Target
	// Platform picks the image out of an index.
	Platform v1.Platform
	// Upper is the upper folder of the overlay that a container has on the image.
	Upper string
	// Mounts are folders that the container has at other places than in the overlay,
	// which become part of the image, too.
	Mounts []Mount
	// Without are absolute paths of the container that are left out of both.
	Without []string
	// Container, if not nil, is the one that writes to Upper.
	Container Container
	// Paths are absolute paths of Container, which are taken as it sees them, as
	// Mounts are.
	Paths []string
	// MaxTimes is how often an image may have been committed to; 400 by default.
	MaxTimes int
	Limits   tree.Limits
	Workers  int
	// WorkDir takes blobs until they are stored; os.TempDir by default.
	WorkDir string
}

// Mount is a folder and its absolute path in the container.
type Mount struct {
	Path, Dir string
	// Name, if not empty, is the one thing in the folder that is meant, and Path is
	// the path of that.
	Name string
}

// Container is a container while Commit reads what it has written.
type Container interface {
	// Pause is called before the first folder is read.
	Pause(ctx context.Context) error
	// Resume is called when the last one has been read, or could not be, and also
	// when Pause has failed; it does not depend on the context of Commit.
	Resume() error
	// Mount returns what the container has at an absolute path, whatever it comes
	// from. It is valid until Resume.
	Mount(path string) (Mount, error)
}

// Committed describes what Commit made.
type Committed struct {
	Root *store.Document
	// Blobs are those that are new, and Size is that of all of them.
	Blobs []string
	Size  int64
	// Entries were in the folders, Inodes are in the image.
	Entries, Inodes int
	// Times is how often the image was committed to by now.
	Times int
}

// Commit makes an image of another one and of what a container has changed. The
// container should not run while its folders are read: a file that changes meanwhile
// is an error. If there is a Container, it is paused for just that time.
func Commit(ctx context.Context, o CommitOptions) (*Committed, error) {
	c := &commit{o: o, opts: Options{WorkDir: o.WorkDir, Workers: o.Workers, Limits: o.Limits}}
	defer c.close()
	if c.o.MaxTimes <= 0 {
		c.o.MaxTimes = 400
	}
	if err := c.open(ctx); err != nil {
		return nil, err
	}
	if err := c.read(ctx); err != nil {
		return nil, err
	}
	i, err := c.assemble(ctx)
	if err != nil {
		return nil, err
	}
	defer i.close()
	if err := i.push(ctx, c.o.Target); err != nil {
		return nil, fmt.Errorf("%w (%s)", err, again)
	}
	c.result.Root, c.result.Inodes = i.doc, i.plan.Inodes()
	return &c.result, nil
}

// commit is one run of Commit.
type commit struct {
	o    CommitOptions
	opts Options // of what is written

	*parent
	im      *image.Image
	blobs   rafs.Blobs
	base    *tree.Layer
	layers  []*layer // Mounts, Paths, Upper, then what that has in part
	partial []string // paths of which Upper has a part only
	result  Committed
}

func (c *commit) close() {
	for _, l := range c.layers {
		l.close()
	}
	if c.base != nil {
		_ = c.base.Close() // temporary files
	}
	if c.im != nil {
		_ = c.im.Close()
	}
	if c.parent != nil {
		c.parent.close()
	}
}

// open reads the image.
func (c *commit) open(ctx context.Context) (err error) {
	if c.parent, err = findParent(ctx, c.o.Source, c.o.Platform); err != nil {
		return err
	}
	for _, d := range c.manifest.Layers {
		if d.Annotations[artifact.AnnotationRef] != "" {
			return errors.New("the image refers to OCI layers (zran): convert it without --oci-ref first")
		}
	}
	if c.result.Times = 1 + len(c.committed()); c.result.Times > c.o.MaxTimes {
		return fmt.Errorf("the image was committed to %d times, limit %d: convert it anew from an OCI image", c.result.Times-1, c.o.MaxTimes)
	}
	if err := c.parent.fetch(ctx, &c.opts); err != nil {
		return err
	}
	if err := c.openBootstrap(ctx); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	s := c.im.Super()
	c.opts.Format = Format{Version: s.Version, ChunkSize: s.ChunkSize, Compressor: &s.Compressor, Digester: s.Digester, Aligned: aligned(c.im)}
	return c.opts.setDefaults()
}

// aligned tells whether the blobs of an image have their chunks at multiples of
// 4096.
func aligned(im *image.Image) bool {
	for _, b := range im.Blobs() {
		if layout.Features(b.Features)&layout.FeatureAligned == 0 {
			return false
		}
	}
	return true
}

// committed are the blobs that were committed before.
func (c *commit) committed() []string {
	list := c.boot.Annotations[artifact.AnnotationCommit]
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// openBootstrap reads the bootstrap as the lowest layer.
func (c *commit) openBootstrap(ctx context.Context) error {
	size, err := c.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if c.im, err = image.OpenAt(c.file, size, image.Options{InFile: true, TempDir: c.o.WorkDir}); err != nil {
		return err
	}
	known, err := c.blobs.Add(c.im, nil)
	if err != nil {
		return err
	}
	c.base, err = rafs.Read(ctx, c.im, rafs.Options{TempDir: c.o.WorkDir, Limits: c.o.Limits, Whiteouts: tree.WhiteoutNone, Ref: known.Ref})
	return err
}

// read makes layers of the folders.
func (c *commit) read(ctx context.Context) (err error) {
	container := c.o.Container
	if container != nil {
		defer func() { err = errors.Join(err, container.Resume()) }()
		if err := container.Pause(ctx); err != nil {
			return err
		}
	}
	pool := chunk.NewPool(c.opts.Workers, 1, int(c.opts.Format.ChunkSize))
	mounts := slices.Clone(c.o.Mounts)
	for _, p := range c.o.Paths {
		m, err := container.Mount(p)
		if err != nil {
			return err
		}
		mounts = append(mounts, m)
	}
	without := passedOver(c.o.Without)
	for _, m := range mounts {
		if err := c.readMount(ctx, pool, m, without); err != nil {
			return err
		}
	}
	// What is mounted in the container hides what the overlay has there.
	hidden := slices.Clone(c.o.Without)
	for _, m := range mounts {
		hidden = append(hidden, m.Path)
	}
	o := folder.Options{Whiteouts: tree.WhiteoutOverlay, Skip: passedOver(hidden)}
	if container != nil {
		o.Partial = func(p string) { c.partial = append(c.partial, p) }
	}
	if err := c.readFolder(ctx, pool, c.o.Upper, o); err != nil {
		return fmt.Errorf("upper folder: %w", err)
	}
	// The container alone sees these as they are.
	for _, p := range c.partial {
		m, err := container.Mount("/" + p)
		if err != nil {
			return fmt.Errorf("upper folder: the rest of %q lies in a lower one: %w", p, err)
		}
		if err := c.readMount(ctx, pool, m, passedOver(hidden)); err != nil {
			return err
		}
	}
	return nil
}

// passedOver tells of absolute paths, as they are in a layer.
func passedOver(paths []string) func(string) bool {
	inLayer := make([]string, len(paths))
	for i, p := range paths {
		inLayer[i] = strings.Trim(path.Clean("/"+p), "/")
	}
	return func(p string) bool { return slices.Contains(inLayer, p) }
}

// readMount makes a layer of what hides what is below it.
func (c *commit) readMount(ctx context.Context, pool *chunk.Pool, m Mount, skip func(string) bool) error {
	at := strings.Trim(path.Clean("/"+m.Path), "/")
	if at == "" {
		return fmt.Errorf("mount %q: want a path below the root", m.Path)
	}
	o := folder.Options{At: at, Name: m.Name, Whiteouts: tree.WhiteoutNone, Skip: skip}
	if err := c.readFolder(ctx, pool, m.Dir, o); err != nil {
		return fmt.Errorf("mount %s: %w", m.Path, err)
	}
	return nil
}

// readFolder makes a layer, and a blob, of a folder.
func (c *commit) readFolder(ctx context.Context, pool *chunk.Pool, dir string, fo folder.Options) error {
	file, err := c.opts.tempFile()
	if err != nil {
		return err
	}
	l := &layer{file: file}
	number := c.blobs.Len() + uint32(len(c.layers))
	c.layers = append(c.layers, l)
	o := &c.opts
	out := bufio.NewWriterSize(file, 128<<10)
	blob, err := write.NewBlob(out, write.BlobOptions{
		Format: o.format(), Version: o.Format.Version, TOC: o.Format.Version == 6, Packed: o.packed(),
	})
	if err != nil {
		return err
	}
	cutter, err := chunk.NewCutter(ctx, pool, blob, chunk.Options{
		Blob: number, Compressor: *o.Format.Compressor, Digester: o.Format.Digester, ChunkSize: o.Format.ChunkSize,
		Packed: o.packed(), TempDir: o.WorkDir,
	})
	if err != nil {
		return err
	}
	fo.TempDir, fo.Limits = o.WorkDir, o.Limits
	var readErr, closeErr error
	l.tree, readErr = folder.Read(ctx, dir, cutter, fo)
	l.table, _, closeErr = cutter.Close()
	if readErr != nil {
		return readErr
	}
	if closeErr != nil {
		return closeErr
	}
	c.result.Entries += l.tree.Entries
	if err := l.finish(blob, write.Contents{Table: l.table}); err != nil {
		return err
	}
	return out.Flush()
}

// assemble merges image and folders.
func (c *commit) assemble(ctx context.Context) (i *rafsImage, err error) {
	trees, infos := []*tree.Layer{c.base}, foreignInfos(&c.blobs)
	c.base = nil // Merge takes it over
	for _, l := range c.layers {
		trees, infos = append(trees, l.tree), append(infos, l.info)
		l.tree = nil
	}
	i = &rafsImage{}
	defer func() {
		if err != nil {
			i.close()
			i = nil
		}
	}()
	if i.tree, err = tree.Merge(ctx, c.o.WorkDir, trees...); err != nil {
		return i, err
	}
	plan, err := write.New(i.tree, infos, write.Options{
		Format: c.opts.format(), Version: c.opts.Format.Version, TempDir: c.o.WorkDir,
		ImplicitOwners: c.im.Super().Flags&layout.FlagExplicitUIDGID == 0,
	})
	if err != nil {
		return i, err
	}
	i.plan = plan
	for _, info := range plan.Blobs() {
		if err := c.addBlob(i, info); err != nil {
			return i, err
		}
	}
	if err := i.packBootstrap(ctx, &c.opts, c.metas, c.manifest.MediaType == types.DockerManifestSchema2); err != nil {
		return i, fmt.Errorf("bootstrap: %w", err)
	}
	return i, c.documents(i)
}

// addBlob finds what is stored for a blob of the plan.
func (c *commit) addBlob(i *rafsImage, info *write.BlobInfo) error {
	for n, l := range c.layers {
		if l.info == info {
			i.blobs = append(i.blobs, blobLayer{l.blob(), info, n})
			c.result.Blobs = append(c.result.Blobs, info.ID)
			c.result.Size += info.Object.Size
			return nil
		}
	}
	p, err := c.parent.blob(info.ID)
	if err != nil {
		return err
	}
	i.blobs = append(i.blobs, blobLayer{p, info, -1})
	return nil
}

// documents makes configuration and manifest.
func (c *commit) documents(i *rafsImage) error {
	commits := c.committed()
	for _, b := range i.blobs {
		if b.layer >= 0 {
			commits = append(commits, b.desc.Digest.String())
		}
	}
	boot := map[string]string{
		artifact.AnnotationBootstrap: "true", artifact.AnnotationFSVersion: strconv.Itoa(c.opts.Format.Version),
	}
	if len(commits) > 0 {
		boot[artifact.AnnotationCommit] = strings.Join(commits, ",")
	}
	return c.derive(i, boot, v1.History{CreatedBy: "rafsd commit", Comment: "changes of a container"})
}

// foreignInfos are blobs of images that exist.
func foreignInfos(b *rafs.Blobs) []*write.BlobInfo {
	var infos []*write.BlobInfo
	for n := range b.Len() {
		info, records := b.Info(n)
		infos = append(infos, &write.BlobInfo{ID: info.ID, Table: records, Entry: info.Entry, Foreign: true, PrefetchSize: info.PrefetchSize})
	}
	return infos
}
