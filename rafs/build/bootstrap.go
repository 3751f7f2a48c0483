package build

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/build/tree"
	"github.com/rafsd/rafsd/rafs/build/write"
	"github.com/rafsd/rafsd/rafs/check"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

const bufferSize = 256 << 10

func newBuffered(w io.Writer) *bufio.Writer { return bufio.NewWriterSize(w, bufferSize) }

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, bufferSize) }

// stem is a file's name up to its first dot, which names the blob that a layer's
// bootstrap was made for (nydus storage/src/device.rs, get_blob_id_from_meta_path).
func stem(path string) string {
	name := filepath.Base(path)
	if at := strings.IndexByte(name, '.'); at > 0 {
		return name[:at]
	}
	return name
}

// bootstrapFile is a bootstrap that is being written: planned, emitted, checked,
// and only then given its name, or copied to where it goes.
type bootstrapFile struct {
	out    *output // what is checked; without a name
	target *output // a fifo that gets a copy, or nil
	sum    hash.Hash
	blobs  []string
	inodes int
}

// emit writes the bootstrap of a tree to a file in dir, or one without any name
// if dir is empty.
func (b *bootstrapFile) emit(ctx context.Context, h *Host, dir string, t *tree.Tree, blobs []*write.BlobInfo, o write.Options) (err error) {
	if dir == "" {
		dir = h.TempDir
	}
	o.TempDir = h.TempDir
	plan, err := write.New(t, blobs, o)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	defer plan.Close()
	if b.out, err = newOutputIn(dir); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	b.sum = sha256.New()
	out := newBuffered(io.MultiWriter(b.out, b.sum))
	if err := plan.Write(out); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	b.blobs, b.inodes = blobIDs(plan.Blobs()), plan.Inodes()
	if h.NoCheck {
		return nil
	}
	return b.check(ctx)
}

// errRules means that a bootstrap was written for nothing. Unless an input breaks
// rules that rafs/image can live with, this is a fault of this package.
var errRules = errors.New("the bootstrap would break rules of the format")

// check reads what was written.
func (b *bootstrapFile) check(ctx context.Context) error {
	st, err := b.out.Stat()
	if err != nil {
		return err
	}
	report, err := check.Reader(ctx, b.out, st.Size(), check.Options{})
	if err != nil {
		return fmt.Errorf("check of the bootstrap: %w", err)
	}
	if len(report.Violations) > 0 {
		return fmt.Errorf("%w: %w", errRules, &check.Error{Violations: report.Violations, More: report.More})
	}
	return nil
}

// copyTo copies the bootstrap.
func (b *bootstrapFile) copyTo(w io.Writer) error {
	if _, err := b.out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(w, b.out)
	return err
}

// bootstrapDir is where a bootstrap is written that goes to path, or into dir if
// that is empty: next to its place, but for a pipe or a device.
func bootstrapDir(path, dir string) string {
	switch {
	case path == "":
		return dir
	case special(path):
		return ""
	}
	return filepath.Dir(path)
}

// checkTarget refuses a path that no bootstrap can be put at. It saves the work,
// and the blob that would be there without one.
func checkTarget(path string) error {
	if path == "" {
		return nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return fmt.Errorf("%s: is a folder, want a file", path)
	}
	_, err := os.Stat(filepath.Dir(path))
	return err
}

// special tells whether there is something at path that cannot be replaced by a
// file.
func special(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.Mode().IsRegular()
}

// publish puts the bootstrap at path, or in dir under its SHA-256, and returns
// where it is. What is neither is dropped.
func (b *bootstrapFile) publish(path, dir string) (string, error) {
	switch {
	case b.out == nil || path == "" && dir == "":
		return "", nil
	case path == "":
		name := hex.EncodeToString(b.sum.Sum(nil))
		return filepath.Join(dir, name), b.out.publishAs(name)
	}
	if !special(path) {
		return path, b.out.publishAs(filepath.Base(path))
	}
	var err error
	if b.target, err = newOutput(path); err != nil {
		return "", err
	}
	if err := b.copyTo(b.target); err != nil {
		return "", err
	}
	return path, b.target.publish()
}

func (b *bootstrapFile) discard() {
	b.out.discard()
	b.target.discard()
}

// traits are what an image has only one of.
type traits struct {
	version   int
	chunkSize uint32
	owners    bool
	tarfs     bool
	digester  blob.Digester
	// compressor is that of version 5, where blobs have none of their own; nil for
	// an image without blobs.
	compressor *blob.Compressor
}

func imageTraits(im *image.Image) traits {
	s := im.Super()
	t := traits{
		version: s.Version, chunkSize: s.ChunkSize, digester: s.Digester,
		owners: s.Flags&layout.FlagExplicitUIDGID != 0, tarfs: s.Flags&layout.FlagTarfs != 0,
	}
	if len(im.Blobs()) > 0 {
		t.compressor = &s.Compressor
	}
	return t
}

// compare tells what another image has that cannot be one with this one (nydus
// rafs/src/metadata/mod.rs, check_compatibility). It makes images of several
// compressors in version 5, too, which nobody can read.
func (t traits) compare(got traits) error {
	switch {
	case got.version != t.version:
		return fmt.Errorf("%w: version %d, want %d", ErrInconsistent, got.version, t.version)
	case got.chunkSize != t.chunkSize:
		return fmt.Errorf("%w: chunk size %d, want %d", ErrInconsistent, got.chunkSize, t.chunkSize)
	case got.owners != t.owners:
		return fmt.Errorf("%w: explicit owners %t, want %t", ErrInconsistent, got.owners, t.owners)
	case got.tarfs != t.tarfs:
		return fmt.Errorf("%w: tarfs %t, want %t", ErrInconsistent, got.tarfs, t.tarfs)
	case t.version == 5 && got.digester != t.digester:
		return fmt.Errorf("%w: digester %v, want %v, which the inodes of version 5 are digested by", ErrInconsistent, got.digester, t.digester)
	case t.version == 5 && got.compressor != nil && t.compressor != nil && *got.compressor != *t.compressor:
		return fmt.Errorf("%w: compressor %v, want %v, which version 5 has only one of", ErrInconsistent, *got.compressor, *t.compressor)
	}
	return nil
}
