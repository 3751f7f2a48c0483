package artifact

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxLayerFiles bounds the files of a bootstrap layer: the bootstrap, the chunk
// information of each blob, and what converters append.
const maxLayerFiles = 1 << 12

// ReadLayer goes through a bootstrap layer, a tar that may be compressed by gzip,
// to its end. each is called with every regular file, by its clean path and with
// its size; what it does not read is passed over. The result is the digest of what
// the layer unpacks to.
func ReadLayer(layer io.Reader, each func(name string, size int64, r io.Reader) error) (diffID v1.Hash, err error) {
	plain, err := gunzip(layer)
	if err != nil {
		return diffID, err
	}
	h := sha256.New()
	limited := &io.LimitedReader{R: io.TeeReader(plain, h), N: maxLayer}
	files, left := tar.NewReader(limited), allowance(maxLayer)
	for n := 0; ; n++ {
		hdr, err := files.Next()
		switch {
		case limited.N == 0:
			return diffID, fmt.Errorf("unpacks to more than %d bytes", int64(maxLayer))
		case errors.Is(err, io.EOF):
			if _, err := io.Copy(io.Discard, limited); err != nil {
				return diffID, err
			}
			return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}, nil
		case err != nil:
			return diffID, err
		case n == maxLayerFiles:
			return diffID, fmt.Errorf("more than %d entries", maxLayerFiles)
		case hdr.Typeflag != tar.TypeReg:
			continue
		case !left.take(hdr.Size):
			return diffID, fmt.Errorf("unpacks to more than %d bytes", int64(maxLayer))
		}
		if err := each(path.Clean(hdr.Name), hdr.Size, files); err != nil {
			return diffID, fmt.Errorf("%s: %w", path.Clean(hdr.Name), err)
		}
	}
}
