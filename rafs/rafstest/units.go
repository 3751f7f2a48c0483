package rafstest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
	"github.com/rafsd/rafsd/rafs/blob/codec/xts"
	"github.com/rafsd/rafsd/rafs/layout"
	"github.com/rafsd/rafsd/rafs/layout/v6"
)

// shared is the bytes of a chunk that lies in a batch or in a gzip stream. The way
// is not that of a reader: of a stream everything is inflated, so that contexts
// are asked for nothing but where chunks are.
func (dirs Blobs) shared(c *blob.Chunk) ([]byte, error) {
	ci, err := dirs.chunkInfo(c.Blob)
	if err != nil {
		return nil, fmt.Errorf("chunk information: %w", err)
	}
	contexts := int(c.Blob.ListedChunks) * v6.ChunkInfoV2Size
	if int(c.Index+1)*v6.ChunkInfoV2Size > contexts || contexts > len(ci) {
		return nil, fmt.Errorf("chunk information of %d bytes, %d chunks", len(ci), c.Blob.ListedChunks)
	}
	info, err := v6.DecodeChunkInfoV2(ci[c.Index*v6.ChunkInfoV2Size:])
	if err != nil {
		return nil, err
	}
	unit, off := v6.ZranPlace(info.Data)
	contexts += int(unit) * v6.ZranContextSize
	if contexts > len(ci) {
		return nil, fmt.Errorf("context %d, chunk information of %d bytes", unit, len(ci))
	}
	var data []byte
	start := uint64(off)
	if layout.Features(c.Blob.Features)&layout.FeatureZran != 0 {
		ctx, err := v6.DecodeZranContext(ci[contexts:])
		if err != nil {
			return nil, err
		}
		if data, err = dirs.whole(c.Blob.ID, true); err != nil {
			return nil, err
		}
		start += ctx.OutOffset
	} else if data, err = dirs.batch(c.Blob, info.CompressedOffset, ci[contexts:]); err != nil {
		return nil, err
	}
	if start+uint64(c.UncompressedSize) > uint64(len(data)) {
		return nil, fmt.Errorf("%d bytes at %d of a unit of %d", c.UncompressedSize, start, len(data))
	}
	return data[start:][:c.UncompressedSize], nil
}

// batch is the bytes of the batch at off, whose context is at the start of b.
func (dirs Blobs) batch(info *blob.Info, off uint64, b []byte) ([]byte, error) {
	ctx, err := v6.DecodeBatchContext(b)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, ctx.CompressedSize)
	if err := dirs.readAt(info.ID, raw, int64(off)); err != nil {
		return nil, err
	}
	if info.Cipher != blob.CipherNone {
		if raw, err = decrypt(info, raw); err != nil {
			return nil, err
		}
	}
	if ctx.CompressedSize == ctx.UncompressedSize {
		return raw, nil
	}
	if info.Cipher != blob.CipherNone && ctx.UncompressedSize < xts.IVSize {
		return raw[:ctx.UncompressedSize], nil // too short to shrink, and padded
	}
	return decode(info.Compressor, raw, int(ctx.UncompressedSize))
}

// chunkInfo is what a blob tells of its chunks, decrypted and decompressed.
func (dirs Blobs) chunkInfo(info *blob.Info) ([]byte, error) {
	raw := make([]byte, info.ChunkInfo.CompressedSize)
	if err := dirs.readAt(info.MetaID, raw, int64(info.ChunkInfo.Offset)); err != nil {
		return nil, err
	}
	if info.Cipher != blob.CipherNone {
		var err error
		if raw, err = decrypt(info, raw); err != nil {
			return nil, err
		}
	}
	return decode(info.ChunkInfo.Compressor, raw, int(info.ChunkInfo.UncompressedSize))
}

func decrypt(info *blob.Info, raw []byte) ([]byte, error) {
	key, err := xts.NewKey(info.Key.XTS, info.Key.IV)
	if err != nil {
		return nil, err
	}
	p, err := key.Decrypt(nil, raw)
	return xts.Trim(p), err
}

// wholes keeps blobs that were read whole, by path, inflated ones apart.
var wholes sync.Map

// checked has the ids of those that were found right, by their memory.
var checked sync.Map

type wholeKey struct {
	path     string
	inflated bool
}

// whole is all of a blob, inflated if it is a gzip stream that is wanted so.
func (dirs Blobs) whole(id string, inflate bool) ([]byte, error) {
	var last error
	for _, dir := range dirs {
		key := wholeKey{filepath.Join(dir, id), inflate}
		if data, ok := wholes.Load(key); ok {
			return data.([]byte), nil
		}
		data, err := os.ReadFile(key.path)
		if err == nil && inflate {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(data)); err == nil {
				data, err = io.ReadAll(z)
			}
		}
		if err == nil {
			wholes.Store(key, data)
			return data, nil
		}
		last = err
	}
	return nil, last
}

// checkWhole holds a blob against its id, which is its SHA-256.
func (dirs Blobs) checkWhole(id string) error {
	data, err := dirs.whole(id, false)
	if err != nil {
		return err
	}
	if right, ok := checked.Load(&data[0]); ok && right == id {
		return nil
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != id {
		return fmt.Errorf("%w: blob has sha256 %x, want %s", blob.ErrDigest, sum, id)
	}
	checked.Store(&data[0], id)
	return nil
}

// Unzstd decompresses a frame.
func Unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	out, err := zstdReader.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
