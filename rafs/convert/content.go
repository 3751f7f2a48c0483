package convert

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// content is something to push whose digest is known, as go-containerregistry
// wants it.
type content struct {
	data      io.ReaderAt
	digest    v1.Hash
	size      int64
	mediaType types.MediaType
	progress  func(int) // told the bytes that pass, if not nil
}

var _ v1.Layer = (*content)(nil)

// inMemory is content that is small.
func inMemory(data []byte, mediaType types.MediaType) *content {
	sum := sha256.Sum256(data)
	return &content{
		data: bytes.NewReader(data), size: int64(len(data)), mediaType: mediaType,
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])},
	}
}

func (c *content) Digest() (v1.Hash, error) { return c.digest, nil }

func (c *content) Size() (int64, error) { return c.size, nil }

func (c *content) MediaType() (types.MediaType, error) { return c.mediaType, nil }

// Compressed may be called again: a push that breaks off is tried anew.
func (c *content) Compressed() (io.ReadCloser, error) {
	r := io.Reader(io.NewSectionReader(c.data, 0, c.size))
	if c.progress != nil {
		r = &countReader{r: r, passed: c.progress}
	}
	return io.NopCloser(r), nil
}

// DiffID and Uncompressed are asked of blobs only, which nothing unpacks.
func (c *content) DiffID() (v1.Hash, error) { return c.digest, nil }

func (c *content) Uncompressed() (io.ReadCloser, error) { return c.Compressed() }

func (c *content) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: c.mediaType, Size: c.size, Digest: c.digest}
}
