package image

import (
	"errors"
	"fmt"
	"testing"

	"github.com/rafsd/rafsd/rafs/blob"
)

func TestBlobsClaimABoundedNumberOfChunks(t *testing.T) {
	var blobs []*blob.Info
	for i := range uint32(maxChunks / blob.MaxChunks) {
		blobs = append(blobs, &blob.Info{Index: i, ID: fmt.Sprint(i), ChunkCount: blob.MaxChunks})
	}
	if err := checkBlobs(0, blobs); err != nil {
		t.Errorf("%d blobs: %v", len(blobs), err)
	}
	blobs = append(blobs, &blob.Info{Index: uint32(len(blobs)), ID: "one too many", ChunkCount: 1})
	if err := checkBlobs(0, blobs); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%d blobs: %v, want ErrCorrupt", len(blobs), err)
	}
}
