package export

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/backend"
	"github.com/rafsd/rafsd/rafs/image"
	"github.com/rafsd/rafsd/rafs/layout"
)

// NewLocalData is NewData for files of the caller's own machine. Tar files (tarfs)
// have no digests but their id, and nydus-snapshotter names them by the digest of
// the layer that they came out of compressed (pkg/tarfs). So such a file is taken for
// what it is, with a warning, and only what it was when this began.
func NewLocalData(ctx context.Context, im *image.Image, b backend.Backend, log *slog.Logger) (*Data, error) {
	blobs, named := im.Blobs(), renamed{Backend: b, ids: map[string]string{}}
	for i, info := range im.Blobs() {
		if layout.Features(info.Features)&layout.FeatureTarfs == 0 {
			continue
		}
		id, err := digestOf(ctx, b, info)
		if err != nil {
			return nil, fmt.Errorf("tar file %s: %w", info.ID, err)
		}
		if id == info.ID {
			continue
		}
		if log != nil {
			log.Warn("a tar file is not named by its digest, which is therefore not held against anything", "blob", info.ID, "sha256", id)
		}
		if len(named.ids) == 0 {
			blobs = append([]*blob.Info(nil), blobs...)
		}
		copied := *info
		copied.ID, copied.MetaID = id, id
		blobs[i], named.ids[id] = &copied, info.ID
	}
	return newData(im, blobs, named, log)
}

// renamed opens blobs under other ids than they have.
type renamed struct {
	backend.Backend
	ids map[string]string
}

func (r renamed) Open(id string) (backend.Reader, error) {
	if old, ok := r.ids[id]; ok {
		id = old
	}
	return r.Backend.Open(id)
}

// digestOf is the SHA-256 of all of a blob, in hex.
func digestOf(ctx context.Context, b backend.Backend, info *blob.Info) (string, error) {
	r, err := b.Open(info.ID)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for off := uint64(0); off < info.CompressedSize; {
		p := buf[:min(uint64(len(buf)), info.CompressedSize-off)]
		if err := r.ReadRange(ctx, p, int64(off)); err != nil {
			return "", err
		}
		sum.Write(p)
		off += uint64(len(p))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
